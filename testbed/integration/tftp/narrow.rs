//! Paths with a narrow link in the middle, as tunnels are: a server, a router and a client, each in
//! a network of its own.

use std::thread;

use hostler::netboot::Config;

use super::{
    BootServer, noise,
    raw::{Client, get_losing},
    serving::run,
};
use crate::namespace::Namespace;

const SERVER: &str = "192.0.2.1";
const CLIENT: &str = "198.51.100.1";
const SERVER_V6: &str = "2001:db8:1::1";
const CLIENT_V6: &str = "2001:db8:2::1";
/// The MTU of `WireGuard`, and a block that fits it.
const NARROW_MTU: u16 = 1420;
const NARROW_BLOCK: u16 = NARROW_MTU - 20 - 8 - 4;
/// Block sizes: pxelinux's, firmware's, and one that needs fragments everywhere.
const BLOCKS: [u16; 3] = [1408, 1468, 4096];

/// Invariant (netboot): TFTP delivers whatever the path's MTU, and keeps to `tftp.block_max`.
#[test]
fn a_narrow_link_in_the_middle_of_the_path_loses_no_file() {
    let path = Path::new();
    path.delivers(&path.boot_server(|_| {}));
}

/// Invariant (netboot): TFTP delivers whatever the path's MTU, and keeps to `tftp.block_max`.
#[test]
fn a_path_that_is_narrow_on_the_way_to_the_client_only_loses_no_file() {
    let path = Path::new();
    path.client.run(&["ip", "link", "set", "client", "mtu", "1500"]);
    path.delivers(&path.boot_server(|_| {}));
}

/// Invariant (netboot): TFTP delivers whatever the path's MTU, and keeps to `tftp.block_max`.
///
/// A client whose network takes less than the router sends: no router can cut what is too large,
/// and nobody says so.
#[test]
fn a_client_that_drops_what_is_too_large_is_served_in_blocks_of_the_configured_size() {
    let path = Path::new();
    path.router.run(&["ip", "link", "set", "far", "mtu", "1500"]);
    path.lose_fragments();
    let boot_server = path.boot_server(|_| {});
    let words = ["curl", "-sS", "--max-time", "2", "--tftp-blksize", "1468", "-o", "OUT", "URL"];
    assert!(path.fetch(&words).is_err(), "nothing was too large");
    drop(boot_server);
    path.delivers(&path.boot_server(|config| config.block_bytes_max = NARROW_BLOCK));
}

/// Invariant (netboot): TFTP delivers whatever the path's MTU, and keeps to `tftp.block_max`.
#[test]
fn over_ipv6_a_block_that_a_router_drops_is_sent_again_and_cut() {
    let path = Path::new();
    let boot_server =
        path.boot_server(|config| config.listen = format!("[{SERVER_V6}]:69").parse().unwrap());
    for window in ["1", "16"] {
        path.forget();
        let options = [("blksize", "1468"), ("windowsize", window), ("timeout", "5")];
        let got = path.at_client(|| {
            let mut client = Client::on(CLIENT_V6.parse().unwrap(), boot_server.address);
            get_losing(&mut client, "deploy/vmlinuz", &options, |_| false)
        });
        assert!(got == Ok(noise(300_000)), "window {window}");
    }
}

/// Invariant (netboot): TFTP delivers whatever the path's MTU, and keeps to `tftp.block_max`.
#[test]
fn a_path_that_loses_fragments_is_served_in_blocks_of_the_largest_size_that_is_configured() {
    let path = Path::new();
    path.lose_fragments();
    let words = ["curl", "-sS", "--max-time", "2", "--tftp-blksize", "1468", "-o", "OUT", "URL"];
    let boot_server = path.boot_server(|_| {});
    let lost = path.fetch(&words);
    assert!(lost.is_err(), "no fragment was lost");
    drop(boot_server);
    path.delivers(&path.boot_server(|config| config.block_bytes_max = NARROW_BLOCK));
}

/// Invariant (netboot): TFTP delivers whatever the path's MTU, and keeps to `tftp.block_max`.
#[test]
fn a_client_behind_a_narrow_link_of_the_server_itself_needs_no_fragments() {
    let path = Path::new();
    path.lose_fragments();
    path.server.run(&["ip", "link", "set", "server", "mtu", &NARROW_MTU.to_string()]);
    let _room = path.boot_server(|_| {});
    let words = ["curl", "-sS", "--max-time", "20", "--tftp-blksize", "1468", "-o", "OUT", "URL"];
    assert!(path.fetch(&words) == Ok(noise(42_000)));
}

