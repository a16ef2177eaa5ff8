//! Many clients, honest and not: how much of the process they can take, and that a machine still boots meanwhile.

use std::{
    net::{IpAddr, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    Room,
    alone::{alone, memory_kib, server_threads},
    noise,
    raw::{Client, Reply, get, get_from, request},
};

/// The transfers a server carries by default, and its loop.
const THREADS_MAX: usize = 256 + 1;
/// What one transfer may take.
const TRANSFER_KIB: u64 = 800;
/// The clients' sockets are this process's too.
const DESCRIPTORS: [&str; 2] = ["prlimit", "--nofile=8192"];

#[test]
fn five_hundred_clients_at_once_are_all_served_by_no_more_threads_than_allowed() {
    const NAME: &str =
        "crowds::five_hundred_clients_at_once_are_all_served_by_no_more_threads_than_allowed";
    alone(NAME, &DESCRIPTORS, || {
        let room = Room::new();
        let content = noise(300_000);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..500_u16)
                .map(|number| {
                    let (room, content) = (&room, &content);
                    scope.spawn(move || {
                        let got = get_from(machine(1, number), room.address, "deploy/vmlinuz");
                        assert!(got == *content);
                    })
                })
                .collect();
            while clients.iter().any(|client| !client.is_finished()) {
                assert!(server_threads() <= THREADS_MAX);
                thread::sleep(Duration::from_millis(5));
            }
        });
    });
}

#[test]
fn readers_as_slow_as_allowed_take_an_address_share_and_no_more() {
    const NAME: &str = "crowds::readers_as_slow_as_allowed_take_an_address_share_and_no_more";
    alone(NAME, &DESCRIPTORS, || {
        let room = Room::new();
        room.file("large", &noise(10 << 20));
        let before = memory_kib();
        let mut slow = Vec::new();
        for _ in 0..300 {
            let mut client = Client::on(machine(2, 0), room.address);
            client.request("large", &[("windowsize", "65535"), ("blksize", "65464")]);
            if let Some(Reply::Oack(_)) = client.reply_within(Duration::from_millis(100)) {
                client.ack(0);
                slow.push(client);
            }
            if slow.len() == 64 {
                break;
            }
        }
        for block in 1..4 {
            for client in &mut slow {
                assert!(matches!(client.reply(), Reply::Data(..)));
                client.ack(block);
            }
            assert!(server_threads() <= 64 + 1, "{}", server_threads());
            let got = get_from(machine(3, block), room.address, "deploy/vmlinuz");
            assert!(got == noise(300_000));
        }
        let mut one_more = Client::on(machine(2, 0), room.address);
        one_more.request("large", &[]);
        assert_eq!(one_more.reply_within(Duration::from_millis(300)), None);
        assert_eq!(slow.len(), 64);
        let taken = memory_kib() - before;
        assert!(taken < 64 * TRANSFER_KIB, "{taken} KiB");
    });
}

