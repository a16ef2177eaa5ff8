//! The callback listener against curl, and against raw sockets that misbehave.

mod crowd;
mod refusals;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use hostler::{
    boot_call::BootCalls,
    callback::{CallbackLimits, CallbackRequest, Server, TlsIdentity},
    model::{
        callback::{Call, DeployState, DiskRange, FlushedRanges, LookupReply, Reply},
        ids::Digest,
        secret::AttemptKey,
    },
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer,
        pki_types::pem::PemObject as _,
    },
};

const LOOKUP: &str = r#"{"macs":["52:54:00:00:00:01"],"disks":[{"name":"vda","size":8589934592}]}"#;
const LOG: &str = r#"{"kernel":"hunter2","ramdisk":""}"#;
const DEPLOY_INFO: &str =
    r#"{"address":"127.0.0.1","iqn":"iqn.x","chap_username":"u","chap_password":"hunter2"}"#;

const FLUSHED: &str = concat!(
    r#"{"ranges":[{"from":0,"bytes":1,"digest":"sha256:"#,
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    r#"","salt":7}]}"#
);

fn range() -> DiskRange {
    DiskRange { from: 0, bytes: 1, digest: Digest::of(&[0]), salt: Some(7) }
}

#[tokio::test]
async fn a_ramdisk_gets_through_its_calls() {
    let agent = Agent::judging(CallbackLimits::default()).await;
    for (method, call, body, status, answer) in [
        ("POST", "lookup", LOOKUP, 200, r#"{"disk":"vda","iqn":"iqn.edge-07","poll_after":1}"#),
        ("POST", "pass_deploy_info", DEPLOY_INFO, 202, "{}"),
        ("GET", "deploy_state", "", 200, r#"{"state":"release"}"#),
        ("POST", "flushed", r#"{"known":0}"#, 200, FLUSHED),
        ("POST", "log", LOG, 202, "{}"),
        ("POST", "completed", r#"{"verified":true}"#, 202, "{}"),
        ("POST", "completed", r#"{"error":"no disk"}"#, 409, r#"{"error":"heard: no disk"}"#),
    ] {
        let got = agent.curl(method, &path("edge-07", call), Some(&key()), body).await;
        assert_eq!((got.status, got.body.as_str()), (status, answer), "{call}");
    }
}

#[tokio::test]
async fn a_question_for_flushed_ranges_waits_until_there_are_more_and_no_longer() {
    let limits = CallbackLimits { poll: Duration::from_millis(300), ..CallbackLimits::default() };
    let agent = Agent::judging(limits).await;
    let (flushed, key) = (path("edge-07", "flushed"), key());
    let got = agent.curl("POST", &flushed, Some(&key), r#"{"known":1}"#).await;
    assert_eq!(got.body, FLUSHED, "after the poll");
    assert!(*agent.requested.borrow() > 1);

    let (more, there) = watch::channel(false);
    let agent = Agent::start(CallbackLimits::default(), move |_| {
        let ranges = if *there.borrow() { vec![range()] } else { Vec::new() };
        Some(Reply::Flushed(FlushedRanges { ranges }))
    })
    .await;
    let began = Instant::now();
    let question = agent.curl("POST", &flushed, Some(&key), r#"{"known":0}"#);
    let change = async {
        agent.requested(1).await;
        more.send(true).unwrap();
    };
    let (got, ()) = tokio::join!(question, change);
    assert_eq!(got.body, FLUSHED);
    assert!(began.elapsed() < CallbackLimits::default().poll, "only the end of the poll woke it");
}

#[tokio::test]
async fn a_body_too_big_is_refused_whoever_sends_it() {
    let agent = Agent::judging(CallbackLimits::default()).await;
    for (bytes, known, unknown) in [(256 << 10, 400, 404), ((256 << 10) + 1, 413, 413)] {
        let body = "x".repeat(bytes);
        let got = agent.curl("POST", &path("edge-07", "lookup"), Some(&key()), &body).await;
        assert_eq!(got.status, known, "{bytes}");
        let got = agent.curl("POST", "/", None, &body).await;
        assert_eq!(got.status, unknown, "{bytes}");
    }
}

#[tokio::test]
async fn a_question_for_the_state_waits_for_the_change_and_no_longer() {
    let (release, released) = watch::channel(false);
    let agent = Agent::start(CallbackLimits::default(), move |_| {
        let done = *released.borrow();
        let state = if done { DeployState::Release } else { DeployState::Imaging };
        Some(Reply::State(state.into()))
    })
    .await;
    let asking = path("edge-07", "deploy_state");
    let (state_key, began) = (key(), Instant::now());
    let question = agent.curl("GET", &asking, Some(&state_key), "");
    let change = async {
        agent.requested(1).await;
        agent.changed.send_modify(|tick| *tick += 1);
        agent.requested(2).await;
        release.send(true).unwrap();
        agent.changed.send_modify(|tick| *tick += 1);
    };
    let (got, ()) = tokio::join!(question, change);
    assert_eq!(got.body, r#"{"state":"release"}"#);
    assert!(began.elapsed() < CallbackLimits::default().poll, "only the end of the poll woke it");
}

#[tokio::test]
async fn a_question_without_a_change_is_answered_when_the_poll_is_over() {
    let limits = CallbackLimits { poll: Duration::from_millis(300), ..CallbackLimits::default() };
    let agent = Agent::start(limits, |_| Some(Reply::State(DeployState::Imaging.into()))).await;
    let began = Instant::now();
    let got = agent.curl("GET", &path("edge-07", "deploy_state"), Some(&key()), "").await;
    assert_eq!(got.body, r#"{"state":"imaging"}"#);
    assert!(began.elapsed() >= limits.poll);
}

#[tokio::test]
async fn a_driver_that_does_not_answer_is_a_503() {
    let limits = CallbackLimits { driver: Duration::from_millis(200), ..CallbackLimits::default() };
    let silent = Agent::start(limits, |_| None).await;
    let gone = Agent::start(limits, |_| panic!("the driver dies")).await;
    for agent in [silent, gone] {
        let got = agent.curl("POST", &path("edge-07", "lookup"), Some(&key()), LOOKUP).await;
        assert_eq!(got.status, 503);
    }
}

#[tokio::test]
async fn nothing_is_served_without_tls() {
    let agent = Agent::judging(CallbackLimits::default()).await;
    let mut plain = TcpStream::connect(agent.addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = until_closed(&mut plain).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn those_who_say_little_are_cut_off() {
    let short = Duration::from_millis(200);
    let agent = Agent::judging(CallbackLimits {
        handshake: short,
        read: short,
        ..CallbackLimits::default()
    })
    .await;

    let mut mute = TcpStream::connect(agent.addr).await.unwrap();
    assert_eq!(until_closed(&mut mute).await, b"");

    for (said, answer) in [
        ("", ""),
        ("POST / HTTP/1.1\r\nHost: x\r\n", ""),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", "HTTP/1.1 408 "),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 "),
    ] {
        let mut tls = agent.connect().await;
        tls.write_all(said.as_bytes()).await.unwrap();
        let got = String::from_utf8(until_closed(&mut tls).await).unwrap();
        assert!(got.starts_with(answer) && got.is_empty() == answer.is_empty(), "{said:?}: {got}");
    }
}

#[tokio::test]
async fn a_head_too_big_or_with_too_many_fields_is_refused() {
    let agent = Agent::judging(CallbackLimits::default()).await;
    for fields in ["a: b\r\n".repeat(33), format!("a: {}\r\n", "b".repeat(32 << 10))] {
        let mut tls = agent.connect().await;
        // The server may hang up before the request's end.
        let said = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        tls.write_all(said.as_bytes()).await.unwrap_or_default();
        let got = String::from_utf8(until_closed(&mut tls).await).unwrap();
        assert!(got.starts_with("HTTP/1.1 431 "), "{got}");
    }
}

#[tokio::test]
async fn a_hasty_address_is_told_to_slow_down() {
    let agent =
        Agent::judging(CallbackLimits { per_second: 1, burst: 3, ..CallbackLimits::default() })
            .await;
    let mut tls = agent.connect().await;
    let said = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3)
        + "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    tls.write_all(said.as_bytes()).await.unwrap();
    let got = String::from_utf8(until_closed(&mut tls).await).unwrap();
    let statuses: Vec<&str> = got.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["404", "404", "404", "429"]);
}

#[tokio::test]
async fn the_pin_is_the_hash_of_the_certificate_on_the_wire() {
    let agent = Agent::judging(CallbackLimits::default()).await;
    let tls = agent.connect().await;
    let wire = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let mut sum = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut sum.stdin.take().unwrap(), &wire).unwrap();
    let sum = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(sum.split(' ').next().unwrap(), agent.pin);
}

/// Invariant (secrets): No secret is in status files, logs or debug output.
#[tokio::test]
async fn no_key_and_no_body_reaches_the_log_at_any_level() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(Arc::new(log.reopen().unwrap()))
        .finish();
    // For the whole test binary: with a subscriber for a single thread, tracing may decide
    // elsewhere that a call site has no listener.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let agent = Agent::judging(CallbackLimits::default()).await;
    for node in ["edge-07", "quiet-node"] {
        for body in [DEPLOY_INFO, r#"{"address":"hunter2"}"#, r#"{"port":"hunter2"}"#] {
            agent.curl("POST", &path(node, "pass_deploy_info"), Some(&key()), body).await;
        }
        agent.curl("POST", &path(node, "log"), Some(&key()), LOG).await;
    }
    let text = std::fs::read_to_string(&log).unwrap();
    let of_node: Vec<&str> = text.lines().filter(|line| line.contains("quiet-node")).collect();
    assert_eq!(of_node.len(), 4, "{text}");
    assert!(!text.contains("hunter2") && !text.contains(&"5a".repeat(32)), "{text}");
}

#[tokio::test]
async fn shutdown_cuts_a_question_that_waits() {
    let agent = Agent::start(CallbackLimits::default(), |_| {
        Some(Reply::State(DeployState::Imaging.into()))
    })
    .await;
    let mut tls = agent.connect().await;
    let said = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n\r\n",
        path("edge-07", "deploy_state"),
        key()
    );
    tls.write_all(said.as_bytes()).await.unwrap();
    agent.requested(1).await;
    agent.shutdown.send(true).unwrap();
    timeout(Duration::from_secs(5), agent.server).await.unwrap().unwrap();
}

/// A listener with a simulated driver.
struct Agent {
    addr: SocketAddr,
    pin: String,
    dir: TempDir,
    changed: watch::Sender<u64>,
    requested: watch::Receiver<usize>,
    shutdown: watch::Sender<bool>,
    server: JoinHandle<()>,
}

struct Got {
    status: u16,
    body: String,
    all_but_the_date: String,
}

/// Answers for one node with one key.
fn judge(request: &CallbackRequest) -> Reply {
    let known = request.node.as_str() == "edge-07"
        && request.key == AttemptKey::from_bytes(&[0x5a; 32])
        && request.peer.is_loopback();
    match &request.call {
        _ if !known => Reply::Refused,
        Call::Lookup(lookup) => Reply::Lookup(LookupReply {
            disk: lookup.disks.first().unwrap().name.clone(),
            iqn: format!("iqn.{}", request.node),
            poll_after: 1,
        }),
        Call::DeployState => Reply::State(DeployState::Release.into()),
        Call::Flushed(_) => Reply::Flushed(FlushedRanges { ranges: vec![range()] }),
        Call::Completed(completed) if !completed.error.is_empty() => {
            Reply::Failed(format!("heard: {}", completed.error))
        }
        Call::PassDeployInfo(_)
        | Call::Completed(_)
        | Call::Verifying(_)
        | Call::Log(_)
        | Call::IronicDeployInfo(_)
        | Call::IronicBootloader(_) => Reply::Accepted,
    }
}

fn key() -> String {
    format!("Bearer {}", "5a".repeat(32))
}

fn path(node: &str, call: &str) -> String {
    format!("/v1/nodes/{node}/vendor_passthru/{call}")
}

/// Reads until the other end hangs up, which it must.
async fn until_closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut said = Vec::new();
    let closing = timeout(Duration::from_secs(10), async {
        // A reset counts as an end.
        while let Ok(1..) = stream.read_buf(&mut said).await {}
    });
    closing.await.expect("the listener keeps a connection it should close");
    said
}

impl Agent {
    async fn judging(limits: CallbackLimits) -> Self {
        Self::start(limits, |request| Some(judge(request))).await
    }

    /// Listens on a free port; `None` from the driver means no answer.
    async fn start(
        limits: CallbackLimits,
        driver: impl Fn(&CallbackRequest) -> Option<Reply> + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = TlsIdentity::load_or_create(dir.path()).unwrap();
        let pin = identity.pin().to_owned();
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), identity, limits).await.unwrap();
        let addr = server.local_addr().unwrap();
        let (requests, mut calls) = mpsc::channel::<CallbackRequest>(16);
        let (changed, ticks) = watch::channel(0);
        let (count, requested) = watch::channel(0);
        let (shutdown, mut stop) = watch::channel(false);
        tokio::spawn(async move {
            let mut unanswered = Vec::new();
            while let Some(request) = calls.recv().await {
                match driver(&request) {
                    // The client may be gone.
                    Some(reply) => drop(request.reply.send(reply)),
                    None => unanswered.push(request),
                }
                count.send_modify(|count| *count += 1);
            }
        });
        let server = tokio::spawn(async move {
            let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
            let (calls, _nobody) = BootCalls::channel(1);
            server.serve(requests, calls, ticks, stopped).await;
        });
        Self { addr, pin, dir, changed, requested, shutdown, server }
    }

    /// Waits until the driver has answered so many requests.
    async fn requested(&self, count: usize) {
        let mut requested = self.requested.clone();
        let enough = requested.wait_for(|requested| *requested >= count);
        timeout(Duration::from_secs(10), enough).await.expect("nobody asked").unwrap();
    }

    fn certificate(&self) -> PathBuf {
        self.dir.path().join("callback.crt")
    }

    async fn curl(&self, method: &str, path: &str, key: Option<&str>, body: &str) -> Got {
        self.try_curl(method, path, key, body).await.expect("no answer")
    }

    /// Runs curl; returns the whole answer, if there is one.
    async fn try_curl(
        &self,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: &str,
    ) -> Option<Got> {
        let port = self.addr.port();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, body).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--include", "--max-time", "60", "--path-as-is"])
            .args(["--http1.1", "--noproxy", "*", "-H", "Expect:", "--request", method])
            .args(["--resolve", &format!("hostler:{port}:127.0.0.1")])
            .arg("--cacert")
            .arg(self.certificate())
            .arg("--data-binary")
            .arg(format!("@{}", file.path().display()))
            .arg(format!("https://hostler:{port}{path}"));
        if let Some(key) = key {
            curl.args(["-H", &format!("Authorization: {key}")]);
        }
        let output = curl.kill_on_drop(true).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let undated = head.lines().filter(|line| !line.starts_with("date: "));
        Some(Got {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            body: body.to_owned(),
            all_but_the_date: undated.chain([body]).collect::<Vec<_>>().join("\n"),
        })
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        self.handshake(stream).await.expect("the listener refuses")
    }

    async fn handshake(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.certificate()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "hostler".try_into().unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
    }
}
