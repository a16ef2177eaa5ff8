//! One transfer: the `Socket` by which `tftpd`'s worker sends a file to one client.
//!
//! The server starts it; the client's last acknowledgement, its silence, or a stop ends it. The
//! worker reads the file and makes the blocks; the transfer does the rest: the option handshake,
//! the judgement of acknowledgements, the time limits and the count of sent bytes. It must never
//! leave the worker in a state in which the worker spins, prints or waits for ever.

use std::{
    error::Error,
    fmt, io,
    net::{SocketAddr, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use tftpd::{ErrorCode, Packet, Socket, Worker};

use super::{
    super::{files::Opened, refusal::Refusal},
    request::{Terms, TftpRefusal},
    slots::{Cancel, Slot},
    window::{Verdict, Window},
    wire::{Received, Wire, WireError},
};

// The end of a transfer unwinds its thread (see `leave`), and a thread that cannot be made unwinds
// out of `Worker::send`.
#[cfg(panic = "abort")]
compile_error!("the TFTP server needs panic = \"unwind\"");

/// Longest wait of a read, after which a transfer notices a stop or its time limits.
const READ_WAIT: Duration = Duration::from_millis(250);
/// Longest wait of a read before the client's first answer: a transfer that must give way does so
/// soon.
const FIRST_READ_WAIT: Duration = Duration::from_millis(50);
/// Time limit of a client's first answer: a forged address gets at most three packets.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);
/// Largest packet of a client in a transfer, in bytes: an ACK has 4, an ERROR a sentence.
const CLIENT_PACKET_BYTES_MAX: usize = 512;

/// Time limits of a transfer.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransferLimits {
    /// Time limit without a newly acknowledged block.
    pub(super) idle: Duration,
    /// Time limit of the whole transfer.
    pub(super) total: Duration,
}

/// The reason why a transfer ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("complete")]
    Complete,
    #[error("the client gave up: {0:?}")]
    Client(String),
    #[error("the client is gone")]
    Gone,
    #[error("no progress")]
    Silent,
    #[error("transfer took too long")]
    TooLong,
    #[error("the client never answered")]
    Unanswered,
    #[error("the client has not answered and others wait")]
    Displaced,
    #[error("server stopped")]
    Stopped,
    #[error("the client asked again from the same port")]
    Superseded,
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
    #[error("the worker failed")]
    Worker,
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Gone => Self::Gone,
            WireError::Socket(error) => Self::Socket(error),
        }
    }
}

/// The report of a transfer that has ended.
#[derive(Debug)]
pub(super) struct TransferOutcome {
    pub(super) sent_bytes: u64,
    /// Whether the client has the file: it acknowledged all of it, or all but the last block and
    /// then fell silent.
    pub(super) complete: bool,
    pub(super) end: End,
    pub(super) took: Duration,
}

/// A callback for the end of a transfer, called once in its thread.
pub(super) type Report = Box<dyn FnOnce(TransferOutcome) + Send + Sync>;

/// A transfer. Its fields are dropped in this order: the slot is free only after all others.
pub(super) struct Transfer {
    wire: Wire,
    file: Option<Opened>,
    terms: Terms,
    limits: TransferLimits,
    began: Instant,
    state: Mutex<State>,
    report: Option<Report>,
    slot: Slot,
}

struct State {
    window: Window,
    /// Whether the worker has more packets to send before it waits.
    nonblocking: bool,
    handshake: Handshake,
    progress_at: Instant,
    end: Option<End>,
}

/// The result of a read from the socket.
enum Incoming {
    Packet(Packet),
    /// A sent datagram is too large for the path.
    TooLarge,
    /// No packet, or a meaningless one.
    Nothing,
}

/// The exchange before the first block (RFC 2347): OACK, answered by ACK 0.
enum Handshake {
    Due,
    Sent(Instant),
    Done,
}

impl Transfer {
    /// A transfer of `file` over a socket connected to the client.
    pub(super) fn new(
        socket: UdpSocket,
        file: Opened,
        terms: Terms,
        limits: TransferLimits,
        slot: Slot,
    ) -> io::Result<Self> {
        let wire = Wire::new(socket, terms.block_bytes)?;
        wire.set_read_wait(FIRST_READ_WAIT)?;
        let began = Instant::now();
        let state = State {
            window: Window::new(terms.window_blocks),
            nonblocking: false,
            handshake: if terms.granted.is_empty() { Handshake::Done } else { Handshake::Due },
            progress_at: began,
            end: None,
        };
        let (file, state) = (Some(file), Mutex::new(state));
        Ok(Self { wire, file, terms, limits, began, state, report: None, slot })
    }

