//! A simulated agent: a certificate, and an answer to each request.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::{CertifiedKey, SingleCertAndKey},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::{Agent, Patience};
use crate::{
    model::{backoff::Backoff, boot::RamdiskArgs, ids::hex, secret::AttemptKey},
    ramdisk::log::Log,
};

/// Short limits for tests.
pub(in crate::ramdisk) const PATIENCE: Patience = Patience {
    pauses: Backoff::doubling(Duration::from_millis(10), Duration::from_millis(50)),
    unknown: Duration::from_millis(300),
    silence: Duration::from_secs(2),
};

/// The answer to a request: status and body. `None` hangs up.
pub(in crate::ramdisk) type Answer = Option<(u16, &'static str)>;

pub(in crate::ramdisk) struct Pretended {
    address: SocketAddr,
    certificate: CertificateDer<'static>,
    requested: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Pretended {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pretended {
    /// Starts an agent that answers by a request's name and the number of earlier requests of that
    /// name.
    pub(in crate::ramdisk) async fn start(
        answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let pair = KeyPair::generate().unwrap();
        let certificate = certificate(&pair);
        Self::showing(certificate, &pair, answer).await
    }

    /// Starts an agent that shows a certificate, perhaps without its key.
    pub(in crate::ramdisk) async fn showing(
        certificate: CertificateDer<'static>,
        pair: &KeyPair,
        answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let key = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let key = ring::sign::any_supported_type(&key).unwrap();
        let shown = SingleCertAndKey::from(CertifiedKey::new(vec![certificate.clone()], key));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requested = Arc::<Mutex<Vec<String>>>::default();
        let task = tokio::spawn({
            let requested = Arc::clone(&requested);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    serve(&tls, stream, &requested, &answer).await.unwrap_or_default();
                }
            }
        });
        Self { address, certificate, requested, task }
    }

    pub(in crate::ramdisk) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// The ramdisk's client of this agent.
    pub(in crate::ramdisk) fn seen_by_a_ramdisk(&self) -> Agent {
        let args = RamdiskArgs {
            api: self.address,
            node: "edge-07".parse().unwrap(),
            key: AttemptKey::from_bytes(&[0x5a; 32]),
            pin: hex(&Sha256::digest(&self.certificate)),
        };
        Agent::with_patience(args, Log::default(), PATIENCE).unwrap()
    }

    /// The names of the calls, in order.
    pub(in crate::ramdisk) fn requested(&self) -> Vec<String> {
        self.requested.lock().unwrap().clone()
    }
}

pub(in crate::ramdisk) fn certificate(pair: &KeyPair) -> CertificateDer<'static> {
    let params = CertificateParams::new(["hostler".to_owned()]).unwrap();
    params.self_signed(pair).unwrap().der().clone()
}

async fn serve(
    tls: &TlsAcceptor,
    stream: TcpStream,
    requested: &Mutex<Vec<String>>,
    answer: &impl Fn(&str, usize) -> Answer,
) -> std::io::Result<()> {
    let mut stream = tls.accept(stream).await?;
    let mut said = Vec::new();
    while !is_whole(&said) {
        if stream.read_buf(&mut said).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&said);
    assert!(text.contains(&format!("Bearer {}\r\n", "5a".repeat(32))), "{text}");
    let path = text.split(' ').nth(1).unwrap_or_default();
    let name = path.strip_prefix("/v1/nodes/edge-07/vendor_passthru/").unwrap().to_owned();
    let before = requested.lock().unwrap().iter().filter(|other| **other == name).count();
    requested.lock().unwrap().push(name.clone());
    if let Some((status, body)) = answer(&name, before) {
        let bytes = body.len();
        let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {bytes}\r\n\r\n{body}");
        stream.write_all(head.as_bytes()).await?;
        stream.shutdown().await?;
    }
    Ok(())
}

/// Whether a request has arrived with its whole body.
fn is_whole(said: &[u8]) -> bool {
    let text = String::from_utf8_lossy(said).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.map_or(0, |length| length.parse().unwrap()) <= body.len()
}
