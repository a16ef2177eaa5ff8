//! Files, sizes, options, names.

use std::{
    ffi::OsStr,
    fs::{self, File},
    net::SocketAddr,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::Command,
    thread,
};

use hostler::model::boot::{BootMenu, Firmware};

use super::{
    BootServer, deploy, mac, node, noise, own,
    raw::{Client, Reply, get, request},
};

/// Runs a client program; returns the fetched file, or the error output.
pub(super) fn run(command: &mut Command, output: &Path) -> Result<Vec<u8>, String> {
    let done = command.output().unwrap();
    let said =
        [done.stdout, done.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    // tftp-hpa exits with 0 even for a missing file.
    if done.status.success() && !said.contains("Error code") {
        Ok(fs::read(output).unwrap_or_default())
    } else {
        Err(said)
    }
}

fn curl(server: SocketAddr, name: &str, options: &[&str]) -> Result<Vec<u8>, String> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("output");
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "-o"]).arg(&output).args(options);
    run(command.arg(format!("tftp://{server}/{name}")), &output)
}

fn tftp_hpa(server: SocketAddr, name: &str) -> Result<Vec<u8>, String> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("output");
    let mut command = Command::new("tftp");
    command.args(["-m", "binary", &server.ip().to_string(), &server.port().to_string()]);
    run(command.args(["-c", "get", name]).arg(&output), &output)
}

fn busybox(server: SocketAddr, name: &str, block: u16) -> Result<Vec<u8>, String> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("output");
    let mut command = Command::new("busybox");
    command.args(["tftp", "-g", "-b", &block.to_string(), "-r", name, "-l"]).arg(&output);
    run(command.args([server.ip().to_string(), server.port().to_string()]), &output)
}

#[test]
fn real_clients_get_files_of_every_awkward_size() {
    let boot_server = BootServer::new();
    for size in [0, 1, 511, 512, 513, 1024, 1428, 8192, 100_000] {
        let content = noise(size);
        boot_server.file("file", &content);
        assert!(tftp_hpa(boot_server.address, "file").as_ref() == Ok(&content), "tftp-hpa {size}");
        for block in [512, 1428] {
            let got = busybox(boot_server.address, "file", block);
            assert!(got.as_ref() == Ok(&content), "busybox {size}, {block}");
        }
        // curl 7.88 cannot fetch an empty file from a server that reports the size.
        for block in ["512", "1428", "65464"].iter().filter(|_| size > 0) {
            let got = curl(boot_server.address, "file", &["--tftp-blksize", block]);
            assert!(got.as_ref() == Ok(&content), "curl {size}, {block}");
        }
        for window in ["1", "4", "64"] {
            let got =
                get(boot_server.address, "file", &[("blksize", "512"), ("windowsize", window)]);
            assert!(got.as_ref() == Ok(&content), "window {window}, {size}");
        }
    }
    let no_options = curl(boot_server.address, "deploy/vmlinuz", &["--tftp-no-options"]);
    assert!(no_options == Ok(noise(300_000)));
}

#[test]
fn block_numbers_go_round_in_a_file_of_more_than_65535_blocks() {
    const BYTES: u64 = 65_536 * 512 + 777;
    let boot_server = BootServer::new();
    let file = File::create(boot_server.loaders.join("large")).unwrap();
    file.set_len(BYTES).unwrap();
    let got = curl(boot_server.address, "large", &["--tftp-blksize", "512"]).unwrap();
    assert!(got.len() as u64 == BYTES && got.iter().all(|b| *b == 0));

    // More than three wraps of block numbers, with unique bytes for every block.
    let content = noise(200_000 * 8);
    boot_server.file("large", &content);
    let got = get(boot_server.address, "large", &[("blksize", "8"), ("windowsize", "64")]);
    assert!(got == Ok(content));
}

#[test]
fn options_are_answered_as_their_standards_say() {
    let boot_server = BootServer::new();
    for (requested, granted) in [
        (vec![("tsize", "0")], vec![("tsize", "42000")]),
        (vec![("blksize", "65464")], vec![("blksize", "8192")]),
        (vec![("windowsize", "65535")], vec![("windowsize", "64")]),
        (vec![("TIMEOUT", "2")], vec![("timeout", "2")]),
        (
            vec![("timeout", "200"), ("utimeout", "1"), ("windowwait", "9"), ("blksize", "1428")],
            vec![("blksize", "1428")],
        ),
    ] {
        let mut client = Client::new(boot_server.address);
        client.request("pxelinux.0", &requested);
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        assert_eq!(client.reply(), Reply::Oack(granted.iter().map(own).collect()), "{requested:?}");
        client.give_up();
    }
    let mut client = Client::new(boot_server.address);
    client.request("pxelinux.0", &[("blksize", "7"), ("windowsize", "0"), ("timeout", "0")]);
    assert!(matches!(client.reply(), Reply::Data(1, data) if data.len() == 512));
    client.give_up();
}

