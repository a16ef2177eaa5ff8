//! Sockets, TLS and HTTP connections.
//!
//! Started by the agent. Every connection has a place, a handshake limit, a limit on each read and an end; it must never be possible to keep
//! the ramdisks out by opening connections and saying little.

use std::{
    future::{self, Future},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, warn};

use super::{
    Identity, Limits, Request,
    http::{self, Door},
    ironic,
    peers::Peers,
};

/// The ramdisk sends five headers; the least buffer hyper allows is 8 KiB.
const HEADERS_MAX: usize = 32;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// A connection that never reads its answers would keep its place for ever. The ramdisk just opens another.
const CONNECTION_LIFE_MAX: Duration = Duration::from_secs(600);
/// When the system is out of file descriptors, `accept` fails at once again and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    /// The other door, in plain HTTP, if it is open.
    ironic: Option<TcpListener>,
    identity: Identity,
    limits: Limits,
}

/// A connection, and the door it came through.
enum Accepted {
    Tls(TcpStream, SocketAddr),
    Ironic(TcpStream, SocketAddr),
}

impl Server {
    /// Binds the address; port 0 takes a free one.
    pub async fn bind(addr: SocketAddr, identity: Identity, limits: Limits) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(addr).await?, ironic: None, identity, limits })
    }

    /// Opens the door for Ironic's ramdisk, too.
    pub async fn bind_ironic(&mut self, addr: SocketAddr) -> io::Result<()> {
        self.ironic = Some(TcpListener::bind(addr).await?);
        Ok(())
    }

    /// That door's port, if it is open.
    pub fn ironic_port(&self) -> Option<u16> {
        Some(self.ironic.as_ref()?.local_addr().ok()?.port())
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, handing each request to the driver behind `requests`. `changed` ticks whenever a deploy state may have become
    /// another. Open connections are cut at the end: every call may be repeated, and the ramdisk does.
    pub async fn serve(
        self,
        requests: mpsc::Sender<Request>,
        changed: watch::Receiver<u64>,
        shutdown: impl Future<Output = ()>,
    ) {
        let door = Arc::new(Door { limits: self.limits, requests, changed });
        let router = http::router(Arc::clone(&door));
        let ironic_router = ironic::router(door);
        let tls = TlsAcceptor::from(Arc::clone(&self.identity.tls));
        let peers = Peers::new(self.limits);
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        error!(%error, "callback connection panicked");
                    }
                }
                accepted = self.accept() => {
                    let (stream, addr, tls) = match accepted {
                        Ok(Accepted::Tls(stream, addr)) => (stream, addr, Some(tls.clone())),
                        Ok(Accepted::Ironic(stream, addr)) => (stream, addr, None),
                        Err(error) => {
                            warn!(%error, "callback listener cannot accept");
                            sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    let peer = addr.ip().to_canonical();
                    let Some((place, taken)) = peers.connect(peer, Instant::now()) else {
                        debug!(%peer, "callback connection refused: limit reached");
                        continue;
                    };
                    let router = if tls.is_some() { &router } else { &ironic_router };
                    let router = router.clone().layer(Extension(Arc::new(place)));
                    let talk = connection(router, tls, stream, peer, self.limits);
                    connections.spawn(async move {
                        tokio::select! {
                            () = talk => {}
                            _ = taken => debug!(%peer, "callback connection gave way to another"),
                        }
                    });
                }
            }
        }
        connections.shutdown().await;
    }

    /// The next connection at either door.
    async fn accept(&self) -> io::Result<Accepted> {
        let ironic = async {
            match &self.ironic {
                Some(listener) => listener.accept().await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.listener.accept() => accepted.map(|(stream, addr)| Accepted::Tls(stream, addr)),
            accepted = ironic => accepted.map(|(stream, addr)| Accepted::Ironic(stream, addr)),
        }
    }
}

/// One connection from handshake to end.
async fn connection(
    router: Router,
    tls: Option<TlsAcceptor>,
    stream: TcpStream,
    peer: IpAddr,
    limits: Limits,
) {
    // Only latency is lost without it.
    stream.set_nodelay(true).unwrap_or_default();
    let Some(tls) = tls else { return converse(router, stream, peer, limits).await };
    let stream = match timeout(limits.handshake, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%peer, %error, "callback handshake failed"),
        Err(_) => return debug!(%peer, "callback handshake too slow"),
    };
    converse(router, stream, peer, limits).await;
}

/// Requests and answers. axum's own `serve` has neither a limit on the head's time nor on its size.
async fn converse(
    router: Router,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: IpAddr,
    limits: Limits,
) {
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(CONNECTION_LIFE_MAX, http).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "callback connection failed"),
        Err(_) => debug!(%peer, "callback connection too old"),
    }
}