    /// Starts the transfer's thread. Calls `report` at its end, also if the thread could not be
    /// started.
    pub(super) fn start(mut self, report: Report) -> Result<(), Refusal> {
        let path = self.file.as_ref().map(Opened::path).unwrap_or_default();
        self.report = Some(report);
        // A lost packet uses up one try, even if others arrive in between: `TransferLimits` decides
        // how long to continue.
        let mut local = tftpd::Config::default().opt_local;
        local.max_retries = usize::MAX;
        let mut common = default_of_fourth(Worker::<Self>::new);
        common.block_size = self.terms.block_bytes;
        common.window_size = self.terms.window_blocks;
        common.timeout = self.terms.timeout;
        let expects_ack_of_options = !self.terms.granted.is_empty();
        let never = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(Box::new(self), path, local, common, never);
        // `send` panics if the system has no thread for it.
        match catch_unwind(AssertUnwindSafe(|| worker.send(expects_ack_of_options))) {
            Ok(Ok(_detached)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Refusal::Busy),
        }
    }

    /// Returns a packet for the worker's read; `None` if there is none for now.
    fn receive(&self, state: &mut State) -> Result<Option<Packet>, End> {
        // After each block of a window, and after an acknowledgement, the worker checks for another
        // acknowledgement. That check can wait until the worker has sent the whole window, which
        // goes out at once.
        if state.nonblocking {
            return Ok(None);
        }
        self.wire.send_blocks(state.window.take_waiting())?;
        self.check_limits(state)?;
        match state.handshake {
            Handshake::Done => self.receive_acknowledgement(state),
            Handshake::Due | Handshake::Sent(_) => self.shake_hands(state).map(Some),
        }
    }

    /// Exchanges OACK and ACK 0. The worker itself would wait only once, and not repeat the OACK.
    fn shake_hands(&self, state: &mut State) -> Result<Packet, End> {
        loop {
            let due = match state.handshake {
                Handshake::Sent(at) => at.elapsed() >= self.terms.timeout,
                Handshake::Due | Handshake::Done => true,
            };
            if due {
                self.wire.send(&bytes_of(&Packet::Oack(self.terms.granted.clone()))?)?;
                state.handshake = Handshake::Sent(Instant::now());
            }
            match self.read()? {
                Incoming::Packet(Packet::Ack(0)) => {
                    state.handshake = Handshake::Done;
                    state.progress_at = Instant::now();
                    return Ok(Packet::Ack(0));
                }
                Incoming::TooLarge => state.handshake = Handshake::Due,
                Incoming::Packet(_) | Incoming::Nothing => {}
            }
            self.check_limits(state)?;
        }
    }

    fn receive_acknowledgement(&self, state: &mut State) -> Result<Option<Packet>, End> {
        let incoming = self.read()?;
        self.judge(&incoming, state)
    }

    /// Judges a packet, and returns it for the worker if it makes progress; repeats lost blocks at
    /// once.
    fn judge(&self, incoming: &Incoming, state: &mut State) -> Result<Option<Packet>, End> {
        let (verdict, number) = match *incoming {
            Incoming::Packet(Packet::Ack(number)) => (state.window.acknowledged(number), number),
            // The system now knows the path's limit, and fragments the repetition.
            Incoming::TooLarge => (state.window.lost(), 0),
            Incoming::Packet(_) | Incoming::Nothing => return Ok(None),
        };
        match verdict {
            Verdict::Progress => {
                state.progress_at = Instant::now();
                return Ok(Some(Packet::Ack(number)));
            }
            Verdict::Resend => self.wire.send_blocks(state.window.unacknowledged())?,
            Verdict::Ignore => {}
        }
        Ok(None)
    }

    fn check_limits(&self, state: &State) -> Result<(), End> {
        let end = match self.slot.cancelled() {
            Some(Cancel::Superseded) => return Err(End::Superseded),
            Some(Cancel::Displaced) => return Err(End::Displaced),
            Some(Cancel::Stopping) => End::Stopped,
            None if state.progress_at.elapsed() >= self.limits.idle => End::Silent,
            None if !self.slot.answered() && self.began.elapsed() >= ANSWER_LIMIT => {
                return Err(End::Unanswered);
            }
            None if self.began.elapsed() >= self.limits.total => End::TooLong,
            None => return Ok(()),
        };
        let error = Packet::Error { code: ErrorCode::NotDefined, msg: end.to_string() };
        self.wire.send(&bytes_of(&error)?)?;
        Err(end)
    }

