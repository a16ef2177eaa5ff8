//! The call of an installed system that is up, as it comes over HTTP: `POST
//! /v1/nodes/NODE/booted/TOKEN`, with the form that cloud-init's `phone_home` sends.
//!
//! Called by the plain listener of the boot files and by the callback listener. A caller is a
//! stranger until the core has compared the token: every wrong call gets the same answer, and no
//! part of a call may reach the log.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use http_body_util::{BodyExt as _, Limited};
use hyper::{Method, StatusCode, body::Body};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use url::form_urlencoded;

use crate::{
    listener::{Admission, ConnectionLimits, RateLimit},
    model::{
        boot_report::BootReport,
        ids::NodeName,
        secret::{BootToken, Secret},
    },
};

/// The first part of the path.
const NODES: &str = "/v1/nodes/";
/// The part between the node and the token.
const BOOTED: &str = "booted";
/// cloud-init sends some 2 KiB.
const BODY_BYTES_MAX: usize = 16 << 10;
/// Time limit of the body.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);
/// Time limit of the driver's answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// A system calls once, or every few seconds until it is answered.
const RATE: RateLimit = RateLimit { per_second: 2, burst: 20 };
/// The prefix of SSH host keys in the form.
const HOST_KEY: &str = "pub_key_";

/// A well-formed call. Nothing has compared its token yet.
#[derive(Debug)]
pub struct BootCall {
    /// The node in the path.
    pub node: NodeName,
    /// The client's address; never an IPv4-mapped IPv6 address.
    pub peer: IpAddr,
    /// The token in the path.
    pub token: BootToken,
    /// The system's claims about itself.
    pub report: BootReport,
    /// Whether the call counts. Dropping it answers 503.
    pub reply: oneshot::Sender<bool>,
}

/// The sender of calls to the driver, which all listeners share.
#[derive(Clone, Debug)]
pub struct BootCalls {
    calls: mpsc::Sender<BootCall>,
    rates: Arc<Admission>,
}

/// The URL that a system calls, with the token in it.
pub fn url(at: SocketAddr, node: &NodeName, token: &BootToken) -> Secret {
    Secret::new(format!("http://{at}{NODES}{node}/{BOOTED}/{}", token.expose()))
}

impl BootCalls {
    /// Makes a sender and its receiver; `depth` calls may wait between them.
    pub fn channel(depth: usize) -> (Self, mpsc::Receiver<BootCall>) {
        let (calls, received) = mpsc::channel(depth);
        let limits = ConnectionLimits { max: 0, per_peer_max: 0, rate: Some(RATE) };
        (Self { calls, rates: Admission::new(limits) }, received)
    }

