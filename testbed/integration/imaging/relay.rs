//! A TCP relay between initiator and target that cuts connections, limits their rate, or undoes
//! writes to a range.

#![expect(
    clippy::indexing_slicing,
    reason = "a header has 48 bytes, and a helper of tests may fail like tests"
)]

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    time::{Instant, sleep_until},
};

/// The faults of the relay's connections.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    None,
    /// Cuts each connection after so many bytes to the target.
    CutAfter(u64),
    /// Limits each connection to so many bytes per second to the target.
    Narrow(u64),
    /// Limits the rate, and cuts the second connection after so many bytes.
    NarrowCutsSecond(u64, u64),
    /// Replaces all bytes written to a range of the disk by this one, its old content, as if the
    /// target had acknowledged and dropped the write. Blocks have 512 bytes.
    Drops(Range<u64>, u8),
}

/// A running relay; it ends with its runtime.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    sent: watch::Receiver<u64>,
    carried: Arc<Mutex<Vec<u64>>>,
}

/// The limits and the state of one connection.
struct Limits {
    /// Bytes until the cut.
    left: u64,
    bytes_per_s: Option<u64>,
    number: usize,
    carried: Arc<Mutex<Vec<u64>>>,
}

impl Relay {
    pub(crate) async fn start(target: SocketAddr, trouble: Trouble) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (counter, sent) = watch::channel(0);
        let carried = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&carried);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let limits = Limits::new(&trouble, &all);
                let (trouble, counter) = (trouble.clone(), counter.clone());
                tokio::spawn(async move {
                    let server = TcpStream::connect(target).await.unwrap();
                    let (client, server) = (client.into_split(), server.into_split());
                    // The direction that ends first ends the other.
                    tokio::select! {
                        () = up(client.0, server.1, trouble, limits, counter) => {}
                        () = down(server.0, client.1) => {}
                    }
                });
            }
        });
        Self { address, sent, carried }
    }

    /// Bytes sent to the target.
    pub(crate) fn sent_bytes(&self) -> u64 {
        *self.sent.borrow()
    }

    pub(crate) async fn wait_for_sent(&self, bytes: u64) {
        self.sent.clone().wait_for(|sent| *sent >= bytes).await.unwrap();
    }

    pub(crate) fn connections(&self) -> usize {
        self.carried().len()
    }

    /// Bytes sent to the target on each connection, in the order of the connections.
    pub(crate) fn carried(&self) -> Vec<u64> {
        self.carried.lock().unwrap().clone()
    }
}

impl Limits {
    /// The limits of a new connection.
    fn new(trouble: &Trouble, carried: &Arc<Mutex<Vec<u64>>>) -> Self {
        let number = {
            let mut carried = carried.lock().unwrap();
            carried.push(0);
            carried.len() - 1
        };
        let (left, bytes_per_s) = match trouble {
            Trouble::None | Trouble::Drops(..) => (u64::MAX, None),
            Trouble::CutAfter(bytes) => (*bytes, None),
            Trouble::Narrow(rate) => (u64::MAX, Some(*rate)),
            Trouble::NarrowCutsSecond(rate, bytes) => {
                (if number == 1 { *bytes } else { u64::MAX }, Some(*rate))
            }
        };
        Self { left, bytes_per_s, number, carried: Arc::clone(carried) }
    }

    /// Counts passed bytes; `false` if the connection must be cut.
    fn count(&mut self, bytes: u64) -> bool {
        self.carried.lock().unwrap()[self.number] += bytes;
        self.left = self.left.saturating_sub(bytes);
        self.left > 0
    }
}

async fn down(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    drop(tokio::io::copy(&mut from, &mut to).await);
}

async fn up(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    trouble: Trouble,
    mut limits: Limits,
    counter: watch::Sender<u64>,
) {
    let (mut writes, mut free_at) = (HashMap::new(), Instant::now());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let passing = match &trouble {
            Trouble::Drops(range, old) => {
                let Ok(mut pdu) = next_pdu(&mut from).await else { return };
                undo(&mut pdu, &mut writes, range, *old);
                pdu
            }
            _ => match from.read(&mut buffer).await {
                Ok(bytes @ 1..) => buffer[..bytes].to_vec(),
                _ => return,
            },
        };
        let bytes = passing.len() as u64;
        if to.write_all(&passing).await.is_err() {
            return;
        }
        counter.send_modify(|sent| *sent += bytes);
        if !limits.count(bytes) {
            return;
        }
        if let Some(rate) = limits.bytes_per_s {
            // Unused time is lost, except for the inaccuracy of a sleep.
            free_at = free_at.max(Instant::now() - Duration::from_millis(5));
            free_at += Duration::from_nanos(bytes * 1_000_000_000 / rate);
            sleep_until(free_at).await;
        }
    }
}

/// One PDU without digests: 48 bytes of header, additional headers, data, padding (RFC 7143 §11.2).
async fn next_pdu(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut pdu = vec![0; 48];
    from.read_exact(&mut pdu).await?;
    let rest = usize::from(pdu[4]) * 4 + data_bytes(&pdu).next_multiple_of(4);
    pdu.resize(48 + rest, 0);
    from.read_exact(&mut pdu[48..]).await?;
    Ok(pdu)
}

fn data_bytes(pdu: &[u8]) -> usize {
    usize::try_from(number(&[0, pdu[5], pdu[6], pdu[7]])).unwrap()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// Replaces the data in a write's PDU for the range. `writes` holds the offsets of the writes in
/// flight.
fn undo(pdu: &mut [u8], writes: &mut HashMap<u64, u64>, range: &Range<u64>, old: u8) {
    let tag = number(&pdu[16..20]);
    let at = match pdu[0] & 0x3f {
        // A SCSI command with WRITE(16).
        0x01 if pdu[32] == 0x8a => {
            let at = number(&pdu[34..42]) * 512;
            writes.insert(tag, at);
            at
        }
        // Data-Out.
        0x05 => match writes.get(&tag) {
            Some(at) => at + number(&pdu[40..44]),
            None => return,
        },
        _ => return,
    };
    let from = 48 + usize::from(pdu[4]) * 4;
    let data = from..from + data_bytes(pdu);
    for (offset, byte) in (at..).zip(&mut pdu[data]) {
        if range.contains(&offset) {
            *byte = old;
        }
    }
}
