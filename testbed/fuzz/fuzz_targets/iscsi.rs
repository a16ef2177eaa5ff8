//! PDUs of an iSCSI target, to a disk that is connected, read, written, zeroed and left. The
//! clock stands still until nothing else happens, so that no limit costs time.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(hostler::iscsi::fuzz(bytes));
});
