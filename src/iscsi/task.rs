//! One SCSI command from its submission to its answer: which of its bytes were sent, promised or
//! received.
//!
//! The session uses it. It checks that a target asks for each byte once, sends each byte once, in
//! order and within the command's length, and that GOOD means a complete transfer.

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    error::IscsiErrorKind,
    negotiate::Negotiated,
    pdu::{Direction, LunField, NO_TAG, R2t, RequestPdu},
    scsi::{Cdb, STATUS_GOOD},
};

/// A SCSI command with its data.
#[derive(Clone, Debug)]
pub(super) struct IscsiCommand {
    pub(super) lun: LunField,
    pub(super) cdb: Cdb,
    pub(super) data: Data,
}

/// The data of a command.
#[derive(Clone, Debug)]
pub(super) enum Data {
    None,
    /// Read: at most so many bytes from the target.
    In(u32),
    /// Write: these bytes to the target; fewer than 2^32.
    Out(Bytes),
}

impl Data {
    /// Number of bytes.
    pub(super) fn bytes(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::In(bytes) => *bytes,
            Self::Out(data) => u32::try_from(data.len()).unwrap_or(u32::MAX),
        }
    }

    /// The part of a write's data for one PDU, shared without a copy.
    fn slice(&self, offset: u32, bytes: u32) -> Bytes {
        match (self, usize::try_from(offset), usize::try_from(bytes)) {
            (Self::Out(data), Ok(from), Ok(bytes)) => data.slice(from..from + bytes),
            _ => Bytes::new(),
        }
    }
}

/// The target's response to a command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CommandOutcome {
    /// The response code of RFC 7143 §11.4.3; 0 if the target executed the command.
    pub(super) response: u8,
    /// The SCSI status.
    pub(super) status: u8,
    /// The data segment of the response: sense data with its length.
    pub(super) sense: Vec<u8>,
    /// The bytes read.
    pub(super) data: Bytes,
    /// Whether the target transferred another number of bytes than expected.
    pub(super) short: bool,
}

/// The receiver of a command's answer. The slot is free again when the target has answered, not
/// when the receiver stops waiting.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) answer: oneshot::Sender<Result<CommandOutcome, IscsiErrorKind>>,
    pub(super) slot: Option<Slot>,
}

/// A slot in the queue, and room for the command's data in flight.
pub(super) type Slot = [OwnedSemaphorePermit; 2];

impl Completion {
    /// Sends the answer to the receiver, and frees the slot.
    pub(super) fn answer(self, outcome: Result<CommandOutcome, IscsiErrorKind>) {
        // The receiver may be gone: the call was cancelled.
        drop(self.answer.send(outcome));
        drop(self.slot);
    }
}

/// A run of Data-Out PDUs: the data for one R2T, or the unsolicited rest of a first burst.
#[derive(Debug)]
pub(super) struct Burst {
    pub(super) itt: u32,
    ttt: u32,
    offset: u32,
    end: u32,
    data_sn: u32,
}

impl Burst {
    /// Whether all of its data was sent.
    pub(super) fn is_sent(&self) -> bool {
        self.offset == self.end
    }
}

/// A command in progress.
#[derive(Debug)]
pub(super) struct ScsiTask {
    completion: Completion,
    command: IscsiCommand,
    received: BytesMut,
    sent: bool,
    /// Data-In PDUs or R2Ts received so far.
    counted: u32,
    /// The end of the data that was sent or that an R2T asked for.
    promised: u32,
    /// Bytes of data that were not sent yet.
    unsent: u32,
    /// R2Ts with unsent data.
    open_r2ts: u32,
    ticks: u32,
}

impl ScsiTask {
    /// A command that was not sent yet.
    pub(super) fn new(command: IscsiCommand, completion: Completion) -> Self {
        let unsent = match command.data {
            Data::None | Data::In(_) => 0,
            Data::Out(_) => command.data.bytes(),
        };
        Self {
            completion,
            command,
            received: BytesMut::new(),
            sent: false,
            counted: 0,
            promised: 0,
            unsent,
            open_r2ts: 0,
            ticks: 0,
        }
    }

    /// Whether the command was sent.
    pub(super) fn is_sent(&self) -> bool {
        self.sent
    }

    /// Counts a tick of the keepalive clock, and returns the command's ticks so far.
    pub(super) fn tick(&mut self) -> u32 {
        self.ticks += 1;
        self.ticks
    }

    /// The command's own PDU with its immediate data, and the unsolicited data to follow, if any.
    pub(super) fn start(
        &mut self,
        itt: u32,
        agreed: &Negotiated,
    ) -> (RequestPdu, Bytes, Option<Burst>) {
        let bytes = self.command.data.bytes();
        let direction = match self.command.data {
            Data::None => Direction::None,
            Data::In(_) => Direction::Read,
            Data::Out(_) => Direction::Write,
        };
        let first = self.unsent.min(agreed.first_burst_bytes);
        let immediate = if agreed.immediate_data { first.min(agreed.max_send_bytes) } else { 0 };
        let unsolicited = if agreed.initial_r2t { immediate } else { first };
        self.sent = true;
        self.promised = unsolicited;
        self.unsent -= immediate;
        let burst = Burst { itt, ttt: NO_TAG, offset: immediate, end: unsolicited, data_sn: 0 };
        let burst = (!burst.is_sent()).then_some(burst);
        let IscsiCommand { lun, cdb, ref data } = self.command;
        let request = RequestPdu::Scsi { last: burst.is_none(), direction, lun, itt, bytes, cdb };
        (request, data.slice(0, immediate), burst)
    }

