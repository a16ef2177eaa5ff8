//! HTTP/1.1 (RFC 9110, RFC 9112): serves TFTP's files, under the same names, to boot loaders with
//! HTTP.
//!
//! The agent binds it beside TFTP's server, whose [`BootFileCatalog`] it serves. Plain HTTP,
//! because iPXE as distributions and network interfaces ship it trusts public authorities only. A
//! menu is as readable for others as over TFTP; kernels and ramdisks hold no secret.
//!
//! `body` reads a file piece by piece as the client takes it; `activity` watches the connection,
//! and cuts it without progress. The server must never list a directory, accept an upload but
//! the call of an installed system, or hold a file in memory.

mod activity;
mod body;
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
    body::Incoming,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_blocking,
};
use tracing::{debug, warn};

use self::{
    activity::ConnectionActivity,
    body::{FileBody, SendReport},
};
use super::{
    catalog::{BootFileCatalog, Served},
    name::clean_name,
    refusal::Refusal,
    table::FETCH_LIMIT,
};
use crate::boot_call::{self, BootCalls};
use crate::listener::{
    Admission, ConnectionLimits, ConnectionPermit, Listener, Protection, WhenFull, http1,
};

/// Limits on what unknown clients may use.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Most connections in all. Another one ends the one that has been silent longest.
    pub connections_max: usize,
    /// Most connections from one address, likewise: firmware opens one or two.
    pub connections_per_peer_max: usize,
    /// Time limit of a request's head, and of the pause before the next request.
    pub head: Duration,
    /// Longest time of a response without progress; it is cut after at most twice this time.
    pub idle: Duration,
    /// Time limit of a connection, unless it fetches a file of a node with a longer limit.
    pub total: Duration,
}

impl Default for HttpLimits {
    /// 256 connections, 16 from one address, 10 s for a head, 30 s idle, 30 min in all, as in TFTP.
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
    limits: HttpLimits,
}

impl Server {
    /// Binds the address; port 0 takes a free one.
    pub async fn bind(addr: SocketAddr, limits: HttpLimits) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(addr).await?, limits })
    }

    /// The address that the server listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, and hands over the calls of installed systems. Cuts all connections
    /// at the end: boot loaders repeat their requests.
    pub async fn serve(
        self,
        catalog: Arc<BootFileCatalog>,
        calls: BootCalls,
        shutdown: impl Future<Output = ()>,
    ) {
        let limits = self.limits;
        let listener = Listener {
            name: "HTTP",
            socket: self.listener,
            admission: Admission::new(limits.into()),
            when_full: WhenFull::Refuse,
        };
        let connection = |stream, permit| {
            let served = (Arc::clone(&catalog), calls.clone());
            connection(stream, permit, served, limits)
        };
        listener.serve(shutdown, connection).await;
    }
}

impl From<HttpLimits> for ConnectionLimits {
    fn from(limits: HttpLimits) -> Self {
        let HttpLimits { connections_max: max, connections_per_peer_max: per_peer_max, .. } =
            limits;
        Self { max, per_peer_max, rate: None }
    }
}

/// Serves one connection from its first request to its end.
async fn connection(
    stream: TcpStream,
    permit: ConnectionPermit,
    (catalog, calls): (Arc<BootFileCatalog>, BootCalls),
    limits: HttpLimits,
) {
    let (peer, permit) = (permit.peer(), Arc::new(permit));
    let activity = Arc::new(ConnectionActivity::new(limits.total));
    let service = service_fn(|request: Request<Incoming>| {
        let calls = calls.clone();
        let (catalog, activity) = (Arc::clone(&catalog), Arc::clone(&activity));
        // While it sends a response, the connection cannot be displaced.
        let guard = permit.protect_while();
        async move {
            let is_call =
                request.method() == Method::POST && boot_call::is_call(request.uri().path());
            Ok::<_, Infallible>(if is_call {
                called(request, peer, &calls, &activity).await
            } else {
                respond(&request, peer, catalog, activity, guard).await
            })
        }
    });
    let http = http1(limits.head)
        // GRUB knows `Content-Length` only in this spelling; without it, GRUB waits for the end of
        // the connection.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = http => match ended {
            Ok(()) => {}
            Err(error) => debug!(%peer, %error, "HTTP connection failed"),
        },
        () = activity.expired() => debug!(%peer, "HTTP connection too old"),
        () = activity.stalled(limits.idle) => debug!(%peer, "HTTP connection stands still"),
    }
}

type FileResponse = Response<Either<Full<Bytes>, FileBody>>;

async fn respond<B>(
    request: &Request<B>,
    peer: IpAddr,
    catalog: Arc<BootFileCatalog>,
    activity: Arc<ConnectionActivity>,
    protection: Protection,
) -> FileResponse {
    activity.note();
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
        Ok(Served { file, kind, name: path, limit }) => {
            activity.extend(limit.unwrap_or_default());
            let all = file.bytes;
            let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
            let bytes = range.map_or(Some(0..all), |range| range::wanted(range, all));
            let Some(bytes) = bytes else { return past_the_end(all) };
            let report = SendReport { catalog, peer, kind, path, began, protection };
            match FileBody::new(file, bytes.clone(), report, activity) {
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
                Refusal::ReadOnly => StatusCode::METHOD_NOT_ALLOWED,
            };
            refusal(status, error)
        }
    }
}

/// Passes on the call of an installed system, the only upload that the server accepts.
async fn called(
    request: Request<Incoming>,
    peer: IpAddr,
    calls: &BootCalls,
    activity: &ConnectionActivity,
) -> FileResponse {
    activity.note();
    let (head, body) = request.into_parts();
    let status = calls.answer(&head.method, head.uri.path(), body, peer).await;
    debug!(%peer, status = status.as_u16(), "an installed system's call answered");
    let text = match status {
        StatusCode::ACCEPTED => "accepted\n",
        StatusCode::NOT_FOUND => "not found\n",
        _ => "try again\n",
    };
    let mut response = Response::new(Either::Left(Full::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// Opens the requested file.
async fn open(
    catalog: Arc<BootFileCatalog>,
    uri: &Uri,
    peer: IpAddr,
    now: Instant,
) -> Result<Served, Refusal> {
    // No served name holds a character that would be escaped.
    let name = clean_name(uri.path())?;
    if uri.query().is_some() {
        return Err(Refusal::NotFound);
    }
    let opening = spawn_blocking(move || catalog.open(name.as_ref(), peer, now));
    opening.await.unwrap_or(Err(Refusal::Busy))
}

/// Makes the response with a range of a file.
fn found(bytes: &Range<u64>, all: u64, body: Either<Full<Bytes>, FileBody>) -> FileResponse {
    let mut response = Response::new(body);
    if *bytes != (0..all) {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let last = bytes.end.saturating_sub(1);
        insert_content_range(&mut response, &format!("bytes {}-{last}/{all}", bytes.start));
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, (bytes.end - bytes.start).into());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

/// The response to a range beyond the file's end (RFC 9110 §15.5.17).
fn past_the_end(all: u64) -> FileResponse {
    let mut response = refusal(StatusCode::RANGE_NOT_SATISFIABLE, Refusal::NotFound);
    insert_content_range(&mut response, &format!("bytes */{all}"));
    response
}

fn insert_content_range(response: &mut FileResponse, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
}

fn refusal(status: StatusCode, error: Refusal) -> FileResponse {
    let mut response = Response::new(Either::Left(Full::from(format!("{error}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
