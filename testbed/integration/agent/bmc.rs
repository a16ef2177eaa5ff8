//! `hostler bmc` and `hostler show-boot`: operators' use of power and boot menus through the
//! running agent.

use std::{
    fs,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use hostler::model::{
    power::PowerState,
    status::{Phase, Status},
};

use super::{
    NODE, ends_deployed,
    machine::Machine,
    site::{Agent, Site, Spec, answer},
};
use crate::ipmi::simulators::PASSWORD;

fn said(site: &Site, words: &[&str]) -> (i32, String, String) {
    answer(&mut site.hostler(words))
}

fn bmc(site: &Site, words: &[&str]) -> (i32, String, String) {
    said(site, &[&["bmc", NODE], words].concat())
}

/// Runs a command, which must succeed; returns its output.
fn done(site: &Site, words: &[&str]) -> String {
    let (code, out, errors) = bmc(site, words);
    assert_eq!((code, errors.as_str()), (0, ""), "{words:?}\n{}", site.log());
    out
}

/// Runs a command, which must be refused; returns the reason.
fn refused(site: &Site, words: &[&str]) -> String {
    let (code, out, errors) = bmc(site, words);
    assert_eq!((code, out.as_str()), (1, ""), "{words:?}");
    errors
}

fn start(site: &Site, words: &[&str]) -> Child {
    let mut command = site.hostler(&[&["bmc", NODE], words].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn observed(status: &Status) -> Option<PowerState> {
    status.power.as_ref().map(|power| power.observed)
}

/// A spec with time for a slow BMC, also on a busy computer.
fn spec(site: &Site, machine: &Machine) -> Spec {
    machine.spec(site).with("timeouts.power", "2m")
}

/// Makes an installed machine, with more arguments for its BMC.
fn installed(arguments: &[&str]) -> (Site, Machine, Agent) {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, arguments);
    let agent = site.start();
    site.write(NODE, &spec(&site, &machine));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    (site, machine, agent)
}

#[test]
fn an_operator_looks_and_switches_through_the_agent_which_sees_at_once_what_became_of_it() {
    let (site, machine, _agent) = installed(&[]);
    let before = machine.story().len();
    assert_eq!(done(&site, &["status"]), "power  on\nboot   disk, always\n");
    assert_eq!(done(&site, &["off"]), "power  off\n");
    // The power has drifted, which shows long before the next poll is due.
    let switched = Instant::now();
    let drifted = site.until(NODE, "off", |status| observed(status) == Some(PowerState::Off));
    assert!(switched.elapsed() < Duration::from_secs(20), "{:?}", switched.elapsed());
    assert_eq!((drifted.phase, drifted.last_error), (Phase::Deployed, None));
    assert!(drifted.message.contains("its spec wants it on"), "{}", drifted.message);
    assert_eq!(done(&site, &["bootdev", "pxe"]), "boot  network, next boot only\n");
    assert_eq!(done(&site, &["on"]), "power  on\n");
    assert_eq!(done(&site, &["bootdev", "disk", "--persistent"]), "boot  disk, always\n");
    assert_eq!(done(&site, &["cycle"]), "power  on\n");
    assert_eq!(done(&site, &["off", "--hard"]), "power  off\n");
    assert_eq!(done(&site, &["off"]), "power  off\n");
    let bmc_commands =
        ["shut down", "network once", "on from network", "disk always", "off", "on from hd", "off"];
    assert_eq!(machine.story()[before..], bmc_commands);
    // The log names the user, and never a password.
    let log = site.log();
    let line = log.lines().find(|line| line.contains("command=\"cycle\"")).unwrap();
    let uid = format!("uid={}", rustix::process::getuid().as_raw());
    assert!(line.contains("node=edge-07") && line.contains(&uid), "{line}");
    assert!(!log.contains(PASSWORD));
}

#[test]
fn a_bmc_says_what_it_is_and_what_the_agent_has_learnt_of_it() {
    let guid = "00112233445566778899aabbccddeeff";
    let (site, machine, _agent) = installed(&["--suite", "3", "--guid", guid]);
    let info = done(&site, &["info"]);
    let fact = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {info}")).trim().to_owned()
    };
    assert_eq!(fact("address"), format!("127.0.0.1:{}", machine.bmc.port));
    assert_eq!((fact("driver").as_str(), fact("ipmi").as_str()), ("ipmi", "2.0"));
    assert_eq!(fact("cipher_suite"), "3");
    assert_eq!(fact("system_guid"), guid);
    for number in ["manufacturer", "product"] {
        assert!(fact(number).parse::<u32>().is_ok(), "{info}");
    }
}

/// Invariant (bmc): Nobody else switches a machine during its installation, and switching off is no
/// consent.
#[test]
fn a_machine_that_is_being_installed_is_switched_by_nobody_else() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    site.until_phase(NODE, Phase::WaitingRamdisk);
    let story = machine.story();
    for words in [&["off"][..], &["off", "--hard"], &["on"], &["cycle"], &["bootdev", "disk"]] {
        let why = refused(&site, words);
        let expected = "is waiting-ramdisk; hostler switches it itself until that is over";
        assert!(why.contains(expected), "{words:?}: {why}");
    }
    assert_eq!(machine.story(), story);
    // Reading the status is allowed.
    assert_eq!(done(&site, &["status"]).lines().next(), Some("power  on"));
    ramdisk.export();
    ramdisk.finish();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story().len(), 5);
}