/// Invariant (netboot): No TFTP option and no byte of a name keeps a machine from an existing file.
#[test]
fn one_odd_option_keeps_nobody_from_a_file() {
    let boot_server = BootServer::new();
    let request = request(1, "pxelinux.0", &[]);
    for odd in [
        &b"tsize\0\0"[..],
        b"blksize\0abc\0",
        b"blksize\x001456 \0",
        b"blksize\099999999999999999999999\0",
        b"tsize\0-1\0",
        b"x\0\xff\xfe\0",
        b"\xff\0x\0",
        b"tsize\0",
        b"tsize",
        b"\0\0",
    ] {
        let mut client = Client::new(boot_server.address);
        client.send_to_port(&[&request, odd].concat());
        let reply = client.reply();
        assert!(matches!(reply, Reply::Data(1, _)), "{}: {reply:?}", odd.escape_ascii());
        client.give_up();
    }
    let (mut client, mut last) = (Client::new(boot_server.address), request.clone());
    last.pop();
    client.send_to_port(&last);
    assert!(matches!(client.reply(), Reply::Data(1, _)), "the last NUL is missing");
    client.give_up();
    let options = [request, b"tsize\0?\0BLKSIZE\x001456\0timeout\x002".to_vec()].concat();
    client.send_to_port(&options);
    let granted = [("blksize", "1456"), ("timeout", "2")];
    let granted = granted.map(|(option, value)| (option.to_owned(), value.to_owned()));
    assert_eq!(client.reply(), Reply::Oack(granted.into()));
    client.give_up();
}

/// Invariant (netboot): No TFTP option and no byte of a name keeps a machine from an existing file.
#[test]
fn a_name_that_is_no_text_is_a_files_and_the_end_mark_that_old_nics_append_is_none_of_it() {
    let mut boot_server = BootServer::new();
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("5ec2e7")).unwrap();
    for name in [&b"f\xfcr.0"[..], b"exact.0\xff"] {
        fs::write(boot_server.loaders.join(OsStr::from_bytes(name)), name).unwrap();
    }
    boot_server.file("exact.0", b"without the mark");
    for (name, content) in [
        (&b"f\xfcr.0"[..], &b"f\xfcr.0"[..]),
        (b"f\xfcr.0\xff", b""),
        (b"exact.0\xff", b"exact.0\xff"),
        (b"exact.0\xff\xff", b"without the mark"),
        (b"/pxelinux.0\xff", &noise(42_000)[..512]),
        (b"none\xff", b""),
        (b"../exact.0\xff", b""),
    ] {
        let mut client = Client::new(boot_server.address);
        client.send_to_port(&[b"\0\x01", name, b"\0octet\0"].concat());
        let reply = client.reply();
        if content.is_empty() {
            assert!(matches!(reply, Reply::Error(1 | 2, _)), "{}: {reply:?}", name.escape_ascii());
        } else {
            assert_eq!(reply, Reply::Data(1, content.to_vec()), "{}", name.escape_ascii());
            client.ack(1);
            client.give_up();
        }
    }
    // The fetch is evidence under the file's own name.
    while let Ok(_refused) = boot_server.fetched.try_recv() {}
    get(boot_server.address, "pxelinux.cfg/01-52-54-00-00-00-01", &[]).unwrap();
    while boot_server.reported().path != "pxelinux.0" {}
}

#[test]
fn a_menu_is_served_under_every_name_firmware_may_use() {
    let boot_server = BootServer::new();
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("5ec2e7")).unwrap();
    let [pxelinux, grub] = ["pxelinux.cfg/", "grub/"].map(|name| boot_server.menu(name));
    for prefix in ["", "/", "/tftpboot/", "tftpboot/", "\\", "//"] {
        for (name, text) in [
            ("pxelinux.cfg/01-52-54-00-00-00-01", &pxelinux),
            ("grub.cfg-01-52:54:00:00:00:01", &grub),
            ("grub/grub.cfg-01-52-54-00-00-00-01", &grub),
        ] {
            let got = get(boot_server.address, &format!("{prefix}{name}"), &[]).unwrap();
            assert_eq!(&String::from_utf8(got).unwrap(), text, "{prefix}{name}");
        }
    }
    let got = tftp_hpa(boot_server.address, "/grub/grub.cfg").unwrap();
    assert!(String::from_utf8(got).unwrap().contains("configfile"));
}

