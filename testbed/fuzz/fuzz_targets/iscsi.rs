#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostler::iscsi::fuzz(bytes));
