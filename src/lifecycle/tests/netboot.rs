//! Tests of `boot.after = "network"`: only an installed machine boots its own kernel.

use std::{sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};

use crate::{
    lifecycle::{Event, Menu, Operation, Outcome, PreparedImage},
    model::{
        fault::RetryAdvice,
        ids::{Digest, DigestAlgorithm},
        netboot::{Netboot, NetbootFiles},
        power::PowerState,
        spec::{Goal, NodeSpec},
        status::Phase,
    },
};

use super::support::*;

const UUID: &str = "0a1b2c3d-0000-4000-8000-000000000001";

fn netboot(kernel_args: &[&str]) -> Netboot {
    Netboot {
        kernel: "vmlinuz".into(),
        kernel_checksum: None,
        ramdisk: "initrd".into(),
        ramdisk_checksum: None,
        kernel_args: kernel_args.iter().map(|&word| word.to_owned()).collect(),
    }
}

/// Makes network boot files with these paths.
fn files(wanted: &Netboot) -> NetbootFiles {
    let digest = |path: &str| Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest(path));
    NetbootFiles {
        kernel_digest: digest(&wanted.kernel),
        ramdisk_digest: digest(&wanted.ramdisk),
        ..wanted.unverified()
    }
}

fn from_network(spec: &mut NodeSpec) {
    spec.image.netboot = Some(Box::new(netboot(&["ro"])));
}

fn other_kernel(spec: &mut NodeSpec) {
    let kernel = "vmlinuz-new".to_owned();
    spec.image.netboot = Some(Box::new(Netboot { kernel, ..netboot(&["ro"]) }));
}

/// Makes a partition image.
fn prepared_root(root_uuid: Option<&str>, netboot: &Netboot) -> Outcome {
    let Outcome::Prepared { image, key, system_guid, stages } = prepared(key(1)) else {
        unreachable!()
    };
    let root_uuid = root_uuid.map(str::to_owned);
    let image = PreparedImage { root_uuid, netboot: Some(files(netboot)), ..image };
    Outcome::Prepared { image, key, system_guid, stages }
}

/// A node with `boot.after = "network"` and a prepared image.
fn bench() -> Bench {
    let mut bench = Bench::with_spec();
    bench.change(from_network);
    bench.go_to(Phase::Preparing);
    bench.done(Ok(prepared_root(Some(UUID), &netboot(&["ro"]))));
    bench
}

fn deployed() -> Bench {
    let mut bench = bench();
    bench.go_to(Phase::Deployed);
    bench
}

fn menu_of(wanted: &Netboot, root: &str) -> Menu {
    let command_line = [wanted.kernel_args.join(" "), root.to_owned()].join(" ").trim().to_owned();
    Menu::Network { files: files(wanted).files(), command_line }
}

fn own() -> Menu {
    menu_of(&netboot(&["ro"]), &format!("root=UUID={UUID}"))
}

fn new() -> Menu {
    let kernel = "vmlinuz-new".to_owned();
    menu_of(&Netboot { kernel, ..netboot(&["ro"]) }, &format!("root=UUID={UUID}"))
}

/// The running operation on network boot files: the served files, and whether they are renewed.
fn verifying(bench: &Bench) -> Option<(Option<NetbootFiles>, bool)> {
    match &bench.running.as_ref()?.1 {
        Operation::NetbootFiles { served, renew } => Some((served.clone(), *renew)),
        _ => None,
    }
}

fn condition(bench: &Bench, kind: &str) -> Option<(String, String)> {
    let conditions = bench.node.status(bench.now).conditions;
    let found = conditions.into_iter().find(|condition| condition.kind == kind)?;
    Some((found.status, found.reason))
}

/// An installed machine that is on, so that nothing else is due.
fn quiet() -> Bench {
    let mut bench = deployed();
    bench.poll(PowerState::On);
    assert_eq!(bench.running, None);
    bench
}

/// Invariant (netboot): The system's own kernel is served from the moment the disk is written.
#[test]
fn the_own_kernel_is_served_from_the_moment_the_disk_is_written() {
    let mut bench = bench();
    for (phase, menu) in [
        (Phase::Preparing, Menu::LocalDisk),
        (Phase::PoweringOn, Menu::Deploy(key(1))),
        (Phase::WaitingRamdisk, Menu::Deploy(key(1))),
        (Phase::Imaging, Menu::Deploy(key(1))),
        (Phase::Switching, own()),
        (Phase::WaitingCompleted, own()),
        (Phase::Restarting, own()),
        (Phase::Deployed, own()),
    ] {
        bench.go_to(phase);
        assert_eq!(bench.menu(), menu, "{phase:?}");
    }
    bench.restart();
    assert_eq!(bench.menu(), own(), "also before the directory is read");
}

