//! One UDP conversation with a BMC: sends, waits, repeats, and closes the session in every case.
//!
//! A call opens it. It holds the only socket of the module. It must never leave a session open: a
//! dropped link sends a Close Session.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    commands::IpmiCommand,
    exchange::{Exchange, LoginFailure, NotOpened},
    handshake::{Credentials, Handshake, Nonces, Progress},
    packet::DATAGRAM_BYTES_MAX,
    session::Session,
    sol::Acknowledgement,
};
use crate::{
    bmc::timing::Timing,
    model::{backoff::Backoff, spec::CipherSuite},
};

/// How often a datagram is sent before the link gives up: with the default timing after 8 seconds.
/// A fresh session, or the other suite, then promises more than a fifth try.
pub(super) const SENDS_MAX: u32 = 4;
/// How often RAKP message 3 is sent: after the first one, a BMC may consider the session open, and
/// then cannot answer another.
const PROOF_SENDS_MAX: u32 = 2;
/// How often a Close Session is sent. Few times, because the caller waits for it.
const CLOSE_SENDS_MAX: u32 = 3;

/// RMCP presence ping (ASF 2.0 §3.2.4.2).
const PRESENCE_PING: [u8; 12] = [6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x80, 0, 0, 0];
/// The wait for the answer to a presence ping. A kernel gives up on a neighbor after three seconds.
const PROBE_WAIT: Duration = Duration::from_millis(3500);

/// An open session and its socket.
#[derive(Debug)]
pub(in crate::bmc) struct Link {
    socket: Arc<UdpSocket>,
    session: Session,
    timing: Timing,
    closed: bool,
}

/// Processes a SOL payload, and returns its acknowledgement.
pub(super) type Take<'a> = &'a mut (dyn FnMut(&[u8]) -> Option<Acknowledgement> + Send);

impl Link {
    /// Opens a session from a fresh port: a BMC may still connect an older handshake with the last
    /// one.
    pub(super) async fn open(
        address: SocketAddr,
        credentials: Credentials,
        suite: CipherSuite,
        timing: Timing,
        sends_max: u32,
    ) -> Result<Self, NotOpened> {
        let not_opened = |error: &io::Error| NotOpened {
            failure: LoginFailure::Silent,
            suite_accepted: false,
            network: Some(error.kind()),
        };
        let socket = Arc::new(connected(address).await.map_err(|e| not_opened(&e))?);
        let handshake = Handshake::start(credentials, suite, nonces());
        Opening { socket, handshake }.run(timing, sends_max).await
    }

    /// Sends a command and waits for its answer.
    pub(super) async fn send(&mut self, command: IpmiCommand) -> Exchange {
        self.send_beside(command, &mut |_| None).await
    }

    /// Sends a command, and processes SOL packets while it waits for the answer.
    pub(super) async fn send_beside(&mut self, command: IpmiCommand, take: Take<'_>) -> Exchange {
        let Some(request) = self.session.request(command) else { return Exchange::Spent };
        let mut waits = answer_waits(self.timing);
        for _ in 0..SENDS_MAX {
            let datagram = self.session.seal(&request, random());
            let until = Instant::now() + waits.next_pause();
            let judge = |received: &[u8]| {
                take_sol(&self.socket, &mut self.session, received, take);
                self.session.answer(&request, received)
            };
            match send_and_receive(&self.socket, &datagram, until, judge).await {
                Ok(Some(answer)) => return Exchange::Answer(answer),
                Ok(None) => {}
                Err(error) => return Exchange::Silence(Some(error.kind())),
            }
        }
        Exchange::Silence(None)
    }

