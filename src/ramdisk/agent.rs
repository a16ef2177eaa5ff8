//! The ramdisk's client of the agent: six requests over HTTPS, and this machine's log.
//!
//! The boot sequence uses it. It repeats every request until the agent answers or the attempt is
//! over; the agent, not the ramdisk, holds the deadline. But it never asks for ever, because a disk
//! is exported in the meantime. It must never print the key.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::TcpStream,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tracing::{info, warn};

use super::{log::Log, pin};
use crate::model::{
    backoff::Backoff,
    boot::RamdiskArgs,
    callback::{
        Completed, DeployInfo, DeployState, DeployStateReply, DiskRange, FlushedRanges,
        KnownRanges, Lookup, LookupReply, VerifyProgress,
    },
};

/// Time limit of a connection, with the TLS handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Time limit of one request: the agent may hold `deploy_state` and `flushed` for 20 s.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Time limit of sending the log.
const LOG_LIMIT: Duration = Duration::from_secs(3);
/// The limits of repeated requests.
const PATIENCE: Patience = Patience {
    pauses: Backoff::doubling(Duration::from_millis(500), Duration::from_secs(15)),
    unknown: Duration::from_secs(60),
    silence: Duration::from_secs(3600),
};
/// Largest answer: a lookup's with an error text.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A request without a useful answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    #[error("the agent refuses: {0}")]
    Refused(String),
    #[error("the agent waits for the root device: {0}")]
    LookupAgain(String, Duration),
    #[error("the agent knows no such attempt: it was ended or replaced")]
    AttemptOver,
    #[error("the agent has not answered for {} s", .0.as_secs())]
    Silent(Duration),
}

/// The pauses and limits of repeated requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// The pauses between two tries.
    pub(super) pauses: Backoff,
    /// How long the agent may answer "no such attempt" before that is final. The agent has read its
    /// records before it listens, so that the answer is reliable.
    pub(super) unknown: Duration,
    /// How long the agent may not answer: longer than any restart of the agent or of its machine.
    pub(super) silence: Duration,
}

/// A request that failed before its answer.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    #[error("answer: {0}")]
    Body(#[from] Box<dyn std::error::Error + Send + Sync>),
    #[error("answer: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the agent answered {0}")]
    Status(StatusCode),
    #[error("the agent knows no such attempt")]
    Unknown,
}

/// The body of an error answer.
#[derive(Debug, Deserialize)]
struct Refusal {
    error: String,
    /// In the answer to a lookup: the seconds until the next inventory of disks.
    #[serde(default)]
    look_again_after: Option<u32>,
}

impl From<Refusal> for AgentError {
    fn from(Refusal { error, look_again_after }: Refusal) -> Self {
        match look_again_after {
            Some(seconds) => Self::LookupAgain(error, Duration::from_secs(seconds.into())),
            None => Self::Refused(error),
        }
    }
}

/// The agent, at its address and with the attempt's key.
pub(super) struct Agent {
    args: RamdiskArgs,
    tls: TlsConnector,
    patience: Patience,
    log: Log,
}

impl Agent {
    pub(super) fn new(args: RamdiskArgs, log: Log) -> Result<Self, rustls::Error> {
        Self::with_patience(args, log, PATIENCE)
    }

    pub(super) fn with_patience(
        args: RamdiskArgs,
        log: Log,
        patience: Patience,
    ) -> Result<Self, rustls::Error> {
        let tls = TlsConnector::from(Arc::new(pin::client_config(&args.pin)?));
        Ok(Self { args, tls, patience, log })
    }

    /// Reports the machine; the agent chooses the disk to export and its target name.
    pub(super) async fn lookup(&self, machine: &Lookup) -> Result<LookupReply, AgentError> {
        self.post("lookup", machine).await
    }

    /// Reports the target's address, or the reason for its failure.
    pub(super) async fn pass_deploy_info(&self, info: &DeployInfo) -> Result<(), AgentError> {
        self.post::<Ignored>("pass_deploy_info", info).await.map(drop)
    }

    /// Waits until the agent does not need the target any more. `pause` is the time between two
    /// requests.
    pub(super) async fn wait_until_done(
        &self,
        pause: Duration,
    ) -> Result<DeployStateReply, AgentError> {
        loop {
            let reply: DeployStateReply =
                self.ask(Method::GET, "deploy_state", Bytes::new()).await?;
            if reply.state != DeployState::Imaging {
                return Ok(reply);
            }
            sleep(pause).await;
        }
    }

    /// Reports that the target is stopped. If the agent does not know the attempt any more, an
    /// earlier report has arrived.
    pub(super) async fn completed(&self, notice: &Completed) -> Result<(), AgentError> {
        self.post::<Ignored>("completed", notice).await.map(drop)
    }

