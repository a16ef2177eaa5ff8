//! Describes this process in a mark, and checks whether another mark's process lives. Called by the
//! mark's thread.

use std::{path::Path, process};

use jiff::Timestamp;
use rustix::system::uname;
use sha2::{Digest as _, Sha256};

use crate::{
    model::{
        agent_mark::{AgentMark, MARK_VERSION},
        ids::hex,
    },
    regular_file,
};

/// Makes the hash of the machine id specific to hostler, as machine-id(5) requires.
const MACHINE_ID_PURPOSE: &str = "hostler agent mark\n";
/// Most bytes of the kernel's files, which have one line each.
const FILE_BYTES_MAX: u64 = 4096;
/// The index of `starttime` in `/proc/PID/stat` (proc(5)), counted after the process's name.
const START_TIME: usize = 19;

/// Makes the mark of this process. `run_id` must be unique among all starts.
pub(super) fn of_this_process(
    state_id: &str,
    run_id: String,
    interval_s: u32,
    now: Timestamp,
) -> AgentMark {
    let pid = process::id();
    AgentMark {
        version: MARK_VERSION,
        host: uname().nodename().to_string_lossy().into_owned(),
        pid,
        hostler: env!("CARGO_PKG_VERSION").to_owned(),
        started: now,
        heartbeat: now,
        interval_s,
        stopped: None,
        state_id: state_id.to_owned(),
        run_id,
        machine_id: machine_id().unwrap_or_default(),
        boot_id: boot_id(),
        pid_started_ticks: started_ticks(pid).unwrap_or(0),
    }
}

/// Whether the mark's process is one of this host and lives.
pub(super) fn lives(mark: &AgentMark) -> bool {
    let is_here = !mark.boot_id.is_empty() && mark.boot_id == boot_id();
    is_here && started_ticks(mark.pid).is_some_and(|ticks| ticks == mark.pid_started_ticks)
}

fn read(path: &str) -> Option<String> {
    regular_file::read_to_string(Path::new(path), FILE_BYTES_MAX).ok()
}

fn machine_id() -> Option<String> {
    let id = read("/etc/machine-id")?;
    let id = Some(id.trim()).filter(|id| !id.is_empty())?;
    hex(&Sha256::digest(format!("{MACHINE_ID_PURPOSE}{id}"))).get(..32).map(str::to_owned)
}

fn boot_id() -> String {
    let id = read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The start time of a process, or `None` if it does not exist.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The process's name may hold anything, even spaces and brackets.
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_whitespace().nth(START_TIME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number_and_from_one_elsewhere() {
        let mark = of_this_process("s", "r".to_owned(), 10, Timestamp::now());
        assert!(mark.pid_started_ticks > 0);
        assert!(lives(&mark));
        assert!(!lives(&AgentMark { pid_started_ticks: 1, ..mark.clone() }));
        assert!(!lives(&AgentMark { boot_id: "another".to_owned(), ..mark.clone() }));
        assert!(!lives(&AgentMark { boot_id: String::new(), ..mark.clone() }));
        assert!(!lives(&AgentMark { pid: u32::MAX, ..mark }));
    }
}