    /// Waits for SOL packets and processes them; `false` if none comes before `until`.
    pub(super) async fn listen(&mut self, until: Instant, take: Take<'_>) -> bool {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        let received = async {
            loop {
                match self.socket.recv(&mut buffer).await {
                    Ok(length) => {
                        let datagram = buffer.get(..length).unwrap_or_default();
                        if take_sol(&self.socket, &mut self.session, datagram, take) {
                            return;
                        }
                    }
                    // The error may be about an earlier datagram; the next command shows whether
                    // the session is lost.
                    Err(_) => sleep(self.timing.resend_first).await,
                }
            }
        };
        timeout_at(until, received).await.is_ok()
    }

    /// Closes the session, and waits briefly for the BMC's answer.
    pub(super) async fn close(mut self, deadline: Instant) {
        self.closed = true;
        let request = self.session.close();
        let mut waits = answer_waits(self.timing);
        for _ in 0..CLOSE_SENDS_MAX {
            let datagram = self.session.seal(&request, random());
            let judge = |received: &[u8]| self.session.answer(&request, received);
            let until = (Instant::now() + waits.next_pause()).min(deadline);
            let received = send_and_receive(&self.socket, &datagram, until, judge).await;
            if matches!(received, Ok(Some(_))) || until == deadline {
                return;
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.closed {
            let request = self.session.close();
            send_unawaited(&self.socket, &self.session.seal(&request, random()));
        }
    }
}

/// A handshake and its socket. Dropped before its end, it cancels the handshake at the BMC.
struct Opening {
    socket: Arc<UdpSocket>,
    handshake: Handshake,
}

impl Opening {
    async fn run(mut self, timing: Timing, most: u32) -> Result<Link, NotOpened> {
        let mut waits = answer_waits(timing);
        let mut sends = 0;
        loop {
            let datagram = self.handshake.datagram().to_vec();
            let judge = |received: &[u8]| self.handshake.receive(received);
            let until = shared_end(Instant::now(), waits.next_pause());
            sends += 1;
            match send_and_receive(&self.socket, &datagram, until, judge).await {
                Ok(Some(Progress::Established(session))) => {
                    let socket = Arc::clone(&self.socket);
                    return Ok(Link { socket, session, timing, closed: false });
                }
                Ok(Some(Progress::Failed(failure))) => return Err(self.failed(failure, None)),
                Ok(Some(Progress::Send)) => {
                    (waits, sends) = (answer_waits(timing), 0);
                    continue;
                }
                Ok(None) => {}
                Err(error) => return Err(self.failed(LoginFailure::Silent, Some(error.kind()))),
            }
            let sends_max = if self.handshake.proved() { PROOF_SENDS_MAX } else { most };
            if sends >= sends_max {
                return Err(self.failed(LoginFailure::Silent, None));
            }
        }
    }

    fn failed(&self, failure: LoginFailure, network: Option<io::ErrorKind>) -> NotOpened {
        NotOpened { failure, suite_accepted: self.handshake.suite_accepted(), network }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        for datagram in self.handshake.abandon(random()) {
            send_unawaited(&self.socket, &datagram);
        }
    }
}

/// Processes and acknowledges a datagram, if it is a SOL packet.
fn take_sol(
    socket: &UdpSocket,
    session: &mut Session,
    datagram: &[u8],
    take: &mut (impl FnMut(&[u8]) -> Option<Acknowledgement> + ?Sized),
) -> bool {
    let Some(payload) = session.sol(datagram) else { return false };
    if let Some(acknowledgement) = take(&payload) {
        send_unawaited(socket, &session.seal_sol(&acknowledgement, random()));
    }
    true
}

/// Sends a datagram that has no answer. After a lost Close Session, the BMC's own session timeout
/// applies; after a lost acknowledgement, the BMC repeats its packet.
fn send_unawaited(socket: &UdpSocket, datagram: &[u8]) {
    if let Err(error) = socket.try_send(datagram) {
        tracing::debug!(%error, "a datagram to a bmc was not sent");
    }
}

/// The wait for each answer.
fn answer_waits(timing: Timing) -> Backoff {
    Backoff::by_half(timing.resend_first, timing.resend_max)
}

/// The end of a wait of this length, at most a sixteenth later. Waits of one length that begin one
/// shortly after the other end together: with thousands of silent BMCs, waking up for each of them
/// is most of the cost.
fn shared_end(now: Instant, wait: Duration) -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let grid_ns = (wait / 16).as_nanos().max(1);
    let over_ns = (now + wait).saturating_duration_since(*START).as_nanos() % grid_ns;
    let rest_ns = u64::try_from(grid_ns - over_ns).unwrap_or(0);
    now + wait + Duration::from_nanos(rest_ns)
}

