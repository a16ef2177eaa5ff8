//! Tests of `image.verify = "node"`: the ramdisk compares its disk, and a disk without a comparison
//! does not count as installed.

use std::sync::Arc;

use crate::{
    lifecycle::{Event, Menu, Operation, Outcome},
    model::{
        callback::{
            Call, Completed, DeployState, FlushedRanges, KnownRanges, Reply, VerifyProgress,
        },
        fault::{Fault, RetryAdvice},
        status::{ImagingStage, Phase},
    },
};

use super::support::*;

/// A node whose written disk the ramdisk must compare.
fn comparing() -> Bench {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.done(Ok(imaged_unverified()));
    assert_eq!(bench.phase(), Phase::Switching);
    let Reply::State(reply) = bench.call(&key(1), Call::DeployState) else { panic!("no state") };
    assert_eq!(reply.state, DeployState::Release);
    assert_eq!(reply.verify[0].bytes, IMAGE_BYTES);
    assert_eq!(bench.phase(), Phase::WaitingCompleted);
    bench
}

fn says(error: &str, verified: bool) -> Call {
    Call::Completed(Completed { error: error.into(), verified, verify_ms: 1234 })
}

fn fault_of(bench: &Bench) -> Fault {
    bench.node.record().last_error.clone().expect("it failed").fault
}

/// Checks that the attempt fails like any other, and that nothing counts as installed.
fn assert_failed(bench: &mut Bench, code: &str, retry: RetryAdvice) {
    let fault = fault_of(bench);
    assert_eq!((fault.code.as_ref(), fault.retry), (code, retry), "{fault:?}");
    assert!(fault.message.contains("must stay so until it is installed again"), "{fault:?}");
    assert_eq!(bench.menu(), Menu::LocalDisk);
    assert_eq!(bench.running.as_ref().map(|(_, operation)| operation), Some(&Operation::CleanUp));
    assert_eq!(bench.call(&key(1), Call::DeployState), Reply::State(DeployState::Abort.into()));
    bench.done(Ok(Outcome::CleanedUp));
    assert_eq!(bench.node.record().installed, None);
}

#[test]
fn a_disk_that_its_ramdisk_has_compared_is_installed() {
    let mut bench = comparing();
    assert!(bench.message().contains("compare its disk with the image"), "{}", bench.message());
    bench.pass(60);
    assert_eq!(bench.call(&key(1), says("", true)), Reply::Accepted);
    assert_eq!(bench.call(&key(1), says("", true)), Reply::Accepted, "a repeat is the same");
    bench.go_to(Phase::Deployed);
    assert_eq!(bench.node.record().durations["verify_ms"], 1234);
}

#[test]
fn what_a_ramdisk_says_of_its_time_is_never_longer_than_it_was_waited_for() {
    let mut bench = comparing();
    bench.pass(60);
    let Call::Completed(body) = says("", true) else { unreachable!() };
    bench.call(&key(1), Call::Completed(Completed { verify_ms: u64::MAX, ..body }));
    assert_eq!(bench.node.record().durations["verify_ms"], 60_000);
}

/// Invariant (disk): A disk that drops writes is caught by default.
#[test]
fn a_disk_that_holds_something_else_fails_the_attempt_and_is_written_again() {
    let mut bench = comparing();
    let error = "vda does not hold the image: its bytes 0 to 1048575 hash to x, must be y";
    assert_eq!(bench.call(&key(1), says(error, true)), Reply::Accepted);
    assert!(fault_of(&bench).message.contains(error));
    assert_failed(&mut bench, "DiskLies", RetryAdvice::Backoff);
    bench.pass(3600);
    bench.go_to(Phase::Imaging);
}

#[test]
fn a_disk_that_differs_already_during_the_write_fails_the_attempt_at_once() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    assert_eq!(bench.call(&key(1), says("", true)), Reply::Refused, "nothing is written yet");
    assert_eq!(bench.phase(), Phase::Imaging);
    assert_eq!(bench.call(&key(1), says("vda does not hold the image", true)), Reply::Accepted);
    let fault = fault_of(&bench);
    assert_eq!((fault.code.as_ref(), fault.retry), ("DiskLies", RetryAdvice::Backoff), "{fault:?}");
    assert!(fault.message.contains("vda does not hold the image"), "{fault:?}");
    bench.done(Ok(imaged_unverified()));
    assert_eq!(bench.running.as_ref().map(|(_, operation)| operation), Some(&Operation::CleanUp));
    assert_eq!(bench.call(&key(1), Call::DeployState), Reply::State(DeployState::Abort.into()));
    bench.done(Ok(Outcome::CleanedUp));
    assert_eq!(bench.node.record().installed, None);
}

/// Invariant (ramdisk): A ramdisk that asks for flushed ranges changes nothing, and a stranger
/// learns nothing.
#[test]
fn asking_for_flushed_ranges_changes_nothing_and_needs_the_attempts_key() {
    let ask = || Call::Flushed(KnownRanges { known: 0 });
    let mut bench = Bench::with_spec();
    assert_eq!(bench.call(&key(1), ask()), Reply::Refused);
    bench.go_to(Phase::Imaging);
    let before = bench.node.record().clone();
    let answer = bench.call(&key(1), ask());
    assert_eq!(answer, Reply::Flushed(FlushedRanges::default()), "the agent fills them in");
    assert_eq!(*bench.node.record(), before);
    assert_eq!(bench.call(&key(9), ask()), Reply::Refused);
}

