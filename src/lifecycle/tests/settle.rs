//! Tests of the end of a step: settling is idempotent.

use proptest::prelude::*;

use super::{
    support::*,
    table::{EVENTS, bench_in, rows},
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// [`Bench`] settles the node once more after each step, whatever the step was.
    #[test]
    fn settling_twice_changes_nothing(
        from in prop::sample::select(rows()),
        events in prop::collection::vec((prop::sample::select(&EVENTS), 0..90_i64), 1..25),
    ) {
        let mut bench = bench_in(from);
        for ((_, _, act), seconds) in events {
            if bench.forgotten {
                bench = Bench::with_spec();
            }
            act(&mut bench);
            bench.pass(seconds);
        }
    }
}
