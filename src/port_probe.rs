//! Probes over TCP whether an installed system is up.
//!
//! Called by the agent during a machine's first boot. It must never send data, nor read more than
//! an SSH banner, and every step has a time limit. The answer is untrusted: anybody may have that
//! address.

use std::{io, net::IpAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::{TcpStream, lookup_host},
    time::{Instant, sleep, timeout, timeout_at},
};

/// The limit of a lookup, of a connection, and of a banner.
const STEP_TIME_MAX: Duration = Duration::from_secs(5);
/// The pause between two probes.
const PAUSE: Duration = Duration::from_secs(3);
/// The duration of one [`probe`].
const ROUND: Duration = Duration::from_secs(30);
/// Most bytes up to the end of a banner (RFC 4253 §4.2 allows lines before it).
const BANNER_BYTES_MAX: u64 = 4096;
/// The beginning of an SSH banner.
const SSH: &str = "SSH-";

/// The answer of a system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortAnswer {
    /// The answering address.
    pub address: IpAddr,
    /// The banner, if the caller wants one.
    pub ssh_banner: Option<String>,
}

/// Probes a host name or address until it answers, for at most half a minute. With `ssh`, the
/// answer must be SSH's banner. The error is the last failure, in words.
pub async fn probe(host: &str, port: u16, ssh: bool) -> Result<PortAnswer, String> {
    let until = Instant::now() + ROUND;
    loop {
        let why = match timeout_at(until, probe_once(host, port, ssh)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(why)) => why,
            Err(_) => format!("nothing answers at {host} port {port}"),
        };
        // Also before the end: the next call may follow at once.
        sleep(PAUSE).await;
        if Instant::now() >= until {
            return Err(why);
        }
    }
}

async fn probe_once(host: &str, port: u16, ssh: bool) -> Result<PortAnswer, String> {
    let addresses = match timeout(STEP_TIME_MAX, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
        Ok(Err(error)) => return Err(format!("{host}: {error}")),
        Err(_) => return Err(format!("{host}: its address was not found in time")),
    };
    let mut why = format!("{host} has no address");
    for address in addresses {
        match timeout(STEP_TIME_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) if ssh => match read_banner(stream).await {
                Ok(banner) => {
                    let (address, ssh_banner) = (address.ip().to_canonical(), Some(banner));
                    return Ok(PortAnswer { address, ssh_banner });
                }
                Err(error) => why = format!("{address} answers, but without SSH's banner: {error}"),
            },
            Ok(Ok(_)) => {
                return Ok(PortAnswer { address: address.ip().to_canonical(), ssh_banner: None });
            }
            Ok(Err(error)) => why = format!("{address}: {error}"),
            Err(_) => why = format!("{address} does not answer"),
        }
    }
    Err(why)
}

/// The line with which an SSH server begins (RFC 4253 §4.2).
async fn read_banner(stream: TcpStream) -> io::Result<String> {
    let read = async {
        let mut reader = BufReader::new(stream.take(BANNER_BYTES_MAX));
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).await? > 0 {
            if line.starts_with(SSH.as_bytes()) && line.ends_with(b"\n") {
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            line.clear();
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "another protocol"))
    };
    timeout(STEP_TIME_MAX, read).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    /// One try at a server that sends this and then waits or ends.
    async fn tried(sent: &'static [u8], ssh: bool, ends: bool) -> Result<PortAnswer, String> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(sent).await.unwrap();
            if !ends {
                std::future::pending::<()>().await;
            }
        });
        let answer = probe_once("127.0.0.1", port, ssh).await;
        server.abort();
        answer
    }

    /// Invariant (attempt): A system counts as up only after its own check said so.
    #[tokio::test]
    async fn port_22_answers_with_the_banner_of_ssh_and_any_other_by_being_open() {
        let banner = |answer: Result<PortAnswer, String>| answer.map(|answer| answer.ssh_banner);
        for good in [&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], b"hello\r\nSSH-2.0-OpenSSH_9.2p1\n"] {
            let said = banner(tried(good, true, false).await);
            assert_eq!(said, Ok(Some("SSH-2.0-OpenSSH_9.2p1".to_owned())));
        }
        for bad in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"SSH-2.0-cut off", b""] {
            let why = tried(bad, true, true).await.unwrap_err();
            assert!(why.contains("without SSH's banner: another protocol"), "{why}");
        }
        assert_eq!(banner(tried(b"", false, true).await), Ok(None));
    }

    #[tokio::test]
    async fn a_server_that_sends_without_end_is_no_ssh_server() {
        let mut late = vec![b'x'; 5000];
        late.extend(b"\r\nSSH-2.0-OpenSSH_9.2p1\r\n");
        let why = tried(late.leak(), true, true).await.unwrap_err();
        assert!(why.contains("another protocol"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_and_a_closed_port_are_named_within_the_time_for_a_step() {
        let why = tried(b"", true, false).await.unwrap_err();
        assert!(why.contains("timed out"), "{why}");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let began = Instant::now();
        let why = probe("127.0.0.1", port, false).await.unwrap_err();
        assert!(why.contains("refused"), "{why}");
        let took = began.elapsed();
        assert!(took + PAUSE >= ROUND && took <= ROUND + PAUSE, "{took:?}");
    }
}
