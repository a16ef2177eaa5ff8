//! Tests of disks with an earlier installation, after another disk became the root device.

use super::support::*;
use crate::{
    lifecycle::Outcome,
    model::{
        callback::{Call, Lookup, Reply},
        disk::Disk,
        power::PowerState,
        status::Phase,
    },
};

fn disk_of(name: &str, serial: &str) -> Disk {
    Disk { name: name.into(), serial: Some(serial.into()), ..disk() }
}

/// Installs onto the disk with this serial number, in a machine with these disks.
fn install(bench: &mut Bench, serial: &str, redeploy: &str, disks: &[Disk]) {
    bench.change(|spec| {
        spec.root_device.serial = Some(serial.into());
        spec.redeploy = Some(redeploy.into());
    });
    bench.go_to(Phase::WaitingRamdisk);
    let Call::Lookup(lookup) = lookup() else { unreachable!() };
    let lookup = Lookup { disks: disks.to_vec(), ..lookup };
    assert!(matches!(bench.call(&key(1), Call::Lookup(lookup)), Reply::Lookup(_)));
    assert_eq!(bench.call(&key(1), deploy_info("")), Reply::Accepted);
    bench.go_to(Phase::Deployed);
    bench.poll(PowerState::On);
}

/// The status's messages about old disks.
fn reported(bench: &Bench) -> Vec<String> {
    let conditions = bench.node.status(bench.now).conditions;
    let old = conditions.into_iter().filter(|one| one.kind == "OldDiskInstalled");
    old.map(|one| one.message.split(" (").next().unwrap().to_owned()).collect()
}

/// Invariant (netboot): A served kernel finds the root written last; an old root device is
/// reported.
#[test]
fn a_disk_that_keeps_an_earlier_installation_is_told_until_it_is_written_or_gone() {
    let both = [disk_of("sda", "S1"), disk_of("sdb", "S2")];
    let mut bench = Bench::with_spec();
    install(&mut bench, "S1", "a", &both);
    assert_eq!(reported(&bench), Vec::<String>::new());
    // Not written yet: the installed disk is the present one.
    bench.change(|spec| spec.root_device.serial = Some("S2".into()));
    assert_eq!(reported(&bench), Vec::<String>::new());
    install(&mut bench, "S2", "b", &both);
    assert_eq!(reported(&bench), ["sda"]);
    bench.restart();
    assert_eq!(reported(&bench), ["sda"]);
    // The disk has another name after the next boot.
    let renamed = [disk_of("sdb", "S1"), disk_of("sda", "S2")];
    install(&mut bench, "S2", "c", &renamed);
    assert_eq!(reported(&bench), ["sdb"]);
    // The old disk is written again, so that the other one is the old one now.
    install(&mut bench, "S1", "d", &renamed);
    assert_eq!(reported(&bench), ["sda"]);
    // The old disk is removed.
    install(&mut bench, "S1", "e", &[disk_of("sda", "S1")]);
    assert_eq!(reported(&bench), Vec::<String>::new());
}

/// Invariant (netboot): A served kernel finds the root written last; an old root device is
/// reported.
#[test]
fn an_attempt_that_fails_after_the_disk_was_begun_forgets_no_old_disk() {
    let both = [disk_of("sda", "S1"), disk_of("sdb", "S2")];
    let mut bench = Bench::with_spec();
    install(&mut bench, "S1", "a", &both);
    bench.change(|spec| {
        spec.root_device.serial = Some("S2".into());
        spec.redeploy = Some("b".into());
    });
    bench.go_to(Phase::WaitingRamdisk);
    let Call::Lookup(lookup) = lookup() else { unreachable!() };
    let lookup = Lookup { disks: both.to_vec(), ..lookup };
    bench.call(&key(1), Call::Lookup(lookup));
    bench.call(&key(1), deploy_info(""));
    bench.done(Err(passing()));
    bench.done(Ok(Outcome::CleanedUp));
    install(&mut bench, "S2", "b", &both);
    assert_eq!(reported(&bench), ["sda"]);
}