/// Invariant (bmc): Nobody else switches a machine during its installation, and switching off is no
/// consent.
#[test]
fn switching_off_is_never_taken_for_consent_to_wipe() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let _agent = site.start();
    let spec = machine.spec(&site);
    site.write(NODE, &spec);
    site.until_phase(NODE, Phase::Held);
    for words in [&["off"][..], &["off", "--hard"], &["cycle"]] {
        let why = refused(&site, words);
        assert!(why.contains("WIPE") && why.contains("hostler approve"), "{why}");
    }
    assert!(machine.story().is_empty());
    assert_eq!(done(&site, &["on"]), "power  on\n");
    // The remedy in the message works: the machine is off, and its disk unchanged.
    site.write(NODE, &spec.with("state", "unmanaged"));
    site.until_phase(NODE, Phase::Unmanaged);
    assert_eq!(done(&site, &["off"]), "power  off\n");
    assert_eq!(machine.story(), ["shut down"]);
    assert!(machine.disk.disk().iter().all(|byte| *byte == 0));
}

/// Invariant (bmc): Nobody else switches a machine during its installation, and switching off is no
/// consent.
#[test]
fn nothing_is_seen_of_a_machine_in_the_middle_of_a_command() {
    let (site, machine, _agent) = installed(&["--slow-power", "4"]);
    let offs = || machine.story().iter().filter(|line| *line == "off").count();
    let before = offs();
    let mut cycle = start(&site, &["cycle"]);
    site.await_that("off", || offs() > before);
    // A changed BMC setting in the spec causes a poll at once.
    site.write(NODE, &spec(&site, &machine).with("bmc.privilege", "operator"));
    let mut seen = Vec::new();
    while cycle.try_wait().unwrap().is_none() {
        seen.extend(site.status(NODE).as_ref().and_then(observed));
    }
    let ended = cycle.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}\n{}", site.log());
    assert!(seen.iter().all(|state| *state == PowerState::On), "it was seen off");
    assert!(machine.is_on());
}

#[test]
fn a_command_ends_with_timeouts_power_or_with_its_operator() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--deaf-power"]);
    let _agent = site.start();
    let spec = machine.spec(&site).with("state", "unmanaged");
    site.write(NODE, &spec.clone().with("timeouts.power", "3s"));
    site.until_phase(NODE, Phase::Unmanaged);
    let why = refused(&site, &["on"]);
    assert!(why.contains("accepted power on but stayed off for"), "{why}");
    assert!(!why.contains(PASSWORD), "{why}");

    site.write(NODE, &spec.with("timeouts.power", "10m"));
    let used = |site: &Site| site.log().matches("operator uses a BMC").count();
    site.await_that("new limit", || {
        site.status(NODE)
            .is_some_and(|status| status.spec_valid && status.phase == Phase::Unmanaged)
    });
    let before = used(&site);
    let mut gone = start(&site, &["on"]);
    site.await_that("begun", || used(&site) > before);
    gone.kill().unwrap();
    gone.wait().unwrap();
    site.await_that("given up", || site.log().contains("an operator went away before it was done"));
    // The BMC is free for the next command.
    assert_eq!(done(&site, &["status"]).lines().next(), Some("power  off"));
}

