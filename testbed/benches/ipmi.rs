//! Benchmarks of polling the power states of 200 machines, against other programs: same BMCs, same
//! machine, in turn.
//!
//! `./testbed/bench ipmi` runs it. Every number is the median of all rounds. A contender that does
//! not return all 200 states ends the benchmark. hostler is the agent's own client in a separate
//! process; `ipmipower` polls all BMCs at once itself; of `ipmitool` there is one process for each
//! BMC, 50 at once. The BMCs run on the same machine: all contenders wait for them alike.
//!
//! `RUNS=` sets the number of rounds (5), `CASES=` selects cases by the beginning of their names.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on says why by stopping"
)]
#![allow(
    missing_docs,
    dead_code,
    reason = "a benchmark is not an interface, and shares the tests' helpers"
)]

#[path = "ipmi/bmcs.rs"]
mod bmcs;
mod contest;
#[path = "ipmi/poll.rs"]
mod poll;
#[path = "../integration/ports.rs"]
mod ports;

use std::{env, path::Path};

use bmcs::{Bmcs, PASSWORD, USER};
use contest::{Contender, compete};

const BMCS: usize = 200;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.split_first() {
        Some((word, rest)) if word == "poll" => poll::poll(rest),
        _ => run(),
    }
}

fn run() {
    let dir = tempfile::tempdir().unwrap();
    let bmcs = Bmcs::pyghmi(BMCS, dir.path());
    for suite in [3, 17] {
        contest(&format!("ipmi-pyghmi-suite-{suite}"), suite, &bmcs, "", dir.path());
    }
    drop(bmcs);
    // This option makes it ask for a session of any privilege.
    let bmcs = Bmcs::ipmi_sim(BMCS, dir.path());
    contest("ipmi-ipmi_sim-suite-3", 3, &bmcs, "-W opensesspriv", dir.path());
}

fn contest(case: &str, suite: u8, bmcs: &Bmcs, workarounds: &str, dir: &Path) {
    let me = env::current_exe().unwrap();
    let (me, password_file) = (me.display(), dir.join("password"));
    let password_file = password_file.display();
    let ports: Vec<String> = bmcs.ports.iter().map(u16::to_string).collect();
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let (ports, hosts) = (ports.join(" "), hosts.join(","));
    let commands = [
        ("hostler", format!("{me} poll {suite} {ports}")),
        (
            "ipmipower",
            format!(
                "ipmipower -D LAN_2_0 -I {suite} {workarounds} -u {USER} -p {PASSWORD} \
                 -h {hosts} --stat"
            ),
        ),
        (
            "ipmitool-P50",
            format!(
                "printf '%s\\n' {ports} | xargs -P 50 -I PORT \
                 ipmitool -I lanplus -C {suite} -H 127.0.0.1 -p PORT -U {USER} \
                 -f {password_file} chassis power status"
            ),
        ),
    ];
    let contenders = commands.map(|(name, command)| Contender {
        name,
        command: format!("[ $({command} | grep -c 'off$') = {BMCS} ]"),
    });
    compete(case, (1.0, "s"), &contenders, || {}, |_| {});
}
