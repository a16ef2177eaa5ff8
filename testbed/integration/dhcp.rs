//! The output of `hostler dhcp-snippet` in its DHCP servers: each server checks its configuration,
//! and then answers a machine over a virtual cable. Also the deploy ramdisk's DHCP client against
//! these servers.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hostler::ramdisk::dhcp::{Ask, Conversation, Lease, Reply, Route};
use tempfile::TempDir;

use crate::namespace::Namespace;

const HOSTLER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// Time limit of a server's start and of its answers.
const LIMIT: Duration = Duration::from_secs(30);
/// Each firmware by architecture and user class, and its boot file.
const MACHINES: [(u16, &str, &str); 7] = [
    (0, "", "pxelinux.0"),
    (7, "", "grubx64.efi"),
    (9, "", "grubx64.efi"),
    (11, "", "grubaa64.efi"),
    (0, "iPXE", "boot.ipxe"),
    (11, "iPXE", "boot.ipxe"),
    // IA32 UEFI, which gets no boot file.
    (6, "", ""),
];

/// Invariant (netboot): The printed DHCP lines send every machine to its boot loader.
#[test]
fn dnsmasq_sends_every_machine_where_the_snippet_says() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("dnsmasq.conf");
    fs::write(&config, snippet("dnsmasq", "")).unwrap();
    let config = format!("--conf-file={}", config.display());
    let site = Site::new();
    site.server.run(&["dnsmasq", "--test", &config]);
    let leases = format!("--dhcp-leasefile={}", dir.path().join("leases").display());
    let server = [
        &["--keep-in-foreground", "--port=0", "--interface=site", "--bind-interfaces"][..],
        &["--user=root", "--no-ping", "--pid-file", "--dhcp-range=192.0.2.100,192.0.2.150"],
        &[&leases, &config],
    ];
    site.answers("dnsmasq", &server.concat(), &dir);
}

#[test]
fn kea_sends_every_machine_where_the_snippet_says() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("kea.conf");
    let text = r#"{ "Dhcp4": {
        "interfaces-config": { "interfaces": ["site"] },
        "lease-database": { "type": "memfile", "persist": false },
        "subnet4": [{ "subnet": "192.0.2.0/24", "pools": [{ "pool": "192.0.2.100-192.0.2.150" }] }],
    "#;
    fs::write(&config, format!("{text}{}}} }}", snippet("kea", ""))).unwrap();
    let config = config.to_str().unwrap();
    let site = Site::new();
    site.server.run(&["kea-dhcp4", "-t", config]);
    site.answers("kea-dhcp4", &["-c", config], &dir);
}

#[test]
fn dhcpd_sends_every_machine_where_the_snippet_says() {
    let dir = tempfile::tempdir().unwrap();
    let (config, leases) = (dir.path().join("dhcpd.conf"), dir.path().join("leases"));
    let text = "ping-check false;\n\
                subnet 192.0.2.0 netmask 255.255.255.0 { range 192.0.2.100 192.0.2.150; }\n";
    fs::write(&config, format!("{}{text}", snippet("isc", ""))).unwrap();
    fs::write(&leases, "").unwrap();
    let (config, leases) = (config.to_str().unwrap(), leases.to_str().unwrap());
    let site = Site::new();
    site.server.run(&["dhcpd", "-t", "-cf", config, "-lf", leases]);
    let server = ["-f", "-d", "-4", "--no-pid", "-cf", config, "-lf", leases, "site"];
    site.answers("dhcpd", &server, &dir);
}

/// A default route and a route to another network, by option 121 alone.
const ROUTES: &str = "00:c0:00:02:01:08:0a:c0:00:02:07";

/// Invariant (ramdisk): The ramdisk takes its routes from any DHCP server, and says why it ignores
/// an answer.
#[test]
fn the_ramdisk_gets_its_routes_from_dnsmasq_also_where_they_go_on_in_other_fields() {
    let dir = tempfile::tempdir().unwrap();
    let leases = format!("--dhcp-leasefile={}", dir.path().join("leases").display());
    let long = format!("--dhcp-option-force=224,{}", "x".repeat(250));
    let server = [
        &["--keep-in-foreground", "--port=0", "--interface=site", "--bind-interfaces"][..],
        &["--user=root", "--no-ping", "--pid-file", "--dhcp-range=192.0.2.100,192.0.2.150"],
        &["--dhcp-option=3", "--dhcp-option=121,0.0.0.0/0,192.0.2.1,10.0.0.0/8,192.0.2.7"],
        &[&leases],
    ]
    .concat();
    Site::new().lends("dnsmasq", &server, &dir, false);
    Site::new().lends("dnsmasq", &[&server[..], &[&long]].concat(), &dir, true);
}