#[test]
fn a_node_that_is_none_or_has_no_bmc_is_refused() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).without("bmc.").with("bmc.driver", "none"));
    site.until(NODE, "there", |status| status.spec_valid);
    for words in [&["status"][..], &["on"]] {
        let why = refused(&site, words);
        assert!(why.contains("edge-07: has no BMC (bmc.driver = \"none\")"), "{why}");
    }
    let (code, _, errors) = said(&site, &["bmc", "edge-99", "on"]);
    assert_eq!(code, 1);
    assert!(errors.contains("edge-99: no such node"), "{errors}");
    for words in [&["bmc", NODE][..], &["bmc", NODE, "wipe"], &["bmc", NODE, "bootdev", "usb"]] {
        assert_ne!(said(&site, words).0, 0, "{words:?}");
    }
    assert!(machine.story().is_empty());
}

#[test]
fn show_boot_prints_what_a_nic_is_served_and_the_key_only_when_told_to() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);

    let (code, shown, errors) = said(&site, &["show-boot", &machine.mac]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(!shown.contains(ramdisk.key()), "the key is shown");
    assert!(shown.contains("hostler.key=<key>") && shown.contains("--secrets shows it"), "{shown}");
    let (_, secrets, _) = said(&site, &["show-boot", &machine.mac.to_uppercase(), "--secrets"]);
    let hyphenated = machine.mac.replace(':', "-");
    for name in [
        format!("pxelinux.cfg/01-{hyphenated}"),
        format!("grub/grub.cfg-01-{}", machine.mac),
        format!("ipxe/01-{hyphenated}.ipxe"),
    ] {
        let served = String::from_utf8(site.fetch(&name).unwrap()).unwrap();
        assert!(served.contains(ramdisk.key()));
        let section = format!("\n# {name}\n{}\n", served.trim_end());
        assert!(secrets.contains(&section), "{name} in\n{secrets}");
        assert!(shown.contains(&section.replace(ramdisk.key(), "<key>")), "{name} in\n{shown}");
    }
    assert!(site.log().contains("operator reads boot menus"));
    assert!(!site.log().contains(ramdisk.key()));

    ramdisk.export();
    ramdisk.finish();
    ends_deployed(&site, &machine);
    let (_, shown, _) = said(&site, &["show-boot", &machine.mac]);
    assert!(shown.contains("LOCALBOOT") && !shown.contains("<key>"), "{shown}");
    let (code, out, errors) = said(&site, &["show-boot", "52:54:00:00:ff:fe"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        errors.contains("52:54:00:00:ff:fe is served no menu of its own (file not found)"),
        "{errors}"
    );
}

/// Invariant (bmc): The end of a BMC's trouble is seen within 90 s; refused credentials are not
/// sent meanwhile.
#[test]
fn trouble_with_a_bmc_ends_at_once_when_an_operator_uses_it_or_asks_again() {
    let site = Site::new();
    let machines = ["edge-07", "edge-08"].map(|node| Machine::new(&site, node));
    let password = |machine: &Machine, text: &str| {
        fs::write(site.path(&format!("secrets/{}.bmc", machine.node)), text).unwrap();
    };
    let _agent = site.start();
    for machine in &machines {
        password(machine, "wrong\n");
        site.write(&machine.node, &machine.spec(&site).with("state", "available"));
        let status = site.until(&machine.node, "refused", |status| {
            status.conditions.iter().any(|condition| condition.kind == "BmcReachable")
        });
        assert!(status.message.contains("its power is not known: "), "{}", status.message);
        assert!(!status.ready);
    }
    for machine in &machines {
        password(machine, &format!("{PASSWORD}\n"));
    }
    let retried = answer(&mut site.hostler(&["retry", "edge-07"]));
    assert_eq!(retried.1, "edge-07: its BMC will be asked again\n");
    let said = answer(&mut site.hostler(&["bmc", "edge-08", "status"]));
    assert!(said.1.contains("power  off"), "{said:?}");
    for machine in &machines {
        let status = site.until(&machine.node, "reached", |status| status.ready);
        assert_eq!(status.message, "kept off; nothing is served to it");
        assert!(status.conditions.iter().all(|condition| condition.kind != "BmcReachable"));
    }
}