    /// Asks for the ranges of the running write that the disk holds already. The agent answers once
    /// their number is not `known`, or after a while. Repeats the request while the agent does not
    /// answer. `None`: an older agent, or the end of the attempt.
    pub(super) async fn flushed(&self, known: usize, pause: Duration) -> Option<Vec<DiskRange>> {
        let body = serde_json::to_vec(&KnownRanges { known }).unwrap_or_default();
        loop {
            let body = body.clone().into();
            match self.call::<FlushedRanges>(Method::POST, "flushed", body).await {
                Ok(Ok(FlushedRanges { ranges })) => return Some(ranges),
                Ok(Err(_)) | Err(CallError::Unknown) => return None,
                Err(error) => info!(%error, "no ranges to compare during the write"),
            }
            sleep(pause).await;
        }
    }

    /// Reports the progress of the comparison, once. Returns whether the agent takes such reports:
    /// an older one does not.
    pub(super) async fn verifying(&self, done_bytes: u64) -> bool {
        let body = serde_json::to_vec(&VerifyProgress { done_bytes }).unwrap_or_default();
        match self.call::<Ignored>(Method::POST, "verifying", body.into()).await {
            Ok(Ok(Ignored)) => true,
            Ok(Err(_)) | Err(CallError::Unknown) => false,
            Err(error) => {
                info!(%error, "the progress was not reported");
                true
            }
        }
    }

    /// Sends what this machine has logged since its boot, once. Whatever becomes of that, the boot
    /// sequence goes on.
    pub(super) async fn send_log(&self) {
        let sending = async {
            let log = self.log.clone();
            let body = spawn_blocking(move || log.body()).await.unwrap_or_default();
            self.call::<Ignored>(Method::POST, "log", body.into()).await
        };
        match timeout(LOG_LIMIT, sending).await {
            Ok(Ok(Ok(Ignored))) => {}
            Ok(Ok(Err(Refusal { error, .. }))) => info!(error, "the agent does not take the log"),
            Ok(Err(error)) => info!(%error, "the log was not sent"),
            Err(_) => info!("the log was not sent within {} s", LOG_LIMIT.as_secs()),
        }
    }

    async fn post<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
    ) -> Result<T, AgentError> {
        let body = serde_json::to_vec(body).map_err(|e| AgentError::Refused(e.to_string()))?;
        self.ask(Method::POST, method, body.into()).await
    }

    /// Repeats a request until the agent answers or repetition is useless.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        name: &str,
        body: Bytes,
    ) -> Result<T, AgentError> {
        let (began, mut unknown_since) = (Instant::now(), None);
        let mut pauses = self.patience.pauses;
        loop {
            let error = match self.call(method.clone(), name, body.clone()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(refusal)) => return Err(refusal.into()),
                Err(error) => error,
            };
            if matches!(error, CallError::Unknown) {
                let since = *unknown_since.get_or_insert_with(Instant::now);
                if name == "completed" || since.elapsed() >= self.patience.unknown {
                    return Err(AgentError::AttemptOver);
                }
            } else {
                unknown_since = None;
            }
            if began.elapsed() >= self.patience.silence {
                return Err(AgentError::Silent(self.patience.silence));
            }
            let pause = pauses.next_pause();
            let again_in_s = pause.as_secs_f32();
            warn!(agent = %self.args.api, question = name, %error, again_in_s);
            sleep(pause).await;
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        name: &str,
        body: Bytes,
    ) -> Result<Result<T, Refusal>, CallError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1/nodes/{}/vendor_passthru/{name}", self.args.node))
            .header(HOST, self.args.api.to_string())
            .header(AUTHORIZATION, format!("Bearer {}", self.args.key.expose()))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let (status, body) = timeout(REQUEST_LIMIT, self.exchange(request))
            .await
            .map_err(|_| CallError::TimedOut(REQUEST_LIMIT))??;
        read_answer(status, &body)
    }

    /// Sends one request on a new connection, so that the loss of an earlier connection does not
    /// matter; requests are few.
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let stream = timeout(CONNECT_LIMIT, self.connect(self.args.api))
            .await
            .map_err(|_| CallError::TimedOut(CONNECT_LIMIT))??;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The task ends when the sender is dropped; its errors show in the sender.
        tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?;
        Ok((status, body.to_bytes()))
    }

    async fn connect(
        &self,
        to: SocketAddr,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        self.tls.connect(ServerName::from(to.ip()), tcp).await
    }
}

/// Decodes an answer: the requested value, or the agent's reason for a refusal.
fn read_answer<T: DeserializeOwned>(
    status: StatusCode,
    body: &[u8],
) -> Result<Result<T, Refusal>, CallError> {
    match status {
        status if status.is_success() => {
            Ok(Ok(serde_json::from_slice(if body.is_empty() { b"null" } else { body })?))
        }
        StatusCode::NOT_FOUND => Err(CallError::Unknown),
        StatusCode::CONFLICT => Ok(Err(serde_json::from_slice(body)?)),
        other => Err(CallError::Status(other)),
    }
}

/// An answer whose body is ignored.
#[derive(Deserialize)]
#[serde(from = "serde::de::IgnoredAny")]
struct Ignored;

impl From<serde::de::IgnoredAny> for Ignored {
    fn from(_: serde::de::IgnoredAny) -> Self {
        Self
    }
}

#[cfg(test)]
pub(super) mod pretended;
#[cfg(test)]
mod tests;
