//! A TCP proxy between initiator and target that changes one byte on the way.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The position for no change.
const NONE: usize = usize::MAX;

/// A running proxy; it ends with its runtime.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    spoil: Arc<AtomicUsize>,
}

/// The direction of the changed byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToTarget,
    FromTarget,
}

impl Proxy {
    /// A proxy for one connection to `target` that changes nothing yet.
    pub(crate) async fn start(target: SocketAddr, way: Way) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let spoil = Arc::new(AtomicUsize::new(NONE));
        let switch = Arc::clone(&spoil);
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(target).await.unwrap();
            let (client, server) = (client.into_split(), server.into_split());
            let never = Arc::new(AtomicUsize::new(NONE));
            let (up, down) = if way == Way::ToTarget { (switch, never) } else { (never, switch) };
            tokio::join!(carry(client.0, server.1, up), carry(server.0, client.1, down));
        });
        Self { address, spoil }
    }

    /// Changes this byte of each later chunk.
    pub(crate) fn spoil(&self, byte: usize) {
        self.spoil.store(byte, Ordering::SeqCst);
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    spoil: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        let passing = buffer.get_mut(..bytes).unwrap();
        if let Some(byte) = passing.get_mut(spoil.load(Ordering::SeqCst)) {
            *byte ^= 0x10;
        }
        if to.write_all(passing).await.is_err() {
            return;
        }
    }
}
