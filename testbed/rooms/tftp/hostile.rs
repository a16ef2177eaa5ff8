//! What strangers on the network may try.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    thread,
    time::{Duration, Instant},
};

use super::{
    Room,
    alone::{alone, memory_kib, processor_ms},
    noise,
    raw::{Client, Reply, get, request},
};

#[test]
fn nothing_outside_the_root_can_be_read() {
    let room = Room::new();
    fs::write(room.dir.path().join("secret"), "s").unwrap();
    symlink(room.dir.path().join("secret"), room.loaders.join("link")).unwrap();
    symlink(room.dir.path(), room.loaders.join("up")).unwrap();
    fs::create_dir(room.loaders.join("directory")).unwrap();
    for name in [
        "../secret",
        "..\\secret",
        "/tftpboot/../secret",
        "directory/../../secret",
        "link",
        "up/secret",
        "directory",
    ] {
        let refused = Err((2, "access to this file is not allowed".to_owned()));
        assert_eq!(get(room.address, name, &[("tsize", "0")]), refused, "{name}");
    }
    let absolute = room.dir.path().join("secret").display().to_string();
    for name in ["/etc/passwd", &absolute, "", "/"] {
        let refused = Err((1, "file not found".to_owned()));
        assert_eq!(get(room.address, name, &[]), refused, "{name}");
    }
    // A NUL ends the name: what follows is the mode.
    assert_eq!(get(room.address, "link\0octet\0x", &[]).unwrap_err().0, 2);
}

#[test]
fn writing_and_nonsense_are_refused_at_once() {
    let room = Room::new();
    let mut client = Client::new(room.address);
    for (datagram, code) in [
        (request(2, "pxelinux.0", &[]), 2),
        (b"\0\x01pxelinux.0\0netascii\0".to_vec(), 4),
        (request(1, "pxelinux.0", &[("tsize", "-1")]), 4),
        (b"\0\x01\xff\xfe\0octet\0".to_vec(), 4),
        (b"\0\x01".to_vec(), 4),
        ([request(1, "x", &[]), vec![b'x'; 1800]].concat(), 4),
    ] {
        client.send_to_port(&datagram);
        let reply = client.reply_within(Duration::from_secs(1));
        assert!(matches!(reply, Some(Reply::Error(c, _)) if c == code), "{datagram:?}: {reply:?}");
    }
    for ignored in [&b""[..], b"\0", b"\0\x03\0\x01x", b"\0\x04\0\0", b"\0\x05\0\0x\0", b"\xff\xff"]
    {
        client.send_to_port(ignored);
    }
    assert_eq!(client.reply_within(Duration::from_millis(100)), None);
    assert_eq!(fs::read(room.loaders.join("pxelinux.0")).unwrap(), noise(42_000));
}

#[test]
fn the_request_for_the_largest_window_of_the_largest_blocks_takes_little_memory() {
    alone(
        "hostile::the_request_for_the_largest_window_of_the_largest_blocks_takes_little_memory",
        &[],
        || {
            let room = Room::new();
            fs::File::create(room.loaders.join("large")).unwrap().set_len(100 << 20).unwrap();
            let before = memory_kib();
            let options = [("windowsize", "65535"), ("blksize", "65464")];
            let mut clients: Vec<_> = (0..50).map(|_| Client::new(room.address)).collect();
            for client in &mut clients {
                client.request("large", &options);
                let Reply::Oack(granted) = client.reply() else { panic!("no OACK") };
                let granted: BTreeMap<_, _> = granted.into_iter().collect();
                assert_eq!(
                    (granted["blksize"].as_str(), granted["windowsize"].as_str()),
                    ("8192", "16")
                );
            }
            let each = (memory_kib() - before) / 50;
            assert!(each < 800, "{each} KiB for one transfer");
        },
    );
}

#[test]
fn repeated_acknowledgements_burn_no_processor_time() {
    alone("hostile::repeated_acknowledgements_burn_no_processor_time", &[], || {
        let room = Room::new();
        for window in ["1", "4"] {
            let mut client = Client::new(room.address);
            client.request("deploy/vmlinuz", &[("windowsize", window), ("timeout", "5")]);
            assert!(matches!(client.reply(), Reply::Oack(_)));
            client.ack(0);
            while client.reply_within(Duration::from_millis(50)).is_some() {}
            let before = processor_ms();
            for stale in [0, 0, 60_000, 9] {
                client.ack(stale);
            }
            thread::sleep(Duration::from_millis(800));
            let used = processor_ms() - before;
            assert!(used <= 50, "{used} ms of processor time in 800 ms, window {window}");
            client.give_up();
        }
    });
}

#[test]
fn a_transfer_that_ends_early_writes_nothing_to_standard_error() {
    const NAME: &str = "hostile::a_transfer_that_ends_early_writes_nothing_to_standard_error";
    let said = alone(NAME, &[], || {
        let mut room = Room::with(|config| config.idle_limit = Duration::from_millis(300));
        let mut clients: Vec<_> = (0..3).map(|_| Client::new(room.address)).collect();
        for client in &mut clients {
            client.request("deploy/vmlinuz", &[("tsize", "0")]);
            assert!(matches!(client.reply(), Reply::Oack(_)));
        }
        clients[0].give_up();
        drop(clients.remove(1));
        assert!(matches!(clients[1].reply(), Reply::Error(..)));
        room.running.take().unwrap().stop();
    });
    assert_eq!(said, "");
}

#[test]
fn a_system_without_threads_is_answered_and_survived() {
    const NAME: &str = "hostile::a_system_without_threads_is_answered_and_survived";
    // A user of its own: the limit counts all of a user's threads, and does not bind root.
    let nobody = ["setpriv", "--reuid=64123", "--regid=64123", "--clear-groups"];
    alone(NAME, &[&nobody[..], &["prlimit", "--nproc=8"]].concat(), || {
        let room = Room::new();
        let (mut served, mut refused) = (Vec::new(), 0);
        for _ in 0..20 {
            let mut client = Client::new(room.address);
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
    });
}

#[test]
fn no_more_transfers_run_than_allowed() {
    let room = Room::with(|config| config.max_transfers = 3);
    let mut clients: Vec<_> = (0..4).map(|_| Client::new(room.address)).collect();
    for client in clients.iter_mut().take(3) {
        client.request("deploy/vmlinuz", &[("tsize", "0")]);
        assert!(matches!(client.reply(), Reply::Oack(_)));
    }
    clients[3].request("deploy/vmlinuz", &[]);
    assert_eq!(clients[3].reply(), Reply::Error(0, "server busy, try again".to_owned()));
    clients[0].give_up();
    let deadline = Instant::now() + Duration::from_secs(5);
    while get(room.address, "deploy/initramfs", &[]).is_err() {
        assert!(Instant::now() < deadline, "a finished transfer keeps its slot");
    }
}
