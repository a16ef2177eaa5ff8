//! The clock of a running agent is set a day forward or back. Its waits and status files use that
//! clock; machines must not fail because of it.

use std::{env::consts::ARCH, fs, time::Duration};

use hostler::model::{
    fault::Step,
    status::{Phase, Status},
};
use serde_json::json;

use super::{
    DEPLOYED, NODE, SWITCHED_OFF,
    disk_faults::LARGE_IMAGE_BYTES,
    ends_deployed,
    machine::{Machine, Ramdisk},
    site::{Agent, Site, Spec, allocated_bytes, wait_at_most},
};

/// A day forward, in seconds.
const FORWARD: i64 = 86_400;
/// A day back, in seconds.
const BACK: i64 = -FORWARD;
/// Largest deviation from a day between two readings of a clock that was set by a day, in seconds.
const SLACK_S: i64 = 600;

/// An agent with a separate clock: libfaketime moves the time of day; the monotonic clock runs on,
/// as in a kernel.
struct Clocked {
    site: Site,
    machine: Machine,
    agent: Agent,
}

impl Clocked {
    fn start(image_bytes: usize) -> Self {
        let site = Site::with_image(image_bytes);
        site.configure("rescan = \"1s\"\n");
        let machine = Machine::new(&site, NODE);
        set(&site, 0);
        let mut run = site.hostler(&["run"]);
        run.env("LD_PRELOAD", format!("/usr/lib/{ARCH}-linux-gnu/faketime/libfaketimeMT.so.1"))
            .env("FAKETIME_TIMESTAMP_FILE", site.path("clock"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
        let agent = site.start_as(&mut run);
        Self { site, machine, agent }
    }

    /// A spec of two attempts, with the given first pause.
    fn spec(&self, backoff: &str) -> Spec {
        let spec = self.machine.spec(&self.site).with_number("retry.attempts", 2);
        spec.with("retry.backoff", backoff)
    }

    /// Deploys up to a machine that runs its ramdisk.
    fn to_ramdisk(&self, spec: &Spec) -> Ramdisk {
        self.site.write(NODE, spec);
        let ramdisk = self.machine.boot(&self.site, 1);
        self.site.until_phase(NODE, Phase::WaitingRamdisk);
        ramdisk
    }

    /// Waits until a status was written after the jump.
    fn after_leap(&self, before: &Status, seconds: i64, is: impl Fn(&Status) -> bool) -> Status {
        let leapt = |status: &Status| {
            let went = status.updated.duration_since(before.updated).as_secs();
            (went - seconds).abs() < SLACK_S
        };
        self.site.until(NODE, "leapt", |status| leapt(status) && is(status))
    }

    /// Checks a second attempt, after the first ended with this fault, and the administrator's view
    /// of it.
    fn second_attempt_deploys(&self, step: Step, code: &str) {
        let ramdisk = self.machine.boot(&self.site, 2);
        let error = self.site.status(NODE).unwrap().last_error.unwrap();
        assert_eq!((error.attempt, error.fault.step, error.fault.code.as_ref()), (1, step, code));
        ramdisk.export();
        ramdisk.finish();
        let status = ends_deployed(&self.site, &self.machine);
        assert_eq!(status.attempt, 2);
        assert_eq!(self.machine.story(), [&SWITCHED_OFF[..], &DEPLOYED[..]].concat());
        self.is_calm(&status);
    }

    /// Checks that the agent does not spin, and that the status has no time in the future.
    fn is_calm(&self, status: &Status) {
        assert!(status.since <= status.updated, "{} is after {}", status.since, status.updated);
        let used = || -> u64 {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.agent.id())).unwrap();
            let after_name = stat.rsplit_once(") ").unwrap().1;
            after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
        };
        let (ticks, lines) = (used(), self.site.log().lines().count());
        wait_at_most(Duration::from_secs(2), || None::<()>);
        // A second has a hundred ticks.
        assert!(used() - ticks < 50, "the agent spins:\n{}", self.site.log());
        assert!(self.site.log().lines().count() - lines < 10, "{}", self.site.log());
    }
}

/// Sets the agent's clock to an offset from the true time.
fn set(site: &Site, offset_s: i64) {
    fs::write(site.path("clock.new"), format!("{offset_s:+}")).unwrap();
    fs::rename(site.path("clock.new"), site.path("clock")).unwrap();
}

#[test]
fn a_clock_set_forward_while_the_ramdisk_boots_costs_one_attempt() {
    let clocked = Clocked::start(3_000_100);
    clocked.to_ramdisk(&clocked.spec("1s"));
    set(&clocked.site, FORWARD);
    clocked.second_attempt_deploys(Step::Ramdisk, "RamdiskTimeout");
}

