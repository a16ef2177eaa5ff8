//! Converts HTTP requests into [`Call`]s and [`Reply`]s into HTTP answers.
//!
//! Called by the server for every request. The order of its checks must never reveal secrets: no
//! answer depends on the path before the whole body has arrived, nor on the body before a
//! well-formed key.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Path, Request as HttpRequest, State, rejection::PathRejection},
    http::{HeaderMap, Method, StatusCode, header::AUTHORIZATION},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing,
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout, timeout_at},
};
use tracing::debug;

use super::{Call, CallbackLimits, CallbackRequest, Reply};
use crate::{
    boot_call::BootCalls,
    listener::ConnectionPermit,
    model::{
        callback::{BODY_BYTES_MAX, DeployState, FlushedRanges, KnownRanges},
        ids::NodeName,
        secret::AttemptKey,
    },
};

/// The pause between two looks for more flushed ranges. A disk has some sixty ranges, and each look
/// is a step of the core.
const RANGES_PAUSE: Duration = Duration::from_secs(2);

/// State shared by all handlers.
#[derive(Debug)]
pub(super) struct AppState {
    pub(super) limits: CallbackLimits,
    pub(super) requests: mpsc::Sender<CallbackRequest>,
    /// Ticks whenever a deploy state may have changed.
    pub(super) changed: watch::Receiver<u64>,
}

/// A request whose path, key and body have been read.
#[derive(Debug)]
pub(super) struct CallArgs {
    pub(super) node: NodeName,
    pub(super) permit: Arc<ConnectionPermit>,
    pub(super) key: AttemptKey,
    pub(super) call: Call,
}

/// Routes every path. The connection adds its [`ConnectionPermit`] as an extension.
pub(super) fn router(state: Arc<AppState>) -> Router {
    Router::new()
        .route("/v1/nodes/{node}/vendor_passthru/{call}", routing::any(answer))
        .fallback(async || refused())
        .layer(from_fn_with_state(Arc::clone(&state), bounded))
        .with_state(state)
}

/// Routes the call of an installed system, whose body and rate have limits of their own.
pub(super) fn boot_router(calls: BootCalls) -> Router {
    Router::new().route("/v1/nodes/{node}/booted/{token}", routing::any(booted)).with_state(calls)
}

async fn booted(
    State(calls): State<BootCalls>,
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    request: HttpRequest,
) -> Response {
    let (head, body) = request.into_parts();
    match calls.answer(&head.method, head.uri.path(), body, permit.peer()).await {
        StatusCode::ACCEPTED => json(StatusCode::ACCEPTED, &serde_json::json!({})),
        StatusCode::NOT_FOUND => refused(),
        status => failure(status, "try again"),
    }
}

/// Counts the request and reads its whole body within the limits, before the path is looked at.
pub(super) async fn bounded(
    State(state): State<Arc<AppState>>,
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    request: HttpRequest,
    next: Next,
) -> Response {
    if !permit.takes_request(Instant::now()) {
        return failure(StatusCode::TOO_MANY_REQUESTS, "too many requests");
    }
    let (head, body) = request.into_parts();
    match read(body, state.limits.read).await {
        Ok(body) => next.run(HttpRequest::from_parts(head, Body::from(body))).await,
        Err(failed) => failed,
    }
}

async fn read(body: Body, limit: Duration) -> Result<Bytes, Response> {
    match timeout(limit, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(failure(StatusCode::PAYLOAD_TOO_LARGE, "body too large"))
        }
        Ok(Err(_)) => Err(failure(StatusCode::BAD_REQUEST, "bad request")),
        Err(_) => Err(failure(StatusCode::REQUEST_TIMEOUT, "body too slow")),
    }
}

async fn answer(
    State(state): State<Arc<AppState>>,
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    path: Result<Path<(String, String)>, PathRejection>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // axum's own refusal of a path that is not UTF-8 would look different.
    let Ok(Path((node, name))) = path else { return refused() };
    let Some((node, call)) = parse(&method, &node, &name, &body) else { return refused() };
    let Some(key) = bearer(&headers) else { return refused() };
    match call {
        Ok(call) => hand_over(&state, CallArgs { node, permit, key, call }).await,
        Err(error) => {
            // The error's own text may quote the body.
            let (line, column) = (error.line(), error.column());
            debug!(%node, peer = %permit.peer(), line, column, "callback body is not valid");
            failure(StatusCode::BAD_REQUEST, "bad request")
        }
    }
}

