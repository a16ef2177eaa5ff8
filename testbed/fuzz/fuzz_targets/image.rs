//! A published image: arbitrary bytes are decoded within the limit, or refused.
#![no_main]

use std::{
    fs::File,
    io::{self, Read as _},
    ops::ControlFlow,
    os::unix::fs::FileExt as _,
};

use hostler::{
    image::{DecodeLimits, decode, inspect},
    model::spec::ImageFormat,
};
use hostler_fuzz::{DIR, check_shown};
use libfuzzer_sys::fuzz_target;

const RAW_BYTES_MAX: u64 = 1 << 20;

/// Most progress reports: units of a disk with the smallest clusters, reads of the input, and
/// pieces of the output, twice for a packed file.
const REPORTS_MAX: usize = 300;

fn file() -> io::Result<File> {
    tempfile::tempfile_in(DIR.path())
}

fuzz_target!(|bytes: &[u8]| {
    let (published, into) = (file().unwrap(), file().unwrap());
    published.write_all_at(bytes, 0).unwrap();
    let look = inspect(&published, ImageFormat::Auto);
    let mut reported = Vec::new();
    let mut progress = |at| {
        reported.push(at);
        ControlFlow::Continue(())
    };
    let mut limits =
        DecodeLimits { raw_bytes_max: RAW_BYTES_MAX, progress: &mut progress, scratch: &file };
    let result = decode(&published, ImageFormat::Auto, &into, &mut limits);
    assert!(reported.is_sorted() && reported.last() <= Some(&(bytes.len() as u64)), "{reported:?}");
    assert!(reported.len() < REPORTS_MAX, "reported {} times", reported.len());
    assert!(into.metadata().unwrap().len() <= RAW_BYTES_MAX);
    match result {
        Ok(written) => {
            let look = look.unwrap();
            let mut raw = Vec::new();
            (&into).read_to_end(&mut raw).unwrap();
            assert_eq!(raw.len() as u64, written);
            assert!(!look.is_raw || raw == bytes);
        }
        Err(error) => check_shown(&error.to_string()),
    }
});
