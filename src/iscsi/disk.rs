//! A target's logical unit as a disk: the public interface of the initiator.
//!
//! The imaging uses it. It repeats a command where SCSI allows that, and adds the operation to
//! every error.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{self, Instant};

use super::{
    chap::Chap,
    connection::Connection,
    error::{IscsiError, IscsiErrorKind},
    options::IscsiOptions,
    pdu::LunField,
    scsi::{self, BlockLimits, Capacity, Cdb, ScsiFailure, Sense},
    task::{CommandOutcome, Data, IscsiCommand},
    zeroing::ZeroingChoice,
};
use crate::model::{backoff::Backoff, size::show_bytes};

/// Most UNIT ATTENTIONs that one command may get: each reports one event, and a target keeps a
/// handful.
const UNIT_ATTENTIONS_MAX: u32 = 16;
/// First pause before a command is repeated at a busy target; doubled up to [`BUSY_PAUSE_MAX`].
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause before a command is repeated at a busy target.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Most bytes of one command: bounds the memory for any limit of the target.
const TRANSFER_BYTES_MAX: u64 = 16 << 20;

/// The address of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetAddress {
    /// Address and port of the portal.
    pub portal: SocketAddr,
    /// The target's iSCSI name.
    pub iqn: String,
    /// The logical unit, 0 to 16383.
    pub lun: u16,
}

/// A connected disk. Clones share the connection; it closes when the last one is dropped or by
/// [`Lun::logout`].
#[derive(Clone)]
pub struct Lun {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    connection: Connection,
    pub(super) target: Arc<str>,
    lun: LunField,
    pub(super) features: Features,
    command_timeout: Duration,
    pub(super) flush_timeout: Duration,
    logout_timeout: Duration,
    pub(super) zeroing: Mutex<ZeroingChoice>,
    moved_bytes: AtomicU64,
}

/// The features that a disk reports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    capacity: Capacity,
    pub(super) limits: BlockLimits,
    /// Whether blocks that WRITE SAME unmaps read as zeros.
    unmap_is_certain: bool,
}

impl Lun {
    /// Connects, logs in, waits until the unit is ready, and reads its size. With `chap`, it
    /// refuses a target that does not demand CHAP.
    pub async fn connect(
        target: &TargetAddress,
        chap: Option<&Chap>,
        options: &IscsiOptions,
    ) -> Result<Self, IscsiError> {
        let login = Connection::open(target.portal, &target.iqn, chap, options);
        Self::after(login, target, options).await
    }

    /// Makes a disk from a logged-in connection.
    pub(super) async fn after(
        login: impl Future<Output = Result<Connection, IscsiErrorKind>>,
        target: &TargetAddress,
        options: &IscsiOptions,
    ) -> Result<Self, IscsiError> {
        let name: Arc<str> = target.iqn.as_str().into();
        let context = |operation: &str, kind| IscsiError {
            target: Arc::clone(&name),
            operation: operation.to_owned(),
            kind,
        };
        if target.lun > scsi::LUN_MAX {
            let kind =
                IscsiErrorKind::Request(format!("LUN {}, at most {}", target.lun, scsi::LUN_MAX));
            return Err(context("login", kind));
        }
        let connection = login.await.map_err(|kind| context("login", kind))?;
        let unit = Unit {
            connection: &connection,
            lun: scsi::lun_field(target.lun),
            limit: options.command_timeout,
        };
        let features = match unit.examine(target.lun).await {
            Ok(features) => features,
            Err(kind) => {
                // The error to report is that of the disk, not of the logout.
                drop(connection.log_out(unit.lun, options.logout_timeout).await);
                return Err(context(&format!("examining LUN {}", target.lun), kind));
            }
        };
        let agreed = connection.agreed();
        tracing::debug!(
            target_iqn = %target.iqn, lun = target.lun, ?agreed, disk = ?features, "connected"
        );
        Ok(Self {
            inner: Arc::new(Inner {
                lun: unit.lun,
                connection,
                target: name,
                features,
                command_timeout: options.command_timeout,
                flush_timeout: options.flush_timeout,
                logout_timeout: options.logout_timeout,
                zeroing: Mutex::new(ZeroingChoice::first(
                    options.zeroing,
                    features.unmap_is_certain,
                )),
                moved_bytes: AtomicU64::new(0),
            }),
        })
    }

