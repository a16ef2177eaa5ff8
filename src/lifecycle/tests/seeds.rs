//! The records that the fuzz target `record` begins with. They follow a change of the format by `UPDATE_EXPECT=1 cargo test --lib seeds`.

use expect_test::expect_file;

use crate::{
    lifecycle::Record,
    model::{power::PowerState, status::Phase},
};

use super::support::*;

#[test]
fn the_fuzz_target_begins_with_a_good_record_of_every_state() {
    let mut bench = Bench::with_spec();
    for phase in [
        Phase::Pending,
        Phase::Preparing,
        Phase::PoweringOn,
        Phase::WaitingRamdisk,
        Phase::Imaging,
        Phase::Switching,
        Phase::WaitingCompleted,
        Phase::Restarting,
        Phase::Deployed,
    ] {
        bench.go_to(phase);
        keep(phase.as_str(), bench.node.record());
    }
    bench.change(|spec| spec.redeploy = Some("again".into()));
    bench.go_to(Phase::Imaging);
    bench.done(Err(lasting()));
    keep("cleaning-up", bench.node.record());
    bench.go_to(Phase::Failed);
    keep("failed", bench.node.record());
    let mut bench = Bench::with_spec();
    bench.look(PowerState::On);
    keep("held", bench.node.record());
}

fn keep(name: &str, record: &Record) {
    let file = format!("../../../testbed/fuzz/seeds/record/{name}.json");
    expect_file![file].assert_eq(&serde_json::to_string_pretty(record).unwrap());
}
