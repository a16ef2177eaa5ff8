//! Datagrams of a TFTP client.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostler::netboot::fuzz(bytes));
