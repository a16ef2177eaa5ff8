//! A logged-in connection: the socket, the one task that moves PDUs between it and the session, and
//! the time limits.
//!
//! Called by the disk. The task ends with the session, and the session with the last
//! [`Connection`]: dropping it resets the TCP connection, so that nothing already queued is written
//! to a disk nobody watches any more.

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
    login::{Identity, LoggedIn, Login, Next, Random},
    negotiate::{Digests, Negotiated},
    options::IscsiOptions,
    pdu::LunField,
    session::{KeepaliveLimits, Session},
    task::{CommandOutcome, Completion, IscsiCommand, Slot},
    wire::{PduReader, PduWriter},
};

/// Ticks of silence after which the session ends; at the second the initiator sends a NOP-Out.
const SILENT_TICKS_MAX: u32 = 4;

/// Commands a session may have in flight: bounds memory whatever window the target opens.
const QUEUE_DEPTH_MAX: u16 = 1024;

/// The grain in which data on its way is counted.
const IN_FLIGHT_UNIT_BYTES: usize = 64 << 10;

/// Data of commands under way, in units: 4 MiB. A millisecond of a 25-Gbit/s path is 3 MiB; more
/// only pushes the data out of the processors' caches at both ends before it is looked at: tgtd
/// took 32 MiB in flight at half the speed.
const IN_FLIGHT_UNITS: usize = 64;

/// Shortest keepalive interval.
const KEEPALIVE_MIN: Duration = Duration::from_millis(100);

/// A session with its connection.
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
    /// Told whenever the session may have something to send.
    wake: Notify,
}

impl Shared {
    fn session(&self) -> MutexGuard<'_, Session> {
        // The session is consistent between calls, so a panic elsewhere does not spoil it.
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
        // Whatever ends the session early also discards what the kernel has not sent yet.
        stream.set_zero_linger().map_err(unreachable)?;
        Self::over(stream.into_split(), target_iqn, chap, options, random()?).await
    }

    /// Logs in over a stream that is connected.
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

    /// The result of the login's negotiation.
    pub(super) fn agreed(&self) -> &Negotiated {
        &self.agreed
    }

    /// Performs one command. The limit starts when the command has its slot; when it passes, the
    /// whole session ends, because what the target still does is unknown. A cancelled call leaves
    /// the command to its end.
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

    /// Ends the session in good order: no more commands, those under way finished or else dropped
    /// by a reset, then a logout. Each step has the limit; whatever happens, the connection is
    /// closed when this returns.
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
        // Slots come back when the target has answered: with all of them, nothing is being written
        // any more.
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
            // Some close the connection instead of an answer, as istgt; with nothing under way it
            // comes to the same.
            Ok(CommandOutcome { response: 0, .. }) | Err(IscsiErrorKind::TargetGone(_)) => Ok(()),
            Ok(CommandOutcome { response, .. }) => {
                Err(IscsiErrorKind::Protocol(format!("logout response {response:02x}")))
            }
            Err(kind) => Err(kind),
        }
    }

    /// Waits for a place in the queue and for room for the command's data.
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

/// The connection's one task, from login to end.
async fn drive(
    shared: Arc<Shared>,
    mut reader: PduReader<impl AsyncRead + Unpin>,
    mut writer: PduWriter<impl AsyncWrite + Unpin>,
    keepalive: Keepalive,
) {
    // Each of the three runs until something is wrong; the others are then dropped with it.
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
        // One more than fit, so that whoever still waits sees its own limit first.
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
            Next::Send(request) => request,
            Next::Done(login) => return Ok(login),
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