/// Reads the node and the call of a request; `None` when there is no such call with this method.
/// The body is judged apart.
fn parse(
    method: &Method,
    node: &str,
    name: &str,
    body: &[u8],
) -> Option<(NodeName, Result<Call, serde_json::Error>)> {
    let node = node.parse().ok()?;
    let call = match (method, name) {
        (&Method::POST, "lookup") => serde_json::from_slice(body).map(Call::Lookup),
        (&Method::POST, "pass_deploy_info") => {
            serde_json::from_slice(body).map(Call::PassDeployInfo)
        }
        (&Method::POST, "completed") => serde_json::from_slice(body).map(Call::Completed),
        (&Method::POST, "flushed") => serde_json::from_slice(body).map(Call::Flushed),
        (&Method::POST, "verifying") => serde_json::from_slice(body).map(Call::Verifying),
        (&Method::POST, "log") => serde_json::from_slice(body).map(Call::Log),
        (&Method::GET, "deploy_state") => Ok(Call::DeployState),
        _ => return None,
    };
    Some((node, call))
}

/// The key of the one `Authorization: Bearer` header (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Option<AttemptKey> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(only), None) = (values.next(), values.next()) else { return None };
    only.to_str().ok()?.strip_prefix("Bearer ")?.parse().ok()
}

pub(super) async fn hand_over(state: &AppState, args: CallArgs) -> Response {
    let reply = match args.call {
        Call::DeployState => poll(state, &args).await,
        Call::Flushed(KnownRanges { known }) => more_ranges(state, &args, known).await,
        Call::Lookup(_)
        | Call::PassDeployInfo(_)
        | Call::Completed(_)
        | Call::Verifying(_)
        | Call::Log(_)
        | Call::IronicDeployInfo(_)
        | Call::IronicBootloader(_) => ask(state, &args).await,
    };
    let answer = match reply {
        Some(Reply::Lookup(reply)) => json(StatusCode::OK, &reply),
        Some(Reply::State(state)) => json(StatusCode::OK, &state),
        Some(Reply::Flushed(ranges)) => json(StatusCode::OK, &ranges),
        Some(Reply::Accepted) => json(StatusCode::ACCEPTED, &serde_json::json!({})),
        Some(Reply::Refused) => refused(),
        Some(Reply::LookupAgain(reply)) => json(StatusCode::CONFLICT, &reply),
        Some(Reply::Failed(why)) => failure(StatusCode::CONFLICT, &why),
        None => failure(StatusCode::SERVICE_UNAVAILABLE, "try again"),
    };
    let (node, peer, status) = (&args.node, args.permit.peer(), answer.status().as_u16());
    debug!(%node, %peer, call = args.call.name(), status, "callback answered");
    answer
}

/// Repeats the call to the driver until the answer is not `imaging` or the long poll is over.
async fn poll(state: &AppState, args: &CallArgs) -> Option<Reply> {
    let mut changed = state.changed.clone();
    let over = tokio::time::Instant::now() + state.limits.poll;
    loop {
        // Before asking, so that a change during the driver's answer wakes this again.
        changed.mark_unchanged();
        let reply = ask(state, args).await?;
        if reply != Reply::State(DeployState::Imaging.into()) || tokio::time::Instant::now() >= over
        {
            return Some(reply);
        }
        if let Ok(Err(_driver_gone)) = timeout_at(over, changed.changed()).await {
            return Some(reply);
        }
    }
}

/// Repeats the call to the driver until the ramdisk knows another number of ranges or the long poll
/// is over.
async fn more_ranges(state: &AppState, args: &CallArgs, known: usize) -> Option<Reply> {
    let over = tokio::time::Instant::now() + state.limits.poll;
    loop {
        let reply = ask(state, args).await?;
        match &reply {
            Reply::Flushed(FlushedRanges { ranges }) if ranges.len() == known => {}
            _ => return Some(reply),
        }
        if tokio::time::Instant::now() >= over {
            return Some(reply);
        }
        sleep(RANGES_PAUSE).await;
    }
}

/// Sends the call to the driver once; `None` if the driver is gone or too slow.
pub(super) async fn ask(state: &AppState, args: &CallArgs) -> Option<Reply> {
    let (reply, answer) = oneshot::channel();
    let request = CallbackRequest {
        node: args.node.clone(),
        peer: args.permit.peer(),
        key: args.key.clone(),
        call: args.call.clone(),
        reply,
    };
    let asking = timeout(state.limits.driver, async {
        state.requests.send(request).await.ok()?;
        answer.await.ok()
    });
    let reply = asking.await.ok()??;
    if reply != Reply::Refused {
        args.permit.protect();
    }
    Some(reply)
}

/// The same 404 for every request that the client has no right to.
pub(super) fn refused() -> Response {
    failure(StatusCode::NOT_FOUND, "not found")
}

fn failure(status: StatusCode, error: &str) -> Response {
    json(status, &serde_json::json!({ "error": error }))
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    (status, Json(body)).into_response()
}

#[cfg(test)]
mod tests;
