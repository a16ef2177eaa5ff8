//! A logged-in connection: the socket, the time limits, and the task that moves PDUs between socket
//! and session.
//!
//! The disk uses it. The task ends with the session, and the session with the last [`Connection`].
//! Dropping that resets the TCP connection, so that no queued data reaches a disk that nobody
//! watches any more.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Notify, Semaphore, oneshot},
    task::AbortHandle,
    time,
};

use super::{
    chap::Chap,
    error::IscsiErrorKind,
    login::{Identity, LoggedIn, Login, LoginAction, Random},
    negotiate::{Digests, Negotiated},
    options::IscsiOptions,
    pdu::LunField,
    session::{KeepaliveLimits, Session},
    task::{CommandOutcome, Completion, IscsiCommand, Slot},
    wire::{PduReader, PduWriter},
};

/// Silent ticks before the session ends; at the second one the initiator sends a NOP-Out.
const SILENT_TICKS_MAX: u32 = 4;

/// Most commands of a session in flight: bounds the memory for any window of the target.
const QUEUE_DEPTH_MAX: u16 = 1024;

/// The unit in which data in flight is counted.
const IN_FLIGHT_UNIT_BYTES: usize = 64 << 10;

/// Most data in flight, in units: 4 MiB. One millisecond of a 25-Gbit/s path is 3 MiB; more only
/// falls out of the processor caches at both ends before it is used: with 32 MiB in flight, tgtd
/// wrote at half the speed.
const IN_FLIGHT_UNITS: usize = 64;

/// Shortest keepalive interval.
const KEEPALIVE_MIN: Duration = Duration::from_millis(100);

/// An iSCSI session and its TCP connection.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    driver: AbortHandle,
    slots: Arc<Semaphore>,
    queue_depth: u32,
    room: Arc<Semaphore>,
    agreed: Negotiated,
}

#[derive(Debug)]
struct Shared {
    session: Mutex<Session>,
    /// Notified whenever the session may have a PDU to send.
    wake: Notify,
}

impl Shared {
    fn session(&self) -> MutexGuard<'_, Session> {
        // The session is consistent between calls, so that a panic elsewhere does no harm.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Connects and logs in.
    pub(super) async fn open(
        portal: SocketAddr,
        target_iqn: &str,
        chap: Option<&Chap>,
        options: &IscsiOptions,
    ) -> Result<Self, IscsiErrorKind> {
        let unreachable = |e: std::io::Error| IscsiErrorKind::Unreachable(format!("{portal}: {e}"));
        let stream = time::timeout(options.connect_timeout, TcpStream::connect(portal))
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        // A reset on close discards data that the kernel has not sent yet, if the session ends
        // early.
        stream.set_zero_linger().map_err(unreachable)?;
        Self::over(stream.into_split(), target_iqn, chap, options, random()?).await
    }