    /// Size of a logical block in bytes: a power of two from 512 to 65536. Offsets and lengths must
    /// be multiples of it.
    pub fn block_bytes(&self) -> u32 {
        self.inner.features.capacity.block_bytes
    }

    /// Size of the disk in bytes, below 2^63.
    pub fn capacity_bytes(&self) -> u64 {
        self.inner.features.capacity.blocks.saturating_mul(u64::from(self.block_bytes()))
    }

    /// The most bytes one read or write may have.
    pub fn max_transfer_bytes(&self) -> u32 {
        let block = u64::from(self.block_bytes());
        let target = self
            .inner
            .features
            .limits
            .transfer_blocks
            .map_or(u64::MAX, |blocks| u64::from(blocks) * block);
        u32::try_from(target.min(TRANSFER_BYTES_MAX)).unwrap_or(u32::MAX)
    }

    /// The disk's optimal transfer length in bytes (SBC-3 §6.5.3), unchecked; `None` if it reports
    /// none.
    pub fn optimal_bytes(&self) -> Option<u32> {
        self.inner.features.limits.optimal_blocks?.checked_mul(self.block_bytes())
    }

    /// Bytes that the target has written, zeroed or read on this connection so far, counted per
    /// finished command.
    pub fn moved_bytes(&self) -> u64 {
        self.inner.moved_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn count_moved(&self, bytes: u64) {
        self.inner.moved_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Writes `data` at `offset`. Callers may run many writes at once; those without a slot wait.
    /// The payload is not copied. A cancelled write is still executed, unless a logout comes first.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), IscsiError> {
        let bytes = data.len() as u64;
        let operation = || format!("write of {} at {}", show_bytes(bytes), show_bytes(offset));
        let (lba, blocks) = self.range(offset, bytes, operation)?;
        let outcome = self
            .run(scsi::write_16(lba, blocks), Data::Out(data), self.inner.command_timeout)
            .await;
        self.whole(outcome, operation)?;
        self.count_moved(bytes);
        Ok(())
    }

    /// Reads `bytes` at `offset`. The data is not copied after the socket's read.
    pub async fn read(&self, offset: u64, bytes: u32) -> Result<Bytes, IscsiError> {
        let operation =
            || format!("read of {} at {}", show_bytes(bytes.into()), show_bytes(offset));
        let (lba, blocks) = self.range(offset, bytes.into(), operation)?;
        let outcome =
            self.run(scsi::read_16(lba, blocks), Data::In(bytes), self.inner.command_timeout).await;
        let outcome = self.whole(outcome, operation)?;
        if u32::try_from(outcome.data.len()) == Ok(bytes) {
            self.count_moved(bytes.into());
            Ok(outcome.data)
        } else {
            let kind = IscsiErrorKind::Protocol(format!(
                "GOOD for a read of {} bytes only",
                outcome.data.len()
            ));
            Err(self.error(operation(), kind))
        }
    }

    /// Makes the target write its acknowledged data to the medium.
    pub async fn flush(&self) -> Result<(), IscsiError> {
        let limit = self.inner.flush_timeout;
        let outcome = match self.run(scsi::synchronize_cache_16(), Data::None, limit).await {
            Err(IscsiErrorKind::Scsi(ScsiFailure::Sense(sense))) if sense.is_unsupported() => {
                self.run(scsi::synchronize_cache_10(), Data::None, limit).await
            }
            other => other,
        };
        outcome.map(drop).map_err(|kind| self.error("flush".to_owned(), kind))
    }

    /// Logs out in order: commands in flight, also cancelled ones, are finished or else dropped
    /// before the logout request. After `Ok` the target writes no more. In any case, the connection
    /// is closed for every clone when this returns.
    pub async fn logout(self) -> Result<(), IscsiError> {
        let inner = &self.inner;
        let result = inner.connection.log_out(inner.lun, inner.logout_timeout).await;
        result.map_err(|kind| self.error("logout".to_owned(), kind))
    }

    /// The first block and the number of blocks of a transfer, after a check of the limits.
    fn range(
        &self,
        offset: u64,
        bytes: u64,
        operation: impl Fn() -> String,
    ) -> Result<(u64, u32), IscsiError> {
        if bytes > u64::from(self.max_transfer_bytes()) {
            let kind =
                IscsiErrorKind::Request(format!("longer than {} bytes", self.max_transfer_bytes()));
            return Err(self.error(operation(), kind));
        }
        self.blocks(offset, bytes, operation)
    }

    /// Converts bytes to blocks. The target checks whether the blocks exist.
    pub(super) fn blocks(
        &self,
        offset: u64,
        bytes: u64,
        operation: impl Fn() -> String,
    ) -> Result<(u64, u32), IscsiError> {
        let block = u64::from(self.block_bytes());
        match u32::try_from(bytes / block) {
            Ok(blocks)
                if blocks > 0 && bytes.is_multiple_of(block) && offset.is_multiple_of(block) =>
            {
                Ok((offset / block, blocks))
            }
            _ => {
                let kind = IscsiErrorKind::Request(format!(
                    "offset {offset} and length {bytes} must be multiples of {block}"
                ));
                Err(self.error(operation(), kind))
            }
        }
    }

    pub(super) async fn run(
        &self,
        cdb: Cdb,
        data: Data,
        limit: Duration,
    ) -> Result<CommandOutcome, IscsiErrorKind> {
        Unit { connection: &self.inner.connection, lun: self.inner.lun, limit }.run(cdb, data).await
    }

    /// Refuses a GOOD with a residual.
    pub(super) fn whole(
        &self,
        outcome: Result<CommandOutcome, IscsiErrorKind>,
        operation: impl Fn() -> String,
    ) -> Result<CommandOutcome, IscsiError> {
        match outcome {
            Ok(outcome) if !outcome.short => Ok(outcome),
            Ok(_) => Err(IscsiErrorKind::Protocol(
                "GOOD with a residual: not all was transferred".to_owned(),
            )),
            Err(kind) => Err(kind),
        }
        .map_err(|kind| self.error(operation(), kind))
    }

    fn error(&self, operation: String, kind: IscsiErrorKind) -> IscsiError {
        IscsiError { target: Arc::clone(&self.inner.target), operation, kind }
    }
}

/// Shows the target's name only: other fields hold data in flight.
impl fmt::Debug for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lun").field("target", &self.inner.target).finish_non_exhaustive()
    }
}