    /// Reads one datagram from the client.
    fn read(&self) -> Result<Incoming, End> {
        let mut buffer = [0_u8; CLIENT_PACKET_BYTES_MAX];
        let length = match self.wire.receive(&mut buffer)? {
            Received::Datagram(length) => length,
            Received::TooLarge => return Ok(Incoming::TooLarge),
            Received::Nothing => return Ok(Incoming::Nothing),
        };
        if self.slot.note_packet(Instant::now()) {
            self.wire.set_read_wait(READ_WAIT)?;
        }
        let datagram = buffer.get(..length).unwrap_or_default();
        match Packet::deserialize(datagram) {
            Ok(Packet::Error { msg, .. }) => Err(End::Client(msg)),
            // The crate does not know the error code.
            Err(_) if datagram.starts_with(&[0, 5]) => Err(End::Client("(no message)".to_owned())),
            Ok(packet) => Ok(Incoming::Packet(packet)),
            Err(_) => Ok(Incoming::Nothing),
        }
    }

    /// Only the worker's thread locks it, and the state is consistent between any two statements.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Socket for Transfer {
    fn send(&self, packet: &Packet) -> Result<(), Box<dyn Error>> {
        let datagram = bytes_of(packet)?;
        let mut state = self.state();
        let alone = if let Packet::Data { block_num, data } = packet {
            let short = data.len() < usize::from(self.terms.block_bytes);
            state.window.sent(*block_num, data.len(), short, datagram)
        } else {
            Some(datagram)
        };
        match alone.map_or(Ok(()), |datagram| self.wire.send(&datagram)) {
            Ok(()) => Ok(()),
            Err(error) => leave(state, error.into()),
        }
    }

    fn send_to(&self, packet: &Packet, _to: &SocketAddr) -> Result<(), Box<dyn Error>> {
        Socket::send(self, packet)
    }

    fn recv_with_size(&self, _size: usize) -> Result<Packet, Box<dyn Error>> {
        let mut state = self.state();
        match self.receive(&mut state) {
            Ok(Some(packet)) => Ok(packet),
            Ok(None) => Err(io::Error::from(io::ErrorKind::WouldBlock).into()),
            Err(end) => leave(state, end),
        }
    }

    fn recv_from_with_size(&self, size: usize) -> Result<(Packet, SocketAddr), Box<dyn Error>> {
        Ok((self.recv_with_size(size)?, self.wire.peer()?))
    }

    fn remote_addr(&self) -> Result<SocketAddr, Box<dyn Error>> {
        Ok(self.wire.peer()?)
    }

    /// The worker calls it directly after it has opened the file itself, so that the transfer's own
    /// descriptor can be closed. The wait of a read stays unchanged.
    fn set_read_timeout(&mut self, _timeout: Duration) -> Result<(), Box<dyn Error>> {
        self.file = None;
        Ok(())
    }

    fn set_write_timeout(&mut self, _timeout: Duration) -> Result<(), Box<dyn Error>> {
        Ok(())
    }

    fn set_nonblocking(&mut self, nonblocking: bool) -> Result<(), Box<dyn Error>> {
        self.state().nonblocking = nonblocking;
        Ok(())
    }
}

/// The worker drops its socket at its end, in every case.
impl Drop for Transfer {
    fn drop(&mut self) {
        let mut state = self.state();
        let fell_silent = matches!(state.end, Some(End::Silent | End::Gone));
        let complete =
            state.window.complete() || (fell_silent && state.window.lacks_last_acknowledgement());
        let end = state.end.take().unwrap_or(if complete { End::Complete } else { End::Worker });
        let sent_bytes = state.window.sent_bytes();
        drop(state);
        if matches!(end, End::Worker | End::Socket(_)) {
            // Without descriptors or memory, or with an unreadable file, the worker just ends.
            let busy = TftpRefusal::from(Refusal::Busy);
            let sent = bytes_of(&busy.to_packet()).map(|busy| self.wire.send(&busy));
            drop(sent);
        }
        if let Some(report) = self.report.take() {
            report(TransferOutcome { sent_bytes, complete, end, took: self.began.elapsed() });
        }
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("terms", &self.terms).finish_non_exhaustive()
    }
}

/// Ends the worker's thread without output. An error returned to the worker would print a line on
/// standard error for every client that merely requests a file's size, as most firmware does.
fn leave(mut state: MutexGuard<'_, State>, end: End) -> ! {
    state.end = Some(end);
    drop(state);
    resume_unwind(Box::new("transfer ended"))
}

/// Encodes a packet. The error must be an `io::Error`: after any other one the worker repeats the
/// same packet for ever.
fn bytes_of(packet: &Packet) -> io::Result<Vec<u8>> {
    packet.serialize().map_err(io::Error::other)
}

