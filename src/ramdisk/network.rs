//! The network: finds the NIC that the machine booted from, brings it up, and leases an address.
//!
//! The boot sequence uses it. It never configures a NIC without a lease, and never gives an address
//! up once the target may use it.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    path::Path,
    time::Duration,
};

use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder, packet_route::route::RouteScope};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::{
    net::UdpSocket,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tracing::{info, warn};

use super::{
    dhcp::{Ask, Conversation, Lease, Reply, Route, patience},
    sysfs,
};
use crate::model::ids::MacAddr;

/// Longest wait for a NIC: drivers of large NICs need 20 s and more for their firmware.
const NIC_WAIT: Duration = Duration::from_secs(90);
/// Longest wait for the first lease, with all tries: a switch's spanning tree blocks a port for up
/// to 50 s.
const LEASE_WAIT: Duration = Duration::from_secs(600);
/// Interval of the polls of sysfs.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// Pause before a repeated renewal: at least 60 s by RFC 2131 §4.4.5.
const RENEW_RETRY: Duration = Duration::from_secs(60);
/// Largest datagram: more than an Ethernet frame without jumbo frames. A longer message is cut, and
/// then refused.
const DATAGRAM_BYTES_MAX: usize = 2048;
/// Tries without an offer before a message on the console: some 20 s, then each half minute.
const SILENCE_TRIES: u32 = 4;
/// Most messages about unusable answers: any host on the segment can cause them.
const COMPLAINTS_MAX: usize = 16;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// A failure of the network setup.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetworkError {
    #[error(
        "no network interface appeared within {} s: is its driver in the ramdisk?",
        NIC_WAIT.as_secs()
    )]
    NoNic,
    #[error(
        "no DHCP lease within {} s: check the cable and the site's DHCP server",
        LEASE_WAIT.as_secs()
    )]
    NoLease,
    #[error("setting up {nic}: {source}")]
    Kernel { nic: String, source: rtnetlink::Error },
    #[error("netlink: {0}")]
    Netlink(#[from] io::Error),
}

/// One Ethernet NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nic {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mac: MacAddr,
}

/// The boot loader's NIC, from `BOOTIF=01-52-54-00-00-00-01` (pxelinux `IPAPPEND 2`, GRUB with
/// colons).
pub(super) fn boot_nic(command_line: &str) -> Option<MacAddr> {
    command_line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("BOOTIF=01")?.strip_prefix(['-', ':']))
        .and_then(|mac| mac.parse().ok())
}

/// The physical Ethernet NICs under `sys` (`/sys`). Several may have the same address.
pub(super) fn nics(sys: &Path) -> Vec<Nic> {
    const ETHERNET: u64 = 1;
    sysfs::names(&sys.join("class/net"))
        .into_iter()
        .filter_map(|name| {
            let dir = sys.join("class/net").join(&name);
            let physical =
                dir.join("device").exists() && sysfs::number(&dir.join("type")) == Some(ETHERNET);
            let mac = sysfs::text(&dir.join("address"))?.parse().ok()?;
            let index = u32::try_from(sysfs::number(&dir.join("ifindex"))?).ok()?;
            physical.then_some(Nic { name, index, mac })
        })
        .collect()
}

