//! `boot.after = "network"`: an installed machine boots its own kernel, and only an installed one.

use crate::{
    lifecycle::{Event, Menu, Operation, Outcome, PreparedImage},
    model::{
        fault::RetryAdvice,
        power::PowerState,
        spec::{Goal, Netboot, NodeSpec},
        status::Phase,
    },
};

use super::support::*;

const UUID: &str = "0a1b2c3d-0000-4000-8000-000000000001";

fn netboot(kernel_args: &[&str]) -> Netboot {
    let kernel_args = kernel_args.iter().map(|&word| word.to_owned()).collect();
    Netboot { kernel: "vmlinuz".into(), ramdisk: "initrd".into(), kernel_args }
}

fn from_network(spec: &mut NodeSpec) {
    spec.image.netboot = Some(netboot(&["ro"]));
}

/// An image that is one file system.
fn prepared_root(root_uuid: Option<&str>) -> Outcome {
    let Outcome::Prepared { image, key, system_guid, stages } = prepared(key(1)) else {
        unreachable!()
    };
    let image = PreparedImage { root_uuid: root_uuid.map(str::to_owned), ..image };
    Outcome::Prepared { image, key, system_guid, stages }
}

/// A node that boots from the network, with its image prepared.
fn bench() -> Bench {
    let mut bench = Bench::with_spec();
    bench.change(from_network);
    bench.go_to(Phase::Preparing);
    bench.done(Ok(prepared_root(Some(UUID))));
    bench
}

fn deployed() -> Bench {
    let mut bench = bench();
    bench.go_to(Phase::Deployed);
    bench
}

fn own() -> Menu {
    Menu::Network(Some(UUID.into()))
}

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

#[test]
fn the_menu_follows_the_spec_in_force_without_a_reinstall() {
    let mut bench = deployed();
    bench.change(|spec| spec.image.netboot = None);
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, Menu::LocalDisk));
    bench.change(from_network);
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, own()));
    bench.send(Event::SpecProblems(Vec::new()));
    assert_eq!(bench.menu(), own(), "a broken spec leaves the last good one in force");
    bench.change(|spec| spec.paused = true);
    assert_eq!((bench.phase(), bench.menu()), (Phase::Paused, own()));
    bench.change(|spec| spec.goal = Goal::Unmanaged);
    assert_eq!(bench.menu(), Menu::Unknown);
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
    bench.done(Ok(prepared_root(Some(UUID))));
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
    bench.look(PowerState::On);
    assert_eq!((bench.phase(), bench.menu()), (Phase::Held, Menu::LocalDisk));
}

#[test]
fn an_image_that_does_not_say_where_the_root_is_is_refused_before_anything_is_touched() {
    let mut bench = Bench::with_spec();
    bench.change(from_network);
    bench.go_to(Phase::Preparing);
    bench.done(Ok(prepared_root(None)));
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.running.is_none(), "nothing was touched, so nothing is cleaned up");
    let fault = bench.node.record().last_error.clone().unwrap().fault;
    assert_eq!((fault.code.as_ref(), fault.retry), ("RootUnknown", RetryAdvice::Never));
    assert!(fault.hint.contains("root="), "{fault:?}");
    // Saying it is enough.
    bench.change(|spec| spec.image.netboot = Some(netboot(&["root=/dev/vda3"])));
    bench.go_to(Phase::Preparing);
    bench.done(Ok(prepared_root(None)));
    bench.go_to(Phase::Deployed);
    assert_eq!(bench.menu(), Menu::Network(None));
    // Taking it back leaves the disk.
    bench.change(from_network);
    assert_eq!((bench.phase(), bench.menu()), (Phase::Deployed, Menu::LocalDisk));
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
        assert_eq!(netboot(words).command_line(uuid), line, "{words:?}");
    }
}
