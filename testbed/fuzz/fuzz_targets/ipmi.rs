//! Answers of a BMC.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostler::bmc::ipmi::fuzz(bytes));
