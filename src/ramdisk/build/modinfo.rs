//! The self-description of a kernel module: the strings of its `.modinfo` section (Linux
//! `include/linux/module.h`, `MODULE_INFO`).
//!
//! [`super::select`] uses it. Debian's kernel package has no `modules.dep`, which the installation
//! makes; the modules themselves hold the same facts. It must never panic on any file.

use std::str;

use super::elf;

/// A module's dependencies, aliases and firmware. Names are normalized: `-` is `_`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModInfo {
    /// Modules that must be loaded before it: direct dependencies.
    pub(super) depends: Vec<String>,
    /// Modules that should be loaded before it, if they exist.
    pub(super) before: Vec<String>,
    /// Modules that should be loaded after it, if they exist.
    pub(super) after: Vec<String>,
    /// Aliases of the hardware that it drives.
    pub(super) aliases: Vec<String>,
    /// Firmware files that it may request.
    pub(super) firmware: Vec<String>,
}

/// The bytes are no readable module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a 64-bit little-endian ELF file with a .modinfo section")]
pub(super) struct NotAModule;

impl ModInfo {
    /// Reads the module's information.
    pub(super) fn read(file: &[u8]) -> Result<Self, NotAModule> {
        let section = elf::section(file, b".modinfo").ok_or(NotAModule)?;
        let mut info = Self::default();
        for entry in section.split(|b| *b == 0).filter_map(|entry| str::from_utf8(entry).ok()) {
            match entry.split_once('=') {
                Some(("depends", names)) => info.depends.extend(words(names, ',')),
                Some(("softdep", rule)) => info.soft(rule),
                Some(("alias", pattern)) => info.aliases.push(pattern.to_owned()),
                Some(("firmware", name)) => info.firmware.push(name.to_owned()),
                _ => {}
            }
        }
        Ok(info)
    }

    /// Parses a soft dependency: `pre: a b post: c`.
    fn soft(&mut self, rule: &str) {
        let mut list = None;
        for word in rule.split_ascii_whitespace() {
            match (word, &mut list) {
                ("pre:", _) => list = Some(&mut self.before),
                ("post:", _) => list = Some(&mut self.after),
                (name, Some(list)) => list.push(normal(name)),
                (_, None) => {}
            }
        }
    }
}

/// Normalizes a module's name as the kernel does: file names and dependency lists mix `-` and `_`.
pub(super) fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn words(list: &str, separator: char) -> impl Iterator<Item = String> {
    list.split(separator).filter(|word| !word.is_empty()).map(normal)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes a minimal ELF file with this `.modinfo`.
    pub(in super::super) fn module(modinfo: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (names_at, info_at) = (64, 64 + names.len());
        let table = info_at + modinfo.len();
        let mut elf = vec![0_u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        elf[0x3a..0x40].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
        elf.extend(names);
        elf.extend(modinfo.as_bytes());
        for (name, at, length) in
            [(0_u32, 0, 0), (1, info_at, modinfo.len()), (10, names_at, names.len())]
        {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            elf.extend(header);
        }
        elf
    }

    #[test]
    fn a_modules_needs_aliases_and_firmware_are_read() {
        let elf = module(
            "license=GPL\0alias=pci:v1*\0alias=pci:v2*\0depends=scsi_mod,t10-pi\0\
             softdep=pre: crc32c x-y post: mlx4_en\0firmware=tigon/tg3.bin\0",
        );
        let info = ModInfo::read(&elf).unwrap();
        assert_eq!(info.depends, ["scsi_mod", "t10_pi"]);
        assert_eq!(
            (info.before, info.after),
            (vec!["crc32c".into(), "x_y".into()], vec!["mlx4_en".into()])
        );
        assert_eq!(info.aliases, ["pci:v1*", "pci:v2*"]);
        assert_eq!(info.firmware, ["tigon/tg3.bin"]);
    }

    #[test]
    fn a_module_without_dependencies_needs_nothing() {
        assert_eq!(ModInfo::read(&module("depends=\0")).unwrap(), ModInfo::default());
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(ModInfo::read(b"#!/bin/sh\n"), Err(NotAModule));
        let mut big_endian = module("depends=\0");
        big_endian[5] = 2;
        assert_eq!(ModInfo::read(&big_endian), Err(NotAModule));
    }

    proptest! {
        #[test]
        fn never_panics_on_any_bytes(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            damage in proptest::collection::vec((0_usize..300, any::<u8>()), 0..8),
        ) {
            ModInfo::read(&bytes).ok();
            bytes.splice(..bytes.len().min(6), *b"\x7fELF\x02\x01");
            ModInfo::read(&bytes).ok();
            let mut damaged = module("depends=a,b\0alias=x\0softdep=pre: pre: post:\0");
            for (at, value) in damage {
                if let Some(byte) = damaged.get_mut(at) { *byte = value; }
            }
            ModInfo::read(&damaged).ok();
        }
    }
}
