//! Servers that cannot send the rest of a file, each with an observed behaviour.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Fetch, digest, noise};

const MIB: usize = 1 << 20;

/// A web server in Python with a chosen behaviour: it cuts the first answer in the middle, and then
/// answers `Range` in the given way.
const SERVER: &str = include_str!("ranges.py");

struct Server(Child, String);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Server {
    async fn start(fetch: &Fetch, manners: &str, published: &[u8]) -> Self {
        let dir = fetch.images();
        fs::write(dir.join("published"), published).unwrap();
        let address = crate::ports::free();
        let child = Command::new("python3")
            .args(["-c", SERVER, &address.port().to_string(), manners])
            .current_dir(&dir)
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        let server = Self(child, format!("http://{address}/a.img"));
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server
    }
}

/// The server's requests so far, each with its range.
fn requests(fetch: &Fetch) -> Vec<String> {
    let log = fs::read_to_string(fetch.images().join("log")).unwrap();
    log.lines().filter(|line| line.starts_with("GET ")).map(str::to_owned).collect()
}

/// Invariant (image): A broken download succeeds from any server that still sends the whole file.
#[tokio::test]
async fn a_range_that_cannot_be_used_has_the_whole_file_asked_for() {
    let published = noise(3 * MIB);
    for manners in [
        "from-zero",
        "from-block",
        "one-too-many",
        "no-content-range",
        "nonsense-content-range",
        "past-total",
        "multipart",
        "slice-as-200",
        "400",
        "403",
        "404",
        "405",
        "416",
        "501",
    ] {
        let fetch = Fetch::new();
        let server = Server::start(&fetch, manners, &published).await;
        fetch.run(&server.1, &digest(&published)).await.unwrap();
        assert!(fetch.bytes() == published, "{manners}");
        let log = requests(&fetch);
        assert_eq!(log.first().unwrap(), "GET None", "{manners}: {log:?}");
        assert_eq!(log.last().unwrap(), "GET None", "{manners}: {log:?}");
        assert!(log.len() <= 4, "{manners}: {log:?}");
    }
}

/// Invariant (image): A broken download succeeds from any server that still sends the whole file.
#[tokio::test]
async fn a_part_that_begins_right_is_used_however_short_it_is() {
    let published = noise(3 * MIB);
    for manners in ["short", "short-without-total"] {
        let fetch = Fetch::new();
        let server = Server::start(&fetch, manners, &published).await;
        fetch.run(&server.1, &digest(&published)).await.unwrap();
        assert!(fetch.bytes() == published, "{manners}");
        let log = requests(&fetch);
        assert_eq!(log.iter().filter(|line| *line == "GET None").count(), 1, "{manners}: {log:?}");
        assert!(log.len() > 3, "{manners}: {log:?}");
    }
}

/// Invariant (image): A broken download succeeds from any server that still sends the whole file.
#[tokio::test]
async fn a_server_that_falls_silent_or_fails_at_each_range_is_asked_for_the_whole_at_last() {
    let published = noise(3 * MIB);
    for (manners, stall_s) in [("silent", 3), ("hang-up", 4), ("500", 4), ("503", 4)] {
        let fetch = Fetch { stall: Duration::from_secs(stall_s), ..Fetch::new() };
        let server = Server::start(&fetch, manners, &published).await;
        fetch.run(&server.1, &digest(&published)).await.unwrap();
        assert!(fetch.bytes() == published, "{manners}");
        assert!(requests(&fetch).len() > 2, "{manners}");
    }
}

/// Invariant (image): A broken download succeeds from any server that still sends the whole file.
#[tokio::test]
async fn a_beginning_outlives_a_server_that_refuses_the_whole_too() {
    let fetch = Fetch::new();
    fetch.begin_with(b"12");
    let server = Server::start(&fetch, "403-always", b"1234").await;
    let error = fetch.error(&server.1, &digest(b"1234")).await;
    assert!(error.to_string().ends_with("the server answered 403 Forbidden"), "{error}");
    assert_eq!(fetch.bytes(), b"12");
}

/// Invariant (image): A broken download succeeds from any server that still sends the whole file.
#[tokio::test]
async fn a_server_that_never_answers_head_costs_seconds() {
    let fetch = Fetch { stall: Duration::from_mins(2), ..Fetch::new() };
    let server = Server::start(&fetch, "head-hangs", b"bytes").await;
    let began = Instant::now();
    assert!(fetch.size(&server.1).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