#[test]
fn a_nodes_own_kernel_and_ramdisk_are_served_while_its_menu_says_so_and_nothing_else_is() {
    let boot_server = BootServer::new();
    let (kernel, ramdisk) = (noise(300_000), noise(70_001));
    boot_server.image("vmlinuz", &kernel);
    boot_server.image("initrd", &ramdisk);
    boot_server.image("secret", b"a secret boot file");
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &own("vmlinuz")).unwrap();
    boot_server.table.set(&node("b"), &[mac(2)], Firmware::Bios, &own("../vmlinuz")).unwrap();
    boot_server.table.set(&node("d"), &[mac(4)], Firmware::Bios, &own("none")).unwrap();
    assert!(curl(boot_server.address, "node/a/kernel", &[]) == Ok(kernel.clone()));
    assert!(tftp_hpa(boot_server.address, "/node/a/ramdisk") == Ok(ramdisk));
    assert!(busybox(boot_server.address, "node/a/kernel", 1428) == Ok(kernel));
    let missing = (1, "file not found".to_owned());
    let refused = (2, "access to this file is not allowed".to_owned());
    for (name, answer) in [
        ("node/a/secret", &missing),
        ("secret", &missing),
        ("vmlinuz", &missing),
        ("node/c/kernel", &missing),
        ("node/d/kernel", &missing),
        ("node/b/kernel", &refused),
    ] {
        assert_eq!(get(boot_server.address, name, &[]).as_ref(), Err(answer), "{name}");
    }
    boot_server.table.set(&node("a"), &[mac(1)], Firmware::Bios, &BootMenu::LocalDisk).unwrap();
    assert_eq!(get(boot_server.address, "node/a/kernel", &[]), Err(missing));
}

/// Invariant (netboot): An unknown network interface gets no boot menu.
#[test]
fn an_unknown_machine_gets_file_not_found() {
    let boot_server = BootServer::new();
    for (name, nic) in [("a", mac(1)), ("b", mac(2))] {
        boot_server.table.set(&node(name), &[nic], Firmware::Bios, &deploy("x")).unwrap();
    }
    boot_server.table.remove(&node("a"));
    for name in [
        "pxelinux.cfg/01-52-54-00-00-00-01",
        "pxelinux.cfg/C0000201",
        "grub/grub.cfg-01-52:54:00:00:00:01",
        "nothing",
    ] {
        let refused = Err((1, "file not found".to_owned()));
        assert_eq!(get(boot_server.address, name, &[("tsize", "0")]), refused, "{name}");
    }
    fs::remove_file(boot_server.dir.path().join("vmlinuz")).unwrap();
    assert_eq!(get(boot_server.address, "deploy/vmlinuz", &[]).unwrap_err().0, 1);
    assert!(tftp_hpa(boot_server.address, "nothing").unwrap_err().contains("not found"));
    assert!(curl(boot_server.address, "nothing", &[]).is_err());
}

/// Invariant (netboot): A menu is switched in one change.
#[test]
fn a_switch_is_one_change_for_fifty_clients_at_once() {
    let boot_server = BootServer::new();
    let (macs, menus) = ([mac(1), mac(2)], [deploy("attempt"), BootMenu::LocalDisk]);
    let mut rendered = Vec::new();
    for menu in &menus {
        boot_server.table.set(&node("a"), &macs, Firmware::Uefi, menu).unwrap();
        rendered.push(boot_server.menu("pxelinux.cfg/").into_bytes());
    }
    thread::scope(|scope| {
        let clients: Vec<_> = (0..50)
            .map(|number| {
                let (address, rendered) = (boot_server.address, &rendered);
                scope.spawn(move || {
                    for _ in 0..10 {
                        let name = format!("pxelinux.cfg/01-52-54-00-00-00-0{}", 1 + number % 2);
                        let got = get(address, &name, &[("blksize", "64")]).unwrap();
                        assert!(rendered.contains(&got), "{}", String::from_utf8_lossy(&got));
                    }
                })
            })
            .collect();
        while clients.iter().any(|client| !client.is_finished()) {
            for menu in &menus {
                boot_server.table.set(&node("a"), &macs, Firmware::Uefi, menu).unwrap();
            }
        }
    });
}

#[test]
fn ipv6_clients_are_served() {
    let boot_server = BootServer::with(|config| config.listen = "[::1]:0".parse().unwrap());
    assert!(curl(boot_server.address, "deploy/vmlinuz", &[]) == Ok(noise(300_000)));
    assert!(tftp_hpa(boot_server.address, "deploy/initramfs") == Ok(noise(70_000)));
}
