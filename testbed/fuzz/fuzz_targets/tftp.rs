//! What a TFTP client sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostler::netboot::fuzz(bytes));