/// Invariant (netboot): A served kernel finds the root written last; an old root device is
/// reported.
#[test]
fn the_root_is_told_by_its_partition_which_no_other_disk_has() {
    let mut bench = bench();
    bench.go_to(Phase::Imaging);
    let Outcome::Imaged { verify, disk_bytes, stages, .. } = imaged() else { unreachable!() };
    let root_partuuid = Some("0a0b0c0d-0002".to_owned());
    bench.done(Ok(Outcome::Imaged { verify, disk_bytes, root_partuuid, stages }));
    let menu = menu_of(&netboot(&["ro"]), "root=PARTUUID=0a0b0c0d-0002");
    assert_eq!((bench.phase(), bench.menu()), (Phase::Switching, menu.clone()));
    bench.go_to(Phase::Deployed);
    bench.restart();
    assert_eq!(bench.menu(), menu);
}

#[test]
fn a_changed_kernel_is_drift_until_it_is_verified_and_the_old_one_is_served_until_then() {
    let mut bench = quiet();
    let before = bench.node.record().installed.clone().unwrap();
    bench.change(other_kernel);
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, own()));
    assert_eq!(condition(&bench, "Drifted"), Some(("True".into(), "NetbootChanged".into())));
    assert!(!bench.node.status(bench.now).ready);
    let (served, renew) = verifying(&bench).unwrap();
    assert_eq!((served.unwrap(), renew), (files(&netboot(&["ro"])), true));

    // The file is missing.
    bench.done(Err(passing()));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, own()));
    assert!(bench.message().contains(&passing().message), "{}", bench.message());
    assert!(condition(&bench, "NetbootVerified").is_some());
    assert_eq!(
        bench.node.record().installed,
        Some(before.clone()),
        "what is installed is as it was"
    );
    assert_eq!(bench.node.record().last_error, None, "no attempt failed");
    assert_eq!(bench.running, None, "a pause");
    bench.restart();
    assert_eq!(bench.menu(), own(), "also after a crash");
    bench.send(Event::Spec(bench.node.spec().unwrap().clone()));
    bench.poll(PowerState::On);
    assert!(verifying(&bench).is_some());

    let wanted = bench.node.spec().unwrap().image.netboot.clone().unwrap();
    bench.done(Ok(Outcome::NetbootFiles(Some(files(&wanted)))));
    let after = bench.node.record().installed.clone().unwrap();
    assert_eq!(bench.menu(), new());
    assert_eq!(after.digest, bench.node.spec().unwrap().digest());
    assert_eq!((after.at, after.written_digest), (before.at, before.written_digest));
    assert_eq!(condition(&bench, "Drifted"), Some(("False".into(), "AsWanted".into())));
    assert_eq!(condition(&bench, "NetbootVerified"), None);
    assert!(bench.node.status(bench.now).ready && bench.message() == "installed");
    assert_eq!(bench.running, None);
}

/// Invariant (netboot): An installed machine is served the verified files of its record until new
/// ones are verified.
#[test]
fn neither_power_nor_disk_is_touched_for_a_changed_kernel() {
    let mut bench = quiet();
    for change in [other_kernel, from_network] {
        bench.change(change);
        let wanted = bench.node.spec().unwrap().image.netboot.clone().unwrap();
        assert!(verifying(&bench).is_some_and(|(_, renew)| renew));
        bench.done(Ok(Outcome::NetbootFiles(Some(files(&wanted)))));
        assert_eq!((bench.phase(), bench.running.clone()), (Phase::Deployed, None));
    }
}

#[test]
fn files_that_are_verified_for_ever_are_given_up_within_the_imaging_timeout() {
    let mut bench = quiet();
    bench.change(|spec| spec.timeouts.power = Duration::from_hours(24 * 7));
    bench.change(other_kernel);
    assert!(verifying(&bench).is_some());
    let (at, _) = bench.node.next_wake().unwrap();
    let imaging = bench.node.spec().unwrap().timeouts.imaging + Duration::from_secs(60);
    assert!(at.duration_since(bench.now).unsigned_abs() <= imaging, "{at}");
}

