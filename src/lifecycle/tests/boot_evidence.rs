//! Tests of evidence from requests for boot files.

use crate::{
    lifecycle::Event,
    model::{
        boot::{BootStage, Fetch},
        callback::Call,
        ids::MacAddr,
        status::Phase,
    },
};

use super::support::*;

#[test]
fn a_boot_file_that_is_not_there_is_named_until_the_machine_fetches_one_that_is() {
    let message = |fetched_after: bool| {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        for refused_times in [1, 2, 3, 0] {
            if refused_times > 0 || fetched_after {
                bench.send(Event::Fetched(Fetch {
                    refused_times,
                    unknown_mac: None,
                    node: spec().name,
                    stage: BootStage::Loader,
                    path: "lpx\u{1b}elinux.0".into(),
                    peer: RAMDISK,
                    sent_bytes: 0,
                    complete: refused_times == 0,
                }));
            }
        }
        bench.pass(20 * 60);
        bench.node.record().last_error.clone().unwrap().fault.message
    };
    let reported =
        format!("{RAMDISK} asked 3 times for lpxelinux.0, which is not among the loaders");
    assert!(message(false).ends_with(&reported), "{}", message(false));
    assert!(message(true).contains("fetched a boot loader but not its boot menu"));
}

/// Invariant (netboot): A network interface in no spec is named at the nodes that wait, a few times
/// only.
#[test]
fn a_network_interface_that_no_spec_names_is_told_while_the_machine_is_waited_for_and_after() {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::WaitingRamdisk);
    let mac = |last| MacAddr::new([0x52, 0x54, 0, 0, 9, last]);
    for last in [1, 1, 2, 3, 4, 5] {
        bench.send(Event::Fetched(Fetch {
            refused_times: 1,
            unknown_mac: Some(mac(last)),
            node: spec().name,
            stage: BootStage::Menu,
            path: "x".into(),
            peer: RAMDISK,
            sent_bytes: 0,
            complete: false,
        }));
    }
    assert_eq!(bench.node.record().last_seen.unknown_macs, [mac(1), mac(2), mac(3), mac(4)]);
    let reported = format!(
        "{}, which no spec names, asked for a boot menu",
        [1, 2, 3, 4].map(|n| mac(n).to_string()).join(" and ")
    );
    let waiting = bench.node.status(bench.now).message;
    assert!(waiting.starts_with("the machine is on") && waiting.ends_with(&reported), "{waiting}");
    bench.pass(20 * 60);
    let fault = bench.node.record().last_error.clone().unwrap().fault;
    assert!(fault.message.ends_with(&reported) && fault.hint.contains("boot.mac"), "{fault:?}");
}

#[test]
fn the_ramdisk_deadline_says_how_far_the_machine_came() {
    let message = |stage: Option<BootStage>, call: Option<Call>| {
        let mut bench = Bench::with_spec();
        bench.go_to(Phase::WaitingRamdisk);
        if let Some(stage) = stage {
            let fetch = Fetch {
                refused_times: 0,
                unknown_mac: None,
                node: spec().name,
                stage,
                path: "x".into(),
                peer: RAMDISK,
                sent_bytes: 1,
                complete: true,
            };
            bench.send(Event::Fetched(fetch));
        }
        if let Some(call) = call {
            bench.call(&key(1), call);
        }
        bench.pass(20 * 60);
        bench.node.record().last_error.clone().unwrap().fault.message
    };
    assert!(message(None, None).contains("never fetched anything"));
    assert!(message(Some(BootStage::Loader), None).contains("boot loader"));
    assert!(message(Some(BootStage::Kernel), None).contains("kernel"));
    assert!(message(Some(BootStage::Ramdisk), None).contains("never called back"));
    assert!(message(Some(BootStage::Ramdisk), Some(lookup())).contains("was told to export vda"));
}
