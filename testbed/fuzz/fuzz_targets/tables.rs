//! A disk image's partition table, for a disk of any size.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostler::imaging::fuzz(bytes));
