//! Tests of the differences of attempts with Ironic's ramdisk.

use crate::{
    lifecycle::{DiskSize, Menu, Operation, Outcome, State},
    model::{
        callback::{Call, DeployInfo, Reply},
        disk::{Disk, SizeHint},
        spec::DeployRamdisk,
        status::Phase,
    },
};

use super::support::*;

/// A node that waits for Ironic's ramdisk, with a serial number as hint.
fn waiting() -> Bench {
    waiting_in(Phase::WaitingRamdisk)
}

fn waiting_in(phase: Phase) -> Bench {
    let mut bench = Bench::with_spec();
    bench.change(|spec| {
        spec.boot.ramdisk = DeployRamdisk::Ironic;
        spec.boot.require_chap = false;
        spec.root_device.serial = Some("root-1".to_owned());
    });
    bench.go_to(phase);
    bench
}

fn info() -> DeployInfo {
    let Call::IronicDeployInfo(info) = ironic_target() else { unreachable!() };
    info
}

fn running(bench: &Bench) -> Option<&Operation> {
    bench.running.as_ref().map(|(_, operation)| operation)
}

/// A node whose disk is written and whose ramdisk is being called.
fn releasing() -> Bench {
    let mut bench = waiting();
    assert_eq!(bench.call(&key(1), ironic_target()), Reply::Accepted);
    bench.done(Ok(imaged()));
    assert_eq!(bench.phase(), Phase::Switching);
    bench
}

#[test]
fn ironics_ramdisk_is_imaged_told_and_then_restarted_by_the_bmc() {
    let mut bench = waiting();
    assert_eq!(bench.menu(), Menu::Deploy(key(1)));
    assert_eq!(bench.call(&key(1), ironic_target()), Reply::Accepted);
    let Some(Operation::Image { target: written, size, .. }) = running(&bench) else { panic!() };
    assert_eq!((written.address, written.port, written.lun), (RAMDISK, 3260, 1));
    assert_eq!((&written.chap_password, *size), (&None, DiskSize::AtLeast(IMAGE_BYTES)));
    assert_eq!(bench.call(&key(1), ironic_target()), Reply::Accepted, "the same again is the same");

    bench.done(Ok(imaged()));
    assert_eq!(running(&bench), Some(&Operation::Release(RAMDISK)));
    assert_eq!(bench.menu(), Menu::LocalDisk, "the menu is local before it is told");
    bench.done(Ok(Outcome::Released));
    assert!(matches!(running(&bench), Some(Operation::Restart { .. })));
    bench.go_to(Phase::Deployed);
    let installed = bench.node.record().installed.clone().unwrap();
    let Disk { size, serial, .. } = installed.disk;
    assert_eq!((size, serial.as_deref()), (disk().size, Some("root-1")));
}

/// Invariant (ramdisk): The two ramdisks' listeners cannot be mixed.
#[test]
fn each_ramdisk_is_believed_only_where_the_spec_names_it() {
    let mut ironics = waiting();
    for call in [lookup(), deploy_info(""), Call::DeployState, completed("")] {
        assert_eq!(ironics.call(&key(1), call.clone()), Reply::Refused, "{}", call.name());
    }
    assert_eq!(ironics.phase(), Phase::WaitingRamdisk);

    let mut own = Bench::with_spec();
    own.change(|spec| spec.boot.require_chap = false);
    own.go_to(Phase::WaitingRamdisk);
    own.call(&key(1), lookup());
    let failed = Call::IronicDeployInfo(DeployInfo { error: "oh".into(), ..info() });
    for call in [ironic_target(), failed, Call::IronicBootloader(String::new())] {
        assert_eq!(own.call(&key(1), call.clone()), Reply::Refused, "{}", call.name());
    }
    assert_eq!(own.phase(), Phase::WaitingRamdisk);
}

#[test]
fn a_wrong_key_a_target_elsewhere_or_under_another_name_is_refused() {
    let mut bench = waiting();
    assert_eq!(bench.call(&key(9), ironic_target()), Reply::Refused);
    let elsewhere = DeployInfo { address: Some([192, 0, 2, 66].into()), ..info() };
    let other = DeployInfo { iqn: "iqn.2008-10.org.openstack:edge-07".into(), ..info() };
    for bad in [elsewhere, other] {
        assert_eq!(bench.call(&key(1), Call::IronicDeployInfo(bad)), Reply::Refused);
    }
    let silent = DeployInfo { address: None, ..info() };
    assert_eq!(bench.call(&key(1), Call::IronicDeployInfo(silent)), Reply::Accepted);
}

