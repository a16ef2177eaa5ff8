//! The TFTP server: accepts requests on the well-known port, and starts transfers.
//!
//! The agent binds it before it drops its privileges and reports readiness, starts it later, and
//! stops it at the end. The loop never waits for a client: each transfer has a thread. It must
//! survive every datagram, and a system without threads or descriptors.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io::{self, PipeReader, PipeWriter},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc::Sender;

use crate::model::boot::Fetch;

use super::{
    super::{
        catalog::{BootFileCatalog, Cached, Served},
        evidence::{Ended, FetchKind},
        files, name,
        refusal::Refusal,
        table::{BootTable, FETCH_LIMIT},
    },
    request::{
        self, BLOCK_BYTES_DEFAULT, BLOCK_BYTES_MAX, PathLimits, ReadRequest, Terms, TftpRefusal,
    },
    slots::{Claim, Slot, Slots},
    transfer::{End, Transfer, TransferLimits, TransferOutcome},
    wire::block_bytes_in_one_packet,
};

/// Room for a request, in bytes: a name, a mode and six options; RFC 2347 allows 512.
const REQUEST_BYTES_MAX: usize = 2048;
/// Stack of the accept loop, which only opens files and logs.
const LOOP_STACK_BYTES: usize = 256 << 10;
/// Pause after a socket error without a client's fault, so that a lasting error does not use up a
/// processor.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Least time between two log lines about unanswered requests: anybody can send many.
const FULL_LOGGED_EVERY: Duration = Duration::from_secs(10);
/// Longest wait for the end of the loop, and of the transfers: four waits of a transfer and its
/// last send.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Configuration of the server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; port 0 takes a free one. On a wildcard address the system chooses the
    /// source address of each answer: on a machine with several networks, name the address that the
    /// machines use.
    pub listen: SocketAddr,
    /// The directory with `pxelinux.0`, `ldlinux.c32` and GRUB's images. Symbolic links in it are
    /// not followed. It should be on a local disk, because the loop waits for it.
    pub loaders: Option<PathBuf>,
    /// Files under fixed TFTP names: `deploy/vmlinuz` → an absolute path.
    pub files: BTreeMap<String, PathBuf>,
    /// The directories that the kernels and ramdisks of
    /// [`BootMenu::Network`](crate::model::boot::BootMenu::Network) may lie in; a relative path is
    /// one beneath the first.
    pub images: Vec<PathBuf>,
    /// Most concurrent transfers: well below the limits of the process (systemd's `TasksMax`,
    /// `LimitNOFILE`), because each has a thread, two descriptors and at most about 512 KiB. An
    /// address gets a quarter of them, or 16. Further requests get no answer, and clients repeat
    /// them.
    pub max_transfers: usize,
    /// Largest block, in bytes; at least the 512 without an option. In a network that loses
    /// fragments, it must fit every link.
    pub block_bytes_max: u16,
    /// Time without a newly acknowledged block after which a transfer ends.
    pub idle_limit: Duration,
    /// Time limit of a whole transfer. A node's [`ramdisk_limit`](super::super::BootSettings)
    /// applies to its machine's fetches, if that is longer.
    pub total_limit: Duration,
}

impl Config {
    /// The defaults: no files, 256 transfers, blocks of at most 8 KiB, 30 s idle, 30 min in all.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            loaders: None,
            files: BTreeMap::new(),
            images: Vec::new(),
            max_transfers: 256,
            block_bytes_max: BLOCK_BYTES_MAX,
            idle_limit: Duration::from_secs(30),
            total_limit: FETCH_LIMIT,
        }
    }
}

/// A bound server that does not answer yet.
#[derive(Debug)]
pub struct Server {
    socket: UdpSocket,
    local: SocketAddr,
    config: Config,
    cached: Option<Cached>,
}

impl Server {
    /// Binds the port. Fails if the address is unavailable, the loader directory is none, or a name
    /// in `files` is invalid.
    pub fn bind(mut config: Config) -> io::Result<Self> {
        if let Some(root) = &config.loaders {
            files::open_root(root).map_err(|error| {
                let message = format!("TFTP loader directory {}: {error}", root.display());
                io::Error::new(error.kind(), message)
            })?;
        }
        config.files = clean_files(config.files)?;
        let socket = UdpSocket::bind(config.listen).map_err(|error| {
            io::Error::new(error.kind(), format!("TFTP address {}: {error}", config.listen))
        })?;
        // A datagram with a wrong checksum makes the socket readable, and a read would then block.
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        Ok(Self { socket, local, config, cached: None })
    }

    /// The address that the server listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Adds kernels and ramdisks in the cache.
    #[must_use]
    pub fn with_cached(self, cached: Cached) -> Self {
        Self { cached: Some(cached), ..self }
    }

