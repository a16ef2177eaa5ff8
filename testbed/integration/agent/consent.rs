//! Consent with real files and BMCs: lost state directories, mass changes, and power.

use std::fs;

use hostler::model::status::{Phase, Status};

use super::{
    DEPLOYED, NODE, ends_deployed,
    machine::Machine,
    site::{Agent, Site, Spec, answer},
};

/// Makes an agent with an installed machine with `redeploy = "first"`.
fn installed(safety: &str) -> (Site, Machine, Spec, Agent) {
    let site = Site::new();
    site.configure_more(safety);
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    let spec = machine.spec(&site).with("redeploy", "first");
    site.write(NODE, &spec);
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    (site, machine, spec, agent)
}

/// Removes the state directory of a killed agent, and its mark: the next agent has another state,
/// and would otherwise wait for minutes.
fn lose_state(site: &Site) {
    fs::remove_dir_all(site.path("state")).unwrap();
    fs::remove_file(site.path("nodes/_agent.status.toml")).unwrap();
}

fn condition(status: &Status, kind: &str) -> Option<String> {
    let condition = status.conditions.iter().find(|condition| condition.kind == kind)?;
    Some(condition.status.clone())
}

/// Waits for a status after another poll of the BMC.
fn look_again(site: &Site) -> Status {
    let before = jiff::Timestamp::now();
    site.until(NODE, "looked at", |status| {
        status.power.is_some_and(|power| power.observed_at > before)
    })
}

/// Invariant (state): A lost state directory is recovered from the status files.
#[test]
fn a_machine_whose_record_is_lost_is_adopted_from_its_status_file_on_or_off() {
    for switched_off in [false, true] {
        let (site, machine, spec, agent) = installed("");
        let installed = site.status(NODE).unwrap().installed;
        agent.kill();
        if switched_off {
            machine.switch_off();
        }
        lose_state(&site);
        let story = machine.story();
        let agent = site.start();
        let status = look_again(&site);
        assert_eq!((status.phase, &status.installed), (Phase::Deployed, &installed));
        assert_eq!((machine.story(), machine.boots_its_disk(&site)), (story.clone(), true));

        // Also with another `redeploy`, which may be years old: only a later change is consent.
        agent.kill();
        lose_state(&site);
        site.write(NODE, &spec.clone().with("redeploy", "written while nobody looked"));
        let _agent = site.start();
        let status = look_again(&site);
        assert_eq!(status.phase, Phase::Deployed);
        assert_eq!(status.installed_digest, installed.map(|installed| installed.digest));
        assert_eq!(condition(&status, "Drifted").as_deref(), Some("True"));
        assert_eq!(machine.story(), story);
        site.write(NODE, &spec.with("redeploy", "now"));
        machine.boot(&site, 2);
    }
}

#[test]
fn a_machine_that_is_on_is_held_when_neither_record_nor_status_file_is_left() {
    let (site, machine, _, agent) = installed("");
    agent.kill();
    lose_state(&site);
    fs::remove_file(site.path("nodes/edge-07.status.toml")).unwrap();
    let _agent = site.start();
    let status = site.until_phase(NODE, Phase::Held);
    assert!(status.message.contains("switch it off"), "{}", status.message);
    assert_eq!(machine.story(), DEPLOYED);
}

/// Invariant (consent): An edit that names another machine consents to nothing, whatever else it
/// changes.
#[test]
fn a_running_machine_that_one_edit_puts_in_anothers_place_is_held_and_its_power_left_alone() {
    let (site, machine, spec, agent) = installed("");
    let stranger = Machine::with_bmc(&site, "edge-99", &["--on"]);
    let edited = spec
        .with("boot.mac", &stranger.mac)
        .with("bmc.address", &format!("127.0.0.1:{}", stranger.bmc.port))
        .with("redeploy", "b");
    site.write(NODE, &edited);
    let status = site.until_phase(NODE, Phase::Held);
    let bmc = format!("BMC 127.0.0.1:{}", stranger.bmc.port);
    assert!(status.message.contains(&bmc), "{}", status.message);
    assert!(!status.ready && status.installed.is_none(), "{status:#?}");
    let (_, said, _) = answer(&mut site.hostler(&["plan"]));
    assert!(said.starts_with("edge-07  hold  "), "{said}");
    let (_, said, _) = answer(&mut site.hostler(&["explain", NODE]));
    assert!(said.contains(&format!("machine    {bmc}")), "{said}");
    agent.kill();
    let _agent = site.start();
    let status = look_again(&site);
    assert_eq!(status.phase, Phase::Held);
    assert_eq!(stranger.story(), Vec::<String>::new());
    assert_eq!(machine.story(), DEPLOYED);
}