/// The default value of a constructor's fourth parameter: the type of `Worker::new`'s cannot be
/// named, because its module is private.
fn default_of_fourth<A, B, C, D: Default, E, R>(_: fn(A, B, C, D, E) -> R) -> D {
    D::default()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::files::in_memory, request::PathLimits, slots::Claim, slots::Slots},
        *,
    };

    /// A transfer of one block in flight, and its client.
    fn begun() -> (Transfer, UdpSocket) {
        let [client, socket] = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let peer = client.local_addr().unwrap();
        socket.connect(peer).unwrap();
        client.connect(socket.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        let claim = Slots::new(1).claim(peer, b"", Instant::now());
        let Claim::Granted(slot) = claim else { panic!("{claim:?}") };
        let limits = TransferLimits { idle: Duration::MAX, total: Duration::MAX };
        let path = PathLimits { block_bytes_max: 512, block_bytes_in_one_packet: None };
        let (menu, terms) = (in_memory("menu").unwrap(), Terms::agree(&[], 4, path));
        (Transfer::new(socket, menu, terms, limits, slot).unwrap(), client)
    }

    #[test]
    fn who_never_answers_is_left_alone_soon_and_without_a_word() {
        let (mut transfer, client) = begun();
        let end = |transfer: &Transfer| transfer.check_limits(&transfer.state()).err();
        assert!(end(&transfer).is_none());
        transfer.began -= ANSWER_LIMIT;
        assert!(matches!(end(&transfer), Some(End::Unanswered)));
        let silence = client.recv(&mut [0; 9]).unwrap_err();
        assert_eq!(silence.kind(), io::ErrorKind::WouldBlock);
        transfer.slot.note_packet(Instant::now());
        assert!(end(&transfer).is_none());
    }

    /// Invariant (netboot): TFTP delivers whatever the path's MTU, and keeps to `tftp.block_max`.
    #[test]
    fn a_block_that_was_too_large_for_the_path_is_sent_again_at_once() {
        let (transfer, client) = begun();
        let block = Packet::Data { block_num: 1, data: vec![7; 512] };
        Socket::send(&transfer, &block).unwrap();
        let mut state = transfer.state();
        assert!(transfer.receive(&mut state).unwrap().is_none());
        assert!(transfer.judge(&Incoming::TooLarge, &mut state).unwrap().is_none());
        drop(state);
        for _ in ["at first", "again"] {
            let mut packet = [0; 1000];
            assert_eq!(client.recv(&mut packet).unwrap(), 516);
        }
        transfer.state().end = Some(End::Stopped);
    }

    #[test]
    fn a_file_that_cannot_be_read_to_its_end_is_told_and_not_complete() {
        for (bytes, complete) in [(512, false), (511, true)] {
            let (mut transfer, client) = begun();
            let (report, outcome) = std::sync::mpsc::channel();
            transfer.report = Some(Box::new(move |outcome| report.send(outcome).unwrap()));
            let block = Packet::Data { block_num: 1, data: vec![0; bytes] };
            Socket::send(&transfer, &block).unwrap();
            client.send(b"\0\x04\0\x01").unwrap();
            let acknowledged = Socket::recv_with_size(&transfer, 0).unwrap();
            assert_eq!(acknowledged, Packet::Ack(1));
            drop(transfer);
            assert_eq!(outcome.recv().unwrap().complete, complete);
            let mut packet = [0; 1000];
            let length = client.recv(&mut packet).unwrap();
            assert_eq!(length, bytes + 4);
            assert_eq!(client.recv(&mut packet).is_err(), complete);
        }
    }

    #[test]
    fn a_client_that_falls_silent_at_the_last_block_has_the_file_and_one_that_complains_has_not() {
        let complaint = || End::Client("no room".to_owned());
        let silence: fn() -> End = || End::Silent;
        for (end, acknowledged_blocks, complete) in [
            (silence, 1, true),
            (|| End::Gone, 1, true),
            (silence, 0, false),
            (complaint, 1, false),
        ] {
            let (mut transfer, client) = begun();
            let (report, outcome) = std::sync::mpsc::channel();
            transfer.report = Some(Box::new(move |outcome| report.send(outcome).unwrap()));
            for (number, bytes) in [(1, 512), (2, 9)] {
                let block = Packet::Data { block_num: number, data: vec![0; bytes] };
                Socket::send(&transfer, &block).unwrap();
                if number <= acknowledged_blocks {
                    client.send(b"\0\x04\0\x01").unwrap();
                    Socket::recv_with_size(&transfer, 0).unwrap();
                }
            }
            transfer.state().end = Some(end());
            drop(transfer);
            assert_eq!(outcome.recv().unwrap().complete, complete, "{:?}", end());
        }
    }
}
