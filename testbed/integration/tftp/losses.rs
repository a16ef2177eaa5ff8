//! Networks that lose and repeat packets, machines that fall silent or restart, and a server that
//! stops.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use hostler::model::boot::Firmware;

use super::{
    BootServer,
    alone::alone,
    deploy, mac, node, noise,
    raw::{Client, Reply, get, get_losing},
};

#[test]
fn a_transfer_survives_more_lost_packets_than_the_worker_allows() {
    let boot_server = BootServer::new();
    let content = noise(42_000);
    // With one block in flight each loss costs a timeout of one second; the worker alone would give
    // up at the seventh.
    let options = [("timeout", "1"), ("blksize", "4096")];
    let mut client = Client::new(boot_server.address);
    let (mut losses, begun) = (0, Instant::now());
    let got = get_losing(&mut client, "pxelinux.0", &options, |reply| {
        let lost = matches!(reply, Reply::Data(1, _)) && losses < 8;
        losses += u32::from(lost);
        lost
    });
    assert!(got == Ok(content) && losses == 8);
    assert!(begun.elapsed() < Duration::from_secs(30), "the agreed timeout is not applied");
}

#[test]
fn lost_blocks_of_a_window_are_sent_again_without_waiting() {
    let boot_server = BootServer::new();
    let content = noise(300_000);
    let options = [("timeout", "5"), ("blksize", "1024"), ("windowsize", "8")];
    // The first block of every fifth window, then one within. (A lost last block costs a timeout,
    // because the client sends nothing.)
    for place in [1, 3] {
        let begun = Instant::now();
        let mut lost = BTreeSet::new();
        let mut is_lost = |block| block % 40 == place && lost.insert(block);
        let loses = |reply: &Reply| matches!(reply, Reply::Data(block, _) if is_lost(*block));
        let got =
            get_losing(&mut Client::new(boot_server.address), "deploy/vmlinuz", &options, loses);
        assert!(got.as_ref() == Ok(&content) && lost.len() == 8, "{}", lost.len());
        assert!(begun.elapsed() < Duration::from_secs(4), "block {place} waited for the timeout");
    }
}

#[test]
fn a_window_of_blocks_that_are_larger_than_the_networks_packets_arrives_as_well() {
    let name =
        "losses::a_window_of_blocks_that_are_larger_than_the_networks_packets_arrives_as_well";
    alone(name, &["unshare", "--net"], || {
        let up = Command::new("ip").args(["link", "set", "lo", "up", "mtu", "1500"]).status();
        assert!(up.unwrap().success());
        let boot_server = BootServer::new();
        let options = [("blksize", "8192"), ("windowsize", "16")];
        assert!(get(boot_server.address, "deploy/vmlinuz", &options) == Ok(noise(300_000)));
    });
}

#[test]
fn a_repeated_request_is_one_transfer_and_a_new_one_replaces_the_old() {
    let boot_server = BootServer::with(|config| config.max_transfers = 2);
    let mut client = Client::new(boot_server.address);
    let size = [("tsize", "0"), ("timeout", "5")];
    client.request("deploy/vmlinuz", &size);
    assert!(matches!(client.reply(), Reply::Oack(_)));
    client.request("deploy/vmlinuz", &size);
    assert_eq!(client.reply_within(Duration::from_millis(300)), None, "answered twice");
    client.ack(0);
    assert!(matches!(client.reply(), Reply::Data(1, _)));
    // The machine was reset; its firmware uses the same port for another file.
    client.request("deploy/initramfs", &[]);
    assert!(matches!(client.reply(), Reply::Data(1, data) if data == noise(512)));
    client.ack(1);
    assert!(matches!(client.reply(), Reply::Data(2, _)));
    // The old transfer's slot is free long before any timeout.
    let (mut other, begun) = (Client::new(boot_server.address), Instant::now());
    assert!(matches!(other.ask("pxelinux.0", &[]), Reply::Data(1, _)));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    other.give_up();
    client.give_up();
}

#[test]
fn a_lost_oack_is_sent_again() {
    let boot_server = BootServer::new();
    let mut client = Client::new(boot_server.address);
    client.request("pxelinux.0", &[("timeout", "1"), ("blksize", "512")]);
    let first = client.reply();
    assert!(matches!(first, Reply::Oack(_)));
    let again = client.reply_within(Duration::from_secs(4));
    assert_eq!(again, Some(first), "the agreed timeout is not applied");
    client.ack(0);
    assert!(matches!(client.reply(), Reply::Data(1, _)));
    client.give_up();
}

