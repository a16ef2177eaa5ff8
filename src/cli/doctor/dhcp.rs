//! The check of the site's DHCP server: what it would offer to the machines of the specs.
//!
//! Sends a DHCPDISCOVER (RFC 2131 §4.4.1) for each kind of machine, as its firmware would, with the
//! address of a machine of that kind. It must never send a DHCPREQUEST: an offer binds nobody.

use std::{
    ffi::OsString,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket,
        sockopt::{BindToDevice, Broadcast, ReuseAddr},
    },
};

use crate::{
    config::Config,
    model::{
        boot::{Arch, Firmware},
        ids::MacAddr,
        spec::NodeSpec,
    },
    ramdisk::dhcp::{BootOffer, Conversation, NetbootClient},
};

use super::{finding::Finding, host};

/// The check's name.
const CHECK: &str = "dhcp";
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// Wait for an offer, with a second question half-way: servers may first ping the address.
const WAIT: Duration = Duration::from_secs(4);
/// Largest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1500;

/// The agent as an offer should name it.
struct Here<'a> {
    address: Ipv4Addr,
    loaders: &'a Path,
}

/// One finding for each kind of machine, and one for its iPXE.
pub(super) fn check(config: &Config, specs: &[Arc<NodeSpec>]) -> Vec<Finding> {
    let mut kinds: Vec<(NetbootClient, MacAddr)> = Vec::new();
    for spec in specs {
        let Some(mac) = spec.boot.macs.first() else { continue };
        let client = match (spec.boot.firmware, spec.boot.arch) {
            (Firmware::Bios, _) => NetbootClient::Bios,
            (Firmware::Uefi, Arch::X86_64) => NetbootClient::UefiX86_64,
            (Firmware::Uefi, Arch::Aarch64) => NetbootClient::UefiAarch64,
        };
        if !kinds.iter().any(|(known, _)| *known == client) {
            kinds.push((client, *mac));
        }
    }
    if let Some((_, mac)) = kinds.first() {
        kinds.push((NetbootClient::Ipxe, *mac));
    } else {
        return Vec::new();
    }
    let IpAddr::V4(advertise) = config.network.advertise else {
        let message = "network.advertise is an IPv6 address, and hostler asks over IPv4 only";
        return vec![Finding::warning(CHECK, message, "check the site's DHCP server yourself")];
    };
    if !host::has(advertise.into()) {
        return Vec::new();
    }
    match open(advertise) {
        Ok(socket) => {
            let here = Here { address: advertise, loaders: &config.tftp.loaders };
            kinds.into_iter().map(|(client, mac)| of_kind(&socket, client, mac, &here)).collect()
        }
        Err(error) => vec![no_question(&error.to_string())],
    }
}

fn no_question(why: &str) -> Finding {
    let hint = "run `hostler doctor` as root on the agent's host";
    Finding::warning(CHECK, format!("cannot ask the site's DHCP server: {why}"), hint)
}

/// A DHCP client's socket on the interface that has the address.
fn open(advertise: Ipv4Addr) -> io::Result<UdpSocket> {
    let has_address = |address: &nix::ifaddrs::InterfaceAddress| {
        let address = address.address.as_ref().and_then(|address| address.as_sockaddr_in());
        address.is_some_and(|address| address.ip() == advertise)
    };
    let interface = getifaddrs()?
        .find(has_address)
        .map(|address| address.interface_name)
        .ok_or_else(|| io::Error::other(format!("no interface has {advertise}")))?;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    setsockopt(&socket, Broadcast, &true)?;
    setsockopt(&socket.as_fd(), BindToDevice, &OsString::from(interface))?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, CLIENT_PORT))?;
    Ok(UdpSocket::from(socket))
}

fn of_kind(socket: &UdpSocket, client: NetbootClient, mac: MacAddr, here: &Here<'_>) -> Finding {
    let what = format!("{} ({mac})", client.as_str());
    match ask(socket, client, mac) {
        Ok(Some(offer)) => judge(&what, client, &offer, here),
        Ok(None) => Finding::warning(
            CHECK,
            format!("{what}: no DHCP server made an offer in {} s", WAIT.as_secs()),
            "look at the site's DHCP server, its list of machines, and the switch's port \
             (spanning tree); Kea and ISC on this very host cannot hear the question",
        ),
        Err(error) => no_question(&error.to_string()),
    }
}

/// Asks, and waits for the first offer with a boot file, or else for any.
fn ask(socket: &UdpSocket, client: NetbootClient, mac: MacAddr) -> io::Result<Option<BootOffer>> {
    let mut xid = [0; 4];
    getrandom::fill(&mut xid).map_err(io::Error::other)?;
    let talk = Conversation { mac, xid: u32::from_be_bytes(xid) };
    let servers = SocketAddr::from((Ipv4Addr::BROADCAST, SERVER_PORT));
    let (began, mut best, mut buffer) = (Instant::now(), None, [0; ANSWER_BYTES_MAX]);
    for half in [WAIT / 2, WAIT] {
        let seconds = u16::try_from(began.elapsed().as_secs()).unwrap_or(u16::MAX);
        socket.send_to(&talk.netboot_discover(client, seconds), servers)?;
        while let Some(rest) = half.checked_sub(began.elapsed()).filter(|rest| !rest.is_zero()) {
            socket.set_read_timeout(Some(rest))?;
            let received = match socket.recv(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            match talk.boot_offer(buffer.get(..received).unwrap_or_default()) {
                Some(offer) if !offer.file.is_empty() => return Ok(Some(offer)),
                Some(offer) => best = Some(offer),
                None => {}
            }
        }
        if best.is_some() {
            break;
        }
    }
    Ok(best)
}

fn judge(what: &str, client: NetbootClient, offer: &BootOffer, here: &Here<'_>) -> Finding {
    let hint = "`hostler dhcp-snippet` prints what the DHCP server needs";
    let BootOffer { address, server, next_server, file } = offer;
    let from = format!("{what}: server {server} offers {address}");
    if file.is_empty() {
        return Finding::failure(CHECK, format!("{from} and no boot file"), hint);
    }
    let url_host = file.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or(rest));
    let host = url_host.map(|host| host.split(':').next().unwrap_or(host).to_owned());
    let host = host.unwrap_or_else(|| next_server.clone());
    if !host.is_empty() && host.parse::<IpAddr>().is_err() {
        let message = format!("{from} and {file} from {host}, which may be {}", here.address);
        return Finding::warning(CHECK, message, "make sure that the machines find its address");
    }
    if host != here.address.to_string() {
        let message = format!("{from} and {file} from {host}, not from {}", here.address);
        return Finding::failure(CHECK, message, hint);
    }
    if client == NetbootClient::Ipxe
        && Path::new(file).extension().is_none_or(|extension| extension != "ipxe")
    {
        let message = format!("{from} and {file}, where iPXE needs a script: boot.ipxe");
        return Finding::warning(CHECK, message, hint);
    }
    let is_served = client == NetbootClient::Ipxe
        || here.loaders.join(file.trim_start_matches('/')).is_file()
        || url_host.is_some();
    if !is_served {
        let message = format!("{from} and {file}, which is not in {}", here.loaders.display());
        return Finding::failure(CHECK, message, hint);
    }
    Finding::ok(CHECK, format!("{from} and {file} from here"))
}