/// Three networks in a row; the link between router and client is the narrow one.
struct Path {
    server: Namespace,
    router: Namespace,
    client: Namespace,
}

impl Path {
    fn new() -> Self {
        let [server, router, client] = [0; 3].map(|_| Namespace::new());
        let mtu = NARROW_MTU.to_string();
        for (end, name, addresses, opposite) in [
            (&server, "server", [SERVER, SERVER_V6], ("near", ["192.0.2.254", "2001:db8:1::fe"])),
            (&client, "client", [CLIENT, CLIENT_V6], ("far", ["198.51.100.254", "2001:db8:2::fe"])),
        ] {
            let link = ["ip", "link", "add", name, "type", "veth", "peer", opposite.0, "netns"];
            end.run(&[&link[..], &[&router.id()]].concat());
            for (end, name, addresses) in
                [(end, name, addresses), (&router, opposite.0, opposite.1)]
            {
                end.run(&["ip", "link", "set", "lo", "up"]);
                for (address, bits) in addresses.into_iter().zip(["24", "64"]) {
                    let address = format!("{address}/{bits}");
                    end.run(&["ip", "address", "add", &address, "dev", name, "nodad"]);
                }
                end.run(&["ip", "link", "set", name, "up"]);
            }
            for router in opposite.1 {
                end.run(&["ip", "route", "add", "default", "via", router]);
            }
        }
        router.run(&["ip", "link", "set", "far", "mtu", &mtu]);
        client.run(&["ip", "link", "set", "client", "mtu", &mtu]);
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            router.run(&["sh", "-c", &format!("echo 1 >/proc/sys/net/{switch}")]);
        }
        Self { server, router, client }
    }

    /// A server at its end.
    fn boot_server(&self, adjust: impl FnOnce(&mut Config) + Send) -> BootServer {
        thread::scope(|scope| {
            let boot_server = scope.spawn(|| {
                self.server.enter();
                BootServer::with(|config| {
                    config.listen = format!("{SERVER}:69").parse().unwrap();
                    adjust(config);
                })
            });
            boot_server.join().unwrap()
        })
    }

    /// Every client gets its file, whatever block it asks for.
    fn delivers(&self, boot_server: &BootServer) {
        let content = noise(42_000);
        for block in BLOCKS {
            let size = block.to_string();
            let option = format!("blksize {size}");
            let curl = ["curl", "-sS", "--max-time", "20", "--tftp-blksize", &size, "-o", "OUT"];
            for words in [
                &[&curl[..], &["URL"]].concat()[..],
                &["busybox", "tftp", "-g", "-b", &size, "-r", "pxelinux.0", "-l", "OUT", SERVER],
                &["atftp", "--option", &option, "-g", "-r", "pxelinux.0", "-l", "OUT", SERVER],
                &["tftp", "-m", "binary", SERVER, "-c", "get", "pxelinux.0", "OUT"],
            ] {
                self.forget();
                let got = self.fetch(words);
                assert!(got.as_ref() == Ok(&content), "{block}, {}", words[0]);
            }
            for window in ["1", "16"] {
                self.forget();
                let options = [("blksize", size.as_str()), ("windowsize", window)];
                let got = self.at_client(|| {
                    let mut client = Client::on(CLIENT.parse().unwrap(), boot_server.address);
                    get_losing(&mut client, "deploy/vmlinuz", &options, |_| false)
                });
                assert!(got == Ok(noise(300_000)), "{block}, window {window}");
            }
        }
    }

    /// The client cannot put fragments together, as if a firewall had dropped them.
    fn lose_fragments(&self) {
        for limit in ["low", "high"] {
            let command = format!("echo 0 >/proc/sys/net/ipv4/ipfrag_{limit}_thresh");
            self.client.run(&["sh", "-c", &command]);
        }
    }

    /// The server's system forgets what it has learnt of the path.
    fn forget(&self) {
        for family in ["-4", "-6"] {
            self.server.run(&["ip", family, "route", "flush", "cache"]);
        }
    }

    fn at_client<T: Send>(&self, ask: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                self.client.enter();
                ask()
            });
            asking.join().unwrap()
        })
    }

    /// Runs a client's program, which writes what it fetches to `OUT`.
    fn fetch(&self, words: &[&str]) -> Result<Vec<u8>, String> {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("output");
        let url = format!("tftp://{SERVER}/pxelinux.0");
        let mut command = self.client.command();
        command.args(words.iter().map(|word| match *word {
            "OUT" => output.as_os_str(),
            "URL" => url.as_ref(),
            word => word.as_ref(),
        }));
        run(&mut command, &output)
    }
}
