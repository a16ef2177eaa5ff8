//! Tests of the netboots of installed machines whose boot device is their disk.

use crate::{
    lifecycle::{Event, Menu, Operation, Outcome},
    model::{
        boot::{BootStage, Fetch},
        netboot::Netboot,
        power::PowerState,
        spec::{Goal, NodeSpec, WantedPower},
        status::{Booted, Installed, Phase},
    },
};

use super::support::*;

/// Longer than one boot's requests may be apart.
const NEXT_BOOT_S: i64 = 31;
/// Longer than hostler's own restart may take to netboot.
const OWN_BOOT_OVER_S: i64 = 20 * 60;

/// An installed machine that hostler restarted long ago.
fn deployed() -> Bench {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.pass(OWN_BOOT_OVER_S);
    bench
}

/// The machine, or a stranger with its MAC address, fetches the boot menu.
fn netboot(bench: &mut Bench) {
    let fetch = Fetch { stage: BootStage::Menu, ..ramdisk_fetched_by(RAMDISK) };
    bench.send(Event::Fetched(fetch));
}

fn installed(bench: &Bench) -> Installed {
    bench.status().installed.unwrap()
}

fn times(bench: &Bench) -> u32 {
    installed(bench).unexpected_netboots
}

/// Invariant (netboot): An installed machine that netboots unasked is counted, and nothing else
/// happens.
#[test]
fn a_machine_that_reboots_into_the_network_is_counted_and_served_its_disk() {
    let mut bench = deployed();
    let before = bench.node.record().clone();
    let running = bench.running.clone();
    netboot(&mut bench);
    let counted = installed(&bench);
    assert_eq!((counted.unexpected_netboots, counted.unexpected_netboot_at), (1, Some(bench.now)));
    assert_eq!(bench.menu(), Menu::LocalDisk);
    assert_eq!((bench.phase(), bench.status().ready), (Phase::Deployed, true));
    // Whoever sends the request causes nothing.
    let mut after = bench.node.record().clone();
    after.installed.clone_from(&before.installed);
    after.switched_on_at = before.switched_on_at;
    assert_eq!((after, &bench.running), (before, &running));
    // Further requests of the same boot count once, and every later boot counts.
    bench.pass(NEXT_BOOT_S - 2);
    netboot(&mut bench);
    assert_eq!(times(&bench), 1);
    bench.pass(2);
    netboot(&mut bench);
    assert_eq!(times(&bench), 2);
    // A loader alone is no boot: each machine on the network may fetch it.
    bench.pass(NEXT_BOOT_S);
    let fetch = Fetch { stage: BootStage::Loader, ..ramdisk_fetched_by(RAMDISK) };
    bench.send(Event::Fetched(fetch));
    assert_eq!(times(&bench), 2);
    // The count outlives the agent, and ends with the next installation.
    let spec = bench.node.spec().unwrap().clone();
    bench.restart();
    bench.send(Event::Spec(spec));
    assert_eq!(times(&bench), 2);
    bench.change(|spec| spec.redeploy = Some("again".into()));
    bench.poll(PowerState::On);
    bench.go_to(Phase::Deployed);
    assert_eq!((times(&bench), installed(&bench).unexpected_netboot_at), (0, None));
}

#[test]
fn the_boot_that_hostler_ordered_is_evidence_and_not_counted_and_the_next_one_is() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.pass(300);
    netboot(&mut bench);
    assert_eq!((times(&bench), bench.node.record().last_seen.netbooted_at), (0, Some(bench.now)));
    netboot(&mut bench);
    assert_eq!(times(&bench), 0, "it is the same boot");
    bench.pass(NEXT_BOOT_S);
    netboot(&mut bench);
    assert_eq!(times(&bench), 1);
    // Switched on by an order.
    bench.change(|spec| spec.power = WantedPower::Off);
    bench.poll(PowerState::On);
    bench.done(Ok(Outcome::PowerSet(PowerState::Off)));
    bench.change(|spec| spec.power = WantedPower::On);
    bench.poll(PowerState::Off);
    assert_eq!(
        bench.running.as_ref().map(|(_, operation)| operation.clone()),
        Some(Operation::SetPower(PowerState::On))
    );
    bench.done(Ok(Outcome::PowerSet(PowerState::On)));
    bench.pass(300);
    netboot(&mut bench);
    assert_eq!(times(&bench), 1);
}

#[test]
fn a_machine_in_a_boot_loop_is_counted_from_its_second_boot_on_whatever_its_check_says() {
    let mut bench = Bench::with_spec();
    bench.change(check_port);
    bench.go_to(Phase::Booting);
    for boot in 0..5 {
        netboot(&mut bench);
        assert_eq!(times(&bench), boot);
        assert!(bench.message().contains("netbooted instead of booting its disk"));
        bench.pass(NEXT_BOOT_S);
    }
    assert_eq!((bench.phase(), installed(&bench).booted), (Phase::Booting, Some(Booted::Waiting)));
    // Once its system was up, the boot that hostler ordered is over.
    let mut bench = Bench::with_spec();
    bench.change(check_port);
    bench.go_to(Phase::Booting);
    bench.done(Ok(Outcome::PortAnswered { address: RAMDISK, ssh_banner: None }));
    netboot(&mut bench);
    assert_eq!((bench.phase(), times(&bench)), (Phase::Deployed, 1));
}

#[test]
fn a_machine_that_is_to_boot_from_the_network_or_has_no_bmc_is_not_counted() {
    type Edit = fn(&mut NodeSpec);
    let edits: [Edit; 3] = [
        |spec| spec.bmc = None,
        |spec| spec.goal = Goal::Unmanaged,
        |spec| {
            spec.image.netboot = Some(Box::new(Netboot {
                kernel: "vmlinuz".into(),
                kernel_checksum: None,
                ramdisk: "initrd".into(),
                ramdisk_checksum: None,
                kernel_args: Vec::new(),
            }));
        },
    ];
    for edit in edits {
        let mut bench = deployed();
        bench.change(edit);
        bench.pass(NEXT_BOOT_S);
        netboot(&mut bench);
        assert_eq!(times(&bench), 0, "{:?}", bench.node.spec());
    }
}

#[test]
fn a_clock_that_is_set_back_neither_stops_the_count_nor_makes_a_boot_hostlers_own() {
    let mut bench = deployed();
    netboot(&mut bench);
    bench.now = bench.now.checked_sub(jiff::SignedDuration::from_hours(48)).unwrap();
    netboot(&mut bench);
    assert_eq!((times(&bench), installed(&bench).unexpected_netboot_at), (2, Some(bench.now)));
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.now = bench.now.checked_sub(jiff::SignedDuration::from_hours(48)).unwrap();
    netboot(&mut bench);
    assert_eq!(times(&bench), 1);
}
