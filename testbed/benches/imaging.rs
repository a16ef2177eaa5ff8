//! How fast images get onto disks, beside the programs others use for it: same images, same
//! targets, same machine, in turns.
//!
//! Run by `./testbed/bench imaging`. Every number is the median of all rounds. After each
//! contender's first round the disk is compared with the image, so that nobody wins by leaving
//! something out.
//!
//! `RUNS=` says how many rounds (5), `CASES=` which cases, by the beginning of their names.
//! Everything lies in memory: `TMPDIR` says where.

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