    /// Logs in over a connected stream.
    pub(super) async fn over<R, W>(
        (read, write): (R, W),
        target_iqn: &str,
        chap: Option<&Chap>,
        options: &IscsiOptions,
        random: Random,
    ) -> Result<Self, IscsiErrorKind>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let identity = Identity {
            initiator_iqn: &options.initiator_iqn,
            target_iqn,
            chap,
            digests: Digests { header: options.header_digest, data: options.data_digest },
            random,
        };
        let (mut reader, mut writer) = (PduReader::new(read), PduWriter::new(write));
        let login =
            within(options.login_timeout, log_in(&mut reader, &mut writer, &identity)).await?;
        reader.use_digests(login.negotiated.digests);
        writer.use_digests(login.negotiated.digests);
        let shared =
            Arc::new(Shared { session: Mutex::new(Session::new(&login)), wake: Notify::new() });
        let queue_depth = options.queue_depth.clamp(1, QUEUE_DEPTH_MAX);
        let driver =
            tokio::spawn(drive(Arc::clone(&shared), reader, writer, Keepalive::new(options)));
        Ok(Self {
            shared,
            driver: driver.abort_handle(),
            slots: Arc::new(Semaphore::new(usize::from(queue_depth))),
            queue_depth: queue_depth.into(),
            room: Arc::new(Semaphore::new(IN_FLIGHT_UNITS)),
            agreed: login.negotiated,
        })
    }

    /// The parameters that the login negotiated.
    pub(super) fn agreed(&self) -> &Negotiated {
        &self.agreed
    }

    /// Sends one command and returns its outcome. The time limit starts when the command has its
    /// slot. Its end ends the whole session, because the state of the target is then unknown. A
    /// cancelled call does not cancel the command.
    pub(super) async fn execute(
        &self,
        command: IscsiCommand,
        limit: Duration,
    ) -> Result<CommandOutcome, IscsiErrorKind> {
        let slot = self.slot(&command).await;
        let answer = self.ask(slot, |session, completion| session.submit(command, completion));
        let result = within(limit, answer).await;
        if let Err(kind @ IscsiErrorKind::TimedOut(_)) = &result {
            self.give_up(kind);
        }
        result
    }

    /// Ends the session in order: accepts no more commands, waits for those in flight or else drops
    /// them by a LOGICAL UNIT RESET, then logs out. Each step has the limit. The connection is
    /// closed when this returns, also after an error.
    pub(super) async fn log_out(
        &self,
        lun: LunField,
        limit: Duration,
    ) -> Result<(), IscsiErrorKind> {
        let result = self.leave(lun, limit).await;
        self.give_up(&IscsiErrorKind::TargetGone("logged out".to_owned()));
        result
    }

    async fn leave(&self, lun: LunField, limit: Duration) -> Result<(), IscsiErrorKind> {
        self.shared.session().leave();
        // A slot comes back with the target's answer: with all slots, no write is in flight.
        let idle = time::timeout(limit, self.slots.acquire_many(self.queue_depth)).await;
        if idle.is_err() {
            let outcome = within(
                limit,
                self.ask(None, |session, completion| session.reset_unit(lun, completion)),
            )
            .await?;
            if outcome.response != 0 {
                return Err(IscsiErrorKind::Protocol(format!(
                    "it neither finishes its commands nor drops them (response {:02x} to a reset)",
                    outcome.response
                )));
            }
        }
        if let Some(kind) = self.shared.session().failure() {
            return Err(kind);
        }
        match within(limit, self.ask(None, |session, completion| session.logout(Some(completion))))
            .await
        {
            // istgt closes the connection instead of an answer; with no command in flight, that is
            // a logout too.
            Ok(CommandOutcome { response: 0, .. }) | Err(IscsiErrorKind::TargetGone(_)) => Ok(()),
            Ok(CommandOutcome { response, .. }) => {
                Err(IscsiErrorKind::Protocol(format!("logout response {response:02x}")))
            }
            Err(kind) => Err(kind),
        }
    }

    /// Waits for a slot in the queue, and for room for the command's data.
    async fn slot(&self, command: &IscsiCommand) -> Option<Slot> {
        let units = usize::try_from(command.data.bytes()).map_or(IN_FLIGHT_UNITS, |bytes| {
            bytes.div_ceil(IN_FLIGHT_UNIT_BYTES).min(IN_FLIGHT_UNITS)
        });
        let room = Arc::clone(&self.room).acquire_many_owned(u32::try_from(units).ok()?);
        let room = room.await.ok()?;
        Some([Arc::clone(&self.slots).acquire_owned().await.ok()?, room])
    }

    async fn ask(
        &self,
        slot: Option<Slot>,
        submit: impl FnOnce(&mut Session, Completion),
    ) -> Result<CommandOutcome, IscsiErrorKind> {
        let (answer, receiver) = oneshot::channel();
        submit(&mut self.shared.session(), Completion { answer, slot });
        self.shared.wake.notify_one();
        receiver
            .await
            .unwrap_or_else(|_| Err(IscsiErrorKind::TargetGone("the session has ended".to_owned())))
    }

    fn give_up(&self, kind: &IscsiErrorKind) {
        self.shared.session().fail(kind);
        self.driver.abort();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The connection's task: runs from the login to the end of the session.
async fn drive(
    shared: Arc<Shared>,
    mut reader: PduReader<impl AsyncRead + Unpin>,
    mut writer: PduWriter<impl AsyncWrite + Unpin>,
    keepalive: Keepalive,
) {
    // Each of the three futures runs until its first error; the others are then dropped.
    let ending = tokio::select! {
        biased;
        ending = receive_all(&shared, &mut reader) => ending,
        ending = send_all(&shared, &mut writer) => ending,
        ending = keep_alive(&shared, keepalive) => ending,
    };
    shared.session().fail(&ending);
}

async fn receive_all(
    shared: &Shared,
    reader: &mut PduReader<impl AsyncRead + Unpin>,
) -> IscsiErrorKind {
    loop {
        if let Err(kind) = receive(shared, reader).await {
            return kind;
        }
        shared.wake.notify_one();
    }
}

async fn receive(
    shared: &Shared,
    reader: &mut PduReader<impl AsyncRead + Unpin>,
) -> Result<(), IscsiErrorKind> {
    let bhs = reader.header().await?;
    let mut incoming = shared.session().open(&bhs)?;
    reader.data(&bhs, &mut incoming.data).await?;
    shared.session().receive(incoming)
}

async fn send_all(
    shared: &Shared,
    writer: &mut PduWriter<impl AsyncWrite + Unpin>,
) -> IscsiErrorKind {
    loop {
        fill(&mut shared.session(), writer);
        if writer.is_empty() {
            shared.wake.notified().await;
        } else if let Err(kind) = writer.flush().await {
            return kind;
        }
    }
}

fn fill(session: &mut Session, writer: &mut PduWriter<impl AsyncWrite + Unpin>) {
    while writer.has_room()
        && let Some(pdu) = session.next_pdu()
    {
        writer.push(pdu);
    }
}

/// The keepalive clock and its limits.
#[derive(Clone, Copy, Debug)]
struct Keepalive {
    interval: Duration,
    limits: KeepaliveLimits,
}

impl Keepalive {
    fn new(options: &IscsiOptions) -> Self {
        let interval = options.keepalive.max(KEEPALIVE_MIN);
        let longest = options.command_timeout.max(options.flush_timeout);
        // One tick more than the limit, so that a caller that still waits sees its own time limit
        // first.
        let ticks = longest.as_millis() / interval.as_millis() + 2;
        let command_max = u32::try_from(ticks).unwrap_or(u32::MAX);
        Self { interval, limits: KeepaliveLimits { silent_max: SILENT_TICKS_MAX, command_max } }
    }
}

async fn keep_alive(shared: &Shared, keepalive: Keepalive) -> IscsiErrorKind {
    loop {
        time::sleep(keepalive.interval).await;
        if let Err(ticks) = shared.session().tick(keepalive.limits) {
            return IscsiErrorKind::TimedOut(keepalive.interval * ticks);
        }
        shared.wake.notify_one();
    }
}

async fn log_in(
    reader: &mut PduReader<impl AsyncRead + Unpin>,
    writer: &mut PduWriter<impl AsyncWrite + Unpin>,
    identity: &Identity<'_>,
) -> Result<LoggedIn, IscsiErrorKind> {
    let (mut login, mut request) = Login::start(identity)?;
    loop {
        writer.push(request);
        writer.flush().await?;
        let (bhs, mut text) = (reader.header().await?, BytesMut::new());
        reader.data(&bhs, &mut text).await?;
        let response = super::pdu::decode(&bhs).map_err(|opcode| {
            IscsiErrorKind::Protocol(format!("opcode {opcode:02x} during login"))
        })?;
        request = match login.receive(&response, &text)? {
            LoginAction::Send(request) => request,
            LoginAction::Done(login) => return Ok(login),
        };
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, IscsiErrorKind>>,
) -> Result<T, IscsiErrorKind> {
    time::timeout(limit, work).await.unwrap_or(Err(IscsiErrorKind::TimedOut(limit)))
}

fn random() -> Result<Random, IscsiErrorKind> {
    let mut random = Random { isid: [0; 6], identifier: [0], challenge: [0; 16] };
    for field in [&mut random.isid[..], &mut random.identifier, &mut random.challenge] {
        getrandom::fill(field)
            .map_err(|e| IscsiErrorKind::Request(format!("no random numbers: {e}")))?;
    }
    random.isid[0] = 0x80;
    Ok(random)
}
