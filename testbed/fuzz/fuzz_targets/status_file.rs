//! A status file, read back as `hostler status` does it.
#![no_main]

use std::fs;

use hostler::status_file::{StatusFileError, StatusFiles, read};
use hostler_fuzz::{DIR, check_shown, path};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let found = path("found");
    fs::write(&found, bytes).unwrap();
    let status = match read(&found) {
        Ok(status) => status,
        Err(error) => {
            check_shown(&error.to_string());
            let StatusFileError::Damaged { seems: Some(status), .. } = error else { return };
            *status
        }
    };
    let files = StatusFiles::new(DIR.path());
    files.write(&status).unwrap();
    assert_eq!(read(&files.path(&status.node)).unwrap(), status);
    files.remove(&status.node).unwrap();
});
