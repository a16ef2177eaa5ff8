//! Accepts connections: admission, deadlines and shutdown, the same for every stream listener.
//!
//! The callback endpoints, the HTTP boot server and the admin socket each run a [`Listener`] with a
//! function that serves one connection. A new listener does the same: it binds a socket, chooses
//! [`ConnectionLimits`] and [`WhenFull`], and serves HTTP by [`http1`].
//!
//! [`admission`] decides which connections stay. The accept loop must never wait for one
//! connection, never end because of an error of `accept`, and never leave a connection open when it
//! ends.

mod admission;

use std::{
    future::Future,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::{JoinError, JoinSet},
    time::sleep,
};
use tracing::{debug, error, info, warn};

pub(crate) use self::admission::{
    Admission, ConnectionLimits, ConnectionPermit, Protection, RateLimit,
};
use self::admission::{Admitted, NotAdmitted};

/// Pause after a failed `accept`, which fails again at once while file descriptors are exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most headers of a request; hostler's clients send about five.
const HEADERS_MAX: usize = 32;
/// Largest head of a request, in bytes. hyper requires at least 8 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// A bound socket that accepts connections.
pub(crate) trait Accept {
    /// An accepted connection.
    type Stream: Send + 'static;
    /// Identifies the clients that share limits.
    type Peer: admission::Peer;

    /// Waits for the next connection.
    async fn accept(&self) -> io::Result<(Self::Stream, Self::Peer)>;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    /// Never an IPv4-mapped IPv6 address.
    type Peer = IpAddr;

    async fn accept(&self) -> io::Result<(TcpStream, IpAddr)> {
        let (stream, address) = self.accept().await?;
        // A failure costs only latency.
        stream.set_nodelay(true).unwrap_or_default();
        Ok((stream, address.ip().to_canonical()))
    }
}

/// All clients of a Unix socket, which share its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LocalClients;

impl Accept for UnixListener {
    type Stream = UnixStream;
    type Peer = LocalClients;

    async fn accept(&self) -> io::Result<(UnixStream, LocalClients)> {
        let (stream, _) = self.accept().await?;
        Ok((stream, LocalClients))
    }
}

/// How a listener treats a new connection while every one it has is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Close it at once.
    Refuse,
    /// Let it wait in the socket's backlog.
    Wait,
}

/// A socket with its limits, ready to serve.
#[derive(Debug)]
pub(crate) struct Listener<S: Accept> {
    /// Names the listener in log lines: `callback`, `HTTP`.
    pub(crate) name: &'static str,
    pub(crate) socket: S,
    /// Several listeners may share one.
    pub(crate) admission: Arc<Admission<S::Peer>>,
    pub(crate) when_full: WhenFull,
}

impl<S: Accept> Listener<S> {
    /// Serves every admitted connection in a task of its own until `shutdown`, cuts the open ones,
    /// and returns when all have ended.
    pub(crate) async fn serve<F>(
        self,
        shutdown: impl Future<Output = ()>,
        connection: impl Fn(S::Stream, ConnectionPermit<S::Peer>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let name = self.name;
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let may_accept = self.when_full == WhenFull::Refuse || self.admission.has_room();
            tokio::select! {
                () = &mut shutdown => break,
                Some(ended) = connections.join_next() => report_panic(name, ended),
                accepted = self.socket.accept(), if may_accept => match accepted {
                    Ok((stream, peer)) => {
                        let Some(Admitted { permit, eviction, .. }) = self.admit(peer) else {
                            continue;
                        };
                        let served = connection(stream, permit);
                        connections.spawn(async move {
                            tokio::select! {
                                () = served => {}
                                _ = eviction => debug!(?peer, "{name} connection is evicted"),
                            }
                        });
                    }
                    Err(error) => {
                        warn!(%error, "{name} listener cannot accept");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }

    fn admit(&self, peer: S::Peer) -> Option<Admitted<S::Peer>> {
        let name = self.name;
        match self.admission.admit(peer, Instant::now()) {
            Ok(admitted) => {
                if let Some(evicted) = admitted.evicted {
                    info!(?peer, ?evicted, "too many {name} connections: an idle one makes room");
                }
                Some(admitted)
            }
            Err(NotAdmitted::Full) => {
                warn!(?peer, "{name} connection refused: all others are in use");
                None
            }
            Err(NotAdmitted::TooFast) => {
                debug!(?peer, "{name} connection refused: too many from this address");
                None
            }
        }
    }
}

fn report_panic(name: &str, ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "{name} connection panicked");
    }
}

/// Builds an HTTP/1.1 server with a limited request head, which must arrive within `head`.
///
/// axum's own `serve` limits neither the head's time nor its size.
pub(crate) fn http1(head: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    http
}
