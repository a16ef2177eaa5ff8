//! Tests without another program: arbitrary bytes as an image, and names that FAT does not allow.

use std::{io::Write as _, sync::Arc};

use proptest::prelude::*;

use super::{
    DriveError, esp,
    fat::{FatFormat, FatKind, make},
    probe, swap_header,
};
use crate::{checked_file::CheckedFile, model::boot::Arch};

/// Magic numbers and their offsets, so that random bytes pass the first check.
const MAGICS: [(usize, &[u8]); 4] =
    [(1024 + 0x38, b"\x53\xef"), (0, b"XFSB"), (64 * 1024 + 0x40, b"_BHRfS_M"), (510, b"\x55\xaa")];

fn image(bytes: &[u8], length: u64) -> CheckedFile {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.set_len(length).unwrap();
    CheckedFile::unchecked(Arc::new(file)).unwrap()
}

fn fat(files: &[(&str, u32)]) -> Result<(), String> {
    let format =
        FatFormat { label: "x", id: 0, kind: FatKind::Fat12, bytes_min: 0, sector_bytes: 512 };
    make(&format, files, |_, place| {
        place.fill(1);
        Ok(())
    })
    .map(drop)
    .map_err(|error| error.to_string())
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(
        start in proptest::collection::vec(any::<u8>(), 0..2048),
        later in proptest::collection::vec(any::<u8>(), 0..512),
        magic in 0..MAGICS.len(),
        is_far in any::<bool>(),
    ) {
        let mut bytes = start;
        if is_far {
            bytes.resize(64 * 1024, 0);
            bytes.extend(later);
        }
        let (at, magic) = MAGICS[magic];
        if let Some(place) = bytes.get_mut(at..at + magic.len()) {
            place.copy_from_slice(magic);
        }
        let image = image(&bytes, bytes.len() as u64);
        if let Ok(found) = probe(&image) {
            prop_assert!(found.bytes <= bytes.len() as u64);
        }
        prop_assert!(esp(&image, Arch::X86_64, 512).is_err());
    }

    #[test]
    fn any_names_and_lengths_are_laid_out_or_refused(
        files in proptest::collection::vec(("[a-zA-Z .~+\u{e9}/]{1,20}", 0..5000_u32), 0..20),
    ) {
        let files: Vec<(&str, u32)> = files.iter().map(|(path, bytes)| (&**path, *bytes)).collect();
        drop(fat(&files));
    }
}

#[test]
fn an_image_of_implausible_measures_is_refused_before_memory_is_taken_for_it() {
    let mut superblock = vec![0; 2048];
    let mut put = |at: usize, bytes: &[u8]| {
        superblock[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
    };
    put(0x38, b"\x53\xef");
    put(0x68, &[1; 16]);
    put(0x4, &(1_u32 << 30).to_le_bytes());
    put(0x20, &1_u32.to_le_bytes());
    let file = image(&superblock, 1 << 40);
    let error = esp(&file, Arch::X86_64, 512).unwrap_err();
    assert!(
        matches!(&error, DriveError::BootFiles { message } if message.contains("damaged")),
        "{error}"
    );
}

#[test]
fn names_that_fat_cannot_have_are_refused_by_name() {
    for (path, why) in [
        ("a:b", "FAT cannot have the name \"a:b\""),
        ("x/dot.", "FAT cannot have the name \"dot.\""),
        ("a//b", "FAT cannot have the name \"\""),
    ] {
        assert_eq!(fat(&[(path, 1)]), Err(why.to_owned()));
    }
    assert_eq!(
        fat(&[("x/A", 1), ("X/b", 1)]),
        Err("\"x\" is there twice, as FAT reads names".to_owned())
    );
    assert_eq!(fat(&[("a", 3 << 20)]), Err("too much for a FAT file system".to_owned()));
    let many: Vec<String> = (0..600).map(|number| number.to_string()).collect();
    let many: Vec<(&str, u32)> = many.iter().map(|path| (&**path, 1)).collect();
    assert_eq!(fat(&many), Err("too much for a FAT file system".to_owned()));
}

#[test]
fn swap_space_of_too_few_pages_is_refused() {
    let error = swap_header(40_959, [1; 16], "").unwrap_err();
    assert_eq!(error.to_string(), "swap space of 39.9 KiB, needs at least 40.0 KiB");
    swap_header(40_960, [1; 16], "").unwrap();
}
