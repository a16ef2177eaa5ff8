//! Names in a FAT directory: short names of eight and three capitals, and records for longer names
//! (specification §7).

#![expect(clippy::cast_possible_truncation, reason = "a name has 20 records at most")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Error},
};

/// Bytes of a record in a directory (§6).
pub(super) const RECORD_BYTES: usize = 32;
/// Most UTF-16 units of a long name (§7.1).
const UNITS_MAX: usize = 255;
/// UTF-16 units in one record of a long name (§7.1).
const UNITS_IN_RECORD: usize = 13;

/// A name in a directory.
#[derive(Default)]
pub(super) struct Name {
    /// The short name: eight characters and three of the extension, padded with spaces.
    pub short: [u8; 11],
    /// The long name; empty if `short` is the whole name.
    long: Vec<u16>,
}

/// The names used so far, by directory.
#[derive(Default)]
pub(super) struct Names<'a> {
    /// By directory: lower-case names, which have to differ, and short names.
    taken: BTreeMap<&'a str, (BTreeSet<String>, BTreeSet<[u8; 11]>)>,
}

impl<'a> Names<'a> {
    /// Adds a name to a directory. Fails if FAT does not allow the name, or the directory has it
    /// already in another case.
    pub(super) fn take(&mut self, folder: &'a str, name: &str) -> io::Result<Name> {
        let is_bad = |c: char| c < ' ' || r#""*/:<>?\|"#.contains(c);
        let long: Vec<u16> = name.encode_utf16().collect();
        if name.is_empty()
            || long.len() > UNITS_MAX
            || name.contains(is_bad)
            || name.ends_with(['.', ' '])
        {
            return Err(Error::other(format!("FAT cannot have the name {name:?}")));
        }
        let (names, shorts) = self.taken.entry(folder).or_default();
        if !names.insert(name.to_lowercase()) {
            return Err(Error::other(format!("{name:?} is there twice, as FAT reads names")));
        }
        if let Some(short) = as_short(name)
            && shorts.insert(short)
        {
            return Ok(Name { short, long: Vec::new() });
        }
        let free =
            (1..=999_999).map(|number| alias(name, number)).find(|short| shorts.insert(*short));
        let short = free.ok_or_else(|| Error::other("too many names in one directory"))?;
        Ok(Name { short, long })
    }
}

impl Name {
    /// The number of records of the name, including the file's own.
    pub(super) fn records(&self) -> usize {
        self.long.len().div_ceil(UNITS_IN_RECORD) + 1
    }

    /// Encodes the records of a long name, last part first (§7.1).
    pub(super) fn long_records(&self) -> Vec<u8> {
        let sum = self.short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        let parts: Vec<&[u16]> = self.long.chunks(UNITS_IN_RECORD).collect();
        let mut records = Vec::with_capacity(parts.len() * RECORD_BYTES);
        for (before, part) in parts.iter().enumerate().rev() {
            let is_last = before + 1 == parts.len();
            // A zero follows a name that ends within a record; the rest is padding.
            let ended = part.iter().copied().chain(std::iter::once(0));
            let units: Vec<u8> = ended
                .chain(std::iter::repeat(0xffff))
                .take(UNITS_IN_RECORD)
                .flat_map(u16::to_le_bytes)
                .collect();
            let (first, rest) = units.split_at(10);
            let (second, third) = rest.split_at(12);
            records.push((before as u8 + 1) | if is_last { 0x40 } else { 0 });
            records.extend(first);
            records.extend([0x0f, 0, sum]);
            records.extend(second);
            records.extend([0, 0]);
            records.extend(third);
        }
        records
    }
}

/// Converts a name that needs no long name.
fn as_short(name: &str) -> Option<[u8; 11]> {
    let (stem, ending) = name.split_once('.').unwrap_or((name, ""));
    let fits = (1..=8).contains(&stem.len())
        && ending.len() <= 3
        && [stem, ending].concat().bytes().all(is_plain);
    fits.then(|| padded(stem, ending))
}

/// The short name of a long one: `LONGNA~1.TXT`.
fn alias(name: &str, number: u32) -> [u8; 11] {
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
    let plain = |text: &str, most: usize| -> String {
        text.chars()
            .map(|c| c.to_ascii_uppercase())
            .filter(|c| u8::try_from(*c).is_ok_and(is_plain))
            .take(most)
            .collect()
    };
    let tail = format!("~{number}");
    padded(&(plain(stem, 8 - tail.len()) + &tail), &plain(ending, 3))
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"$%'-_@~`!(){}^#&".contains(&byte)
}

fn padded(stem: &str, ending: &str) -> [u8; 11] {
    let mut short = [b' '; 11];
    let text = format!("{stem:<8}{ending:<3}");
    short.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    short
}
