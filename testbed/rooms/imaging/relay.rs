//! A TCP relay between initiator and target that cuts the line, or has writes to a place undone.

#![expect(
    clippy::indexing_slicing,
    reason = "a header has 48 bytes, and a helper of tests may fail like tests"
)]

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

/// What it does to the connections.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    None,
    /// Cuts each after so many bytes on their way to the target.
    CutAfter(u64),
    /// Puts this byte in place of everything that is written to a range of the disk: what was there before, as if the write had been
    /// acknowledged and dropped. Blocks have 512 bytes.
    Drops(Range<u64>, u8),
}

/// A running relay; it ends with its runtime.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    sent: watch::Receiver<u64>,
    connections: Arc<AtomicUsize>,
}

impl Relay {
    pub(super) async fn start(target: SocketAddr, trouble: Trouble) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (counter, sent) = watch::channel(0);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (trouble, counter) = (trouble.clone(), counter.clone());
                tokio::spawn(async move {
                    let server = TcpStream::connect(target).await.unwrap();
                    let (client, server) = (client.into_split(), server.into_split());
                    // Whichever way ends first takes the other along.
                    tokio::select! {
                        () = up(client.0, server.1, trouble, counter) => {}
                        () = down(server.0, client.1) => {}
                    }
                });
            }
        });
        Self { address, sent, connections }
    }

    /// Bytes that went to the target.
    pub(super) fn sent_bytes(&self) -> u64 {
        *self.sent.borrow()
    }

    pub(super) async fn wait_for_sent(&self, bytes: u64) {
        self.sent.clone().wait_for(|sent| *sent >= bytes).await.unwrap();
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn down(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    drop(tokio::io::copy(&mut from, &mut to).await);
}

async fn up(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    trouble: Trouble,
    counter: watch::Sender<u64>,
) {
    let (mut left, mut writes) = (u64::MAX, HashMap::new());
    if let Trouble::CutAfter(bytes) = trouble {
        left = bytes;
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        let passing = match &trouble {
            Trouble::Drops(range, old) => {
                let Ok(mut pdu) = next_pdu(&mut from).await else { return };
                undo(&mut pdu, &mut writes, range, *old);
                pdu
            }
            Trouble::None | Trouble::CutAfter(_) => match from.read(&mut buffer).await {
                Ok(bytes @ 1..) => buffer[..bytes].to_vec(),
                _ => return,
            },
        };
        let bytes = passing.len() as u64;
        if to.write_all(&passing).await.is_err() {
            return;
        }
        counter.send_modify(|sent| *sent += bytes);
        left = left.saturating_sub(bytes);
        if left == 0 {
            return;
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

/// Changes what a write's PDU carries for the range. `writes` knows where each write under way begins on the disk.
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
