//! A bad network between a client and a server: loses, repeats and reorders datagrams, and counts what passes.

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

/// The payload type of an open session request, which is byte 5 of its datagram.
const OPEN_REQUEST: u8 = 0x10;

/// How bad it is. Probabilities in percent.
#[derive(Clone, Copy)]
pub(super) struct Badness {
    pub(super) loss: u64,
    pub(super) repeat: u64,
    /// Each copy is late by a random time up to this, which reorders them.
    pub(super) late: Duration,
}

/// Only looks.
pub(super) const GOOD: Badness = Badness { loss: 0, repeat: 0, late: Duration::ZERO };

/// The network; gone when dropped.
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
    /// A network to a port of 127.0.0.1.
    pub(super) async fn before(server_port: u16, badness: Badness, seed: u64) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let port = front.local_addr().unwrap().port();
        let open_requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open_requests);
        let task = tokio::spawn(async move {
            let dice = Arc::new(Mutex::new(seed));
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
                        badness,
                        Arc::clone(&dice),
                    );
                    tokio::spawn(answers);
                    back
                };
                for late in fate(&dice, badness) {
                    let (back, datagram) = (Arc::clone(&back), datagram.to_vec());
                    tokio::spawn(async move {
                        tokio::time::sleep(late).await;
                        back.send(&datagram).await.unwrap();
                    });
                }
            }
        });
        Self { port, open_requests, task }
    }

    /// Open session requests the clients have sent.
    pub(super) fn open_requests(&self) -> usize {
        self.open_requests.load(Ordering::Relaxed)
    }
}

async fn carry_back(
    back: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    client: SocketAddr,
    badness: Badness,
    dice: Arc<Mutex<u64>>,
) {
    let mut buffer = [0; 2048];
    while let Ok(length) = back.recv(&mut buffer).await {
        for late in fate(&dice, badness) {
            let (front, datagram) = (Arc::clone(&front), buffer.get(..length).unwrap().to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                front.send_to(&datagram, client).await.unwrap();
            });
        }
    }
}

/// When each copy of a datagram arrives.
fn fate(dice: &Mutex<u64>, badness: Badness) -> Vec<Duration> {
    let mut dice = dice.lock().unwrap();
    let mut copies = Vec::new();
    if roll(&mut dice) % 100 >= badness.loss {
        let repeated = roll(&mut dice) % 100 < badness.repeat;
        for _ in 0..=usize::from(repeated) {
            copies.push(badness.late * u32::try_from(roll(&mut dice) % 1000).unwrap() / 1000);
        }
    }
    copies
}

/// splitmix64
fn roll(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
