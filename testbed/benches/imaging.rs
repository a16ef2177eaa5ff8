//! Benchmarks of writing images to disks, against other programs: same images, same targets, same
//! machine, in turn.
//!
//! `./testbed/bench imaging` runs it. Every number is the median of all rounds. After each
//! contender's first round the disk is compared with the image, so that no contender gains by
//! omitting bytes.
//!
//! `RUNS=` sets the number of rounds (5), `CASES=` selects cases by the beginning of their names.
//! All files are in memory, in `TMPDIR`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on says why by stopping"
)]
#![allow(
    missing_docs,
    dead_code,
    reason = "a benchmark is not an interface, and shares the tests' helpers"
)]

mod cases;
mod contest;
mod images;
mod open_iscsi;
#[path = "../integration/ports.rs"]
mod ports;
#[path = "../integration/imaging/relay.rs"]
mod relay;
#[path = "../integration/iscsi/tgtd.rs"]
mod tgtd;
mod writer;

use std::env;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.split_first() {
        Some((word, disks)) if word == "write" => writer::write(disks),
        _ => cases::run(),
    }
}
