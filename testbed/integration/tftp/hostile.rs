//! Attempts of strangers on the network.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    net::UdpSocket,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
    },
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use hostler::{
    model::boot::Firmware,
    netboot::{Config, Server},
};

use super::{
    BootServer,
    alone::{alone, memory_kib, processor_ms, server_threads},
    mac, node, noise, own,
    raw::{Client, Reply, get, request},
};

#[test]
fn nothing_outside_the_root_can_be_read() {
    let boot_server = BootServer::new();
    fs::write(boot_server.dir.path().join("secret"), "s").unwrap();
    symlink(boot_server.dir.path().join("secret"), boot_server.loaders.join("link")).unwrap();
    symlink(boot_server.dir.path(), boot_server.loaders.join("up")).unwrap();
    fs::create_dir(boot_server.loaders.join("directory")).unwrap();
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
        assert_eq!(get(boot_server.address, name, &[("tsize", "0")]), refused, "{name}");
    }
    let absolute = boot_server.dir.path().join("secret").display().to_string();
    for name in ["/etc/passwd", &absolute, "", "/"] {
        let refused = Err((1, "file not found".to_owned()));
        assert_eq!(get(boot_server.address, name, &[]), refused, "{name}");
    }
    // A NUL ends the name; the mode follows.
    assert_eq!(get(boot_server.address, "link\0octet\0x", &[]).unwrap_err().0, 2);
}

#[test]
fn writing_and_nonsense_are_refused_at_once() {
    let boot_server = BootServer::new();
    let mut client = Client::new(boot_server.address);
    for (datagram, code) in [
        (request(2, "pxelinux.0", &[]), 2),
        (b"\0\x01pxelinux.0\0netascii\0".to_vec(), 4),
        (b"\0\x01\xff\xfe\0octet\0".to_vec(), 1),
        (b"\0\x01\xff\0octet\0".to_vec(), 1),
        (b"\0\x01".to_vec(), 4),
        ([request(1, "x", &[]), vec![b'x'; 1800]].concat(), 1),
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
    assert_eq!(fs::read(boot_server.loaders.join("pxelinux.0")).unwrap(), noise(42_000));
}

#[test]
fn the_request_for_the_largest_window_of_the_largest_blocks_takes_little_memory() {
    alone(
        "hostile::the_request_for_the_largest_window_of_the_largest_blocks_takes_little_memory",
        &[],
        || {
            let boot_server = BootServer::new();
            fs::File::create(boot_server.loaders.join("large"))
                .unwrap()
                .set_len(100 << 20)
                .unwrap();
            let before = memory_kib();
            let options = [("windowsize", "65535"), ("blksize", "65464")];
            let mut clients: Vec<_> = (0..50).map(|_| Client::new(boot_server.address)).collect();
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
        let boot_server = BootServer::new();
        for window in ["1", "4"] {
            let mut client = Client::new(boot_server.address);
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
        let mut boot_server =
            BootServer::with(|config| config.idle_limit = Duration::from_millis(300));
        let mut clients: Vec<_> = (0..3).map(|_| Client::new(boot_server.address)).collect();
        for client in &mut clients {
            client.request("deploy/vmlinuz", &[("tsize", "0")]);
            assert!(matches!(client.reply(), Reply::Oack(_)));
        }
        clients[0].give_up();
        drop(clients.remove(1));
        assert!(matches!(clients[1].reply(), Reply::Error(..)));
        boot_server.running.take().unwrap().stop();
    });
    assert_eq!(said, "");
}

#[test]
fn neither_a_fifo_nor_an_endless_option_keeps_a_thread() {
    alone("hostile::neither_a_fifo_nor_an_endless_option_keeps_a_thread", &[], || {
        let boot_server = BootServer::new();
        let [loader, fixed, image] = ["loaders/fifo", "vmlinuz", "images/fifo"];
        fs::remove_file(boot_server.dir.path().join(fixed)).unwrap();
        for fifo in [loader, fixed, image] {
            let made =
                Command::new("mkfifo").arg(boot_server.dir.path().join(fifo)).status().unwrap();
            assert!(made.success());
        }
        boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &own("fifo")).unwrap();
        for name in ["fifo", "deploy/vmlinuz", "node/a/kernel"] {
            assert_eq!(get(boot_server.address, name, &[]).unwrap_err().0, 2, "{name}");
        }
        for option in ["utimeout", "windowwait", "timeout"] {
            let mut client = Client::new(boot_server.address);
            client.request("pxelinux.0", &[(option, "18446744073709551615")]);
            assert!(matches!(client.reply(), Reply::Data(1, _)), "{option}");
            client.give_up();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while server_threads() > 1 {
            assert!(Instant::now() < deadline, "{} threads are left", server_threads());
        }
    });
}

#[test]
fn an_idle_server_uses_no_processor_time_after_a_transfer() {
    alone("hostile::an_idle_server_uses_no_processor_time_after_a_transfer", &[], || {
        let boot_server = BootServer::new();
        for _ in 0..3 {
            get(boot_server.address, "deploy/vmlinuz", &[("blksize", "1428")]).unwrap();
        }
        let before = processor_ms();
        thread::sleep(Duration::from_millis(800));
        let used = processor_ms() - before;
        assert!(used <= 50, "{used} ms of processor time in 800 ms");
    });
}

#[test]
fn without_a_loader_directory_nothing_is_served_from_the_working_directory() {
    let boot_server = BootServer::with(|config| config.loaders = None);
    let here = fs::read_dir(".")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    for name in here {
        assert_eq!(get(boot_server.address, &name, &[]).unwrap_err().0, 1, "{name}");
    }
    assert_eq!(get(boot_server.address, "deploy/vmlinuz", &[]).unwrap().len(), 300_000);
}

#[test]
fn a_directory_that_is_none_and_a_name_that_cannot_be_asked_for_are_told_before_the_start() {
    let config = Config::new("127.0.0.1:0".parse().unwrap());
    let error = |config: Config| Server::bind(config).unwrap_err().to_string();
    let nowhere = PathBuf::from("/no/such/place");
    let no_loaders = Config { loaders: Some(nowhere.clone()), ..config.clone() };
    assert!(error(no_loaders).contains("/no/such/place"));
    let files = BTreeMap::from([("../vmlinuz".to_owned(), nowhere)]);
    assert!(error(Config { files, ..config }).contains("\"../vmlinuz\""));
}

#[test]
fn a_loader_directory_may_have_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join(OsStr::from_bytes(b"tftp\xff\n..root"));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a..b"), "content").unwrap();
    let boot_server = BootServer::with(|config| config.loaders = Some(root));
    assert_eq!(get(boot_server.address, "a..b", &[]).as_deref(), Ok(&b"content"[..]));
}

#[test]
fn a_file_that_cannot_be_read_is_refused_at_once_without_its_path() {
    const NAME: &str = "hostile::a_file_that_cannot_be_read_is_refused_at_once_without_its_path";
    let nobody = ["setpriv", "--reuid=64123", "--regid=64123", "--clear-groups"];
    alone(NAME, &nobody, || {
        let boot_server = BootServer::new();
        for path in [boot_server.loaders.join("pxelinux.0"), boot_server.dir.path().join("vmlinuz")]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        }
        for name in ["pxelinux.0", "deploy/vmlinuz"] {
            let mut client = Client::new(boot_server.address);
            client.request(name, &[("tsize", "0")]);
            let refused = Reply::Error(2, "access to this file is not allowed".to_owned());
            assert_eq!(client.reply_within(Duration::from_secs(1)), Some(refused), "{name}");
        }
    });
}