/// Sends a datagram, and passes received datagrams to `judge` until it returns a value or the time
/// is over.
async fn send_and_receive<T>(
    socket: &UdpSocket,
    datagram: &[u8],
    until: Instant,
    mut judge: impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    let received = async {
        socket.send(datagram).await?;
        loop {
            let length = socket.recv(&mut buffer).await?;
            if let Some(found) = judge(buffer.get(..length).unwrap_or_default()) {
                return Ok(found);
            }
        }
    };
    match timeout_at(until, received).await {
        Ok(Ok(found)) => Ok(Some(found)),
        Ok(Err(error)) => {
            // The error ("connection refused") may be about an earlier datagram, and a BMC may be
            // about to start.
            sleep_until(until).await;
            Err(error)
        }
        Err(_elapsed) => Ok(None),
    }
}

/// Asks whether a host answers at an address (ASF 2.0 §3.2.4.2), and returns the network's error if
/// it reports one in time.
pub(in crate::bmc) async fn probe(address: SocketAddr) -> Option<io::ErrorKind> {
    let socket = match connected(address).await {
        Ok(socket) => socket,
        Err(error) => return Some(error.kind()),
    };
    let until = Instant::now() + PROBE_WAIT;
    match send_and_receive(&socket, &PRESENCE_PING, until, |_| Some(())).await {
        Ok(_) => None,
        Err(error) => Some(error.kind()),
    }
}

async fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr =
        if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    // The kernel reports "host unreachable" to the socket only with this option (ip(7), ipv6(7)).
    if address.is_ipv4() {
        setsockopt(&socket, Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, Ipv6RecvErr, &true)?;
    }
    socket.connect(address).await?;
    Ok(socket)
}

fn nonces() -> Nonces {
    let [tag] = random();
    // Session id 0 means no session.
    let console_id = u32::from_le_bytes(random()).max(1);
    Nonces { tag, console_id, challenge: random() }
}

/// Random bytes for challenges, ids and initialisation vectors.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if let Err(error) = getrandom::fill(&mut bytes) {
        unreachable!("the kernel gives random bytes: {error}");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::{secret::Secret, spec::Privilege};

    #[test]
    fn waits_that_begin_one_shortly_after_the_other_end_together() {
        let start = Instant::now();
        for wait in [Duration::from_secs(1), Duration::from_millis(2250), Duration::from_millis(7)]
        {
            let begins = (0..=16_u32).map(|n| start + wait / 16 / 16 * n);
            let mut ends = BTreeSet::new();
            for begin in begins {
                let end = shared_end(begin, wait);
                assert!(end >= begin + wait && end <= begin + wait + wait / 16, "{wait:?}");
                ends.insert(end);
            }
            assert!(ends.len() <= 2, "{wait:?}: {} ends", ends.len());
        }
        assert_eq!(shared_end(start, Duration::ZERO).duration_since(start).as_nanos(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_bmcs_that_are_asked_one_shortly_after_the_other_are_given_up_together() {
        let silent = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        let address = silent.local_addr().unwrap();
        let given_up_at = async |ms| {
            sleep(Duration::from_millis(ms)).await;
            let credentials = Credentials {
                username: "admin".to_owned(),
                password: Secret::new("password".to_owned()),
                kg: None,
                privilege: Privilege::Administrator,
            };
            let timing = Timing::default();
            let opened = Link::open(address, credentials, CipherSuite::Sha256, timing, 2).await;
            assert_eq!(opened.unwrap_err().failure, LoginFailure::Silent);
            Instant::now()
        };
        let mut ends = BTreeSet::new();
        for ms in [1, 7, 11] {
            let (one, other) = tokio::join!(given_up_at(0), given_up_at(ms));
            ends.insert(other.duration_since(one));
        }
        assert!(ends.contains(&Duration::ZERO), "{ends:?}");
    }
}