/// Invariant (ramdisk): The ramdisk takes its routes from any DHCP server, and says why it ignores
/// an answer.
#[test]
fn the_ramdisk_gets_its_routes_from_kea() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("kea.conf");
    let text = r#"{ "Dhcp4": {
        "interfaces-config": { "interfaces": ["site"] },
        "lease-database": { "type": "memfile", "persist": false },
        "option-def": [{ "name": "routes", "code": 121, "type": "binary" }],
        "option-data": [{ "name": "routes", "csv-format": false, "data": "ROUTES" }],
        "subnet4": [{ "subnet": "192.0.2.0/24", "pools": [{ "pool": "192.0.2.100-192.0.2.150" }] }]
    } }"#;
    fs::write(&config, text.replace("ROUTES", &ROUTES.replace(':', ""))).unwrap();
    Site::new().lends("kea-dhcp4", &["-c", config.to_str().unwrap()], &dir, false);
}

/// Invariant (ramdisk): The ramdisk takes its routes from any DHCP server, and says why it ignores
/// an answer.
#[test]
fn the_ramdisk_gets_its_routes_from_dhcpd() {
    let dir = tempfile::tempdir().unwrap();
    let (config, leases) = (dir.path().join("dhcpd.conf"), dir.path().join("leases"));
    let text = format!(
        "ping-check false;\nauthoritative;\noption routes code 121 = string;\n\
         option routes {ROUTES};\n\
         subnet 192.0.2.0 netmask 255.255.255.0 {{ range 192.0.2.100 192.0.2.150; }}\n"
    );
    fs::write(&config, text).unwrap();
    fs::write(&leases, "").unwrap();
    let (config, leases) = (config.to_str().unwrap(), leases.to_str().unwrap());
    let server = ["-f", "-d", "-4", "--no-pid", "-cf", config, "-lf", leases, "site"];
    Site::new().lends("dhcpd", &server, &dir, false);
}

#[test]
fn a_snippet_warns_of_a_port_that_no_firmware_asks() {
    for server in ["dnsmasq", "kea", "isc"] {
        assert!(!snippet(server, "").contains("WARNING"));
        let warned = snippet(server, "tftp.listen = \"0.0.0.0:1069\"\n");
        assert!(warned.contains("# WARNING: [tftp] listen has port 1069"), "{warned}");
    }
}

#[test]
fn an_ipv6_agent_has_no_snippet_for_dhcp_over_ipv4() {
    let (good, _, errors) = dhcp_snippet("isc", "2001:db8::1", "");
    assert!(!good && errors.contains("network.advertise") && errors.contains("IPv4"), "{errors}");
}

fn snippet(server: &str, more: &str) -> String {
    let (good, snippet, errors) = dhcp_snippet(server, &HOSTLER.to_string(), more);
    assert!(good, "{errors}");
    snippet
}

