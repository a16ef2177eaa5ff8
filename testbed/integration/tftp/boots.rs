//! Evidence: the reported fetches of a booting machine.

use std::{net::IpAddr, process::Command};

use hostler::model::boot::{BootMenu, BootStage, Fetch, Firmware};

use super::{
    BootServer, deploy, mac, node, own,
    raw::{Client, Reply, get_from},
};

fn machine(last: u8) -> IpAddr {
    [127, 0, 7, last].into()
}

fn fetch(boot_server: &BootServer, last: u8, name: &str) {
    get_from(machine(last), boot_server.address, name);
}

fn facts(fetch: &Fetch) -> (&str, BootStage, &str, u64, bool) {
    let Fetch { node, stage, path, sent_bytes, complete, .. } = fetch;
    (node.as_str(), *stage, path, *sent_bytes, *complete)
}

#[test]
fn a_boot_is_told_stage_by_stage() {
    let mut boot_server = BootServer::new();
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("x")).unwrap();
    let menu = "pxelinux.cfg/01-52-54-00-00-00-01";
    let menu_bytes = boot_server.menu("pxelinux.cfg/").len() as u64;
    for name in ["pxelinux.0", menu, "deploy/vmlinuz", "/deploy/initramfs"] {
        fetch(&boot_server, 1, name);
    }
    // Reported in the order in which the transfers' threads end.
    let mut reported: Vec<_> = (0..4).map(|_| boot_server.reported()).collect();
    reported.sort_by_key(|fetch| fetch.stage);
    for (fetch, expected) in reported.iter().zip([
        ("a", BootStage::Loader, "pxelinux.0", 42_000, true),
        ("a", BootStage::Menu, menu, menu_bytes, true),
        ("a", BootStage::Kernel, "deploy/vmlinuz", 300_000, true),
        ("a", BootStage::Ramdisk, "deploy/initramfs", 70_000, true),
    ]) {
        assert_eq!((facts(fetch), fetch.peer), (expected, machine(1)));
    }
}

#[test]
fn a_transfer_that_was_cut_off_is_told_as_such() {
    let mut boot_server = BootServer::new();
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Uefi, &deploy("x")).unwrap();
    fetch(&boot_server, 1, "grub/grub.cfg-01-52:54:00:00:00:01");
    assert_eq!(boot_server.reported().stage, BootStage::Menu);

    let mut client = Client::on(machine(1), boot_server.address);
    client.request("deploy/vmlinuz", &[("tsize", "0")]);
    assert!(matches!(client.reply(), Reply::Oack(_)));
    client.give_up();
    assert_eq!(
        facts(&boot_server.reported()),
        ("a", BootStage::Kernel, "deploy/vmlinuz", 0, false)
    );

    let mut client = Client::on(machine(1), boot_server.address);
    client.request("deploy/vmlinuz", &[]);
    for block in 1..=10 {
        assert!(matches!(client.reply(), Reply::Data(number, _) if number == block));
        if block < 10 {
            client.ack(block);
        }
    }
    // The machine is switched off: ICMP, or nothing, answers its next packet.
    drop(client);
    boot_server.running.take().unwrap().stop();
    assert_eq!(
        facts(&boot_server.reported()),
        ("a", BootStage::Kernel, "deploy/vmlinuz", 5120, false)
    );
}

#[test]
fn machines_booting_at_once_are_told_apart_and_strangers_are_not_told() {
    let mut boot_server = BootServer::new();
    for last in 1..=9 {
        let name = node(&format!("node-{last}"));
        boot_server.table.set(&name, &[mac(last)], Firmware::Bios, &deploy("x")).unwrap();
    }
    fetch(&boot_server, 99, "pxelinux.0");
    fetch(&boot_server, 99, "deploy/vmlinuz");
    std::thread::scope(|scope| {
        for last in 1..=9 {
            let boot_server = &boot_server;
            scope.spawn(move || {
                let menu = format!("pxelinux.cfg/01-{}", mac(last).hyphenated());
                for name in ["pxelinux.0", &menu, "deploy/vmlinuz", "deploy/initramfs"] {
                    fetch(boot_server, last, name);
                }
            });
        }
    });
    for _ in 0..9 * 4 {
        let reported = boot_server.reported();
        let IpAddr::V4(peer) = reported.peer else { panic!("{reported:?}") };
        assert_eq!(reported.node, node(&format!("node-{}", peer.octets()[3])));
        assert!(reported.complete, "{reported:?}");
    }
    boot_server.running.take().unwrap().stop();
    assert!(boot_server.fetched.try_recv().is_err(), "a stranger was reported");
}

#[test]
fn a_kernel_that_is_not_in_the_nodes_menu_is_no_evidence() {
    let mut boot_server = BootServer::new();
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &BootMenu::LocalDisk).unwrap();
    let menu = "pxelinux.cfg/01-52-54-00-00-00-01";
    for name in [menu, "deploy/vmlinuz", menu] {
        fetch(&boot_server, 1, name);
    }
    boot_server.running.take().unwrap().stop();
    assert_eq!([boot_server.reported().stage, boot_server.reported().stage], [BootStage::Menu; 2]);
    assert!(boot_server.fetched.try_recv().is_err());
}

#[test]
fn a_machine_that_boots_its_own_kernel_is_told_of_no_further_than_its_menu() {
    let mut boot_server = BootServer::new();
    boot_server.image("vmlinuz", b"a kernel");
    boot_server.image("initrd", b"a ramdisk");
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &own("vmlinuz")).unwrap();
    let menu = "pxelinux.cfg/01-52-54-00-00-00-01";
    for name in [menu, "node/a/kernel", "node/a/ramdisk", "grub/grub.cfg", menu] {
        fetch(&boot_server, 1, name);
    }
    boot_server.running.take().unwrap().stop();
    assert_eq!([boot_server.reported().stage, boot_server.reported().stage], [BootStage::Menu; 2]);
    assert!(boot_server.fetched.try_recv().is_err());
}

#[test]
fn a_machine_is_told_of_by_its_own_address_whatever_the_server_listens_on() {
    let mut boot_server = BootServer::with(|config| config.listen = "[::]:0".parse().unwrap());
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("x")).unwrap();
    let server = ([127, 0, 0, 1], boot_server.address.port()).into();
    get_from(machine(1), server, "pxelinux.cfg/01-52-54-00-00-00-01");
    assert_eq!(boot_server.reported().peer, machine(1));
}

#[test]
fn curl_is_evidence_like_any_firmware() {
    let mut boot_server = BootServer::new();
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("x")).unwrap();
    let url = format!("tftp://{}/pxelinux.cfg/01-52-54-00-00-00-01", boot_server.address);
    assert!(
        Command::new("curl").args(["-sS", "-o", "/dev/null", &url]).status().unwrap().success()
    );
    let reported = boot_server.reported();
    assert!(reported.complete && reported.stage == BootStage::Menu, "{reported:?}");
}
