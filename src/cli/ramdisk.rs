//! `hostler ramdisk build`: builds the deploy kernel and ramdisk, and reports its parts.
//!
//! Only this report names a missing part: the machine that needs it has no network, or no disk, to
//! report it.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use crate::ramdisk::build::{self, BuildOptions, Built};

use super::{Failure, debian};

/// The place of the package's `hostler-ramdisk`.
const BINARY: &str = "/usr/lib/hostler/hostler-ramdisk";
/// The directory of the kernel and the ramdisk, as in the example configuration.
const OUT: &str = "/usr/share/hostler";
/// Widest line, in characters.
const WIDTH: usize = 100;

#[derive(Debug, clap::Subcommand)]
pub(super) enum RamdiskCommand {
    /// Build the deploy kernel and ramdisk from a kernel's package. The same input gives the same
    /// bytes.
    ///
    /// Prints the ramdisk's drivers, usual drivers that the kernel lacks, and firmware that its
    /// drivers may request and the packages lack.
    Build(BuildArgs),
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("kernel").required(true))]
pub(super) struct BuildArgs {
    /// Fetch Debian's kernel with apt-get. No package is installed.
    #[arg(long, group = "kernel")]
    debian: bool,
    /// With --debian: fetch this package, too: one with firmware, or one with another kernel. May
    /// be given several times.
    #[arg(long = "package", value_name = "NAME", requires = "debian")]
    packages: Vec<String>,
    /// The unpacked kernel package: a directory with boot/ and lib/modules/. Packages of firmware
    /// may be unpacked into the same directory, or beside it in directories of their own.
    #[arg(long, value_name = "DIR", group = "kernel")]
    kernel_package: Option<PathBuf>,
    /// Add this module and its dependencies. May be given several times.
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Add all drivers of network interfaces and disk controllers, also of old ones and of storage
    /// networks, but none of USB storage.
    #[arg(long)]
    all_drivers: bool,
    /// The static hostler-ramdisk binary.
    #[arg(long, value_name = "FILE", default_value = BINARY)]
    binary: PathBuf,
    /// The directory for vmlinuz and initramfs.
    #[arg(long, value_name = "DIR", default_value = OUT)]
    out: PathBuf,
}

/// The program of the ramdisk is not there.
#[derive(Debug, thiserror::Error)]
#[error("{}: no such file; hostler's package brings {BINARY}, or give --binary", .0.display())]
struct NoBinary(PathBuf);

pub(super) fn run(command: RamdiskCommand, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let RamdiskCommand::Build(args) = command;
    let BuildArgs { packages, kernel_package, modules, all_drivers, binary, out: dir, .. } = args;
    // Before anything is fetched.
    if !binary.exists() {
        return Err(NoBinary(binary).into());
    }
    // A fetched directory is removed in the end.
    let (kernel_package, fetched) = if let Some(given) = kernel_package {
        (given, None)
    } else {
        let fetched = debian::unpack(&debian::with_kernel(&packages)?)?;
        (fetched.path().to_owned(), Some(fetched))
    };
    let options = BuildOptions { kernel_package, modules, all_drivers, binary, out: dir };
    show(&build::build(&options)?, fetched.is_some(), out)?;
    Ok(ExitCode::SUCCESS)
}

