//! Many clients, honest and hostile: their use of the process's resources, and a machine that still
//! boots.

use std::{
    fs::File,
    iter,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use hostler::model::boot::Firmware;

use super::{
    BootServer,
    alone::{alone, descriptors, memory_kib, server_threads},
    flood::{Flood, TRANSFER_KIB, TRANSFERS_MAX, machine},
    mac, node, noise, own,
    raw::{Client, Reply, get, get_from},
};

/// The default number of transfers, the loop, and some threads that have freed their slot and are
/// about to end.
const THREADS_MAX: usize = TRANSFERS_MAX + 1 + 31;
/// The clients' sockets are in this process, too.
const DESCRIPTORS: [&str; 2] = ["prlimit", "--nofile=8192"];

#[test]
fn five_hundred_clients_at_once_are_all_served_by_no_more_threads_than_allowed() {
    const NAME: &str =
        "crowds::five_hundred_clients_at_once_are_all_served_by_no_more_threads_than_allowed";
    alone(NAME, &DESCRIPTORS, || {
        let boot_server = BootServer::new();
        let content = noise(300_000);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..500_u16)
                .map(|number| {
                    let (boot_server, content) = (&boot_server, &content);
                    scope.spawn(move || {
                        let got =
                            get_from(machine(1, number), boot_server.address, "deploy/vmlinuz");
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
        let boot_server = BootServer::new();
        boot_server.file("large", &noise(10 << 20));
        let before = memory_kib();
        let mut slow = Vec::new();
        for _ in 0..300 {
            let mut client = Client::on(machine(2, 0), boot_server.address);
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
            let got = get_from(machine(3, block), boot_server.address, "deploy/vmlinuz");
            assert!(got == noise(300_000));
        }
        let mut one_more = Client::on(machine(2, 0), boot_server.address);
        one_more.request("large", &[]);
        assert_eq!(one_more.reply_within(Duration::from_millis(300)), None);
        assert_eq!(slow.len(), 64);
        let taken = memory_kib() - before;
        assert!(taken < 64 * TRANSFER_KIB, "{taken} KiB");
    });
}

/// Invariant (fair): TFTP never has more threads than places, and a client that answers keeps its
/// own.
#[test]
fn machines_boot_while_made_up_addresses_and_nonsense_flood_the_port() {
    const NAME: &str = "crowds::machines_boot_while_made_up_addresses_and_nonsense_flood_the_port";
    alone(NAME, &DESCRIPTORS, || {
        let mut boot_server = BootServer::new();
        let (address, before) = (boot_server.address, memory_kib());
        let flood = Flood::of(address, 600, "deploy/vmlinuz");
        let full = Instant::now() + Duration::from_secs(20);
        while server_threads() <= TRANSFERS_MAX {
            assert!(Instant::now() < full, "the flood does not fill the slots");
        }
        for number in 0..5 {
            let got = get_from(machine(6, number), address, "deploy/vmlinuz");
            assert!(got == noise(300_000));
            assert!(server_threads() <= THREADS_MAX);
        }
        let url = format!("tftp://{address}/deploy/vmlinuz");
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "60", "--connect-timeout", "60", "-o", "/dev/null", &url]);
        assert!(curl.status().unwrap().success());
        drop(flood);
        let taken = memory_kib() - before;
        assert!(taken < THREADS_MAX as u64 * TRANSFER_KIB, "{taken} KiB");
        boot_server.running.take().unwrap().stop();
        let ended = Instant::now() + Duration::from_secs(20);
        while server_threads() > 0 {
            assert!(Instant::now() < ended, "{} threads are left", server_threads());
        }
    });
}

/// Invariant (fair): TFTP never has more threads than places, and a client that answers keeps its
/// own.
#[test]
fn no_more_transfers_run_than_allowed_and_who_waits_is_served_later() {
    let boot_server = BootServer::with(|config| config.max_transfers = 3);
    let mut clients: Vec<_> = (0..4).map(|_| Client::new(boot_server.address)).collect();
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
fn a_machine_takes_the_place_of_one_that_never_answers() {
    let boot_server = BootServer::with(|config| config.max_transfers = 1);
    let silent = Client::new(boot_server.address);
    silent.request("deploy/vmlinuz", &[]);
    let (mut machine, begun) = (Client::new(boot_server.address), Instant::now());
    assert!(matches!(machine.ask("deploy/vmlinuz", &[]), Reply::Data(1, _)));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    machine.give_up();
    drop(silent);
}

#[test]
fn a_system_without_descriptors_is_answered_and_survived() {
    const NAME: &str = "crowds::a_system_without_descriptors_is_answered_and_survived";
    alone(NAME, &["prlimit", "--nofile=48"], || {
        let boot_server = BootServer::new();
        let clients: Vec<_> = (0..16).map(|_| Client::new(boot_server.address)).collect();
        recovers(&boot_server, clients);
    });
}

#[test]
fn without_a_descriptor_no_file_is_said_to_be_missing_or_forbidden() {
    const NAME: &str = "crowds::without_a_descriptor_no_file_is_said_to_be_missing_or_forbidden";
    alone(NAME, &["prlimit", "--nofile=64"], || {
        let boot_server = BootServer::new();
        boot_server.image("vmlinuz", b"a kernel");
        boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &own("vmlinuz")).unwrap();
        let mut client = Client::new(boot_server.address);
        let mut held: Vec<_> = iter::from_fn(|| File::open("/dev/null").ok()).collect();
        // With one or two descriptors left, the next one is missing: the file's in its directory,
        // the socket's, the worker's.
        for left in 0..3 {
            let menu = "pxelinux.cfg/01-52-54-00-00-00-01";
            for name in ["pxelinux.0", "deploy/vmlinuz", "node/a/kernel", menu] {
                client.request(name, &[]);
                let busy = Reply::Error(0, "server busy, try again".to_owned());
                assert_eq!(client.reply(), busy, "{name}, {left} left");
            }
            held.pop();
        }
        drop(held);
        assert_eq!(get(boot_server.address, "node/a/kernel", &[]).as_deref(), Ok(&b"a kernel"[..]));
    });
}

#[test]
fn a_transfer_has_a_file_and_a_socket_open_and_no_more() {
    const NAME: &str = "crowds::a_transfer_has_a_file_and_a_socket_open_and_no_more";
    alone(NAME, &[], || {
        let boot_server = BootServer::new();
        let mut clients: Vec<_> = (0..10).map(|_| Client::new(boot_server.address)).collect();
        let before = descriptors();
        for client in &mut clients {
            client.request("deploy/vmlinuz", &[]);
            assert!(matches!(client.reply(), Reply::Data(1, _)));
        }
        assert_eq!(descriptors() - before, 2 * clients.len());
    });
}

#[test]
fn a_system_without_threads_is_answered_and_survived() {
    const NAME: &str = "crowds::a_system_without_threads_is_answered_and_survived";
    // A user of no other test: the limit counts all of a user's threads, and does not apply to
    // root.
    let nobody = ["setpriv", "--reuid=64124", "--regid=64124", "--clear-groups"];
    alone(NAME, &[&nobody[..], &["prlimit", "--nproc=8"]].concat(), || {
        let boot_server = BootServer::new();
        let clients: Vec<_> = (0..20).map(|_| Client::new(boot_server.address)).collect();
        recovers(&boot_server, clients);
    });
}

/// Asserts that some clients are served and the others refused, and that afterwards all are served.
fn recovers(boot_server: &BootServer, clients: Vec<Client>) {
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
    while get(boot_server.address, "deploy/initramfs", &[]).is_err() {
        assert!(Instant::now() < deadline, "the server has not recovered");
    }
}