#[test]
fn machines_boot_while_made_up_addresses_and_nonsense_flood_the_port() {
    const NAME: &str = "crowds::machines_boot_while_made_up_addresses_and_nonsense_flood_the_port";
    alone(NAME, &DESCRIPTORS, || {
        let mut room = Room::new();
        let (address, stop) = (room.address, AtomicBool::new(false));
        let before = memory_kib();
        thread::scope(|scope| {
            // They exist, or the system would tell the server that nobody is there; but they never read nor answer.
            let spoofed: Vec<_> =
                (0..600).map(|n| UdpSocket::bind((machine(4, n), 0)).unwrap()).collect();
            let stop = &stop;
            scope.spawn(move || {
                for (round, socket) in (0_u32..).flat_map(|r| spoofed.iter().map(move |s| (r, s))) {
                    let size = round.to_string();
                    let options = [("blksize", "65464"), ("windowsize", "64"), ("x", &size)];
                    socket.send_to(&request(1, "deploy/vmlinuz", &options), address).unwrap();
                    thread::sleep(Duration::from_micros(500));
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            scope.spawn(move || {
                let (socket, mut random) =
                    (Client::on(machine(5, 0), address), fastrand::Rng::with_seed(5));
                while !stop.load(Ordering::Relaxed) {
                    let mut datagram = vec![0; random.usize(0..600)];
                    random.fill(&mut datagram);
                    if let [first, second, ..] = &mut datagram[..] {
                        (*first, *second) = (0, random.u8(0..8));
                    }
                    socket.send_to_port(&datagram);
                    thread::sleep(Duration::from_micros(500));
                }
            });
            let full = Instant::now() + Duration::from_secs(20);
            while server_threads() < THREADS_MAX {
                assert!(Instant::now() < full, "the flood does not fill the slots");
            }
            for number in 0..5 {
                let got = get_from(machine(6, number), address, "deploy/vmlinuz");
                assert!(got == noise(300_000));
                assert!(server_threads() <= THREADS_MAX);
            }
            let url = format!("tftp://{address}/deploy/vmlinuz");
            let curl = Command::new("curl")
                .args([
                    "-sS",
                    "--max-time",
                    "60",
                    "--connect-timeout",
                    "60",
                    "-o",
                    "/dev/null",
                    &url,
                ])
                .status();
            stop.store(true, Ordering::Relaxed);
            assert!(curl.unwrap().success());
        });
        let taken = memory_kib() - before;
        assert!(taken < THREADS_MAX as u64 * TRANSFER_KIB, "{taken} KiB");
        room.running.take().unwrap().stop();
        let ended = Instant::now() + Duration::from_secs(20);
        while server_threads() > 0 {
            assert!(Instant::now() < ended, "{} threads are left", server_threads());
        }
    });
}

#[test]
fn no_more_transfers_run_than_allowed_and_who_waits_is_served_later() {
    let room = Room::with(|config| config.max_transfers = 3);
    let mut clients: Vec<_> = (0..4).map(|_| Client::new(room.address)).collect();
    for client in clients.iter_mut().take(3) {
        client.request("deploy/vmlinuz", &[("tsize", "0")]);
        assert!(matches!(client.reply(), Reply::Oack(_)));
        client.ack(0);
        assert!(matches!(client.reply(), Reply::Data(1, _)));
    }
    clients[3].request("deploy/vmlinuz", &[]);
    assert_eq!(clients[3].reply_within(Duration::from_millis(500)), None);
    clients[0].give_up();
    assert!(matches!(clients[3].ask("deploy/vmlinuz", &[]), Reply::Data(1, _)));
    clients[3].give_up();
    clients[1].ack(1);
    assert!(
        matches!(clients[1].reply(), Reply::Data(2, _)),
        "a client that answers keeps its slot"
    );
}

#[test]
fn a_system_without_descriptors_is_answered_and_survived() {
    const NAME: &str = "crowds::a_system_without_descriptors_is_answered_and_survived";
    alone(NAME, &["prlimit", "--nofile=48"], || {
        let room = Room::new();
        let clients: Vec<_> = (0..16).map(|_| Client::new(room.address)).collect();
        recovers(&room, clients);
    });
}

#[test]
fn a_system_without_threads_is_answered_and_survived() {
    const NAME: &str = "crowds::a_system_without_threads_is_answered_and_survived";
    // A user of its own: the limit counts all of a user's threads, and does not bind root.
    let nobody = ["setpriv", "--reuid=64123", "--regid=64123", "--clear-groups"];
    alone(NAME, &[&nobody[..], &["prlimit", "--nproc=8"]].concat(), || {
        let room = Room::new();
        let clients: Vec<_> = (0..20).map(|_| Client::new(room.address)).collect();
        recovers(&room, clients);
    });
}

/// Some clients are served and the others told, and afterwards everybody is served.
fn recovers(room: &Room, clients: Vec<Client>) {
    let (mut served, mut refused) = (Vec::new(), 0);
    for mut client in clients {
        client.request("deploy/vmlinuz", &[("tsize", "0")]);
        match client.reply() {
            Reply::Oack(_) => served.push(client),
            Reply::Error(0, message) if message == "server busy, try again" => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(!served.is_empty() && refused > 0, "{} served, {refused} refused", served.len());
    for client in served {
        client.give_up();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while get(room.address, "deploy/initramfs", &[]).is_err() {
        assert!(Instant::now() < deadline, "the server has not recovered");
    }
}

/// A machine's address, out of one of several networks.
fn machine(network: u8, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    [127, 100 + network, high, low].into()
}
