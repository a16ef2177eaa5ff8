//! PDUs of an iSCSI target, during connect, read, write, zeroing and logout of a disk. The paused
//! clock advances only when the initiator waits, so that no limit costs time.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(hostler::iscsi::fuzz(bytes));
});