#[test]
fn an_exact_size_is_looked_at_again_at_the_target() {
    let mut bench = waiting();
    bench.change(|spec| spec.root_device.size = Some(SizeHint::parse("== 8GiB").unwrap()));
    bench.go_to(Phase::WaitingRamdisk);
    bench.call(&key(1), ironic_target());
    let Some(Operation::Image { size, .. }) = running(&bench) else { panic!() };
    assert_eq!(*size, DiskSize::Exactly(8 << 30));
}

#[test]
fn the_words_of_ironics_ramdisk_are_the_reason_of_the_failure() {
    let mut bench = waiting();
    let error = "Could not find disk to use.";
    let call = Call::IronicDeployInfo(DeployInfo { error: error.into(), ..info() });
    assert_eq!(bench.call(&key(1), call), Reply::Accepted);
    let fault = bench.node.record().last_error.clone().unwrap().fault;
    assert_eq!(fault.code, "RamdiskFailed");
    assert!(fault.message.ends_with(error), "{}", fault.message);
}

#[test]
fn a_ramdisk_that_cannot_be_told_is_restarted_all_the_same_once_the_telling_has_stopped() {
    let mut bench = releasing();
    bench.pass(5 * 60 + 1);
    let (telling, _) = bench.running.clone().unwrap();
    assert_eq!(bench.cancelled, [telling]);
    assert_eq!(bench.phase(), Phase::Restarting);
    assert_eq!(running(&bench), Some(&Operation::Release(RAMDISK)), "it has not stopped yet");
    bench.done(Err(passing()));
    assert!(matches!(running(&bench), Some(Operation::Restart { .. })));
    bench.go_to(Phase::Deployed);
}

#[test]
fn an_agent_killed_while_it_tells_goes_on_telling_within_the_old_deadline() {
    let mut bench = releasing();
    let deadline = bench.node.record().deadline;
    bench.restart();
    let spec = bench.node.spec().unwrap().clone();
    bench.send(crate::lifecycle::Event::Spec(spec));
    assert_eq!(running(&bench), Some(&Operation::Release(RAMDISK)));
    assert_eq!(bench.node.record().deadline, deadline);
}

#[test]
fn a_boot_loader_nobody_asked_for_counts_only_if_it_failed() {
    let mut bench = waiting();
    let installed = || Call::IronicBootloader(String::new());
    assert_eq!(bench.call(&key(1), installed()), Reply::Refused, "nothing is written yet");
    let mut bench = releasing();
    assert_eq!(bench.call(&key(1), installed()), Reply::Accepted);
    assert_eq!(bench.phase(), Phase::Switching);
    let failed = Call::IronicBootloader("no grub-install".to_owned());
    assert_eq!(bench.call(&key(1), failed), Reply::Accepted);
    let fault = bench.node.record().last_error.clone().unwrap().fault;
    assert!(fault.message.contains("no grub-install"), "{}", fault.message);
}

#[test]
fn another_ramdisk_in_the_spec_ends_the_attempt_that_was_begun_with_the_old_one() {
    for go in [Phase::PoweringOn, Phase::WaitingRamdisk] {
        let mut bench = Bench::with_spec();
        bench.change(|spec| {
            spec.boot.require_chap = false;
            spec.root_device.serial = Some("root-1".to_owned());
        });
        bench.go_to(go);
        bench.change(|spec| spec.boot.ramdisk = DeployRamdisk::Ironic);
        assert!(matches!(bench.node.record().state, State::CleaningUp { .. }), "{go:?}");
        assert_eq!(bench.call(&key(1), ironic_target()), Reply::Refused);
    }
}

/// Invariant (ramdisk): A machine that offers its target is not switched off and on again.
#[test]
fn a_target_that_is_offered_before_the_bmc_reports_the_machine_on_ends_the_power_on() {
    let mut bench = waiting_in(Phase::PoweringOn);
    let (power_on, _) = bench.running.clone().unwrap();
    assert_eq!(bench.call(&key(1), ironic_target()), Reply::Accepted);
    assert_eq!((bench.phase(), &bench.cancelled), (Phase::Imaging, &vec![power_on]));
    bench.done(Err(passing()));
    assert!(matches!(running(&bench), Some(Operation::Image { .. })), "and fails no attempt");
}
