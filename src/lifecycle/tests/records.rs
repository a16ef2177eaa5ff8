//! Tests of records as files. The records of every state are also the corpus of the fuzz target
//! `record`; `UPDATE_EXPECT=1 cargo test --lib records` renews them after a change of the format.

use std::time::Duration;

use expect_test::expect_file;

use crate::{
    lifecycle::{Event, Node, Record},
    model::{power::PowerState, spec::Timeouts, status::Phase},
};

use super::support::*;

#[test]
fn the_fuzz_target_begins_with_a_good_record_of_every_state() {
    let mut bench = Bench::with_spec();
    let begin = [Phase::Pending, Phase::Preparing];
    for phase in begin.into_iter().chain(WITH_KEY).chain([Phase::Deployed]) {
        bench.go_to(phase);
        keep(phase.as_str(), bench.node.record());
    }
    bench.change(|spec| spec.redeploy = Some("again".into()));
    bench.change(check_port);
    bench.go_to(Phase::Booting);
    keep("booting", bench.node.record());
    bench.change(|spec| spec.redeploy = Some("and again".into()));
    bench.go_to(Phase::Imaging);
    bench.done(Err(lasting()));
    keep("cleaning-up", bench.node.record());
    bench.go_to(Phase::Failed);
    keep("failed", bench.node.record());
    let mut bench = Bench::with_spec();
    bench.poll(PowerState::On);
    keep("held", bench.node.record());
}

/// Invariant (secrets): Any bytes from outside give problems or a clean refusal, never a panic.
#[test]
fn the_largest_numbers_in_a_record_overflow_nothing() {
    let endless = Duration::MAX;
    for phase in [Phase::Pending, Phase::Preparing, Phase::Imaging, Phase::Restarting] {
        let mut bench = Bench::with_spec();
        bench.go_to(phase);
        let mut record = bench.node.record().clone();
        let mut spec = spec();
        spec.timeouts = Timeouts {
            ramdisk: endless,
            root_device: endless,
            imaging_stall: endless,
            imaging: endless,
            completed: endless,
            power: endless,
            first_boot: endless,
        };
        spec.retry.backoff = endless;
        record.spec = Some(spec.into());
        (record.attempt, record.tries) = (u32::MAX, u32::MAX);
        record.durations.insert(format!("{}_ms", phase.as_str()), u64::MAX);
        bench.node =
            Node::resume(record.spec.as_ref().unwrap().name.clone(), record, POLICY, bench.now);
        bench.running = None;
        let spec = bench.node.spec().unwrap().clone();
        bench.send(Event::Spec(spec));
        // The attempt fails, and then every try of the clean-up.
        for _ in 0..12 {
            bench.pass(3600);
            if bench.running.is_some() {
                bench.done(Err(passing()));
            }
        }
        assert_eq!(bench.phase(), Phase::Failed, "{phase:?}");
    }
}

fn keep(name: &str, record: &Record) {
    let file = format!("../../../testbed/fuzz/seeds/record/{name}.json");
    expect_file![file].assert_eq(&serde_json::to_string_pretty(record).unwrap());
}

/// A site may have ten thousand nodes, nearly all of them at rest.
#[test]
fn a_node_at_rest_takes_two_kilobytes_of_memory_at_most() {
    assert!(size_of::<Node>() <= 2048, "{} bytes", size_of::<Node>());
}
