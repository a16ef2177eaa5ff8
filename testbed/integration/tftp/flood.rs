//! Floods: strangers send all kinds of packets to a TFTP port at once.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::raw::request;

/// The default number of transfers.
pub(crate) const TRANSFERS_MAX: usize = 256;
/// Most memory of one transfer, in KiB.
pub(crate) const TRANSFER_KIB: u64 = 800;
/// The pause between two datagrams of one sender.
const PAUSE: Duration = Duration::from_micros(500);

/// Requests with forged addresses, and nonsense, until it is dropped.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<()>>,
}

impl Flood {
    /// Starts a flood: so many machines request this file in the largest windows of the largest
    /// blocks.
    pub(crate) fn of(server: SocketAddr, machines: u16, file: &'static str) -> Self {
        // The sockets exist, because otherwise the system would report closed ports; but they never
        // read nor answer.
        let spoofed: Vec<_> =
            (0..machines).map(|n| UdpSocket::bind((machine(4, n), 0)).unwrap()).collect();
        let mut round = 0_u64;
        let requests = move || {
            // No two requests are the same, or they would count as repetitions.
            round += 1;
            let round = round.to_string();
            let options = [("blksize", "65464"), ("windowsize", "64"), ("x", &round)];
            for socket in &spoofed {
                socket.send_to(&request(1, file, &options), server).unwrap();
                thread::sleep(PAUSE);
            }
        };
        let stranger = UdpSocket::bind((machine(5, 0), 0)).unwrap();
        let mut random = fastrand::Rng::with_seed(5);
        let nonsense = move || {
            let mut datagram = vec![0; random.usize(0..600)];
            random.fill(&mut datagram);
            if let [first, second, ..] = &mut datagram[..] {
                (*first, *second) = (0, random.u8(0..8));
            }
            stranger.send_to(&datagram, server).unwrap();
            thread::sleep(PAUSE);
        };
        let stop = Arc::new(AtomicBool::new(false));
        let senders = vec![until(&stop, requests), until(&stop, nonsense)];
        Self { stop, senders }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders.drain(..) {
            // A panic was printed already, and this may be its unwinding.
            drop(sender.join());
        }
    }
}

/// Repeats a send on a separate thread.
fn until(stop: &Arc<AtomicBool>, mut send: impl FnMut() + Send + 'static) -> JoinHandle<()> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            send();
        }
    })
}

/// A machine's address in one of several networks.
pub(super) fn machine(network: u8, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    [127, 100 + network, high, low].into()
}