#[test]
fn a_clock_set_back_while_the_ramdisk_boots_makes_no_wait_longer() {
    let clocked = Clocked::start(3_000_100);
    let ramdisk = clocked.to_ramdisk(&clocked.spec("1s").with("timeouts.ramdisk", "15s"));
    let before = clocked.site.status(NODE).unwrap();
    set(&clocked.site, BACK);
    let failed = clocked.after_leap(&before, BACK, |status| status.last_error.is_some());
    assert_eq!(failed.last_error.unwrap().fault.code, "RamdiskTimeout");
    // The ramdisk gets a reason during the clean-up, and 404 afterwards.
    assert!(matches!(ramdisk.look_up(1 << 30).0, 404 | 409));
    clocked.second_attempt_deploys(Step::Ramdisk, "RamdiskTimeout");
}

#[test]
fn a_clock_set_forward_while_the_disk_is_written_costs_one_attempt() {
    let clocked = Clocked::start(LARGE_IMAGE_BYTES);
    let ramdisk = clocked.to_ramdisk(&clocked.spec("1s"));
    ramdisk.export();
    let disk = clocked.machine.disk.disk_file();
    clocked.site.await_that("writing", || allocated_bytes(&disk) > 8 << 20);
    // The write must not end before the clock is set.
    clocked.machine.disk.signal("-STOP");
    set(&clocked.site, FORWARD);
    clocked.site.until(NODE, "given up", |status| status.last_error.is_some());
    clocked.machine.disk.signal("-CONT");
    clocked.second_attempt_deploys(Step::Imaging, "ImagingTimeout");
}

#[test]
fn a_clock_set_back_while_the_disk_is_written_costs_nothing() {
    let clocked = Clocked::start(LARGE_IMAGE_BYTES);
    let ramdisk = clocked.to_ramdisk(&clocked.spec("1s"));
    ramdisk.export();
    let disk = clocked.machine.disk.disk_file();
    clocked.site.await_that("writing", || allocated_bytes(&disk) > 8 << 20);
    set(&clocked.site, BACK);
    // The agent's certificate is valid at any time, and the key is still the attempt's.
    ramdisk.finish();
    let status = ends_deployed(&clocked.site, &clocked.machine);
    assert_eq!(status.attempt, 1);
    assert_eq!(clocked.machine.story(), DEPLOYED);
    clocked.is_calm(&status);
}

/// Deploys up to the pause after a failed first attempt.
fn pausing(backoff: &str) -> (Clocked, Status) {
    let clocked = Clocked::start(3_000_100);
    let ramdisk = clocked.to_ramdisk(&clocked.spec(backoff));
    assert_eq!(ramdisk.post("pass_deploy_info", &json!({"error": "no disk"})).0, 202);
    let status = clocked.site.until(NODE, "pausing", |status| status.next_attempt_at.is_some());
    (clocked, status)
}

#[test]
fn a_clock_set_forward_ends_the_pause_before_the_next_attempt() {
    let (clocked, _) = pausing("10m");
    set(&clocked.site, FORWARD);
    clocked.second_attempt_deploys(Step::Ramdisk, "RamdiskFailed");
}

/// Invariant (attempt): A clock that is set costs at most an attempt and makes no wait longer.
#[test]
fn a_clock_set_back_makes_the_pause_before_the_next_attempt_no_longer() {
    let (clocked, before) = pausing("5s");
    set(&clocked.site, BACK);
    let status = clocked.after_leap(&before, BACK, |_| true);
    let rest = status.next_attempt_at.map(|at| at.duration_since(status.updated).as_secs());
    assert!(rest.is_none_or(|seconds| seconds <= 6), "{rest:?} s");
    clocked.second_attempt_deploys(Step::Ramdisk, "RamdiskFailed");
}

/// Invariant (attempt): A clock that is set costs at most an attempt and makes no wait longer.
#[test]
fn a_deployed_machine_stays_deployed_whatever_the_clock_says() {
    let clocked = Clocked::start(3_000_100);
    let spec = clocked.spec("1s");
    let ramdisk = clocked.to_ramdisk(&spec);
    ramdisk.export();
    ramdisk.finish();
    let before = ends_deployed(&clocked.site, &clocked.machine);
    for (n, offset) in [FORWARD, 0, BACK, 0].into_iter().enumerate() {
        set(&clocked.site, offset);
        // A visible change: the spec has drifted.
        let checksum = format!("sha256:{}{n}", "0".repeat(63));
        clocked.site.write(NODE, &spec.clone().with("image.checksum", &checksum));
        let status =
            clocked.after_leap(&before, offset, |status| status.spec_digest != before.spec_digest);
        assert_eq!(status.phase, Phase::Deployed);
        assert_eq!(status.installed, before.installed);
        clocked.is_calm(&status);
        assert_eq!(clocked.machine.story(), DEPLOYED);
    }
    clocked.site.write(NODE, &spec);
    ends_deployed(&clocked.site, &clocked.machine);
}
