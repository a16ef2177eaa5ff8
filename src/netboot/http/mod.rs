//! HTTP/1.1 (RFC 9110, RFC 9112): what TFTP serves, under the same names, for boot loaders that can.
//!
//! Bound by the agent beside TFTP's server, whose [`BootFileCatalog`] it serves. Plain HTTP: iPXE as distributions and network interfaces carry it trusts
//! public authorities only. What a menu says it says no more openly than over TFTP; kernels and ramdisks have no secret in them.
//!
//! `body` reads a file piece by piece as the client takes it; `pulse` tells how its connection is.
//! Every connection has a place, a limit on its request's head, and an end; one on which nothing
//! moves is cut. When places run out, the connection on which nothing has been asked for longest
//! makes room, or the one that takes nothing of its file. It must never list a directory, take anything, or hold a file in memory.

mod body;
mod pulse;
mod range;

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use tracing::{debug, error, info, warn};

use self::{
    body::{FileBody, Told},
    pulse::Pulse,
};
use super::{
    catalog::{BootFileCatalog, Served},
    table::FETCH_LIMIT,
    tftp::{Refusal, clean_name},
};
use crate::places::{Admitted, Kept, Place, Places};

/// Boot loaders send about five headers; the least buffer hyper allows is 8 KiB.
const HEADERS_MAX: usize = 32;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// When the system is out of file descriptors, `accept` fails at once again and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What strangers may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, from everybody. One more ends the one that has been silent longest.
    pub connections_max: usize,
    /// From one address, likewise: firmware has one or two.
    pub connections_per_peer_max: usize,
    /// How long a request's head may take, and the pause before the next.
    pub head: Duration,
    /// How long an answer may go without anything taken of it; it is cut after twice this time at the latest.
    pub idle: Duration,
    /// How long a connection may last, unless a node's own limit is longer and a file of its is
    /// fetched.
    pub total: Duration,
}

