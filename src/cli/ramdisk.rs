//! The report of `hostler ramdisk build` about the ramdisk that it has built.
//!
//! The command prints it. Only this report names a missing part: the machine that needs it has no
//! network, or no disk, to report it.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use crate::ramdisk::build::Built;

/// Widest line, in characters.
const WIDTH: usize = 100;

pub(super) fn show(built: &Built, out: &mut dyn Write) -> io::Result<()> {
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
    writeln!(
        out,
        "if a machine has such a NIC, unpack its package beside the kernel's and build again{}",
        match packages.as_slice() {
            [] => String::new(),
            all => format!(": apt-get download {}", all.join(" ")),
        }
    )
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
        let shown = |built: &Built| {
            let mut text = Vec::new();
            show(built, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        assert!(!shown(&built).contains("firmware"), "nothing is missing");
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
        "#]].assert_eq(&shown(&built));
    }
}
