//! Hundreds of connections that only take places, in every phase of a connection, while a ramdisk
//! wants to get through.

use std::{net::Ipv4Addr, time::Duration};

use hostler::{
    callback::CallbackLimits,
    model::callback::{DeployState, Reply},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::client::TlsStream;

use super::{Agent, DEPLOY_INFO, Got, LOOKUP, judge, key, path, until_closed};

const CROWD: u16 = 500;
/// The first bytes of a TLS handshake record that announces 512 more (RFC 8446 §5.1).
const HALF_A_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0];
/// Time limit for a ramdisk that retries; it has minutes.
const GETS_THROUGH_WITHIN: Duration = Duration::from_secs(20);

/// A client that keeps a connection without further bytes.
#[expect(dead_code, reason = "held open")]
enum Idler {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A separate loopback address for each number.
fn address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

/// Opens a connection and stops in one of five phases. `None` if the server cut it before.
async fn idle(agent: &Agent, from: Ipv4Addr, phase: u16) -> Option<Idler> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut plain = socket.connect(agent.addr).await.ok()?;
    let post = format!("POST {} HTTP/1.1\r\nHost: x\r\n", path("edge-07", "lookup"));
    let said = match phase {
        0 => return Some(Idler::Plain(plain)),
        1 => {
            plain.write_all(HALF_A_HELLO).await.ok()?;
            return Some(Idler::Plain(plain));
        }
        2 => post,
        3 => format!("{post}Content-Length: 100\r\n\r\n{{\"macs\":"),
        // Reads no answer.
        _ => "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(30),
    };
    let mut tls = agent.handshake(plain).await?;
    tls.write_all(said.as_bytes()).await.ok()?;
    tls.flush().await.ok()?;
    Some(Idler::Tls(Box::new(tls)))
}

/// Repeats a call as the ramdisk does, after a cut and after "too many requests".
async fn gets_through(agent: &Agent, method: &str, call: &str, body: &str) -> Got {
    let deadline = Instant::now() + GETS_THROUGH_WITHIN;
    loop {
        let got = agent.try_curl(method, &path("edge-07", call), Some(&key()), body).await;
        match got.filter(|got| got.status != 429) {
            Some(got) => return got,
            None => assert!(Instant::now() < deadline, "{call} does not get through"),
        }
        sleep(Duration::from_millis(500)).await;
    }
}

async fn all_calls_get_through(agent: &Agent) {
    for (method, call, body, status) in [
        ("POST", "lookup", LOOKUP, 200),
        ("POST", "pass_deploy_info", DEPLOY_INFO, 202),
        ("POST", "completed", r#"{"verified":true}"#, 202),
    ] {
        assert_eq!(gets_through(agent, method, call, body).await.status, status, "{call}");
    }
}

/// Invariant (fair): Silence at the callback listener keeps no ramdisk out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_only_takes_places_keeps_no_ramdisk_out_and_ends_no_wait_of_one() {
    let (release, released) = watch::channel(false);
    let limits = CallbackLimits { poll: Duration::from_secs(50), ..CallbackLimits::default() };
    let agent = Agent::start(limits, move |request| {
        Some(match judge(request) {
            Reply::State(_) if !*released.borrow() => Reply::State(DeployState::Imaging.into()),
            other => other,
        })
    })
    .await;
    // A ramdisk has been waiting for its release since before the crowd.
    let question = path("edge-07", "deploy_state");
    let good_key = key();
    let waiting = agent.try_curl("GET", &question, Some(&good_key), "");
    let crowd = async {
        agent.requested(1).await;
        let mut crowd = Vec::new();
        for number in 0..CROWD {
            crowd.extend(idle(&agent, address(number), number % 5).await);
        }
        assert!(crowd.len() > usize::from(CROWD) * 4 / 5, "{} came so far", crowd.len());
        all_calls_get_through(&agent).await;
        // As many from the ramdisk's own address.
        for number in 0..CROWD {
            crowd.extend(idle(&agent, Ipv4Addr::LOCALHOST, number % 5).await);
        }
        all_calls_get_through(&agent).await;
        release.send(true).unwrap();
        agent.changed.send_modify(|tick| *tick += 1);
    };
    let (got, ()) = tokio::join!(waiting, crowd);
    assert_eq!(got.expect("its wait was cut").body, r#"{"state":"release"}"#);
}

#[tokio::test]
async fn a_place_is_taken_from_the_oldest_that_has_shown_no_key() {
    let limits = CallbackLimits { connections_per_peer_max: 2, ..CallbackLimits::default() };
    let agent = Agent::judging(limits).await;
    let mut proven = agent.connect().await;
    let said = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n\r\n",
        path("edge-07", "deploy_state"),
        key()
    );
    proven.write_all(said.as_bytes()).await.unwrap();
    agent.requested(1).await;
    let mut old = agent.connect().await;
    old.write_all(said.replace("5a", "5b").as_bytes()).await.unwrap();
    agent.requested(2).await;
    let _new = agent.connect().await;
    let answer = String::from_utf8(until_closed(&mut old).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    // A client that has shown a valid key still gets answers.
    proven.write_all(said.replace("x\r\n", "x\r\nConnection: close\r\n").as_bytes()).await.unwrap();
    let answers = timeout(Duration::from_secs(10), until_closed(&mut proven)).await.unwrap();
    assert_eq!(String::from_utf8(answers).unwrap().matches("HTTP/1.1 200 ").count(), 2);
}