/// A logical unit of a connected target before its examination.
#[derive(Debug)]
struct Unit<'a> {
    connection: &'a Connection,
    lun: LunField,
    limit: Duration,
}

impl Unit<'_> {
    /// Checks that the unit is a disk, waits until it is ready, and reads its size and features.
    async fn examine(&self, number: u16) -> Result<Features, IscsiErrorKind> {
        let inquiry = self.run(scsi::inquiry(), Data::In(scsi::INQUIRY_BYTES.into())).await?;
        if !scsi::is_disk(&inquiry.data) {
            return Err(self.no_disk(number).await);
        }
        self.run(scsi::test_unit_ready(), Data::None).await?;
        let capacity = self.capacity().await?;
        let pages = self.page(scsi::SUPPORTED_PAGES).await?;
        let has = |page: u8| scsi::page_data(&pages, scsi::SUPPORTED_PAGES).contains(&page);
        let limits = if has(scsi::BLOCK_LIMITS) {
            scsi::block_limits(&self.page(scsi::BLOCK_LIMITS).await?)
        } else {
            BlockLimits::default()
        };
        let unmap_is_certain = capacity.unmapped_is_zero
            && has(scsi::PROVISIONING)
            && scsi::unmaps_to_zeros(&self.page(scsi::PROVISIONING).await?);
        Ok(Features { capacity, limits, unmap_is_certain })
    }

    /// Reads a page of vital product data; empty if the target does not have it.
    async fn page(&self, page: u8) -> Result<Bytes, IscsiErrorKind> {
        match self.run(scsi::inquiry_page(page), Data::In(scsi::PAGE_BYTES.into())).await {
            Ok(outcome) => Ok(outcome.data),
            Err(IscsiErrorKind::Scsi(_)) => Ok(Bytes::new()),
            Err(kind) => Err(kind),
        }
    }

    async fn capacity(&self) -> Result<Capacity, IscsiErrorKind> {
        let answer = self.run(scsi::read_capacity_16(), Data::In(scsi::CAPACITY_16_BYTES)).await;
        let capacity = match answer {
            Ok(outcome) => scsi::capacity_16(&outcome.data),
            Err(IscsiErrorKind::Scsi(ScsiFailure::Sense(sense))) if sense.is_unsupported() => {
                let answer =
                    self.run(scsi::read_capacity_10(), Data::In(scsi::CAPACITY_10_BYTES)).await?;
                scsi::capacity_10(&answer.data)
            }
            Err(kind) => return Err(kind),
        };
        capacity.ok_or_else(|| IscsiErrorKind::NoDisk("its capacity makes no sense".to_owned()))
    }

    async fn no_disk(&self, number: u16) -> IscsiErrorKind {
        let all = Unit { lun: scsi::lun_field(0), ..*self };
        match all.run(scsi::report_luns(), Data::In(scsi::REPORT_LUNS_BYTES)).await {
            Ok(answer) => {
                let luns: Vec<String> =
                    scsi::luns(&answer.data).iter().map(u16::to_string).collect();
                IscsiErrorKind::NoDisk(format!(
                    "LUN {number} is not a disk; the target has LUN {}",
                    luns.join(", ")
                ))
            }
            Err(kind) => kind,
        }
    }

    /// Runs a command, and repeats it while the target's answer allows that and the time limit
    /// lasts.
    async fn run(&self, cdb: Cdb, data: Data) -> Result<CommandOutcome, IscsiErrorKind> {
        let command = IscsiCommand { lun: self.lun, cdb, data };
        let mut backoff = Backoff::doubling(BUSY_PAUSE, BUSY_PAUSE_MAX);
        let (started, mut pause, mut attentions) = (Instant::now(), backoff.next_pause(), 0);
        loop {
            let outcome = self.connection.execute(command.clone(), self.limit).await?;
            match RetryDecision::of(&outcome) {
                RetryDecision::Good => return Ok(outcome),
                RetryDecision::Again(failure)
                    if attentions < UNIT_ATTENTIONS_MAX && started.elapsed() < self.limit =>
                {
                    tracing::debug!(%failure, "sent again");
                    attentions += 1;
                }
                RetryDecision::Later(_) if started.elapsed() + pause < self.limit => {
                    time::sleep(pause).await;
                    pause = backoff.next_pause();
                }
                RetryDecision::Again(failure)
                | RetryDecision::Later(failure)
                | RetryDecision::Failed(failure) => {
                    return Err(IscsiErrorKind::Scsi(failure));
                }
            }
        }
    }
}

