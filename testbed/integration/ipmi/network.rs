//! A bad network between a client and a server, which loses, repeats, reorders and damages
//! datagrams, or changes them as a test demands.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{net::UdpSocket, task::JoinHandle};

/// Payload types, which are byte 5 of each datagram (IPMI 2.0 table 13-16).
pub(super) const OPEN_REQUEST: u8 = 0x10;
pub(super) const OPEN_RESPONSE: u8 = 0x11;
pub(super) const RAKP_2: u8 = 0x13;
pub(super) const RAKP_4: u8 = 0x15;
/// An IPMI message, encrypted and authenticated.
pub(super) const IN_SESSION: u8 = 0xc0;

/// The faults of a network; probabilities in percent.
#[derive(Clone, Copy)]
pub(super) struct Badness {
    pub(super) loss: u64,
    pub(super) repeat: u64,
    /// Each copy is delayed by a random time up to this, which reorders them.
    pub(super) late: Duration,
    /// One bit of a copy is flipped.
    pub(super) damage: u64,
}

/// A network without faults.
pub(super) const GOOD: Badness = Badness { loss: 0, repeat: 0, late: Duration::ZERO, damage: 0 };

/// The direction of a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    There,
    Back,
}

/// The datagrams that arrive instead of one, with their delays.
type Fate = dyn Fn(Way, &[u8]) -> Vec<(Duration, Vec<u8>)> + Send + Sync;

/// A network; ends on drop.
pub(super) struct Network {
    pub(super) port: u16,
    open_requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Network {
    /// Starts a network to a port of 127.0.0.1.
    pub(super) async fn before(server_port: u16, badness: Badness, seed: u64) -> Self {
        let dice = Mutex::new(seed);
        let fate = move |_, datagram: &[u8]| misfortune(&dice, badness, datagram);
        Self::with_fate(server_port, Arc::new(fate)).await
    }

    /// Starts a network in which `tamper` replaces each datagram.
    pub(super) async fn tampered(
        server_port: u16,
        tamper: impl Fn(Way, &[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let at_once = move |way, datagram: &[u8]| {
            tamper(way, datagram).into_iter().map(|datagram| (Duration::ZERO, datagram)).collect()
        };
        Self::with_fate(server_port, Arc::new(at_once)).await
    }

    async fn with_fate(server_port: u16, fate: Arc<Fate>) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let port = front.local_addr().unwrap().port();
        let open_requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open_requests);
        let task = tokio::spawn(async move {
            let mut backs: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
            let mut buffer = [0; 2048];
            loop {
                let (length, client) = front.recv_from(&mut buffer).await.unwrap();
                let datagram = buffer.get(..length).unwrap();
                if datagram.get(5) == Some(&OPEN_REQUEST) {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                let back = if let Some(known) = backs.get(&client) {
                    Arc::clone(known)
                } else {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    back.connect(("127.0.0.1", server_port)).await.unwrap();
                    backs.insert(client, Arc::clone(&back));
                    let answers = carry_back(
                        Arc::clone(&back),
                        Arc::clone(&front),
                        client,
                        Arc::clone(&fate),
                    );
                    tokio::spawn(answers);
                    back
                };
                for (late, datagram) in fate(Way::There, datagram) {
                    let back = Arc::clone(&back);
                    later(late, async move { drop(back.send(&datagram).await) }).await;
                }
            }
        });
        Self { port, open_requests, task }
    }

    /// The number of open session requests so far.
    pub(super) fn open_requests(&self) -> usize {
        self.open_requests.load(Ordering::Relaxed)
    }
}

async fn carry_back(
    back: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    client: SocketAddr,
    fate: Arc<Fate>,
) {
    let mut buffer = [0; 2048];
    loop {
        // An error means that no server listens there, as during a restart.
        let Ok(length) = back.recv(&mut buffer).await else { continue };
        for (late, datagram) in fate(Way::Back, buffer.get(..length).unwrap()) {
            let front = Arc::clone(&front);
            later(late, async move { drop(front.send_to(&datagram, client).await) }).await;
        }
    }
}

/// Sends a datagram after a delay; without one it keeps its order.
async fn later(late: Duration, send: impl Future<Output = ()> + Send + 'static) {
    if late.is_zero() {
        send.await;
        return;
    }
    tokio::spawn(async move {
        tokio::time::sleep(late).await;
        send.await;
    });
}

/// The copies of a datagram, with their delays and damage.
fn misfortune(dice: &Mutex<u64>, badness: Badness, datagram: &[u8]) -> Vec<(Duration, Vec<u8>)> {
    let mut dice = dice.lock().unwrap();
    let mut copies = Vec::new();
    if roll(&mut dice) % 100 >= badness.loss {
        let repeated = roll(&mut dice) % 100 < badness.repeat;
        for _ in 0..=usize::from(repeated) {
            let late = badness.late * u32::try_from(roll(&mut dice) % 1000).unwrap() / 1000;
            let mut copy = datagram.to_vec();
            if roll(&mut dice) % 100 < badness.damage {
                let bit = usize::try_from(roll(&mut dice)).unwrap() % (copy.len() * 8);
                *copy.get_mut(bit / 8).unwrap() ^= 1 << (bit % 8);
            }
            copies.push((late, copy));
        }
    }
    copies
}

/// A random number by splitmix64.
fn roll(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
