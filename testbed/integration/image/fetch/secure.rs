//! TLS and proxies, by environment variables: each fetch runs in a separate process.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    ops::Range,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::{Fetch, digest, nginx::Nginx};
use crate::ports;

const PUBLISHED: &[u8] = b"the bytes of a disk";

/// The environment variable with the source, in a process that [`complaint`] has started.
const SOURCE: &str = "HOSTLER_TEST_SOURCE";

/// Fetches the source of the environment; a local file without one.
#[tokio::test]
async fn a_process_of_its_own_fetches() {
    let fetch = Fetch { stall: Duration::from_secs(8), ..Fetch::new() };
    fs::write(fetch.images().join("a.img"), PUBLISHED).unwrap();
    let source = std::env::var(SOURCE).unwrap_or_else(|_| "a.img".to_owned());
    if let Err(error) = fetch.run(&source, &digest(PUBLISHED)).await {
        panic!("error: {error} (lasting: {})", error.is_lasting());
    }
}

/// Runs a fetch in a process with this environment; returns its error, or `None` on success.
fn complaint(source: &str, environment: &[(&str, &str)]) -> Option<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::fetch::secure::a_process_of_its_own_fetches", "--nocapture"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env(SOURCE, source)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(text.contains("running 1 test"), "{text}");
    let error = text.lines().find_map(|line| line.strip_prefix("error: "));
    (!output.status.success()).then(|| error.unwrap_or(&text).to_owned())
}

/// TLS servers with different certificates.
struct Servers {
    nginx: Nginx,
    good: SocketAddr,
    other_name: SocketAddr,
    expired: SocketAddr,
    early: SocketAddr,
    stranger: SocketAddr,
}

impl Servers {
    fn start() -> Self {
        let [good, other_name, expired, early, stranger] = std::array::from_fn(|_| ports::free());
        let nginx = Nginx::serve(|dir| {
            let ours = Authority::new("ours");
            fs::write(dir.join("ca.pem"), &ours.pem).unwrap();
            let theirs = Authority::new("theirs");
            [
                ours.server(dir, good, "localhost", 2010..2100),
                ours.server(dir, other_name, "other.test", 2010..2100),
                ours.server(dir, expired, "localhost", 2010..2020),
                ours.server(dir, early, "localhost", 2090..2100),
                theirs.server(dir, stranger, "localhost", 2010..2100),
            ]
            .concat()
        });
        nginx.publish("a.img", PUBLISHED);
        Self { nginx, good, other_name, expired, early, stranger }
    }

    fn trusted(&self) -> String {
        self.nginx.file("ca.pem").to_str().unwrap().to_owned()
    }
}

fn url(server: SocketAddr, path: &str) -> String {
    format!("https://localhost:{}/{path}", server.port())
}

/// A temporary certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The configuration of a server with a certificate for these years.
    fn server(&self, dir: &Path, address: SocketAddr, name: &str, years: Range<i32>) -> String {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let file = |ending| dir.join(format!("{}.{ending}", address.port()));
        fs::write(file("pem"), certificate).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        format!(
            "server {{ listen {address} ssl; ssl_certificate {}; ssl_certificate_key {};
                location /down {{ return 302 http://localhost/a.img; }} }}\n",
            file("pem").display(),
            file("key").display()
        )
    }
}

#[test]
fn a_server_whose_issuer_is_trusted_is_believed_and_no_other() {
    let servers = Servers::start();
    let trusted = servers.trusted();
    let environment = [("SSL_CERT_FILE", trusted.as_str())];
    assert_eq!(complaint(&url(servers.good, "a.img"), &environment), None);
    for (server, reason) in [
        (servers.stranger, "the server's certificate was issued by nobody this system trusts"),
        (
            servers.expired,
            "the server's certificate was valid until 2020-01-01T00:00:00Z, and this machine's \
             clock says 2",
        ),
        (
            servers.early,
            "the server's certificate is valid from 2090-01-01T00:00:00Z on, and this machine's \
             clock says 2",
        ),
        (servers.other_name, "certificate not valid for name \"localhost\""),
    ] {
        let error = complaint(&url(server, "a.img"), &environment).unwrap();
        assert!(error.contains(reason) && error.contains("lasting: true"), "{error}");
    }
    let error = complaint(&url(servers.good, "a.img"), &[]).unwrap();
    assert!(error.contains("issued by nobody this system trusts"), "{error}");
}

#[test]
fn https_is_never_left_by_a_redirect() {
    let servers = Servers::start();
    let trusted = servers.trusted();
    let error = complaint(&url(servers.good, "down"), &[("SSL_CERT_FILE", &trusted)]).unwrap();
    assert!(error.contains("redirected from https to another scheme"), "{error}");
}

/// A running tinyproxy; killed on drop.
struct Tinyproxy {
    child: Child,
    dir: TempDir,
    address: SocketAddr,
}

impl Tinyproxy {
    fn start() -> Self {
        let (dir, address) = (TempDir::new().unwrap(), ports::free());
        let log = dir.path().join("log");
        let config = format!(
            "Port {}\nListen 127.0.0.1\nTimeout 60\n\
             MaxClients 20\nLogLevel Connect\nLogFile \"{}\"\n",
            address.port(),
            log.display()
        );
        fs::write(dir.path().join("conf"), config).unwrap();
        let child = Command::new("tinyproxy")
            .args(["-d", "-c"])
            .arg(dir.path().join("conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "tinyproxy did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, dir, address }
    }

    /// Whether the proxy got this request.
    fn received(&self, request: &str) -> bool {
        fs::read_to_string(self.dir.path().join("log")).unwrap().contains(request)
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn proxies_are_used_as_the_environment_says() {
    let (servers, proxy) = (Servers::start(), Tinyproxy::start());
    let (trusted, by) = (servers.trusted(), format!("http://{}", proxy.address));
    let plain = servers.nginx.url("a.img");
    let by_proxy =
        |nginx: &Nginx| nginx.log().last().is_some_and(|line| line.contains("tinyproxy"));

    assert_eq!(complaint(&plain, &[("http_proxy", &by)]), None);
    assert!(by_proxy(&servers.nginx), "{:?}", servers.nginx.log());

    assert_eq!(
        complaint(&plain, &[("http_proxy", &by), ("no_proxy", "10.0.0.0/8,127.0.0.1")]),
        None
    );
    assert!(!by_proxy(&servers.nginx), "{:?}", servers.nginx.log());

    let secure = url(servers.good, "a.img");
    let connect = format!("CONNECT localhost:{}", servers.good.port());
    let environment = [("https_proxy", by.as_str()), ("SSL_CERT_FILE", trusted.as_str())];
    assert_eq!(
        complaint(&secure, &[&environment[..], &[("no_proxy", "localhost")]].concat()),
        None
    );
    assert!(!proxy.received(&connect));
    assert_eq!(complaint(&secure, &environment), None);
    assert!(proxy.received(&connect));

    let nobody = format!("http://user:hunter2@{}", ports::free());
    let error = complaint(&plain, &[("http_proxy", &nobody)]).unwrap();
    assert!(error.contains("refused") && !error.contains("hunter2"), "{error}");
}