    /// Answers a request. It reads the body before it judges the path, so that the answer's time
    /// reveals nothing.
    pub async fn answer<B>(&self, method: &Method, path: &str, body: B, peer: IpAddr) -> StatusCode
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if !self.rates.takes(peer, Instant::now()) {
            return StatusCode::TOO_MANY_REQUESTS;
        }
        let read = timeout(BODY_TIME_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await;
        let body = match read {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => return StatusCode::PAYLOAD_TOO_LARGE,
            Err(_) => return StatusCode::REQUEST_TIMEOUT,
        };
        let called = (*method == Method::POST).then(|| called(path)).flatten();
        let Some((node, token)) = called else { return StatusCode::NOT_FOUND };
        let (reply, answer) = oneshot::channel();
        let call = BootCall { node, peer, token, report: report(&body), reply };
        let asking = timeout(ANSWER_TIME_MAX, async {
            self.calls.send(call).await.ok()?;
            answer.await.ok()
        });
        match asking.await {
            Ok(Some(true)) => StatusCode::ACCEPTED,
            Ok(Some(false)) => StatusCode::NOT_FOUND,
            Ok(None) | Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Whether a path may belong to a call.
pub fn is_call(path: &str) -> bool {
    path.starts_with(NODES)
}

/// The node and the token in a path.
fn called(path: &str) -> Option<(NodeName, BootToken)> {
    let mut parts = path.strip_prefix(NODES)?.split('/');
    let (node, booted, token) = (parts.next()?, parts.next()?, parts.next()?);
    (booted == BOOTED && parts.next().is_none()).then_some(())?;
    Some((node.parse().ok()?, token.parse().ok()?))
}

/// Reads a form; any other body gives an empty report.
fn report(body: &[u8]) -> BootReport {
    let mut report = BootReport::default();
    for (name, value) in form_urlencoded::parse(body) {
        match &*name {
            "hostname" => report.hostname = Some(value.into_owned()),
            "instance_id" => report.instance_id = Some(value.into_owned()),
            name if name.starts_with(HOST_KEY) => report.ssh_host_keys.extend(host_key(&value)),
            _ => {}
        }
    }
    report
}

/// The fingerprint of a public key in OpenSSH's format, as `ssh-keygen -l` has it.
fn host_key(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    let key = BASE64_STANDARD.decode(key).ok()?;
    // The key begins with the length of its kind and the kind (RFC 4253 §6.6).
    let length = u32::try_from(kind.len()).ok()?.to_be_bytes();
    let is_key = key.strip_prefix(&length)?.starts_with(kind.as_bytes());
    let fingerprint = BASE64_STANDARD_NO_PAD.encode(Sha256::digest(&key));
    is_key.then(|| format!("{kind} SHA256:{fingerprint}"))
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body_util::Full;
    use hyper::body::{Bytes, Frame};

    use super::*;

    /// `ssh-keygen -t ed25519`, and what `ssh-keygen -lf` says of it.
    const KEY: &str = "ssh-ed25519 \
        AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl root@edge-07";
    const FINGERPRINT: &str = "ssh-ed25519 SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU";

    fn token() -> BootToken {
        BootToken::from_bytes(&[0x5a; 32])
    }

    #[test]
    fn a_call_is_read_back_from_its_own_url() {
        let node: NodeName = "edge-07".parse().unwrap();
        for at in ["192.0.2.1:8069", "[2001:db8::1]:8069"] {
            let url = url(at.parse().unwrap(), &node, &token());
            let path = url.expose().strip_prefix(&format!("http://{at}")).unwrap();
            assert!(is_call(path));
            assert_eq!(called(path), Some((node.clone(), token())));
        }
        let token = token();
        let token = token.expose();
        for bad in [
            "/v1/nodes/edge-07/booted".to_owned(),
            format!("/v1/nodes/edge-07/booted/{token}/"),
            format!("/v1/nodes/edge-07/booted/{}", &token[1..]),
            format!("/v1/nodes/edge-07/booted/{}", token.to_uppercase()),
            format!("/v1/nodes/edge_07/booted/{token}"),
            format!("/v1/nodes/edge-07/deployed/{token}"),
            format!("/nodes/edge-07/booted/{token}"),
        ] {
            assert_eq!(called(&bad), None, "{bad}");
        }
    }

    /// A body that sends nothing and does not end.
    struct Silent;

    impl Body for Silent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    fn path() -> String {
        format!("/v1/nodes/edge-07/booted/{}", token().expose())
    }

    async fn posts(calls: &BootCalls, body: impl Into<Bytes>, last: u8) -> StatusCode {
        calls.answer(&Method::POST, &path(), Full::new(body.into()), [192, 0, 2, last].into()).await
    }

    /// Invariant (attempt): A stranger's call costs little memory, little time, and a limited rate.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_too_large_too_slow_or_one_of_too_many_is_cut_off() {
        let (calls, mut received) = BootCalls::channel(1);
        assert_eq!(posts(&calls, vec![b'x'; 20 << 10], 1).await, StatusCode::PAYLOAD_TOO_LARGE);
        let path = path();
        let silent = calls.answer(&Method::POST, &path, Silent, [192, 0, 2, 2].into());
        let silent = timeout(Duration::from_secs(11), silent).await;
        assert_eq!(silent, Ok(StatusCode::REQUEST_TIMEOUT));
        // The driver takes none of these.
        let unanswered = timeout(Duration::from_secs(6), posts(&calls, "", 3)).await;
        assert_eq!(unanswered, Ok(StatusCode::SERVICE_UNAVAILABLE));

        assert!(received.recv().await.is_some());
        let answers = tokio::spawn(async move {
            while let Some(call) = received.recv().await {
                call.reply.send(false).unwrap();
            }
        });
        for _ in 0..20 {
            assert_eq!(posts(&calls, "", 4).await, StatusCode::NOT_FOUND);
        }
        assert_eq!(posts(&calls, "", 4).await, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(posts(&calls, "", 5).await, StatusCode::NOT_FOUND, "another machine");
        answers.abort();
    }

    #[test]
    fn what_cloud_init_posts_is_read_with_the_fingerprints_of_its_keys() {
        let form: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("pub_key_rsa", "N/A")
            .append_pair("pub_key_ed25519", KEY)
            .append_pair("pub_key_ecdsa", "ecdsa-sha2-nistp256 AAAA= x")
            .append_pair("instance_id", "i-1")
            .append_pair("hostname", "edge-07")
            .append_pair("fqdn", "edge-07.example")
            .finish();
        let wanted = BootReport {
            hostname: Some("edge-07".into()),
            instance_id: Some("i-1".into()),
            ssh_host_keys: vec![FINGERPRINT.to_owned()],
        };
        assert_eq!(report(form.as_bytes()), wanted);
        for nothing in [&b""[..], b"\xff\xfe", b"{}", b"pub_key_rsa=%00%ff&&&==="] {
            assert_eq!(report(nothing), BootReport::default(), "{nothing:?}");
        }
    }
}