#[test]
fn a_completed_notice_of_a_ramdisk_that_has_not_compared_fails_the_attempt_for_good() {
    let mut bench = comparing();
    assert_eq!(bench.call(&key(1), says("", false)), Reply::Accepted);
    assert_failed(&mut bench, "NotVerified", RetryAdvice::Never);
    assert_eq!(bench.phase(), Phase::Failed);
}

#[test]
fn a_completed_notice_that_overtakes_the_release_has_compared_nothing() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    bench.done(Ok(imaged_unverified()));
    bench.call(&key(1), completed(""));
    assert_eq!(fault_of(&bench).code, "NotVerified");
}

#[test]
fn a_ramdisk_that_cannot_compare_says_why_and_is_tried_again() {
    let mut bench = comparing();
    bench.call(&key(1), says("reading vda at byte 4096: I/O error", false));
    let fault = fault_of(&bench);
    assert_eq!((fault.code.as_ref(), fault.retry), ("RamdiskFailed", RetryAdvice::Backoff));
}

fn says_progress(done_bytes: u64) -> Call {
    Call::Verifying(VerifyProgress { done_bytes })
}

/// Invariant (ramdisk): A ramdisk's progress never passes 100 %, never falls, and never extends a
/// deadline.
#[test]
fn what_a_ramdisk_reports_of_its_comparison_is_shown_within_bounds_and_moves_nothing_else() {
    let mut bench = comparing();
    assert_eq!(bench.status().progress, None);
    let before = bench.node.record().clone();
    for (after_s, reported, done, rate) in [
        (0, 0, 0, 0),
        (10, IMAGE_BYTES / 4, IMAGE_BYTES / 4, IMAGE_BYTES / 40),
        // Neither a hostile ramdisk nor a repeated call takes anything back.
        (0, 1, IMAGE_BYTES / 4, IMAGE_BYTES / 40),
        (10, u64::MAX, IMAGE_BYTES, IMAGE_BYTES / 20),
    ] {
        bench.pass(after_s);
        assert_eq!(bench.call(&key(1), says_progress(reported)), Reply::Accepted);
        let progress = bench.status().progress.unwrap();
        assert_eq!(progress.stage, ImagingStage::Verify);
        assert_eq!((progress.done_bytes, progress.total_bytes), (done, IMAGE_BYTES));
        assert_eq!(progress.rate_bytes, rate, "{progress:?}");
        assert_eq!(progress.remaining_s, (IMAGE_BYTES - done).checked_div(rate), "{progress:?}");
    }
    assert_eq!(bench.node.record().last_seen.address, Some(RAMDISK));
    assert_eq!(*bench.node.record(), before, "nothing is written for a report");
    bench.call(&key(1), says("", true));
    assert_eq!(bench.status().progress, None);
    assert_eq!(bench.call(&key(1), says_progress(1)), Reply::Accepted, "it was overtaken");
    assert_eq!(bench.status().progress, None);
}

#[test]
fn bytes_that_were_compared_during_the_write_count_as_done_and_not_for_the_rate() {
    // The first report may also come late, as to an agent that was restarted meanwhile.
    for first_after_s in [0, 100] {
        let mut bench = comparing();
        for (after_s, reported, rate, remaining_s) in [
            (first_after_s, IMAGE_BYTES / 2, 0, None),
            (10, IMAGE_BYTES * 3 / 4, IMAGE_BYTES / 40, Some(10)),
        ] {
            bench.pass(after_s);
            bench.call(&key(1), says_progress(reported));
            let progress = bench.status().progress.unwrap();
            let shown = (progress.done_bytes, progress.rate_bytes, progress.remaining_s);
            assert_eq!(shown, (reported, rate, remaining_s));
        }
    }
}

#[test]
fn progress_is_taken_only_of_the_attempts_own_ramdisk_while_it_compares() {
    let mut bench = comparing();
    assert_eq!(bench.call(&key(9), says_progress(1)), Reply::Refused);
    assert_eq!(bench.status().progress, None);
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Imaging);
    assert_eq!(bench.call(&key(1), says_progress(1)), Reply::Refused);
    bench.done(Ok(imaged()));
    drop(bench.call(&key(1), Call::DeployState));
    assert_eq!(bench.call(&key(1), says_progress(1)), Reply::Refused, "nothing is to be compared");
    assert_eq!(bench.status().progress, None);
}

#[test]
fn a_comparison_that_does_not_end_is_a_fault_with_how_far_it_came() {
    for (reports, said) in [
        (&[][..], "its comparison of the disk reported no progress"),
        (&[1, 2], "came to 50 %, and reported no further progress for 7400 s"),
        // A repetition is no progress.
        (&[2, 2], "came to 50 %, and reported no further progress for 7450 s"),
    ] {
        let mut bench = comparing();
        for quarters in reports {
            bench.pass(50);
            bench.call(&key(1), says_progress(IMAGE_BYTES / 4 * quarters));
        }
        let reported_s = 50 * i64::try_from(reports.len()).unwrap();
        bench.pass(7500 - reported_s);
        let fault = fault_of(&bench);
        assert_eq!(fault.code, "CompletedTimeout");
        assert!(fault.message.ends_with(said), "{}", fault.message);
    }
}

#[test]
fn comparing_may_take_as_long_as_writing_and_no_longer() {
    let mut bench = comparing();
    bench.restart();
    bench.send(Event::Spec(Arc::new(spec())));
    bench.pass(7200 + 299);
    assert_eq!(bench.phase(), Phase::WaitingCompleted);
    bench.pass(1);
    assert_eq!(fault_of(&bench).code, "CompletedTimeout");
}
