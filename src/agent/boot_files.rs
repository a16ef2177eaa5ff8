//! Deploy kernels and ramdisks: the kind for each machine, their names in requests, and their
//! files.
//!
//! Called for the boot file catalog, for a node's boot menu, and before an attempt. Nothing here
//! may read a file: it only checks that the file exists.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    config::Config,
    model::{
        boot::Arch,
        fault::{Fault, Step},
        spec::{Boot, DeployRamdisk},
    },
    regular_file,
};

/// A kind of deploy ramdisk, with its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RamdiskKind {
    /// hostler's own ramdisk.
    Own(Arch),
    /// Ironic's ramdisk.
    Ironic,
}

impl RamdiskKind {
    const ALL: [Self; 3] = [Self::Own(Arch::X86_64), Self::Own(Arch::Aarch64), Self::Ironic];

    /// The kind for a machine with these boot settings.
    pub(super) const fn of(boot: &Boot) -> Self {
        match boot.ramdisk {
            DeployRamdisk::Hostler => Self::Own(boot.arch),
            DeployRamdisk::Ironic => Self::Ironic,
        }
    }

    /// The names of kernel and ramdisk in requests.
    pub(super) const fn names(self) -> [&'static str; 2] {
        match self {
            Self::Own(Arch::X86_64) => ["deploy/vmlinuz", "deploy/initramfs"],
            Self::Own(Arch::Aarch64) => ["deploy/aarch64/vmlinuz", "deploy/aarch64/initramfs"],
            Self::Ironic => ["ironic/vmlinuz", "ironic/initramfs"],
        }
    }

    fn configured(self, config: &Config) -> Option<[&Path; 2]> {
        let ramdisk = &config.ramdisk;
        match self {
            Self::Own(Arch::X86_64) => Some([&ramdisk.kernel, &ramdisk.initramfs]),
            Self::Own(Arch::Aarch64) => {
                ramdisk.aarch64.as_ref().map(|files| [&*files.kernel, &*files.initramfs])
            }
            Self::Ironic => config.ironic.as_ref().map(|files| [&*files.kernel, &*files.initramfs]),
        }
    }
}

/// The paths of the configured kernels and ramdisks.
#[derive(Clone, Debug)]
pub(super) struct DeployFiles(BTreeMap<RamdiskKind, [PathBuf; 2]>);

impl DeployFiles {
    pub(super) fn new(config: &Config) -> Self {
        let configured =
            |kind: RamdiskKind| Some((kind, kind.configured(config)?.map(Path::to_owned)));
        Self(RamdiskKind::ALL.into_iter().filter_map(configured).collect())
    }

    /// Returns every path with its name.
    pub(super) fn by_name(&self) -> BTreeMap<String, PathBuf> {
        let named = |(kind, paths): (&RamdiskKind, &[PathBuf; 2])| {
            kind.names().map(str::to_owned).into_iter().zip(paths.clone())
        };
        self.0.iter().flat_map(named).collect()
    }

    /// Returns a warning for each missing file, for the agent's start.
    pub(super) fn missing(&self) -> Vec<String> {
        let hint = |kind: &RamdiskKind| match kind {
            RamdiskKind::Own(_) => "make it with `hostler ramdisk build`, or correct [ramdisk]",
            RamdiskKind::Ironic => "put it there, or correct [ironic]",
        };
        let files =
            self.0.iter().flat_map(|(kind, paths)| paths.iter().map(move |path| (kind, path)));
        files
            .filter_map(|(kind, path)| {
                let error = regular_file::open(path).err()?;
                Some(format!(
                    "no machine can be installed with the deploy boot file {}: {error}; {}",
                    path.display(),
                    hint(kind)
                ))
            })
            .collect()
    }

    /// Checks that the files for a machine with these boot settings exist.
    pub(super) fn check(&self, boot: &Boot) -> Result<(), Fault> {
        let missing =
            |code, message: String, hint| Err(Fault::missing(Step::Preflight, code, message, hint));
        let kind = RamdiskKind::of(boot);
        let Some(paths) = self.0.get(&kind) else {
            return match kind {
                RamdiskKind::Own(_) => missing(
                    "BootFilesMissing",
                    "no deploy boot files for an aarch64 machine: [ramdisk.aarch64] is missing"
                        .to_owned(),
                    "make them with `hostler ramdisk build`, set [ramdisk.aarch64] in \
                     hostler.toml, and restart hostler",
                ),
                RamdiskKind::Ironic => missing(
                    "IronicNotConfigured",
                    "boot.ramdisk is \"ironic\", and this agent takes no calls of Ironic's ramdisk"
                        .to_owned(),
                    "set [ironic] in hostler.toml, with the ramdisk's kernel and initramfs, and \
                     restart hostler; or leave boot.ramdisk out",
                ),
            };
        };
        for path in paths {
            if let Err(error) = regular_file::open(path) {
                let hint = match kind {
                    RamdiskKind::Own(_) => {
                        "make them with `hostler ramdisk build`, and see [ramdisk]"
                    }
                    RamdiskKind::Ironic => {
                        "put them where [ironic] says, readable for hostler's user"
                    }
                };
                let message = format!("deploy boot file {}: {error}", path.display());
                return missing("BootFilesMissing", message, hint);
            }
        }
        Ok(())
    }
}
