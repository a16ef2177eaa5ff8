//! The sockets, TLS and HTTP connections of the callback listener.
//!
//! Started by the agent. Its two endpoints, HTTPS for hostler's ramdisk and plain HTTP for
//! Ironic's, share one [`Admission`]: clients that only hold connections must never keep a ramdisk
//! out.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::{
    CallbackLimits, CallbackRequest, TlsIdentity,
    http::{self, AppState},
    ironic,
};
use crate::boot_call::BootCalls;
use crate::listener::{
    Admission, ConnectionLimits, ConnectionPermit, Listener, RateLimit, WhenFull, http1,
};

/// Longest life of a connection: a client that never reads its answers would keep one for ever. The
/// ramdisk opens another.
const CONNECTION_LIFE_MAX: Duration = Duration::from_secs(600);

/// A bound callback listener.
#[derive(Debug)]
pub struct Server {
    https: TcpListener,
    ironic: Option<TcpListener>,
    identity: TlsIdentity,
    limits: CallbackLimits,
}

impl Server {
    /// Binds the address; port 0 takes a free one.
    pub async fn bind(
        addr: SocketAddr,
        identity: TlsIdentity,
        limits: CallbackLimits,
    ) -> io::Result<Self> {
        Ok(Self { https: TcpListener::bind(addr).await?, ironic: None, identity, limits })
    }

    /// Binds the endpoint for Ironic's ramdisk as well.
    pub async fn bind_ironic(&mut self, addr: SocketAddr) -> io::Result<()> {
        self.ironic = Some(TcpListener::bind(addr).await?);
        Ok(())
    }

    /// Returns the port of the endpoint for Ironic's ramdisk, if it is bound.
    pub fn ironic_port(&self) -> Option<u16> {
        Some(self.ironic.as_ref()?.local_addr().ok()?.port())
    }

    /// Returns the address of the HTTPS endpoint.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.https.local_addr()
    }

    /// Serves until `shutdown`, and sends each request to the driver by `requests`. `changed` ticks
    /// whenever a deploy state may have changed. Cuts open connections at the end: the ramdisk
    /// repeats its call.
    pub async fn serve(
        self,
        requests: mpsc::Sender<CallbackRequest>,
        boot_calls: BootCalls,
        changed: watch::Receiver<u64>,
        shutdown: impl Future<Output = ()>,
    ) {
        let limits = self.limits;
        let state = Arc::new(AppState { limits, requests, changed });
        let admission = Admission::new(limits.into());
        let listener = |name, socket| Listener {
            name,
            socket,
            admission: Arc::clone(&admission),
            when_full: WhenFull::Refuse,
        };
        let (closing, closed) = watch::channel(());
        let ended = || {
            let mut closed = closed.clone();
            async move { closed.changed().await.unwrap_or_default() }
        };
        let https = async {
            let router = http::router(Arc::clone(&state)).merge(http::boot_router(boot_calls));
            let tls = TlsAcceptor::from(Arc::clone(&self.identity.tls));
            let connection = |stream, permit| {
                tls_connection(tls.clone(), stream, router.clone(), permit, limits)
            };
            listener("callback", self.https).serve(ended(), connection).await;
        };
        let ironic = async {
            let Some(socket) = self.ironic else { return };
            let router = ironic::router(Arc::clone(&state));
            let connection =
                |stream, permit| http_connection(stream, router.clone(), permit, limits);
            listener("Ironic callback", socket).serve(ended(), connection).await;
        };
        let shutdown = async {
            shutdown.await;
            drop(closing);
        };
        tokio::join!(https, ironic, shutdown);
    }
}

impl From<CallbackLimits> for ConnectionLimits {
    fn from(limits: CallbackLimits) -> Self {
        let CallbackLimits { connections_max, connections_per_peer_max, .. } = limits;
        let rate = RateLimit { per_second: limits.per_second, burst: limits.burst };
        Self { max: connections_max, per_peer_max: connections_per_peer_max, rate: Some(rate) }
    }
}

async fn tls_connection(
    tls: TlsAcceptor,
    stream: TcpStream,
    router: Router,
    permit: ConnectionPermit,
    limits: CallbackLimits,
) {
    let peer = permit.peer();
    match timeout(limits.handshake, tls.accept(stream)).await {
        Ok(Ok(stream)) => http_connection(stream, router, permit, limits).await,
        Ok(Err(error)) => debug!(%peer, %error, "callback handshake failed"),
        Err(_) => debug!(%peer, "callback handshake too slow"),
    }
}

async fn http_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    permit: ConnectionPermit,
    limits: CallbackLimits,
) {
    let peer = permit.peer();
    let service = TowerToHyperService::new(router.layer(Extension(Arc::new(permit))));
    let http = http1(limits.read).serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIFE_MAX, http).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "callback connection failed"),
        Err(_) => debug!(%peer, "callback connection too old"),
    }
}
