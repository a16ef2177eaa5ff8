//! The call of an installed system that is up: whose call counts, and when.

use std::sync::Arc;

use crate::{
    lifecycle::{Event, FirstBoot, Operation, Outcome, State},
    model::{
        boot_report::BootReport,
        callback::Reply,
        power::PowerState,
        secret::BootToken,
        spec::BootCheck,
        status::{Booted, InstalledSystem, Phase},
    },
};

use super::support::*;

const SYSTEM: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 57));

fn token(n: u8) -> BootToken {
    BootToken::from_bytes(&[n; 32])
}

/// A machine in this phase whose system is to call with this token.
fn calling(phase: Phase, n: u8) -> Bench {
    let mut bench = Bench::with_spec();
    bench.change(|spec| spec.boot_check = BootCheck::Call);
    install(&mut bench, phase, n);
    bench
}

fn install(bench: &mut Bench, phase: Phase, n: u8) {
    bench.go_to(Phase::Preparing);
    let Outcome::Prepared { mut image, key, .. } = prepared(key(1)) else { unreachable!() };
    image.boot_token = Some(token(n));
    bench.done(Ok(Outcome::Prepared { image, key, system_guid: None, stages: Vec::new() }));
    bench.go_to(phase);
}

fn report() -> BootReport {
    BootReport {
        hostname: Some("edge-07".to_owned()),
        instance_id: Some("i-1".to_owned()),
        ssh_host_keys: vec!["ssh-ed25519 SHA256:abc".to_owned()],
    }
}

fn call_with(bench: &mut Bench, n: u8, report: BootReport) -> Reply {
    let event = Event::BootCalled { request: 7, peer: SYSTEM, token: token(n), report };
    bench.send(event).expect("every call is answered")
}

fn call(bench: &mut Bench, n: u8) -> Reply {
    call_with(bench, n, report())
}

fn booted(bench: &Bench) -> Option<Booted> {
    bench.node.record().installed.as_ref()?.booted
}

/// Invariant (attempt): A system counts as up only after its own check said so.
#[test]
fn a_machine_is_deployed_once_its_system_calls_and_saying_it_twice_is_saying_it_once() {
    let mut bench = calling(Phase::Booting, 1);
    assert_eq!(bench.running, None, "nothing is asked, it calls");
    assert_eq!(bench.message(), "it boots its own system; waiting for it to call");
    bench.pass(600);
    assert_eq!(call(&mut bench, 1), Reply::Accepted);
    let status = bench.node.status(bench.now);
    assert_eq!((status.phase, status.ready), (Phase::Deployed, true));
    let installed = status.installed.unwrap();
    assert_eq!(installed.booted_at, Some(bench.now));
    let system = InstalledSystem {
        address: Some(SYSTEM),
        ssh_banner: None,
        hostname: Some("edge-07".to_owned()),
        instance_id: Some("i-1".to_owned()),
        ssh_host_keys: vec!["ssh-ed25519 SHA256:abc".to_owned()],
    };
    assert_eq!(installed.system, Some(system));
    let before = bench.node.record().clone();
    bench.pass(5);
    let other = BootReport { hostname: Some("other".to_owned()), ..BootReport::default() };
    assert_eq!(call_with(&mut bench, 1, other), Reply::Accepted);
    assert_eq!(*bench.node.record(), before, "a repeated call changes nothing");
}

/// Invariant (attempt): A call counts only with the token of this very installation.
#[test]
fn another_token_or_that_of_an_older_attempt_changes_nothing_in_any_phase() {
    for phase in [Phase::PoweringOn, Phase::WaitingRamdisk, Phase::Imaging, Phase::Booting] {
        let mut bench = calling(phase, 1);
        let before = bench.node.record().clone();
        assert_eq!(call(&mut bench, 2), Reply::Refused);
        assert_eq!(*bench.node.record(), before, "{phase:?}");
        if phase != Phase::Booting {
            assert_eq!(call(&mut bench, 1), Reply::Refused, "{phase:?}: nobody can have it yet");
        }
        assert_eq!(*bench.node.record(), before, "{phase:?}");
    }
    let mut bench = calling(Phase::Booting, 1);
    bench.change(|spec| spec.redeploy = Some("again".into()));
    bench.poll(PowerState::On);
    install(&mut bench, Phase::Booting, 3);
    let before = bench.node.record().clone();
    assert_eq!(call(&mut bench, 1), Reply::Refused);
    assert_eq!(*bench.node.record(), before);
    assert_eq!(call(&mut bench, 3), Reply::Accepted);
    // Without a check nobody has a token.
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    assert_eq!(call(&mut bench, 1), Reply::Refused);
}