impl Default for Limits {
    /// 256 connections, 16 from one address, 10 s for a head, 30 s idle, 30 min in all, as TFTP has it.
    fn default() -> Self {
        Self {
            connections_max: 256,
            connections_per_peer_max: 16,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            total: FETCH_LIMIT,
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    limits: Limits,
}

impl Server {
    /// Binds the address; port 0 takes a free one.
    pub async fn bind(addr: SocketAddr, limits: Limits) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(addr).await?, limits })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`. Connections are cut at the end: boot loaders ask again.
    pub async fn serve(self, catalog: Arc<BootFileCatalog>, shutdown: impl Future<Output = ()>) {
        let places = Places::new(self.limits.connections_max, self.limits.connections_per_peer_max);
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        error!(%error, "HTTP connection panicked");
                    }
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, addr)) => {
                        let peer = addr.ip().to_canonical();
                        let Some(Admitted { place, taken, made_room }) = places.take(peer) else {
                            warn!(%peer, "HTTP connection refused: all are busy with files");
                            continue;
                        };
                        if let Some(of) = made_room {
                            info!(%peer, %of, "too many HTTP connections: a silent or slow one makes room");
                        }
                        let talk = connection(stream, Arc::clone(&catalog), self.limits, place);
                        connections.spawn(async move {
                            tokio::select! {
                                () = talk => {}
                                _ = taken => debug!(%peer, "HTTP connection gave way to another"),
                            }
                        });
                    }
                    Err(error) => {
                        warn!(%error, "HTTP listener cannot accept");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }
}

/// One connection from its first request to its end.
async fn connection(
    stream: TcpStream,
    catalog: Arc<BootFileCatalog>,
    limits: Limits,
    place: Place,
) {
    let (peer, place) = (place.peer(), Arc::new(place));
    // Only latency is lost without it.
    stream.set_nodelay(true).unwrap_or_default();
    let pulse = Arc::new(Pulse::new(limits.total));
    let service = service_fn(|request| {
        let (catalog, pulse) = (Arc::clone(&catalog), Arc::clone(&pulse));
        // Until the answer is sent nobody else gets its place.
        let kept = place.keep_while();
        async move { Ok::<_, Infallible>(answer(&request, peer, catalog, pulse, kept).await) }
    });
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(HEADERS_MAX)
        // GRUB knows `Content-Length` in no other spelling, and waits for the end of the connection
        // without it.
        .title_case_headers(true)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = http => match ended {
            Ok(()) => {}
            Err(error) => debug!(%peer, %error, "HTTP connection failed"),
        },
        () = pulse.old_age() => debug!(%peer, "HTTP connection too old"),
        () = pulse.stillness(limits.idle) => debug!(%peer, "HTTP connection stands still"),
    }
}

type Answer = Response<Either<Full<Bytes>, FileBody>>;

async fn answer<B>(
    request: &Request<B>,
    peer: IpAddr,
    catalog: Arc<BootFileCatalog>,
    pulse: Arc<Pulse>,
    kept: Kept,
) -> Answer {
    pulse.beat();
    let head_only = request.method() == Method::HEAD;
    if !head_only && request.method() != Method::GET {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, Refusal::ReadOnly);
    }
    let began = Instant::now();
    match open(Arc::clone(&catalog), request.uri(), peer, began).await {
        Ok(Served { file, name, .. }) if head_only => {
            debug!(%peer, path = ?name, "HTTP size asked");
            found(&(0..file.bytes), file.bytes, Either::Left(Full::default()))
        }
        Ok(Served { file, asked, name: path, limit }) => {
            pulse.may_take(limit.unwrap_or_default());
            let all = file.bytes;
            let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
            let bytes = range.map_or(Some(0..all), |range| range::wanted(range, all));
            let Some(bytes) = bytes else { return past_the_end(all) };
            let told = Told { catalog, peer, asked, path, began, kept };
            match FileBody::new(file, bytes.clone(), told, pulse) {
                Ok(body) => found(&bytes, all, Either::Right(body)),
                Err(error) => {
                    warn!(%peer, %error, "an HTTP file cannot be read from where it is wanted");
                    refusal(StatusCode::SERVICE_UNAVAILABLE, Refusal::Busy)
                }
            }
        }
        Err(error) => {
            debug!(%peer, path = request.uri().path(), %error, "HTTP request refused");
            let status = match error {
                Refusal::NotFound => StatusCode::NOT_FOUND,
                Refusal::NotAllowed => StatusCode::FORBIDDEN,
                Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
                Refusal::NotUnderstood | Refusal::ReadOnly | Refusal::NotOctet => {
                    StatusCode::BAD_REQUEST
                }
            };
            refusal(status, error)
        }
    }
}

/// The file that a request is for.
async fn open(
    catalog: Arc<BootFileCatalog>,
    uri: &Uri,
    peer: IpAddr,
    now: Instant,
) -> Result<Served, Refusal> {
    // No name that is served has anything in it that would have to be escaped.
    let name = clean_name(uri.path())?;
    if uri.query().is_some() {
        return Err(Refusal::NotFound);
    }
    let opening = spawn_blocking(move || catalog.open(name.as_ref(), peer, now));
    opening.await.unwrap_or(Err(Refusal::Busy))
}

/// These bytes of all of a file.
fn found(bytes: &Range<u64>, all: u64, body: Either<Full<Bytes>, FileBody>) -> Answer {
    let mut answer = Response::new(body);
    if *bytes != (0..all) {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let last = bytes.end.saturating_sub(1);
        insert_content_range(&mut answer, &format!("bytes {}-{last}/{all}", bytes.start));
    }
    let headers = answer.headers_mut();
    headers.insert(CONTENT_LENGTH, (bytes.end - bytes.start).into());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer
}

/// RFC 9110 §15.5.17.
fn past_the_end(all: u64) -> Answer {
    let mut answer = refusal(StatusCode::RANGE_NOT_SATISFIABLE, Refusal::NotFound);
    insert_content_range(&mut answer, &format!("bytes */{all}"));
    answer
}

fn insert_content_range(answer: &mut Answer, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        answer.headers_mut().insert(CONTENT_RANGE, value);
    }
}

fn refusal(status: StatusCode, error: Refusal) -> Answer {
    let mut answer = Response::new(Either::Left(Full::from(format!("{error}\n"))));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    answer
}