/// Invariant (consent): A mass change survives a restart as a hold, and touches nothing when it is
/// taken back.
#[test]
fn a_mass_change_in_one_swap_of_the_directory_is_held_and_taking_it_back_touches_nothing() {
    let site = Site::new();
    site.configure(&format!("status_dir = \"{}\"", site.path("status").display()));
    let machines = ["edge-01", "edge-02", "edge-03"].map(|node| Machine::new(&site, node));
    let _agent = site.start();
    // As git-sync does: a new tree beside the old one, and one rename.
    let swap = |redeploy: &str| {
        let new = site.path("nodes.new");
        fs::create_dir(&new).unwrap();
        for machine in &machines {
            let spec = machine.spec(&site).with("redeploy", redeploy);
            fs::write(new.join(format!("{}.toml", machine.node)), spec.to_toml()).unwrap();
        }
        let old = site.path("nodes.old");
        fs::rename(site.path("nodes"), &old).unwrap();
        fs::rename(&new, site.path("nodes")).unwrap();
        fs::remove_dir_all(&old).unwrap();
    };
    swap("first");
    for machine in &machines {
        machine.deploy(&site);
        ends_deployed(&site, machine);
    }
    swap("all of them");
    for machine in &machines {
        let status = site.until_phase(&machine.node, Phase::Held);
        let held = status.conditions.iter().find(|condition| condition.kind == "Held").unwrap();
        assert_eq!((held.status.as_str(), held.reason.as_str()), ("True", "TooManyChanges"));
        assert!(status.message.contains("hostler approve --all"), "{}", status.message);
        assert!(status.installed.is_some());
    }
    swap("first");
    for machine in &machines {
        site.until_phase(&machine.node, Phase::Deployed);
        ends_deployed(&site, machine);
        assert_eq!(machine.story(), DEPLOYED);
    }
}

#[test]
fn an_installed_machine_made_available_shuts_down_and_comes_back_as_it_was() {
    let (site, machine, spec, _agent) = installed("");
    site.write(NODE, &spec.clone().with("state", "available"));
    let status =
        site.until(NODE, "available", |status| status.ready && status.phase == Phase::Available);
    assert!(status.installed.is_some());
    assert_eq!(machine.story(), [&DEPLOYED[..], &["shut down"]].concat());
    assert_eq!(machine.menu(&site), None, "nothing is served to it");
    assert!(machine.has_image(&site), "its disk is kept");

    site.write(NODE, &spec);
    site.await_that("on again", || machine.is_on());
    let status = site.until(NODE, "on", |status| {
        status.ready && condition(status, "PowerAsWanted").as_deref() == Some("True")
    });
    assert_eq!(status.phase, Phase::Deployed);
    let story = machine.story();
    assert_eq!(story[DEPLOYED.len() + 1..], ["disk always", "on from hd"], "{story:?}");
}

#[test]
fn a_machine_that_is_on_and_unknown_is_not_switched_off_to_be_available() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--on"]);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("state", "available"));
    let status = site.until_phase(NODE, Phase::Held);
    assert!(status.message.contains("hostler approve"), "{}", status.message);
    assert_eq!((machine.story().len(), machine.menu(&site)), (0, None));
}

#[test]
fn power_is_enforced_only_where_the_site_says_so() {
    for (safety, enforced) in [("", false), ("[safety]\nenforce_power = true", true)] {
        let (site, machine, spec, agent) = installed(safety);
        agent.kill();
        machine.switch_off();
        let _agent = site.start();
        if enforced {
            site.await_that("on again", || machine.is_on());
            let again = ["off", "disk always", "on from hd"];
            assert_eq!(machine.story(), [&DEPLOYED[..], &again].concat());
            continue;
        }
        let status = site.until(NODE, "seen off", |status| {
            condition(status, "PowerAsWanted").as_deref() == Some("False")
        });
        assert!(status.message.contains("the machine is off"), "{}", status.message);
        assert!(status.ready && !machine.is_on());
        // A changed `power` is an order.
        site.write(NODE, &spec.clone().with("power", "off"));
        site.until(NODE, "as wanted", |status| {
            condition(status, "PowerAsWanted").as_deref() == Some("True")
        });
        site.write(NODE, &spec);
        site.await_that("on again", || machine.is_on());
    }
}