/// Invariant (netboot): An installed machine is served the verified files of its record until new
/// ones are verified.
#[test]
fn files_of_a_spec_that_was_changed_meanwhile_are_not_served() {
    let mut bench = quiet();
    bench.change(other_kernel);
    let stale = files(&bench.node.spec().unwrap().image.netboot.clone().unwrap());
    let third = || Netboot { kernel: "third".to_owned(), ..netboot(&["ro"]) };
    bench.change(|spec| spec.image.netboot = Some(Box::new(third())));
    bench.done(Ok(Outcome::NetbootFiles(Some(stale))));
    assert_eq!(bench.menu(), own());
    assert!(verifying(&bench).is_some(), "for the spec as it is now");
    bench.done(Ok(Outcome::NetbootFiles(Some(files(&third())))));
    assert_eq!(bench.menu(), menu_of(&third(), &format!("root=UUID={UUID}")));
}

#[test]
fn with_another_image_too_the_machine_keeps_what_it_was_installed_with() {
    let mut bench = quiet();
    bench.change(|spec| {
        other_kernel(spec);
        spec.image.checksum = format!("sha256:{}", "c".repeat(64)).parse().unwrap();
    });
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, own()));
    assert_eq!(condition(&bench, "Drifted"), Some(("True".into(), "SpecChanged".into())));
    assert_eq!(bench.running, None);
    // The machine must still boot.
    bench.send(Event::NetbootLost);
    let (served, renew) = verifying(&bench).unwrap();
    assert_eq!((served.clone().unwrap(), renew), (files(&netboot(&["ro"])), false));
    bench.done(Ok(Outcome::NetbootFiles(served)));
    assert_eq!((bench.menu(), bench.running.clone()), (own(), None));
}

#[test]
fn a_file_that_is_lost_is_had_again_and_said_so_as_long_as_it_is_not() {
    let mut bench = quiet();
    bench.send(Event::NetbootLost);
    let (served, _) = verifying(&bench).unwrap();
    bench.done(Err(passing()));
    assert!(!bench.node.status(bench.now).ready);
    assert!(bench.message().contains("cannot be verified"), "{}", bench.message());
    bench.send(Event::NetbootLost);
    assert_eq!(bench.running, None, "a machine that asks again and again is no reason for haste");
    bench.send(Event::Retry);
    bench.poll(PowerState::On);
    assert!(verifying(&bench).is_some(), "an operator is");
    bench.done(Ok(Outcome::NetbootFiles(served)));
    assert!(bench.node.status(bench.now).ready && bench.menu() == own());
}

#[test]
fn the_disk_is_booted_again_once_the_spec_says_so_and_the_network_too() {
    let mut bench = quiet();
    bench.change(|spec| spec.image.netboot = None);
    assert_eq!(bench.menu(), own());
    bench.done(Ok(Outcome::NetbootFiles(None)));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, Menu::LocalDisk));
    assert!(bench.node.status(bench.now).ready);
    bench.change(from_network);
    assert_eq!(bench.menu(), Menu::LocalDisk);
    bench.done(Ok(Outcome::NetbootFiles(Some(files(&netboot(&["ro"]))))));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, own()));
}

#[test]
fn a_pause_or_a_broken_spec_leaves_what_is_served() {
    let mut bench = quiet();
    bench.send(Event::SpecProblems(Vec::new()));
    assert_eq!(bench.menu(), own(), "a broken spec leaves the last good one effective");
    bench.change(|spec| {
        spec.paused = true;
        other_kernel(spec);
    });
    assert_eq!((bench.phase(), bench.menu()), (Phase::Paused, own()));
    assert_eq!(bench.running, None);
    bench.change(|spec| spec.goal = Goal::Unmanaged);
    assert_eq!(bench.menu(), Menu::Unknown);
}