/// Brings the network up and returns the address; a background task renews the lease. With
/// `boot_nic` it uses only that NIC, without it the first NIC with a lease.
pub(super) async fn up(boot_nic: Option<MacAddr>) -> Result<IpAddr, NetworkError> {
    let (connection, netlink, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let (nic, socket, lease) = first_lease(&netlink, boot_nic).await?;
    apply(&netlink, &nic, &lease)
        .await
        .map_err(|source| NetworkError::Kernel { nic: nic.name.clone(), source })?;
    info!(nic = nic.name, address = %lease.address, prefix = lease.prefix, "network is up");
    let address = lease.address.into();
    tokio::spawn(keep(nic, socket, lease));
    Ok(address)
}

/// Tries every wanted NIC as it appears, all concurrently, until one has a lease.
async fn first_lease(
    netlink: &Handle,
    boot_nic: Option<MacAddr>,
) -> Result<(Nic, UdpSocket, Lease), NetworkError> {
    let started = Instant::now();
    let (mut tried, mut tries) = (BTreeSet::new(), JoinSet::new());
    let mut wanted = boot_nic;
    while started.elapsed() < LEASE_WAIT {
        if tried.is_empty() && started.elapsed() >= NIC_WAIT {
            // Another NIC is better than none: the key, not the NIC, proves the machine's identity.
            wanted.take().ok_or(NetworkError::NoNic)?;
            warn!(
                "the network interface the machine booted from did not appear; trying all others"
            );
        }
        for nic in nics(Path::new("/sys")) {
            let is_wanted = wanted.is_none_or(|wanted| wanted == nic.mac);
            if is_wanted && tried.insert(nic.index) {
                info!(nic = nic.name, mac = %nic.mac, "bringing the network interface up");
                let up = LinkUnspec::new_with_index(nic.index).up().build();
                match netlink.link().set(up).execute().await {
                    Ok(()) => drop(tries.spawn(borrow(nic))),
                    // Often the NIC's firmware is missing; another NIC may work.
                    Err(error) => {
                        warn!(nic = nic.name, %error, "the network interface does not come up");
                    }
                }
            }
        }
        match timeout(POLL_EVERY, tries.join_next()).await {
            Ok(Some(Ok(Ok(got)))) => return Ok(got),
            Ok(Some(Ok(Err(error)))) => warn!(%error, "DHCP"),
            Ok(Some(Err(error))) => warn!(%error, "DHCP"),
            Ok(None) => sleep(POLL_EVERY).await,
            Err(_) => {}
        }
    }
    Err(NetworkError::NoLease)
}

async fn apply(netlink: &Handle, nic: &Nic, lease: &Lease) -> Result<(), rtnetlink::Error> {
    netlink
        .address()
        .add(nic.index, lease.address.into(), lease.prefix)
        .replace()
        .execute()
        .await?;
    for route in &lease.routes {
        if let Err(error) = add_route(netlink, nic, *route).await {
            // The agent may be reachable without this route.
            warn!(nic = nic.name, ?route, %error, "the kernel refuses a route");
        }
    }
    Ok(())
}

async fn add_route(
    netlink: &Handle,
    nic: &Nic,
    Route { network, prefix, gateway }: Route,
) -> Result<(), rtnetlink::Error> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(network, prefix)
        .output_interface(nic.index);
    let route = match gateway {
        // On-link, because with a /32 (some clouds and colocation networks) the router is outside
        // the subnet.
        Some(gateway) => route.gateway(gateway).onlink(),
        None => route.scope(RouteScope::Link),
    };
    netlink.route().add(route.build()).replace().execute().await
}