    /// Starts to answer. `fetched` gets each fetch when its transfer has ended, unless the channel
    /// is full. Each transfer ends in its own thread, so that a loader may be reported after its
    /// menu: the furthest stage counts. Fails without a thread or a pipe.
    pub fn start(self, table: BootTable, fetched: Sender<Fetch>) -> io::Result<Running> {
        let (stopped, stop) = io::pipe()?;
        let (end, ended) = io::pipe()?;
        let slots = Slots::new(self.config.max_transfers);
        let limits =
            TransferLimits { idle: self.config.idle_limit, total: self.config.total_limit };
        let Config { loaders, files, images, .. } = self.config;
        let catalog =
            Arc::new(BootFileCatalog::new(loaders, files, images, self.cached, table, fetched));
        let block_bytes_max = self.config.block_bytes_max.max(BLOCK_BYTES_DEFAULT);
        let starter =
            Starter { local: self.local, limits, block_bytes_max, catalog: Arc::clone(&catalog) };
        let accept_loop = AcceptLoop {
            socket: self.socket,
            slots: slots.clone(),
            starter: Arc::new(starter),
            full_logged: Cell::new(None),
        };
        thread::Builder::new().name("tftp".to_owned()).stack_size(LOOP_STACK_BYTES).spawn(
            move || {
                accept_loop.serve(&stopped);
                // Dropped first, so that a waiter for the end can bind the port at once.
                drop(accept_loop);
                drop(ended);
            },
        )?;
        Ok(Running { local: self.local, stop: Some(stop), end, slots, catalog })
    }
}

/// A running server, until it is stopped or dropped.
#[derive(Debug)]
pub struct Running {
    local: SocketAddr,
    /// Closing this pipe wakes the loop.
    stop: Option<PipeWriter>,
    /// This pipe is closed at the end of the loop.
    end: PipeReader,
    slots: Slots,
    catalog: Arc<BootFileCatalog>,
}

impl Running {
    /// The address that the server listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Returns the catalog, for another server to share.
    pub fn catalog(&self) -> Arc<BootFileCatalog> {
        Arc::clone(&self.catalog)
    }

    /// Stops the server: sends errors to the clients of unfinished transfers, and waits until all
    /// threads have ended, at most 4 s. Blocks.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop = None;
        let limit = Timespec::try_from(STOP_LIMIT).ok();
        let closed = poll(&mut [PollFd::new(&self.end, PollFlags::IN)], limit.as_ref());
        let loop_ended = closed.is_ok_and(|ready| ready > 0);
        let transfers_ended = self.slots.stop(STOP_LIMIT);
        if !(loop_ended && transfers_ended) {
            tracing::warn!(loop_ended, transfers_ended, "the TFTP server did not stop in time");
        }
    }
}

/// Receives requests, and answers each with a transfer or a refusal.
struct AcceptLoop {
    socket: UdpSocket,
    slots: Slots,
    starter: Arc<Starter>,
    /// The time of the last log line about an unanswered request.
    full_logged: Cell<Option<Instant>>,
}

impl AcceptLoop {
    fn serve(&self, stopped: &PipeReader) {
        let mut buffer = [0; REQUEST_BYTES_MAX];
        loop {
            let mut ready =
                [PollFd::new(stopped, PollFlags::IN), PollFd::new(&self.socket, PollFlags::IN)];
            let polled = poll(&mut ready, None);
            if ready.first().is_some_and(|stopped| !stopped.revents().is_empty()) {
                return;
            }
            match polled.map_err(io::Error::from).and_then(|_| self.socket.recv_from(&mut buffer)) {
                Ok((length, peer)) => self.answer(buffer.get(..length).unwrap_or_default(), peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%error, "TFTP socket");
                    thread::sleep(ERROR_PAUSE);
                }
            }
        }
    }

    fn answer(&self, datagram: &[u8], peer: SocketAddr) {
        let Some(parsed) = request::parse(datagram) else { return };
        let name = parsed.as_ref().map(|request| request.name.clone()).unwrap_or_default();
        let served = parsed.and_then(|request| self.begin(request, datagram, peer));
        if let Err(refusal) = served {
            if refusal == Refusal::Busy.into() {
                tracing::warn!(%peer, ?name, %refusal, "TFTP request refused");
            } else {
                tracing::debug!(%peer, ?name, %refusal, "TFTP request refused");
            }
            let packet = refusal.to_packet().serialize().unwrap_or_default();
            if let Err(error) = self.socket.send_to(&packet, peer) {
                tracing::debug!(%peer, %error, "TFTP refusal not sent");
            }
        }
    }

    fn begin(
        &self,
        request: ReadRequest,
        datagram: &[u8],
        peer: SocketAddr,
    ) -> Result<(), TftpRefusal> {
        match self.slots.claim(peer, datagram, Instant::now()) {
            Claim::Granted(slot) if self.starter.catalog.takes_a_while(&request.name) => {
                begin_aside(&self.starter, request, peer, slot)?;
            }
            Claim::Granted(slot) => self.starter.begin(&request, peer, slot)?,
            Claim::Repeated => {}
            Claim::Full => self.log_full(peer),
        }
        Ok(())
    }

    fn log_full(&self, peer: SocketAddr) {
        if self.full_logged.get().is_none_or(|at| at.elapsed() >= FULL_LOGGED_EVERY) {
            self.full_logged.set(Some(Instant::now()));
            let most = self.slots.max();
            tracing::warn!(
                %peer,
                most,
                "too many TFTP transfers at once: requests wait until they are sent again"
            );
        }
    }
}