/// Invariant (machine): A different installation has a different identity, and an upgrade is no
/// drift.
#[test]
fn a_machine_that_the_version_before_installed_has_not_drifted_and_gets_its_files_verified() {
    let mut bench = quiet();
    let mut record = bench.node.record().clone();
    let spec = record.spec.clone().unwrap();
    let installed = record.installed.as_mut().unwrap();
    (installed.digest, installed.written_digest) = (spec.digest_v1(), None);
    installed.netboot = None;
    let paths = spec.image.netboot.clone().unwrap().unverified();
    let unverified =
        Menu::Network { files: paths.files(), command_line: format!("ro root=UUID={UUID}") };
    bench.resume(&record);
    assert_eq!(bench.menu(), unverified, "as before, until they are verified");
    assert_eq!(condition(&bench, "Drifted"), Some(("False".into(), "AsWanted".into())));
    bench.send(Event::Spec(Arc::clone(&spec)));
    bench.poll(PowerState::On);
    assert_eq!(verifying(&bench), Some((Some(paths), true)));
    bench.done(Ok(Outcome::NetbootFiles(Some(files(&netboot(&["ro"]))))));
    assert_eq!(bench.menu(), own());
    assert_eq!(bench.node.status(bench.now).installed_digest, Some(spec.digest()));
    assert!(bench.node.status(bench.now).ready);

    // The result is the same in every way of upgrade.
    record.installed.as_mut().unwrap().digest = spec.digest();
    bench.resume(&record);
    assert_eq!(bench.menu(), unverified);
    record.installed.as_mut().unwrap().digest = spec.digest_v1();

    // With another spec it has drifted, as before.
    record.spec = None;
    bench.resume(&record);
    let mut other = (*spec).clone();
    other.image.checksum = format!("sha256:{}", "c".repeat(64)).parse().unwrap();
    bench.send(Event::Spec(Arc::new(other)));
    assert_eq!(condition(&bench, "Drifted"), Some(("True".into(), "SpecChanged".into())));
    bench.send(Event::Spec(Arc::clone(&spec)));
    assert_eq!(condition(&bench, "Drifted"), Some(("False".into(), "AsWanted".into())));
}

#[test]
fn a_machine_that_is_to_be_reinstalled_boots_its_own_kernel_until_then_and_the_disk_after_a_failure()
 {
    let mut bench = deployed();
    bench.change(|spec| spec.redeploy = Some("again".into()));
    bench.done(Ok(Outcome::Power(PowerState::On)));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Preparing, own()));
    bench.done(Err(passing()));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Pending, own()), "nothing was touched");
    bench.pass(3600);
    bench.go_to(Phase::Preparing);
    bench.done(Ok(prepared_root(Some(UUID), &netboot(&["ro"]))));
    bench.go_to(Phase::Imaging);
    bench.done(Err(passing()));
    assert_eq!(bench.running.as_ref().unwrap().1, Operation::CleanUp);
    assert_eq!(bench.menu(), Menu::LocalDisk);
    bench.done(Ok(Outcome::CleanedUp));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Pending, Menu::LocalDisk));
}

#[test]
fn a_machine_that_was_never_installed_is_not_served_a_kernel() {
    let mut bench = Bench::with_spec();
    bench.change(from_network);
    assert_eq!(bench.menu(), Menu::LocalDisk);
    bench.poll(PowerState::On);
    assert_eq!((bench.phase(), bench.menu()), (Phase::Held, Menu::LocalDisk));
}

#[test]
fn an_image_that_does_not_say_where_the_root_is_is_refused_before_anything_is_touched() {
    let mut bench = Bench::with_spec();
    bench.change(from_network);
    bench.go_to(Phase::Preparing);
    bench.done(Ok(prepared_root(None, &netboot(&["ro"]))));
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.running.is_none(), "nothing was touched, so nothing is cleaned up");
    let fault = bench.node.record().last_error.clone().unwrap().fault;
    assert_eq!((fault.code.as_ref(), fault.retry), ("RootUnknown", RetryAdvice::Never));
    assert!(fault.hint.contains("root="), "{fault:?}");
    // Writing `root=` is enough.
    let with_root = netboot(&["root=/dev/vda3"]);
    bench.change(|spec| spec.image.netboot = Some(Box::new(with_root.clone())));
    bench.go_to(Phase::Preparing);
    bench.done(Ok(prepared_root(None, &with_root)));
    bench.go_to(Phase::Deployed);
    assert_eq!(bench.menu(), menu_of(&with_root, ""));
    bench.poll(PowerState::On);
    // Taking it back leaves a menu that boots.
    bench.change(from_network);
    bench.done(Ok(Outcome::NetbootFiles(Some(files(&netboot(&["ro"]))))));
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, menu_of(&with_root, "")));
    assert!(bench.message().contains("has no root="), "{}", bench.message());
}

#[test]
fn the_root_is_added_unless_the_spec_names_one() {
    for (words, uuid, line) in [
        (&["ro", "quiet"][..], Some(UUID), Some(format!("ro quiet root=UUID={UUID}"))),
        (&[], Some(UUID), Some(format!("root=UUID={UUID}"))),
        (&["root=LABEL=r"], Some(UUID), Some("root=LABEL=r".to_owned())),
        (&["root=/dev/sda2", "ro"], None, Some("root=/dev/sda2 ro".to_owned())),
        (&["nfsroot=x"], None, None),
        (&[], None, None),
    ] {
        let root = uuid.map(|uuid| format!("UUID={uuid}"));
        assert_eq!(netboot(words).command_line(root.as_deref()), line, "{words:?}");
    }
}