/// Repeats requests until the NIC has a lease; the caller holds the deadline.
async fn borrow(nic: Nic) -> io::Result<(Nic, UdpSocket, Lease)> {
    let carrier = Path::new("/sys/class/net").join(&nic.name).join("carrier");
    while sysfs::number(&carrier) != Some(1) {
        sleep(POLL_EVERY).await;
    }
    let socket = open(&nic)?;
    let started = Instant::now();
    // One transaction id for all tries: a server that first checks the address answers the first
    // try after the second was sent.
    let talk = Conversation { mac: nic.mac, xid: random_xid()? };
    let mut line = DhcpSocket::new(nic.name.clone(), socket, talk);
    for tries in 0_u32.. {
        if tries % SILENCE_TRIES == SILENCE_TRIES - 1 {
            info!(nic = nic.name, tries, "no usable DHCP offer yet; asking on");
        }
        let seconds = u16::try_from(started.elapsed().as_secs()).unwrap_or(u16::MAX);
        let wait = patience(tries, random_byte()?);
        let broadcast = Ipv4Addr::BROADCAST;
        let offer = line.exchange(Ask::Discover, seconds, broadcast, wait).await?;
        let Some(Reply::Offer(Lease { address, server, .. })) = offer else { continue };
        // The server has just answered: silence now means packet loss, so that a short wait is
        // right.
        let wait = patience(1, random_byte()?);
        let take = Ask::Take { address, server };
        match line.exchange(take, seconds, broadcast, wait).await? {
            Some(Reply::Ack(lease)) => return Ok((nic, line.socket, lease)),
            Some(Reply::Nak) => {
                warn!(nic = nic.name, %address, %server, "the DHCP server takes its offer back");
            }
            Some(Reply::Offer(_)) | None => {}
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Renews the lease: from T1 on at the server, from T2 on at any server. The address stays even
/// without an answer: a disk may be half written through it, and no server leases it to another
/// machine before the lease ends.
async fn keep(nic: Nic, socket: UdpSocket, mut lease: Lease) {
    let mut borrowed = Instant::now();
    let mut line = DhcpSocket::new(nic.name, socket, Conversation { mac: nic.mac, xid: 0 });
    while let (Some(renew), Some(rebind)) = (lease.renew_after, lease.rebind_after) {
        sleep_until(borrowed + renew).await;
        let server = if borrowed.elapsed() < rebind { lease.server } else { Ipv4Addr::BROADCAST };
        match renewed(&mut line, lease.address, server).await {
            Ok(Some(Reply::Ack(again))) if again.address == lease.address => {
                (lease, borrowed) = (again, Instant::now());
                continue;
            }
            Ok(Some(_)) => warn!(address = %lease.address, "the DHCP server refused to renew"),
            Ok(None) => warn!(address = %lease.address, "no answer to the DHCP renewal"),
            Err(error) => warn!(%error, "DHCP renewal"),
        }
        sleep(RENEW_RETRY).await;
    }
}

async fn renewed(
    line: &mut DhcpSocket,
    address: Ipv4Addr,
    server: Ipv4Addr,
) -> io::Result<Option<Reply>> {
    line.talk.xid = random_xid()?;
    let wait = patience(2, random_byte()?);
    line.exchange(Ask::Renew(address), 0, server, wait).await
}

/// A DHCP transaction over the socket of one NIC.
struct DhcpSocket {
    nic: String,
    socket: UdpSocket,
    talk: Conversation,
    /// The reasons of unusable answers so far: each is logged once, up to a limit.
    complaints: BTreeSet<String>,
}

impl DhcpSocket {
    fn new(nic: String, socket: UdpSocket, talk: Conversation) -> Self {
        Self { nic, socket, talk, complaints: BTreeSet::new() }
    }

    /// Sends one message and waits for the first answer to it.
    async fn exchange(
        &mut self,
        ask: Ask,
        seconds: u16,
        server: Ipv4Addr,
        wait: Duration,
    ) -> io::Result<Option<Reply>> {
        let deadline = Instant::now() + wait;
        let message = self.talk.message(ask, seconds);
        if let Err(error) = self.socket.send_to(&message, (server, SERVER_PORT)).await {
            // The link may be down for a moment; the next try shows that.
            warn!(%error, "a message to the DHCP server was not sent");
        }
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        while let Ok(received) = timeout_at(deadline, self.socket.recv_from(&mut buffer)).await {
            let (length, from) = received?;
            match (ask, buffer.get(..length).and_then(|bytes| self.talk.reply(bytes))) {
                (Ask::Discover, Some(Ok(reply @ Reply::Offer(_))))
                | (
                    Ask::Take { .. } | Ask::Renew(_),
                    Some(Ok(reply @ (Reply::Ack(_) | Reply::Nak))),
                ) => {
                    return Ok(Some(reply));
                }
                (_, Some(Err(reason))) => {
                    self.complain(&from.ip().to_string(), &reason.to_string());
                }
                (_, Some(Ok(_)) | None) => {}
            }
        }
        Ok(None)
    }

    fn complain(&mut self, from: &str, reason: &str) {
        if self.complaints.len() < COMPLAINTS_MAX
            && self.complaints.insert(format!("{from} {reason}"))
        {
            warn!(nic = self.nic, from, reason, "a DHCP answer is ignored");
        }
    }
}

/// Opens a socket that sends and receives on this NIC only, before the NIC has an address.
fn open(nic: &Nic) -> io::Result<UdpSocket> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        flags,
        Some(ipproto::UDP),
    )?;
    sockopt::set_socket_broadcast(&fd, true)?;
    let socket = UdpSocket::from_std(fd.into())?;
    // Before the bind, because the sockets of all NICs share the port.
    socket.bind_device(Some(nic.name.as_bytes()))?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    Ok(socket)
}

fn random_xid() -> io::Result<u32> {
    getrandom::u32().map_err(io::Error::other)
}

fn random_byte() -> io::Result<u8> {
    let [byte, ..] = random_xid()?.to_le_bytes();
    Ok(byte)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_boot_nic_is_read_as_pxelinux_and_grub_write_it() {
        let mac = "52:54:00:00:00:01".parse().ok();
        assert_eq!(boot_nic("quiet BOOTIF=01-52-54-00-00-00-01 x"), mac);
        assert_eq!(boot_nic("BOOTIF=01-52:54:00:00:00:01"), mac);
        assert_eq!(boot_nic("BOOTIF=20-52-54-00-00-00-01"), None);
        assert_eq!(boot_nic("BOOTIF=01-"), None);
    }

    #[test]
    fn only_physical_ethernet_nics_are_found() {
        let sys = tempfile::tempdir().unwrap();
        let nic = |name: &str, kind: &str, mac: &str, physical: bool| {
            let dir = sys.path().join("class/net").join(name);
            fs::create_dir_all(&dir).unwrap();
            if physical {
                fs::create_dir(dir.join("device")).unwrap();
            }
            fs::write(dir.join("type"), kind).unwrap();
            fs::write(dir.join("address"), mac).unwrap();
            fs::write(dir.join("ifindex"), "2\n").unwrap();
        };
        nic("eth0", "1\n", "52:54:00:00:00:01\n", true);
        nic("lo", "772\n", "00:00:00:00:00:00\n", false);
        nic("ib0", "32\n", "80:00:02:08:fe:80:00:00:00:00:00:00\n", true);
        nic("br0", "1\n", "52:54:00:00:00:02\n", false);
        // Two ports of one NIC, or a virtual function and its stand-by interface.
        nic("eth1", "1\n", "52:54:00:00:00:01\n", true);
        let found = nics(sys.path());
        assert_eq!(found.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["eth0", "eth1"]);
    }
}
