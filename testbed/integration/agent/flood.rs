//! Strangers flood the TFTP port: the agent's other work continues.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    NODE, ends_deployed,
    machine::Machine,
    site::{Agent, Site, answer},
};
use crate::tftp::flood::{Flood, TRANSFER_KIB, TRANSFERS_MAX};

/// Longest wait of a caller, on a machine that runs many tests at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Most threads of the agent besides those of transfers: tokio's two, and those that wait for
/// disks.
const OTHER_THREADS_MAX: u64 = 64;
/// Most log lines: a deploy's, and those about the flood.
const LOG_LINES_MAX: usize = 200;
/// More machines than slots, and few enough for the tests' descriptors.
const MACHINES: u16 = 400;

impl Agent {
    /// A number from the agent's `/proc/PID/status`.
    fn measure(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The number of the TFTP server's threads: one for each transfer, and the accept loop.
    fn tftp_threads(&self) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().flatten();
        // A thread that has just ended has no name.
        let names = tasks.flat_map(|task| fs::read_to_string(task.path().join("comm")));
        names.filter(|name| name == "tftp\n").count()
    }
}

/// Invariant (fair): TFTP never has more threads than places, and a client that answers keeps its
/// own.
#[test]
fn a_flood_of_the_tftp_port_keeps_neither_a_ramdisk_nor_an_operator_waiting() {
    let site = Site::new();
    fs::File::create(site.path("loaders/large")).unwrap().set_len(64 << 20).unwrap();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    site.write(NODE, &machine.spec(&site).with("timeouts.ramdisk", "5m"));
    let ramdisk = machine.boot(&site, 1);
    let memory_kib_max = agent.measure("VmRSS") + TRANSFERS_MAX as u64 * TRANSFER_KIB;

    let flood = Flood::of(site.tftp, MACHINES, "large");
    site.await_that("flooded", || agent.tftp_threads() > TRANSFERS_MAX);
    let soon = |what: &str, ask: &dyn Fn()| {
        let begun = Instant::now();
        ask();
        assert!(begun.elapsed() < ANSWER_LIMIT, "{what} took {:?}", begun.elapsed());
        let (threads, memory_kib) = (agent.measure("Threads"), agent.measure("VmRSS"));
        assert!(threads <= TRANSFERS_MAX as u64 + OTHER_THREADS_MAX, "{threads} threads");
        assert!(memory_kib <= memory_kib_max, "{memory_kib} KiB");
    };
    for _ in 0..5 {
        soon("a callback", &|| assert_eq!(ramdisk.look_up(machine.disk.disk_bytes).0, 200));
        for (words, part) in [(&["status"][..], NODE), (&["show-boot", &machine.mac][..], "KERNEL")]
        {
            soon(words[0], &|| {
                let (code, said, errors) = answer(&mut site.hostler(words));
                assert!(code == 0 && said.contains(part), "{said}{errors}");
            });
        }
    }
    assert!(agent.tftp_threads() > TRANSFERS_MAX / 2, "the flood is over");
    ramdisk.export();
    ramdisk.finish();

    let lines = site.log().lines().count();
    assert!(lines < LOG_LINES_MAX, "{lines} lines, of which the last are {}", site.log());

    drop(flood);
    site.await_that("calm", || agent.tftp_threads() == 1);
    ends_deployed(&site, &machine);
}
