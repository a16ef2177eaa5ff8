//! A transfer's socket: datagrams to one client, a window of them with one system call.
//!
//! Called by a transfer. What cannot be sent now is a lost datagram, and lost ones are sent again by the transfer; only a client that is
//! gone is an error. It must never depend on what a network card can do: what it refuses to cut is sent piece by piece.

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
    net::{RecvFlags, recv},
};

use super::transfer::End;

/// Longest wait for room in the socket's send buffer.
const SEND_LIMIT: Duration = Duration::from_secs(1);
/// Opcode and block number before each block, in bytes.
const HEAD_BYTES: u16 = 4;
/// The kernel takes at most this many bytes at once, as many as a datagram may have over IPv4, and cuts them into so many at most
/// (`UDP_MAX_SEGMENTS`).
const AT_ONCE_BYTES_MAX: usize = 65_507;
const AT_ONCE_MAX: usize = 64;

/// A socket connected to the client.
#[derive(Debug)]
pub(super) struct Wire {
    socket: UdpSocket,
    /// Of a whole block's datagram.
    datagram_bytes: u16,
    /// Whether the kernel is still asked to cut what it is given into datagrams (`UDP_SEGMENT`, Linux 4.18).
    cuts: AtomicBool,
}

impl Wire {
    pub(super) fn new(socket: UdpSocket, block_bytes: u16) -> io::Result<Self> {
        socket.set_write_timeout(Some(SEND_LIMIT))?;
        let datagram_bytes = HEAD_BYTES + block_bytes;
        Ok(Self { socket, datagram_bytes, cuts: AtomicBool::new(true) })
    }

    /// Whom it speaks with.
    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// How long [`receive`](Self::receive) waits.
    pub(super) fn set_nap(&self, nap: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(nap))
    }

    /// The length of a datagram from the client; `None`: none within a nap.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, End> {
        match recv(&self.socket, buffer, RecvFlags::empty()) {
            Ok((length, _)) => Ok(Some(length)),
            Err(Errno::AGAIN | Errno::INTR | Errno::HOSTUNREACH | Errno::NETUNREACH) => Ok(None),
            Err(Errno::CONNREFUSED) => Err(End::Gone),
            Err(error) => Err(End::Socket(error.into())),
        }
    }

    /// Sends one datagram.
    pub(super) fn send(&self, datagram: &[u8]) -> Result<(), End> {
        match self.socket.send(datagram) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(End::Gone),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Sends the datagrams of blocks, which are whole but for the last one.
    pub(super) fn send_blocks<'a>(
        &self,
        datagrams: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), End> {
        let datagrams: Vec<IoSlice<'_>> = datagrams.map(IoSlice::new).collect();
        let at_once = (AT_ONCE_BYTES_MAX / usize::from(self.datagram_bytes)).min(AT_ONCE_MAX);
        for some in datagrams.chunks(at_once.max(1)) {
            if !self.send_at_once(some)? {
                some.iter().try_for_each(|datagram| self.send(datagram))?;
            }
        }
        Ok(())
    }

    /// Has the kernel cut them. `false`: it cannot on this way, where a card makes no checksums or blocks are larger than packets.
    fn send_at_once(&self, datagrams: &[IoSlice<'_>]) -> Result<bool, End> {
        use nix::errno::Errno;
        if datagrams.len() < 2 || !self.cuts.load(Relaxed) {
            return Ok(false);
        }
        let cut = [ControlMessage::UdpGsoSegments(&self.datagram_bytes)];
        match sendmsg::<()>(self.socket.as_raw_fd(), datagrams, &cut, MsgFlags::empty(), None) {
            Err(Errno::ECONNREFUSED) => Err(End::Gone),
            Err(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP) => {
                self.cuts.store(false, Relaxed);
                Ok(false)
            }
            Ok(_) | Err(_) => Ok(true),
        }
    }
}
