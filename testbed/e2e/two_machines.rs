//! A whole deploy of two machines: specs in, installed machines out, and no secrets left behind.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use hostler::{
    lifecycle::State,
    model::status::{Phase, Status},
};

use crate::{
    disks::{self, Before},
    rack::Machine,
    site::{BOOT_LIMIT, Site},
};

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The phases of a deploy, each once.
const PHASES: [Phase; 9] = [
    Phase::Pending,
    Phase::Preparing,
    Phase::PoweringOn,
    Phase::WaitingRamdisk,
    Phase::Imaging,
    Phase::Switching,
    Phase::WaitingCompleted,
    Phase::Restarting,
    Phase::Deployed,
];

#[test]
fn a_bios_and_a_uefi_machine_are_installed_at_once_and_no_secret_is_left_behind() {
    let mut site = Site::new("two_machines", &["bios", "uefi"], "1G");
    let image = site.image("disk.raw", 0);
    let machines = site.rack.machines();
    machines.iter().for_each(disks::fill);
    let second_disks: Vec<Before> =
        machines.iter().map(|machine| Before::of(&machine.disks[1].path)).collect();

    for machine in &machines {
        let rest = format!(
            "match_system_uuid = true\n[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n\
             [root_device]\nserial = \"{}\"\n",
            image.sha256, machine.disks[0].serial
        );
        site.write_spec(machine, &rest);
    }
    let secrets = follow_to_the_end(&mut site, &machines);

    for machine in &machines {
        let status = site.status(&machine.name).unwrap();
        assert_deployed(&status);
        disks::assert_holds(machine, &image);
        site.assert_runs_image(machine);
        site.assert_boots_local_disk(machine);
        assert!(site.record(&machine.name).unwrap().state.attempt().is_none());
    }
    second_disks.iter().for_each(Before::assert_untouched);
    assert_unprivileged(site.agent_pid());
    assert_modes(&site);
    assert!(site.stop_agent().success());
    assert_no_secret_left(&site, &machines, &secrets);
}

/// Waits until every machine is deployed, and collects every secret of the deploy. The agent's
/// command line and environment, which every user may read, must not hold any of them.
fn follow_to_the_end(site: &mut Site, machines: &[Machine]) -> BTreeSet<String> {
    let mut secrets: BTreeSet<String> =
        machines.iter().map(|machine| read(&machine.bmc.password_file).trim().to_owned()).collect();
    let deadline = Instant::now() + BOOT_LIMIT;
    let deployed = |site: &Site, machine: &Machine| {
        site.status(&machine.name).is_some_and(|status| status.phase == Phase::Deployed)
    };
    while !machines.iter().all(|machine| deployed(site, machine)) {
        assert!(Instant::now() < deadline, "not deployed within {BOOT_LIMIT:?}");
        for machine in machines {
            let Some(record) = site.record(&machine.name) else { continue };
            if let Some(attempt) = record.state.attempt() {
                secrets.insert(attempt.key.expose().to_owned());
            }
            if let State::Imaging { target, .. } = &record.state {
                secrets
                    .extend(target.chap_password.as_ref().map(|secret| secret.expose().to_owned()));
            }
        }
        for public in ["cmdline", "environ"] {
            let text = read(Path::new(&format!("/proc/{}/{public}", site.agent_pid())));
            assert!(!secrets.iter().any(|secret| text.contains(secret)), "{public}: {text:?}");
        }
        thread::sleep(POLL_INTERVAL);
    }
    // For each machine: its BMC's password, its attempt's key, its target's secret.
    assert_eq!(secrets.len(), 3 * machines.len(), "not every secret was seen");
    secrets
}

fn assert_deployed(status: &Status) {
    assert!(status.ready && status.spec_valid, "{status:#?}");
    assert!(status.installed_digest.is_some() && status.installed_digest == status.spec_digest);
    assert!(status.last_error.is_none() && status.attempt == 1, "{status:#?}");
    let phases: Vec<Phase> = status.history.iter().map(|entry| entry.phase).collect();
    assert!(phases.ends_with(&PHASES), "{phases:?}");
    for phase in PHASES.iter().filter(|phase| phase.is_busy()) {
        let key = format!("{}_ms", phase.as_str());
        assert!(status.durations.contains_key(&key), "{key} is missing: {:?}", status.durations);
    }
}

/// Asserts that the agent runs as nobody, with the one capability for port 69 and no way to
/// another.
fn assert_unprivileged(pid: u32) {
    const NET_BIND_SERVICE: &str = "0000000000000400";
    let status = read(Path::new(&format!("/proc/{pid}/status")));
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>()
    };
    assert_eq!(field("Name:"), ["hostler"]);
    assert_eq!(field("Uid:"), ["65534"; 4]);
    assert_eq!(field("Groups:"), [""; 0]);
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(field(set), [NET_BIND_SERVICE], "{set}");
    }
}

/// Asserts the modes of files and directories.
fn assert_modes(site: &Site) {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let state = site.file("state");
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("cache")), 0o700);
    let files = ["", "cache"].map(|dir| fs::read_dir(state.join(dir)).unwrap());
    for path in files.into_iter().flatten().map(|file| file.unwrap().path()) {
        if path.is_dir() {
            continue;
        }
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    assert_eq!(mode(&site.status_path("node-1")), 0o644);
}

/// Asserts that attempts' secrets are in no file, and the BMCs' passwords only in the
/// administrator's.
fn assert_no_secret_left(site: &Site, machines: &[Machine], secrets: &BTreeSet<String>) {
    let mut texts = vec![("agent.log".to_owned(), site.agent_log())];
    for dir in ["nodes", "state"] {
        for path in fs::read_dir(site.file(dir)).unwrap().map(|file| file.unwrap().path()) {
            if path.is_dir() {
                continue;
            }
            texts.push((path.display().to_string(), read(&path)));
        }
    }
    for machine in machines {
        texts.push((machine.console_log.display().to_string(), machine.console()));
    }
    for (place, text) in texts {
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "a secret is in {place}");
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}
