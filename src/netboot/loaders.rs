//! The boot loaders that machines begin with, by their usual file names.
//!
//! `hostler doctor` and the agent's start look for them. The server itself must never depend on
//! them: it serves whatever lies in the directory, and a firmware may bring its own loader.

use std::{collections::BTreeSet, fs, path::Path};

use crate::model::{
    boot::{Arch, Firmware},
    spec::Loader,
};

/// Most files of the directory of loaders that are looked at.
const FILES_MAX: usize = 10_000;

/// A boot loader that a machine can begin with.
struct FirstFile {
    firmware: Firmware,
    arch: Arch,
    loader: Loader,
    file: &'static str,
    /// The file that this one loads from the same directory; empty if it needs none.
    needs: &'static str,
}

const fn first(
    firmware: Firmware,
    arch: Arch,
    loader: Loader,
    file: &'static str,
    needs: &'static str,
) -> FirstFile {
    FirstFile { firmware, arch, loader, file, needs }
}

const FIRST_FILES: [FirstFile; 12] = {
    use Arch::{Aarch64, X86_64};
    use Firmware::{Bios, Uefi};
    use Loader::{Grub, Ipxe, Pxelinux};
    [
        first(Bios, X86_64, Pxelinux, "pxelinux.0", "ldlinux.c32"),
        first(Bios, X86_64, Pxelinux, "lpxelinux.0", "ldlinux.c32"),
        first(Bios, X86_64, Grub, "grub.pxe", ""),
        first(Bios, X86_64, Ipxe, "undionly.kpxe", ""),
        first(Uefi, X86_64, Grub, "grubx64.efi", ""),
        first(Uefi, X86_64, Grub, "shimx64.efi", "grubx64.efi"),
        first(Uefi, X86_64, Ipxe, "snponly.efi", ""),
        first(Uefi, X86_64, Ipxe, "ipxe.efi", ""),
        first(Uefi, Aarch64, Grub, "grubaa64.efi", ""),
        first(Uefi, Aarch64, Grub, "shimaa64.efi", "grubaa64.efi"),
        first(Uefi, Aarch64, Ipxe, "snponly-arm64.efi", ""),
        first(Uefi, Aarch64, Ipxe, "ipxe-arm64.efi", ""),
    ]
};

/// The names of the boot files in a directory of loaders.
#[derive(Clone, Debug, Default)]
pub struct LoaderFiles(BTreeSet<String>);

/// The reason why a kind of machine has no boot loader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoLoader {
    /// None of these files is there; the first one is the usual.
    Missing(Vec<&'static str>),
    /// A loader is there without the file that it loads.
    Incomplete {
        /// The loader.
        file: &'static str,
        /// The missing file.
        needs: &'static str,
    },
}

impl LoaderFiles {
    /// Reads the names in the directory and those beneath it; none if it is missing.
    pub fn in_dir(dir: &Path) -> Self {
        let mut names = BTreeSet::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
                if names.len() >= FILES_MAX {
                    return Self(names);
                }
                let path = entry.path();
                if path.is_file() {
                    names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
                } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    dirs.push(path);
                }
            }
        }
        Self(names)
    }

    /// Whether no machine can begin with any of these files.
    pub fn has_none(&self) -> bool {
        FIRST_FILES.iter().all(|first| !self.0.contains(first.file))
    }

    /// The file that a machine of this kind can begin with.
    pub fn first_file(
        &self,
        firmware: Firmware,
        arch: Arch,
        wanted: Loader,
    ) -> Result<&'static str, NoLoader> {
        let fits = |first: &&FirstFile| {
            // iPXE is started by the other loaders too.
            let by_loader = matches!(wanted, Loader::Auto | Loader::Ipxe) || first.loader == wanted;
            first.firmware == firmware && first.arch == arch && by_loader
        };
        let fitting = || FIRST_FILES.iter().filter(fits);
        let there = || fitting().filter(|first| self.0.contains(first.file));
        let is_whole = |first: &&FirstFile| first.needs.is_empty() || self.0.contains(first.needs);
        match (there().find(is_whole), there().next()) {
            (Some(first), _) => Ok(first.file),
            (None, Some(&FirstFile { file, needs, .. })) => {
                Err(NoLoader::Incomplete { file, needs })
            }
            (None, None) => Err(NoLoader::Missing(fitting().map(|first| first.file).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_without_the_file_that_it_loads_is_no_loader() {
        let with = |names: &[&str], wanted| {
            let files = LoaderFiles(names.iter().map(|name| (*name).to_owned()).collect());
            files.first_file(Firmware::Bios, Arch::X86_64, wanted)
        };
        let incomplete = NoLoader::Incomplete { file: "pxelinux.0", needs: "ldlinux.c32" };
        assert_eq!(with(&["pxelinux.0"], Loader::Auto), Err(incomplete));
        let pxelinux = ["pxelinux.0", "ldlinux.c32"];
        assert_eq!(with(&pxelinux, Loader::Auto), Ok("pxelinux.0"));
        assert_eq!(with(&pxelinux, Loader::Ipxe), Ok("pxelinux.0"), "which starts iPXE");
        assert_eq!(with(&pxelinux, Loader::Grub), Err(NoLoader::Missing(vec!["grub.pxe"])));
        assert_eq!(with(&["pxelinux.0", "grub.pxe"], Loader::Auto), Ok("grub.pxe"));
    }

    #[test]
    fn loaders_are_found_in_directories_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        assert!(LoaderFiles::in_dir(dir.path()).has_none());
        fs::create_dir_all(dir.path().join("EFI/BOOT")).unwrap();
        fs::write(dir.path().join("EFI/BOOT/grubx64.efi"), "").unwrap();
        let files = LoaderFiles::in_dir(dir.path());
        assert!(!files.has_none());
        let found = files.first_file(Firmware::Uefi, Arch::X86_64, Loader::Auto);
        assert_eq!(found, Ok("grubx64.efi"));
    }
}