fn dhcp_snippet(server: &str, advertise: &str, more: &str) -> (bool, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hostler.toml");
    let text = format!(
        "network.advertise = \"{advertise}\"\nspecs.dir = \"/nodes\"\n\
         ramdisk = {{ kernel = \"/k\", initramfs = \"/i\" }}\n{more}"
    );
    fs::write(&config, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hostler"))
        .args(["dhcp-snippet", server, "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// Two network namespaces and a virtual cable: the server's end is `site`, the machine's end
/// `machine`.
struct Site {
    server: Namespace,
    machine: Namespace,
}

impl Site {
    fn new() -> Self {
        let (server, machine) = (Namespace::new(), Namespace::new());
        let peer = machine.id();
        let wire = ["ip", "link", "add", "site", "type", "veth", "peer", "machine", "netns"];
        server.run(&[&wire[..], &[&peer]].concat());
        for (end, name, address) in
            [(&server, "site", "192.0.2.1/24"), (&machine, "machine", "192.0.2.2/24")]
        {
            end.run(&["ip", "link", "set", "lo", "up"]);
            end.run(&["ip", "address", "add", address, "dev", name]);
            end.run(&["ip", "link", "set", name, "up"]);
        }
        machine.run(&["ip", "route", "add", "255.255.255.255", "dev", "machine"]);
        Self { server, machine }
    }

    /// Runs the server, and checks its answer to every machine.
    fn answers(&self, program: &str, arguments: &[&str], dir: &TempDir) {
        let _server = self.start(program, arguments, dir);
        let received = self.at_the_machine(|socket| {
            MACHINES.map(|(architecture, class, _)| offer(socket, architecture, class))
        });
        let log = || fs::read_to_string(dir.path().join("log")).unwrap();
        for ((architecture, class, file), received) in MACHINES.into_iter().zip(received) {
            let Some((next_server, offered)) = received else { panic!("no offer:\n{}", log()) };
            let who = format!("architecture {architecture}, user class `{class}`");
            assert_eq!(offered, file, "{who}:\n{}", log());
            if !file.is_empty() {
                assert_eq!(next_server, HOSTLER, "{who}");
            }
        }
    }

    /// Runs the server, and lets the deploy ramdisk lease and renew an address.
    fn lends(&self, program: &str, arguments: &[&str], dir: &TempDir, is_overloaded: bool) {
        let _server = self.start(program, arguments, dir);
        let received = self.at_the_machine(borrow);
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        let Some((lease, has_overload)) = received else { panic!("no lease:\n{log}") };
        let by = |network: [u8; 4], prefix, last| Route {
            network: network.into(),
            prefix,
            gateway: Some([192, 0, 2, last].into()),
        };
        assert_eq!((lease.prefix, lease.server), (24, [192, 0, 2, 1].into()));
        assert_eq!(lease.routes, [by([0; 4], 0, 1), by([10, 0, 0, 0], 8, 7)], "{log}");
        assert!(lease.renew_after.is_some() && (100..=150).contains(&lease.address.octets()[3]));
        assert_eq!(has_overload, is_overloaded, "whether options went on in `file` and `sname`");
    }

    fn start(&self, program: &str, arguments: &[&str], dir: &TempDir) -> Killed {
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = self.server.command();
        command.arg(program).args(arguments).stdin(Stdio::null());
        // Directories of Kea's lock and pid files.
        command.env("KEA_PIDFILE_DIR", dir.path()).env("KEA_LOCKFILE_DIR", dir.path());
        Killed(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    /// Runs code with a socket in the machine's namespace, on a DHCP client's port.
    fn at_the_machine<T: Send>(&self, act: impl FnOnce(&UdpSocket) -> T + Send) -> T {
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                self.machine.enter();
                let socket = UdpSocket::bind("0.0.0.0:68").unwrap();
                socket.set_broadcast(true).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                act(&socket)
            });
            asking.join().unwrap()
        })
    }
}

/// Leases an address; returns it, and whether the options needed other fields.
fn borrow(socket: &UdpSocket) -> Option<(Lease, bool)> {
    let talk = Conversation { mac: "52:54:00:00:00:01".parse().unwrap(), xid: 0x0700_0001 };
    let limit = Instant::now() + LIMIT;
    let (mut ask, mut buffer) = (Ask::Discover, [0; 1500]);
    while Instant::now() < limit {
        socket.send_to(&talk.message(ask, 0), "255.255.255.255:67").unwrap();
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let message = buffer.get(..length)?;
        match talk.reply(message).transpose().unwrap() {
            Some(Reply::Offer(Lease { address, server, .. })) => {
                ask = Ask::Take { address, server }
            }
            Some(Reply::Ack(lease)) => {
                let options = message.get(240..)?;
                let has_overload = options.windows(2).any(|option| option == [52, 1]);
                return Some((lease, has_overload));
            }
            Some(Reply::Nak) | None => {}
        }
    }
    None
}

/// Requests an address until one is offered; returns the next server and the boot file of the offer
/// (RFC 2131 §2).
fn offer(socket: &UdpSocket, architecture: u16, class: &str) -> Option<(Ipv4Addr, String)> {
    let limit = Instant::now() + LIMIT;
    let xid = (u32::from(architecture) << 8) + u32::try_from(class.len()).unwrap() + 0x0700_0000;
    let discover = discover(xid, architecture, class);
    let mut buffer = [0; 1500];
    while Instant::now() < limit {
        socket.send_to(&discover, "255.255.255.255:67").unwrap();
        while let Ok(length) = socket.recv(&mut buffer) {
            if let Some(offer) = buffer.get(..length).and_then(|reply| read(reply, xid)) {
                return Some(offer);
            }
        }
    }
    None
}

/// Reads the next server and the boot file of a reply to this transaction.
fn read(reply: &[u8], xid: u32) -> Option<(Ipv4Addr, String)> {
    const BOOTREPLY: u8 = 2;
    let is_reply = *reply.first()? == BOOTREPLY && reply.get(4..8)? == xid.to_be_bytes();
    let next_server = <[u8; 4]>::try_from(reply.get(20..24)?).ok()?.into();
    let file = reply.get(108..236)?.split(|byte| *byte == 0).next()?;
    is_reply.then(|| (next_server, String::from_utf8(file.to_vec()).unwrap()))
}

fn discover(xid: u32, architecture: u16, class: &str) -> Vec<u8> {
    // Ethernet; with the broadcast flag, because the machine has no address.
    let mut message = vec![1, 1, 6, 0];
    message.extend(xid.to_be_bytes());
    message.extend([0, 0, 0x80, 0]);
    message.extend([0; 16]);
    message.extend([0x52, 0x54, 0, 0, 0, 1]);
    message.extend([0; 10 + 64 + 128]);
    message.extend([99, 130, 83, 99]);
    message.extend([53, 1, 1, 93, 2]);
    message.extend(architecture.to_be_bytes());
    if !class.is_empty() {
        message.extend([77, u8::try_from(class.len()).unwrap()]);
        message.extend(class.bytes());
    }
    message.push(255);
    message.resize(300, 0);
    message
}

/// A server, killed on drop.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
