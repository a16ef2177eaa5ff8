//! Answers of a DHCP server.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostler::ramdisk::fuzz(bytes));