/// Starts transfers. It does not hold the port, which is free at the end of the loop.
struct Starter {
    local: SocketAddr,
    limits: TransferLimits,
    block_bytes_max: u16,
    catalog: Arc<BootFileCatalog>,
}

/// Starts a transfer of a file that first needs a full read, while the loop continues. A refusal
/// comes from a new port, as a transfer does.
fn begin_aside(
    starter: &Arc<Starter>,
    request: ReadRequest,
    peer: SocketAddr,
    slot: Slot,
) -> Result<(), Refusal> {
    let starter = Arc::clone(starter);
    let begin = move || {
        let Err(refusal) = starter.begin(&request, peer, slot) else { return };
        tracing::debug!(%peer, name = ?request.name, %refusal, "TFTP request refused");
        let packet = TftpRefusal::from(refusal).to_packet().serialize().unwrap_or_default();
        let sent = starter.connect(peer).and_then(|socket| socket.send(&packet));
        if let Err(error) = sent {
            tracing::debug!(%peer, %error, "TFTP refusal not sent");
        }
    };
    let thread = thread::Builder::new().name("tftp-open".to_owned()).stack_size(LOOP_STACK_BYTES);
    thread.spawn(begin).map(drop).map_err(|error| {
        tracing::warn!(%peer, %error, "no thread for a TFTP transfer");
        Refusal::Busy
    })
}

impl Starter {
    fn begin(&self, request: &ReadRequest, peer: SocketAddr, slot: Slot) -> Result<(), Refusal> {
        let began = Instant::now();
        let machine = peer.ip().to_canonical();
        let Served { file, kind, name, limit } =
            self.catalog.open(&request.name, machine, began)?;
        let total = limit.unwrap_or_default().max(self.limits.total);
        let limits = TransferLimits { total, ..self.limits };
        let transfer = self
            .connect(peer)
            .and_then(|socket| {
                let path = PathLimits {
                    block_bytes_max: self.block_bytes_max,
                    block_bytes_in_one_packet: block_bytes_in_one_packet(&socket),
                };
                let terms = Terms::agree(&request.options, file.bytes, path);
                Transfer::new(socket, file, terms, limits, slot)
            })
            .map_err(|error| {
                tracing::warn!(%peer, %error, "no socket for a TFTP transfer");
                Refusal::Busy
            })?;
        let catalog = Arc::clone(&self.catalog);
        transfer.start(Box::new(move |outcome| {
            ended(&catalog, machine, kind, name, &outcome, began);
        }))
    }

    /// Opens a new socket for a transfer (RFC 1350 §4), connected, so that only its client can send
    /// to it.
    fn connect(&self, peer: SocketAddr) -> io::Result<UdpSocket> {
        let mut address = self.local;
        address.set_port(0);
        let socket = UdpSocket::bind(address)?;
        socket.connect(peer)?;
        Ok(socket)
    }
}

/// Logs and reports the end of a transfer.
fn ended(
    catalog: &BootFileCatalog,
    peer: IpAddr,
    kind: FetchKind,
    path: String,
    outcome: &TransferOutcome,
    began: Instant,
) {
    let TransferOutcome { sent_bytes, complete, end, took } = outcome;
    let took_ms = took.as_millis();
    // Firmware requests the size and hangs up before every file.
    let only_size = *sent_bytes == 0 && matches!(end, End::Client(_));
    // Anybody can send many requests with forged addresses.
    let abandoned = matches!(end, End::Displaced | End::Unanswered | End::Superseded);
    if *complete {
        tracing::info!(%peer, ?path, sent_bytes, took_ms, "TFTP file sent");
    } else if only_size || abandoned {
        tracing::debug!(%peer, ?path, %end, "TFTP file asked for, no more");
    } else {
        tracing::info!(%peer, ?path, sent_bytes, took_ms, %end, "TFTP file not sent");
    }
    let ended = Ended { path, sent_bytes: *sent_bytes, complete: *complete };
    catalog.ended(peer, kind, ended, began);
}

fn clean_files(files: BTreeMap<String, PathBuf>) -> io::Result<BTreeMap<String, PathBuf>> {
    let clean = |(name, path): (String, PathBuf)| {
        let clean = name::clean_name(&name).map_err(|error| {
            let message = format!("TFTP name {name:?}: {error}; must be a relative path");
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })?;
        Ok((clean, path))
    };
    files.into_iter().map(clean).collect()
}
