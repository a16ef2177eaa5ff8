//! The checks of the boot loaders in `tftp.loaders`, by the firmware and architectures of the
//! specs, and of the deploy ramdisks.

use std::{path::Path, sync::Arc};

use crate::{
    agent::Preflight,
    config::Config,
    model::{
        boot::{Arch, Firmware},
        spec::{Loader, NodeSpec},
    },
    netboot::{LoaderFiles, NoLoader},
};

use super::finding::Finding;

pub(super) fn check(config: &Config, specs: &[Arc<NodeSpec>]) -> Vec<Finding> {
    let mut findings = loaders(&config.tftp.loaders, specs);
    findings.extend(ramdisks(&Preflight::new(config), specs));
    findings
}

/// One finding for each kind of machine.
fn loaders(dir: &Path, specs: &[Arc<NodeSpec>]) -> Vec<Finding> {
    let files = LoaderFiles::in_dir(dir);
    let mut kinds: Vec<(Firmware, Arch, Loader)> = Vec::new();
    for spec in specs {
        let boot = &spec.boot;
        let kind = (boot.firmware, boot.arch, boot.loader);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.into_iter().map(|kind| loader(dir, &files, kind)).collect()
}

fn loader(
    dir: &Path,
    files: &LoaderFiles,
    (firmware, arch, wanted): (Firmware, Arch, Loader),
) -> Finding {
    let check = "loader";
    let firmware_name = match firmware {
        Firmware::Bios => "BIOS",
        Firmware::Uefi => "UEFI",
    };
    let machines = format!("machines with {firmware_name}, {}", arch.as_str());
    match files.first_file(firmware, arch, wanted) {
        Ok(file) => Finding::ok(check, format!("{machines}: {file}")),
        Err(NoLoader::Incomplete { file, needs }) => {
            let dir = dir.display();
            let message = format!("{machines}: {file} needs {needs}, which is not in {dir}");
            Finding::failure(check, message, package(needs))
        }
        Err(NoLoader::Missing(usual)) => {
            let message =
                format!("{machines}: none of {} is in {}", usual.join(", "), dir.display());
            let hint = usual.first().map_or_else(String::new, |file| package(file));
            if wanted == Loader::Ipxe {
                let hint = format!("{hint}; without it only iPXE in the firmware boots");
                Finding::warning(check, message, hint)
            } else {
                Finding::failure(check, message, hint)
            }
        }
    }
}

/// The Debian package that has a boot loader.
fn package(file: &str) -> String {
    let package = match file {
        "ldlinux.c32" => "syslinux-common",
        "grub.pxe" => "grub-pc-bin",
        "undionly.kpxe" | "snponly.efi" | "ipxe.efi" => "ipxe",
        "grubx64.efi" => "grub-efi-amd64-signed (grubnetx64.efi.signed there)",
        "grubaa64.efi" => "grub-efi-arm64-signed (grubnetaa64.efi.signed there)",
        "shimx64.efi" | "shimaa64.efi" => "shim-signed",
        _ => "pxelinux",
    };
    format!("copy {file} there from Debian's package {package}")
}

/// One finding for each deploy ramdisk that the specs need.
fn ramdisks(preflight: &Preflight, specs: &[Arc<NodeSpec>]) -> Vec<Finding> {
    let check = "ramdisk";
    let mut findings: Vec<Finding> = Vec::new();
    for spec in specs {
        let found = match preflight.deploy_files(spec) {
            Ok(()) => Finding::ok(check, format!("for {}", spec.boot.arch.as_str())),
            Err(fault) => Finding::failure(check, fault.message, fault.hint),
        };
        if !findings.contains(&found) {
            findings.push(found);
        }
    }
    findings
}