    /// The next Data-Out PDU of one of the command's bursts.
    pub(super) fn data_out(
        &mut self,
        burst: &mut Burst,
        agreed: &Negotiated,
    ) -> (RequestPdu, Bytes) {
        let bytes = (burst.end - burst.offset).min(agreed.max_send_bytes);
        let data = self.command.data.slice(burst.offset, bytes);
        let request = RequestPdu::DataOut {
            last: burst.offset + bytes == burst.end,
            lun: self.command.lun,
            itt: burst.itt,
            ttt: burst.ttt,
            data_sn: burst.data_sn,
            offset: burst.offset,
        };
        self.unsent -= bytes;
        burst.offset += bytes;
        burst.data_sn += 1;
        if burst.is_sent() && burst.ttt != NO_TAG {
            self.open_r2ts -= 1;
        }
        (request, data)
    }

    /// Accepts an R2T, which must ask for the next bytes.
    pub(super) fn take_r2t(
        &mut self,
        r2t: &R2t,
        agreed: &Negotiated,
    ) -> Result<Burst, IscsiErrorKind> {
        let R2t { itt, ttt, number, offset, bytes } = *r2t;
        let total = match self.command.data {
            Data::Out(_) => self.command.data.bytes(),
            Data::None | Data::In(_) => 0,
        };
        let end = offset.checked_add(bytes).filter(|end| *end <= total);
        let in_order = offset == self.promised && number == self.counted;
        let (Some(end), true) = (end, in_order && bytes > 0 && ttt != NO_TAG) else {
            return Err(IscsiErrorKind::Protocol(format!(
                "R2T {number} for {bytes} bytes at {offset} of {total}, {} promised before",
                self.promised
            )));
        };
        if bytes > agreed.max_burst_bytes {
            let most = agreed.max_burst_bytes;
            return Err(IscsiErrorKind::Protocol(format!(
                "an R2T for {bytes} bytes, at most {most} agreed"
            )));
        }
        if self.open_r2ts == agreed.max_outstanding_r2t {
            return Err(IscsiErrorKind::Protocol(format!(
                "more than {} outstanding R2Ts",
                self.open_r2ts
            )));
        }
        self.open_r2ts += 1;
        self.counted += 1;
        self.promised = end;
        Ok(Burst { itt, ttt, offset, end, data_sn: 0 })
    }

    /// Lends the buffer for Data-In if it continues the bytes read before, with room for the rest.
    pub(super) fn lend(
        &mut self,
        data_sn: u32,
        offset: u32,
        bytes: usize,
    ) -> Result<BytesMut, IscsiErrorKind> {
        let expected = match self.command.data {
            Data::In(bytes) => usize::try_from(bytes).unwrap_or(0),
            Data::None | Data::Out(_) => 0,
        };
        let have = self.received.len();
        let in_order = data_sn == self.counted && usize::try_from(offset) == Ok(have);
        if !in_order || have + bytes > expected {
            return Err(IscsiErrorKind::Protocol(format!(
                "Data-In {data_sn} of {bytes} bytes at {offset}, {have} of {expected} are here"
            )));
        }
        self.received.reserve(expected - have);
        self.counted += 1;
        Ok(std::mem::take(&mut self.received))
    }

    /// Takes back the lent buffer, with the new bytes.
    pub(super) fn take_back(&mut self, received: BytesMut) {
        self.received = received;
    }

    /// Whether a burst may still hold unsent data.
    pub(super) fn has_unsent_data(&self) -> bool {
        self.unsent > 0
    }

    /// Ends the command with the target's answer. An impossible GOOD is an error for the receiver
    /// and for the session.
    pub(super) fn finish(self, mut outcome: CommandOutcome) -> Result<(), IscsiErrorKind> {
        let good = outcome.response == 0 && outcome.status == STATUS_GOOD;
        if good && self.unsent > 0 && !outcome.short {
            let lie = IscsiErrorKind::Protocol(format!(
                "GOOD for a write of which it never took {} bytes",
                self.unsent
            ));
            self.completion.answer(Err(lie.clone()));
            return Err(lie);
        }
        // Dropped first, because the receiver of the answer may reuse the memory of its data.
        drop(self.command);
        outcome.data = self.received.freeze();
        self.completion.answer(Ok(outcome));
        Ok(())
    }

    /// Ends the command with an error.
    pub(super) fn fail(self, kind: IscsiErrorKind) {
        self.completion.answer(Err(kind));
    }
}