#[test]
fn a_transfer_speaks_from_the_address_that_was_asked_and_from_a_port_of_its_own() {
    let boot_server = BootServer::with(|config| config.listen = "127.0.9.1:0".parse().unwrap());
    let mut client = Client::on([127, 0, 9, 2].into(), boot_server.address);
    client.request("pxelinux.0", &[]);
    assert!(matches!(client.reply(), Reply::Data(1, _)));
    let transfer = client.transfer.unwrap();
    assert_eq!(transfer.ip(), boot_server.address.ip());
    assert_ne!(transfer.port(), boot_server.address.port());
    // No other client can send to the transfer.
    let stranger = UdpSocket::bind("127.0.9.3:0").unwrap();
    stranger.send_to(b"\0\x05\0\0no\0", transfer).unwrap();
    client.ack(1);
    assert!(matches!(client.reply(), Reply::Data(2, _)));
    client.give_up();
}

#[test]
fn nothing_a_client_sends_can_forge_a_line_of_the_log() {
    alone("hostile::nothing_a_client_sends_can_forge_a_line_of_the_log", &[], || {
        let log = Log::start();
        let mut boot_server = BootServer::new();
        let forged = "\nFORGED\x1b[31m\r";
        boot_server.file("pxelinux.0", b"x");
        for name in [
            forged,
            "pxelinux.0",
            &format!("../{forged}"),
            &format!("pxelinux.0/{forged}"),
            &"x".repeat(200),
        ] {
            let _refused = get(boot_server.address, name, &[]);
        }
        symlink("pxelinux.0", boot_server.loaders.join(forged)).unwrap();
        get(boot_server.address, forged, &[]).unwrap_err();
        let mut client = Client::new(boot_server.address);
        client.request("deploy/vmlinuz", &[]);
        client.reply();
        client.send(format!("\0\x05\0\0{forged}\0").as_bytes());
        boot_server.running.take().unwrap().stop();
        let text = log.text();
        assert!(text.matches("FORGED").count() >= 4, "{text}");
        assert!(!text.lines().any(|line| line.starts_with("FORGED")), "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    });
}

#[test]
fn requests_that_must_wait_are_told_once_however_many_they_are() {
    alone("hostile::requests_that_must_wait_are_told_once_however_many_they_are", &[], || {
        let log = Log::start();
        let boot_server = BootServer::with(|config| config.max_transfers = 1);
        let [mut served, mut waiting] = [0; 2].map(|_| Client::new(boot_server.address));
        served.request("deploy/vmlinuz", &[]);
        served.reply();
        for number in 0..50 {
            waiting.request(&number.to_string(), &[]);
        }
        // The server handles datagrams in order: the answer to this one follows all others.
        waiting.send_to_port(&request(2, "x", &[]));
        assert!(matches!(waiting.reply(), Reply::Error(2, _)));
        let text = log.text();
        assert_eq!(text.matches("too many TFTP transfers").count(), 1, "{text}");
        served.give_up();
    });
}

/// The captured log.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Captures the log of this process from now on.
    pub(super) fn start() -> Self {
        let log = Self::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        log
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