/// The decision about a repetition after a command's outcome.
#[derive(Debug, PartialEq, Eq)]
enum RetryDecision {
    Good,
    /// Not executed: repeat it at once.
    Again(ScsiFailure),
    /// Not executed: repeat it after a pause.
    Later(ScsiFailure),
    Failed(ScsiFailure),
}

impl RetryDecision {
    fn of(outcome: &CommandOutcome) -> Self {
        if outcome.response != 0 {
            return Self::Failed(ScsiFailure::TargetFailure(outcome.response));
        }
        match outcome.status {
            scsi::STATUS_GOOD => Self::Good,
            scsi::STATUS_BUSY | scsi::STATUS_TASK_SET_FULL => {
                Self::Later(ScsiFailure::Status(outcome.status))
            }
            scsi::STATUS_CHECK_CONDITION => match Sense::parse(&outcome.sense) {
                None => Self::Failed(ScsiFailure::NoSense),
                Some(sense) if sense.is_unit_attention() => Self::Again(ScsiFailure::Sense(sense)),
                Some(sense) if sense.is_becoming_ready() => Self::Later(ScsiFailure::Sense(sense)),
                Some(sense) => Self::Failed(ScsiFailure::Sense(sense)),
            },
            status => Self::Failed(ScsiFailure::Status(status)),
        }
    }
}

/// Up to 1 MiB of zeros.
pub(super) fn zeros(bytes: u64) -> Bytes {
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    let most = usize::try_from(bytes).unwrap_or(usize::MAX).min(ZEROS.len());
    Bytes::from_static(ZEROS.get(..most).unwrap_or_default())
}

#[cfg(test)]
mod tests;