#[test]
fn a_silent_client_is_given_up_and_a_slow_one_too() {
    let boot_server = BootServer::with(|config| {
        config.idle_limit = Duration::from_secs(1);
        config.total_limit = Duration::from_millis(2500);
        config.max_transfers = 1;
    });
    let mut silent = Client::new(boot_server.address);
    silent.request("pxelinux.0", &[]);
    assert!(matches!(silent.reply(), Reply::Data(1, _)));
    assert_eq!(silent.reply(), Reply::Error(0, "no progress".to_owned()));

    let mut slow = Client::new(boot_server.address);
    // The slot is free only after the end of the transfer that sent this.
    let mut reply = slow.ask("pxelinux.0", &[]);
    let begun = Instant::now();
    while let Reply::Data(block, _) = reply {
        assert!(begun.elapsed() < Duration::from_secs(10));
        thread::sleep(Duration::from_millis(200));
        slow.ack(block);
        reply = slow.reply();
    }
    assert_eq!(reply, Reply::Error(0, "transfer took too long".to_owned()));
}

/// Invariant (netboot): A boot loader finds its node's menu from any directory, and a fetch has its
/// node's time.
#[test]
fn a_machine_may_take_as_long_for_its_kernel_as_its_node_says() {
    let total = Duration::from_millis(1500);
    let boot_server = BootServer::with(|config| config.total_limit = total);
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("5ec2e7")).unwrap();
    get(boot_server.address, "pxelinux.cfg/01-52-54-00-00-00-01", &[]).unwrap();
    let mut slow = Client::new(boot_server.address);
    let begun = Instant::now();
    let mut reply = slow.ask("deploy/vmlinuz", &[]);
    while begun.elapsed() < 2 * total {
        let Reply::Data(block, _) = reply else { panic!("{reply:?}") };
        thread::sleep(Duration::from_millis(100));
        slow.ack(block);
        reply = slow.reply();
    }
    slow.give_up();
}

#[test]
fn a_client_that_has_ended_gives_its_slot_back_long_before_the_limits() {
    let boot_server = BootServer::with(|config| config.max_transfers = 1);
    for window in ["1", "2"] {
        let mut ended = Client::new(boot_server.address);
        let options = [("timeout", "1"), ("windowsize", window)];
        assert!(matches!(ended.ask("deploy/vmlinuz", &options), Reply::Oack(_)));
        ended.ack(0);
        assert!(matches!(ended.reply(), Reply::Data(1, _)));
        drop(ended);
        let (mut next, begun) = (Client::new(boot_server.address), Instant::now());
        assert!(matches!(next.ask("deploy/vmlinuz", &[]), Reply::Data(1, _)));
        assert!(begun.elapsed() < Duration::from_secs(10), "window {window}");
        next.give_up();
    }
}

#[test]
fn stopping_ends_every_transfer_and_tells_its_client() {
    let mut boot_server = BootServer::new();
    let mut clients: Vec<_> = (0..20).map(|_| Client::new(boot_server.address)).collect();
    for client in &mut clients {
        client.request("deploy/vmlinuz", &[("blksize", "512")]);
        assert!(matches!(client.reply(), Reply::Oack(_)));
        client.ack(0);
        assert!(matches!(client.reply(), Reply::Data(1, _)));
    }
    let begun = Instant::now();
    boot_server.running.take().unwrap().stop();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    for client in &mut clients {
        assert_eq!(client.reply(), Reply::Error(0, "server stopped".to_owned()));
    }
    for _ in 0..20 {
        boot_server.fetched.try_recv().unwrap_err();
    }
}

#[test]
fn a_server_that_has_stopped_has_left_its_port() {
    // A program that another test starts holds all sockets until its exec.
    alone("losses::a_server_that_has_stopped_has_left_its_port", &[], || {
        for _ in 0..20 {
            let mut boot_server = BootServer::new();
            boot_server.running.take().unwrap().stop();
            UdpSocket::bind(boot_server.address).unwrap();
        }
    });
}
