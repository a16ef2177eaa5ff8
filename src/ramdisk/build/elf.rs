//! The parts of ELF-64 that the builder needs (gABI ch. 4 and 5): a section's bytes, the processors
//! that a file is for, and whether a program needs a dynamic loader.
//!
//! [`super::modinfo`] uses it for modules, and the builder for the program. It must never panic on
//! any file.

use std::ops::Range;

use crate::model::boot::Arch;

const MAGIC_64_BIT_LITTLE_ENDIAN: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
const SECTION_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// The numbers of the supported processors (psABIs).
const EM_X86_64: usize = 62;
const EM_AARCH64: usize = 183;
/// The program header that names the dynamic loader.
const PT_INTERP: usize = 3;

/// The contents of the section with this name.
pub(super) fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let table = Table::read(elf, 0x28..0x30, 0x3a..0x3c, 0x3c..0x3e)?;
    let contents = |header: &[u8]| {
        let at = number(header, 0x18..0x20)?;
        elf.get(at..at.checked_add(number(header, 0x20..0x28)?)?)
    };
    let names = contents(table.entry(elf, number(elf, 0x3e..0x40)?, SECTION_HEADER_BYTES)?)?;
    (0..table.count)
        .filter_map(|index| table.entry(elf, index, SECTION_HEADER_BYTES))
        .find(|header| {
            number(header, 0..4)
                .and_then(|at| names.get(at..)?.strip_prefix(name))
                .is_some_and(|rest| rest.first() == Some(&0))
        })
        .and_then(contents)
}

/// Whether this is a program that runs without a dynamic loader.
pub(super) fn is_static_program(elf: &[u8]) -> bool {
    Table::read(elf, 0x20..0x28, 0x36..0x38, 0x38..0x3a).is_some_and(|table| {
        let mut kinds = (0..table.count)
            .map(|index| number(table.entry(elf, index, PROGRAM_HEADER_BYTES)?, 0..4));
        table.count > 0 && kinds.all(|kind| kind.is_some_and(|kind| kind != PT_INTERP))
    })
}

/// The processors that a file is for.
pub(super) fn arch(elf: &[u8]) -> Option<Arch> {
    let machine = elf.starts_with(&MAGIC_64_BIT_LITTLE_ENDIAN).then(|| number(elf, 0x12..0x14));
    match machine?? {
        EM_X86_64 => Some(Arch::X86_64),
        EM_AARCH64 => Some(Arch::Aarch64),
        _ => None,
    }
}

/// A table of headers.
struct Table {
    at: usize,
    entry_bytes: usize,
    count: usize,
}

impl Table {
    /// Reads where the file header says that the table is.
    fn read(
        elf: &[u8],
        at: Range<usize>,
        entry: Range<usize>,
        count: Range<usize>,
    ) -> Option<Self> {
        elf.starts_with(&MAGIC_64_BIT_LITTLE_ENDIAN).then_some(())?;
        Some(Self {
            at: number(elf, at)?,
            entry_bytes: number(elf, entry)?,
            count: number(elf, count)?,
        })
    }

    fn entry<'a>(&self, elf: &'a [u8], index: usize, bytes: usize) -> Option<&'a [u8]> {
        let at = self.at.checked_add(index.checked_mul(self.entry_bytes)?)?;
        elf.get(at..at.checked_add(bytes)?)
    }
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8], range: Range<usize>) -> Option<usize> {
    let number =
        bytes.get(range)?.iter().rev().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    usize::try_from(number).ok()
}

/// Makes it a file for these processors.
#[cfg(test)]
pub(super) fn for_arch(arch: Arch, mut elf: Vec<u8>) -> Vec<u8> {
    let machine = match arch {
        Arch::X86_64 => EM_X86_64,
        Arch::Aarch64 => EM_AARCH64,
    };
    elf[0x12] = u8::try_from(machine).unwrap();
    elf
}

/// The headers of a program with one segment to load.
#[cfg(test)]
pub(super) fn static_program() -> Vec<u8> {
    let mut elf = vec![0; 0x40 + PROGRAM_HEADER_BYTES];
    elf.splice(..6, MAGIC_64_BIT_LITTLE_ENDIAN);
    elf[0x20] = 0x40;
    elf[0x36] = u8::try_from(PROGRAM_HEADER_BYTES).unwrap();
    elf[0x38] = 1;
    elf[0x40] = 1;
    elf
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_program_with_a_dynamic_loader_is_not_static() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static_program(&this));
        let busybox = std::fs::read("/bin/busybox").unwrap();
        assert!(is_static_program(&busybox) && is_static_program(&static_program()));
        assert!(!is_static_program(b"#!/bin/sh\n"));
        assert!([Some(Arch::X86_64), Some(Arch::Aarch64)].contains(&arch(&this)));
        assert_eq!((arch(&this), arch(b"\x7fELF\x02\x01")), (arch(&busybox), None));
    }

    proptest! {
        #[test]
        fn never_panics_on_any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 64..400)) {
            bytes.splice(..6, MAGIC_64_BIT_LITTLE_ENDIAN);
            is_static_program(&bytes);
            section(&bytes, b".modinfo");
            arch(&bytes);
        }
    }
}
