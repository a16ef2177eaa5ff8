//! Connections that break, and a server that misbehaves.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The fault of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The connection ends after so many bytes of the answer.
    Cut(u64),
    /// The connection stalls after so many bytes of the answer.
    Stall(u64),
    /// The connection ends at once.
    Drop,
    /// The client gets this answer.
    Answer(&'static str),
}

/// A TCP proxy in front of a web server; it ends with its runtime.
pub(super) struct Faults {
    pub(super) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Faults {
    /// Each connection gets the next fault; later connections have none.
    pub(super) async fn start(server: SocketAddr, faults: &[Fault]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, faults) =
            (Arc::clone(&connections), Mutex::new(VecDeque::from(faults.to_vec())));
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let fault = faults.lock().unwrap().pop_front();
                // Broken connections are intended.
                tokio::spawn(async move { drop(carry(client, server, fault).await) });
            }
        });
        Self { address, connections }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits for so many connections.
    pub(super) async fn has_had(&self, connections: usize) {
        while self.connections() < connections {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn carry(client: TcpStream, server: SocketAddr, fault: Option<Fault>) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    match fault {
        Some(Fault::Drop) => return Ok(()),
        Some(Fault::Answer(text)) => {
            return match from_client.read(&mut [0; 4096]).await? {
                0 => Ok(()),
                _ => to_client.write_all(text.as_bytes()).await,
            };
        }
        _ => {}
    }
    let (from_server, mut to_server) = TcpStream::connect(server).await?.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let left = match fault {
        Some(Fault::Cut(bytes) | Fault::Stall(bytes)) => bytes,
        _ => u64::MAX,
    };
    tokio::io::copy(&mut from_server.take(left), &mut to_client).await?;
    if matches!(fault, Some(Fault::Stall(_))) {
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// A server that sends the same answer to every client, and then optionally more text for ever.
pub(super) async fn rude(head: &'static str, for_ever: Option<&'static str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                drop(client.read(&mut [0; 4096]).await);
                drop(client.write_all(head.as_bytes()).await);
                while let Some(more) = for_ever {
                    if client.write_all(more.repeat(1000).as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("http://{address}/a.img")
}
