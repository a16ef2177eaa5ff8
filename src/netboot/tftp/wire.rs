//! A transfer's socket: sends a whole window of datagrams to one client by one system call.
//!
//! A transfer uses it. A datagram that cannot be sent now counts as lost, and the transfer repeats
//! it; only a client that is gone is an error. The socket must not depend on a NIC's abilities: if
//! the NIC refuses to segment a window, the datagrams are sent one by one. Nor may it depend on the
//! path's MTU: routers may fragment datagrams.

use std::{
    io::{self, IoSlice},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::{
    io::Errno,
    net::{
        RecvFlags, recv,
        sockopt::{Ipv4PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover},
    },
};

/// Longest wait for room in the socket's send buffer.
const SEND_LIMIT: Duration = Duration::from_secs(1);
/// Bytes of opcode and block number before each block.
const HEAD_BYTES: u16 = 4;
/// Bytes of the headers of IP and UDP before that.
const IPV4_HEAD_BYTES: u32 = 20 + 8;
const IPV6_HEAD_BYTES: u32 = 40 + 8;
/// Most bytes that the kernel takes at once, those of an IPv4 datagram; it segments them into at
/// most `UDP_MAX_SEGMENTS` datagrams.
const AT_ONCE_BYTES_MAX: usize = 65_507;
const AT_ONCE_MAX: usize = 64;

/// The reason why the socket cannot be used any more.
#[derive(Debug)]
pub(super) enum WireError {
    /// The client's port is closed.
    Gone,
    Socket(io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A datagram with so many bytes.
    Datagram(usize),
    /// No datagram within the wait, or a report of an undelivered one.
    Nothing,
    /// A router's report that a datagram exceeded the path's MTU, and is lost.
    TooLarge,
}

/// A socket connected to the client.
#[derive(Debug)]
pub(super) struct Wire {
    socket: UdpSocket,
    /// The length of a whole block's datagram.
    datagram_bytes: u16,
    /// Whether the kernel segments windows into datagrams (`UDP_SEGMENT`, Linux 4.18).
    cuts: AtomicBool,
}

impl Wire {
    pub(super) fn new(socket: UdpSocket, block_bytes: u16) -> io::Result<Self> {
        socket.set_write_timeout(Some(SEND_LIMIT))?;
        if let Err(error) = let_routers_cut(&socket) {
            tracing::debug!(%error, "path MTU discovery stays on for a TFTP transfer");
        }
        let datagram_bytes = HEAD_BYTES + block_bytes;
        Ok(Self { socket, datagram_bytes, cuts: AtomicBool::new(true) })
    }

    /// The client's address.
    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// Sets the longest wait of [`receive`](Self::receive).
    pub(super) fn set_read_wait(&self, wait: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(wait))
    }

    /// Receives from the client, or from a router on the way to it.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Result<Received, WireError> {
        match recv(&self.socket, buffer, RecvFlags::empty()) {
            Ok((length, _)) => Ok(Received::Datagram(length)),
            Err(error) => meaning(error),
        }
    }

    /// Sends one datagram.
    pub(super) fn send(&self, datagram: &[u8]) -> Result<(), WireError> {
        match self.socket.send(datagram) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(WireError::Gone),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Sends the datagrams of blocks, which have the same length except for the last one.
    pub(super) fn send_blocks<'a>(
        &self,
        datagrams: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), WireError> {
        let datagrams: Vec<IoSlice<'_>> = datagrams.map(IoSlice::new).collect();
        let at_once = (AT_ONCE_BYTES_MAX / usize::from(self.datagram_bytes)).min(AT_ONCE_MAX);
        for some in datagrams.chunks(at_once.max(1)) {
            if !self.send_at_once(some)? {
                some.iter().try_for_each(|datagram| self.send(datagram))?;
            }
        }
        Ok(())
    }

    /// Sends the datagrams by one system call. `false` if the kernel cannot segment on this path,
    /// for a NIC without checksums or blocks larger than packets.
    fn send_at_once(&self, datagrams: &[IoSlice<'_>]) -> Result<bool, WireError> {
        use nix::errno::Errno;
        if datagrams.len() < 2 || !self.cuts.load(Relaxed) {
            return Ok(false);
        }
        let cut = [ControlMessage::UdpGsoSegments(&self.datagram_bytes)];
        match sendmsg::<()>(self.socket.as_raw_fd(), datagrams, &cut, MsgFlags::empty(), None) {
            Err(Errno::ECONNREFUSED) => Err(WireError::Gone),
            Err(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP) => {
                self.cuts.store(false, Relaxed);
                Ok(false)
            }
            Ok(_) | Err(_) => Ok(true),
        }
    }
}

/// The largest block, in bytes, that reaches the client in one packet by this system's knowledge of
/// the path: over its own tunnel, for example.
pub(super) fn block_bytes_in_one_packet(connected: &UdpSocket) -> Option<u16> {
    let (mtu, head) = if connected.peer_addr().ok()?.ip().to_canonical().is_ipv4() {
        (ip_mtu(connected), IPV4_HEAD_BYTES)
    } else {
        (ipv6_mtu(connected), IPV6_HEAD_BYTES)
    };
    let room = mtu.ok()?.checked_sub(head + u32::from(HEAD_BYTES))?;
    Some(u16::try_from(room).unwrap_or(u16::MAX))
}

/// Lets routers fragment: sends IPv4 packets without DF, over IPv6 sockets too. A router that must
/// not fragment drops the packet, and not every router reports that. The kernel forgets a report
/// within ten minutes. IPv6 routers never fragment: there, a report is necessary, and comes as
/// [`Received::TooLarge`].
fn let_routers_cut(socket: &UdpSocket) -> io::Result<()> {
    Ok(set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT)?)
}

/// Judges a socket's error. ICMP messages of routers and of the client's system arrive as one
/// error, once, and only mean a lost packet. The transfer's limits decide how long to continue,
/// because networks come back.
fn meaning(error: Errno) -> Result<Received, WireError> {
    match error {
        Errno::AGAIN
        | Errno::INTR
        | Errno::HOSTUNREACH
        | Errno::HOSTDOWN
        | Errno::NETUNREACH
        | Errno::NONET
        | Errno::NOPROTOOPT
        | Errno::PROTO => Ok(Received::Nothing),
        Errno::MSGSIZE => Ok(Received::TooLarge),
        Errno::CONNREFUSED => Err(WireError::Gone),
        error => Err(WireError::Socket(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant (netboot): TFTP delivers whatever the path's MTU, and keeps to `tftp.block_max`.
    #[test]
    fn a_routers_word_of_a_lost_packet_ends_no_transfer() {
        for error in [Errno::HOSTUNREACH, Errno::HOSTDOWN, Errno::NETUNREACH, Errno::NONET] {
            assert_eq!(meaning(error).unwrap(), Received::Nothing, "{error}");
        }
        assert_eq!(meaning(Errno::MSGSIZE).unwrap(), Received::TooLarge);
        assert!(matches!(meaning(Errno::CONNREFUSED), Err(WireError::Gone)));
        assert!(matches!(meaning(Errno::BADF), Err(WireError::Socket(_))));
    }
}
