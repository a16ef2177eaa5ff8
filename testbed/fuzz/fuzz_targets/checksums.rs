//! Files of checksums: the name to find, a NUL, the list.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostler::image::fuzz_checksums(bytes));