fn show(built: &Built, is_fetched: bool, out: &mut dyn Write) -> io::Result<()> {
    let (kib, modules) = (built.initramfs_bytes / 1024, built.modules.len());
    writeln!(out, "{}: Linux {}", built.kernel.display(), built.release)?;
    writeln!(out, "{}: {kib} KiB, {modules} modules", built.initramfs.display())?;
    list(out, "modules:", &built.modules)?;
    if !built.firmware.is_empty() {
        list(out, "firmware:", &built.firmware)?;
    }
    if !built.drivers_missing.is_empty() {
        list(out, "not in this kernel:", &built.drivers_missing)?;
    }
    if built.firmware_missing.is_empty() {
        return Ok(());
    }
    writeln!(out, "firmware that these modules may ask for and that is in none of the packages:")?;
    for missing in &built.firmware_missing {
        let from = match missing.debian_packages.as_slice() {
            [] => String::new(),
            packages => format!(", {} of Debian", packages.join(", ")),
        };
        let others = if missing.has_some { ", others are there" } else { "" };
        list(out, &format!("  {}{from}{others}:", missing.module), &missing.files)?;
    }
    let packages = built.firmware_missing.iter().flat_map(|missing| &missing.debian_packages);
    let packages: BTreeSet<&str> = packages.map(String::as_str).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    let how = match (packages.is_empty(), is_fetched) {
        (true, _) => String::new(),
        (false, true) => {
            format!(" with --package {}, of non-free-firmware", packages.join(" --package "))
        }
        (false, false) => format!(": apt-get download {}", packages.join(" ")),
    };
    let act = if is_fetched { "" } else { "unpack its package beside the kernel's and " };
    writeln!(out, "if a machine has such a NIC, {act}build again{how}")
}

/// Prints a heading and a list of words, wrapped.
fn list(out: &mut dyn Write, heading: &str, words: &[String]) -> io::Result<()> {
    let mut line = heading.to_owned();
    for word in words {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(out, "{line}")?;
            "   ".clone_into(&mut line);
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::ramdisk::build::MissingFirmware;

    #[test]
    fn what_is_in_a_ramdisk_and_what_is_missing_is_said() {
        let words = |text: &str| text.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        let missing = |module: &str, has_some, files: &str, packages: &[&str]| MissingFirmware {
            module: module.into(),
            has_some,
            files: words(files),
            debian_packages: packages.iter().map(|package| (*package).to_owned()).collect(),
        };
        let mut built = Built {
            release: "6.1.0-57-amd64".into(),
            kernel: "out/vmlinuz".into(),
            initramfs: "out/initramfs".into(),
            initramfs_bytes: 14_000_000,
            modules: (0..20).map(|n| format!("module{n}")).collect(),
            firmware: Vec::new(),
            drivers_missing: Vec::new(),
            firmware_missing: Vec::new(),
        };
        let shown = |built: &Built, is_fetched| {
            let mut text = Vec::new();
            show(built, is_fetched, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        assert!(!shown(&built, false).contains("firmware"), "nothing is missing");
        built.firmware = words("rtl_nic/rtl8168h-2.fw");
        built.drivers_missing = words("idpf ionic");
        built.firmware_missing = vec![
            missing("bnx2x", false, "bnx2x/a.fw bnx2x/b.fw", &["firmware-bnx2x"]),
            missing("old", false, "old.bin", &[]),
            missing("r8169", true, "rtl_nic/rtl8125b-2.fw", &["firmware-realtek"]),
        ];
        expect![[r#"
            out/vmlinuz: Linux 6.1.0-57-amd64
            out/initramfs: 13671 KiB, 20 modules
            modules: module0 module1 module2 module3 module4 module5 module6 module7 module8 module9 module10
                module11 module12 module13 module14 module15 module16 module17 module18 module19
            firmware: rtl_nic/rtl8168h-2.fw
            not in this kernel: idpf ionic
            firmware that these modules may ask for and that is in none of the packages:
              bnx2x, firmware-bnx2x of Debian: bnx2x/a.fw bnx2x/b.fw
              old: old.bin
              r8169, firmware-realtek of Debian, others are there: rtl_nic/rtl8125b-2.fw
            if a machine has such a NIC, unpack its package beside the kernel's and build again: apt-get download firmware-bnx2x firmware-realtek
        "#]].assert_eq(&shown(&built, false));
        let advice = shown(&built, true).lines().last().unwrap().to_owned();
        expect![
            "if a machine has such a NIC, build again with --package firmware-bnx2x --package \
             firmware-realtek, of non-free-firmware"
        ]
        .assert_eq(&advice);
    }
}
