//! Floods: strangers send to a TFTP port everything they can, all of it at once.

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

/// The transfers a server carries by default.
pub(crate) const TRANSFERS_MAX: usize = 256;
/// The longest that one transfer may take.
pub(crate) const TRANSFER_KIB: u64 = 800;
/// Between two datagrams of one sender.
const PAUSE: Duration = Duration::from_micros(500);

/// Requests in the name of machines that never answer, and nonsense. Until it is dropped.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<()>>,
}

impl Flood {
    /// So many machines want this file in the largest windows of the largest blocks.
    pub(crate) fn of(server: SocketAddr, machines: u16, file: &'static str) -> Self {
        // They exist, or the system would tell the server that nobody is there; but they never read
        // nor answer.
        let spoofed: Vec<_> =
            (0..machines).map(|n| UdpSocket::bind((machine(4, n), 0)).unwrap()).collect();
        let mut round = 0_u64;
        let requests = move || {
            // No two are the same, or they would be taken for repetitions.
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
            // A panic has been printed, and this may be one's end already.
            drop(sender.join());
        }
    }
}

/// Repeats it in a thread of its own.
fn until(stop: &Arc<AtomicBool>, mut send: impl FnMut() + Send + 'static) -> JoinHandle<()> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            send();
        }
    })
}

/// A machine's address, out of one of several networks.
pub(super) fn machine(network: u8, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    [127, 100 + network, high, low].into()
}