#[test]
fn a_call_that_comes_late_ends_the_failure() {
    let mut bench = calling(Phase::Booting, 1);
    bench.pass(1201);
    assert_eq!(bench.running.clone().unwrap().1, Operation::Restart { wanted: PowerState::On });
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    bench.pass(1201);
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Failed, Some(Booted::Missed)));
    assert_eq!(call(&mut bench, 1), Reply::Accepted);
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Deployed, Some(Booted::Up)));
    assert_eq!(bench.node.record().last_error, None);
}

#[test]
fn a_system_that_is_quicker_than_its_bmc_is_believed() {
    let mut bench = calling(Phase::Restarting, 1);
    assert_eq!(call(&mut bench, 1), Reply::Accepted);
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Restarting, Some(Booted::Up)));
    bench.done(Ok(Outcome::Restarted(PowerState::On)));
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Deployed, Some(Booted::Up)));
    // Its BMC has failed to restart it, and somebody else did.
    let mut bench = calling(Phase::Restarting, 1);
    bench.done(Err(lasting()));
    assert_eq!(bench.phase(), Phase::Failed);
    assert_eq!(call(&mut bench, 1), Reply::Accepted);
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Deployed, Some(Booted::Up)));
}

/// Invariant (attempt): A restarted agent goes on where it stopped, within the old deadlines.
#[test]
fn a_system_that_may_have_called_in_vain_is_not_restarted() {
    let mut bench = calling(Phase::Booting, 1);
    bench.restart();
    bench.now = bench.now.checked_add(jiff::SignedDuration::from_hours(5)).unwrap();
    let spec = Arc::clone(bench.node.spec().unwrap());
    bench.send(Event::Spec(spec));
    assert_eq!(bench.node.record().state, State::Booting { boot: FirstBoot::Overdue });
    bench.pass(121);
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Failed, Some(Booted::Missed)));
    let message = bench.message();
    assert!(message.contains("it may have called while hostler did not run"), "{message}");
    assert_eq!(call(&mut bench, 1), Reply::Accepted);
    assert_eq!(bench.phase(), Phase::Deployed);
}

#[test]
fn a_check_by_call_that_came_after_the_installation_cannot_be_met_and_is_none() {
    let mut bench = Bench::with_spec();
    bench.change(check_port);
    bench.go_to(Phase::Booting);
    bench.change(|spec| spec.boot_check = BootCheck::Call);
    assert_eq!((bench.phase(), booted(&bench)), (Phase::Deployed, Some(Booted::Unchecked)));
}

/// Invariant (secrets): No secret is in status files, logs or debug output.
#[test]
fn the_token_is_on_record_and_in_no_status_and_a_report_is_bounded_and_escaped() {
    let mut bench = calling(Phase::Booting, 0x5a);
    let exposed = token(0x5a);
    let record = serde_json::to_string(bench.node.record()).unwrap();
    assert!(record.contains(exposed.expose()));
    let long = || Some("\u{1b}[2J\u{202e}x".repeat(10_000));
    let report = BootReport {
        hostname: long(),
        instance_id: long(),
        ssh_host_keys: vec!["k\0".repeat(10_000); 1000],
    };
    assert_eq!(call_with(&mut bench, 0x5a, report), Reply::Accepted);
    let status = toml::to_string(&bench.node.status(bench.now)).unwrap();
    assert!(!status.contains(exposed.expose()), "{status}");
    assert!(status.len() < 8000, "{}", status.len());
    assert!(
        !status.contains('\u{1b}') && !status.contains('\u{202e}') && !status.contains("\\u0000")
    );
}
