//! One session in its full feature phase, RFC 7143 §4 and §11, as a machine without I/O and without a clock.
//!
//! In: commands ([`Session::submit`]), received PDUs ([`Session::receive`]), the beat of a clock ([`Session::beat`]).
//! Out: the next PDU to send ([`Session::next_pdu`]), made only when there is room for it, and one answer per command.
//! So no PDU ever waits in a queue: what is held per command is its data and a few numbers, and commands are as many as have a slot.
//!
//! Called by the connection, which holds the socket. The target is not trusted: each byte of a command is sent once and received
//! once, in order, and anything else ends the session. After [`Session::fail`] every command has its answer and no more are taken.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    error::{DigestOf, ErrorKind},
    login::{FIRST_CMD_SN, LoggedIn},
    negotiate::Negotiated,
    pdu::{
        self, Bhs, Body, Direction, LunField, NO_TAG, Pdu, Request, Residual, Response, Sequence,
    },
    scsi::{Cdb, STATUS_GOOD},
    window::Window,
};

/// Answers to a target's NOP-Ins that may wait to be sent; a target that asks more often than it reads is up to no good.
const PONGS_MAX: usize = 16;

/// A SCSI command with its data.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) lun: LunField,
    pub(super) cdb: Cdb,
    pub(super) data: Data,
}

/// The data of a command.
#[derive(Clone, Debug)]
pub(super) enum Data {
    None,
    /// At most so many bytes from the target.
    In(u32),
    /// These bytes to the target; fewer than 2^32.
    Out(Bytes),
}

/// How a command ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The response code of RFC 7143 §11.4.3; 0 when the target carried the command out.
    pub(super) response: u8,
    /// The SCSI status.
    pub(super) status: u8,
    /// The data segment of the response: sense data with its length.
    pub(super) sense: Vec<u8>,
    /// What was read.
    pub(super) data: Vec<u8>,
    /// Whether the target took or gave other than the expected number of bytes.
    pub(super) short: bool,
}

/// Where a command's answer goes. The slot is given back when the target is done with the command, not when the asker stops waiting.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) answer: oneshot::Sender<Result<Outcome, ErrorKind>>,
    pub(super) slot: Option<OwnedSemaphorePermit>,
}

impl Asker {
    fn answer(self, outcome: Result<Outcome, ErrorKind>) {
        // Nobody may be waiting any more: the asker was cancelled.
        drop(self.answer.send(outcome));
        drop(self.slot);
    }
}

/// The session.
#[derive(Debug)]
pub(super) struct Session {
    agreed: Negotiated,
    window: Window,
    next_tag: u32,
    tasks: HashMap<u32, Task>,
    /// Commands that wait for the window, in order.
    waiting: VecDeque<u32>,
    /// Data the target is to get, in the order in which it asked.
    bursts: VecDeque<Burst>,
    /// Requests sent before everything else; each is immediate.
    urgent: VecDeque<(Request, Bytes)>,
    silent_beats: u32,
    leaving: bool,
    failed: Option<ErrorKind>,
}

#[derive(Debug)]
enum Task {
    Scsi(ScsiTask),
    Ping,
    Reset(Asker),
    Logout(Option<Asker>),
}

#[derive(Debug)]
struct ScsiTask {
    asker: Asker,
    command: Command,
    received: Vec<u8>,
    /// Whether the target can know of it.
    sent: bool,
    /// Data-In PDUs or R2Ts taken so far.
    counted: u32,
    /// Up to where data has been sent or promised.
    promised: u32,
    /// Bytes of data not yet handed to the wire.
    unsent: u32,
    /// R2Ts whose data is not all on its way.
    open_r2ts: u32,
    /// How long the target has had it.
    beats: u32,
}

/// Limits in beats of the keepalive clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beats {
    /// Without any PDU from the target.
    pub(super) silent_max: u32,
    /// For one command, even if nobody waits for its answer any more.
    pub(super) command_max: u32,
}

/// A run of Data-Out PDUs: what one R2T asked for, or the unsolicited rest of a first burst.
#[derive(Debug)]
struct Burst {
    itt: u32,
    ttt: u32,
    offset: u32,
    end: u32,
    data_sn: u32,
}

impl Session {
    /// A session right after its login.
    pub(super) fn new(login: &LoggedIn) -> Self {
        Self {
            agreed: login.negotiated,
            window: Window::new(FIRST_CMD_SN, login.max_cmd_sn, login.exp_stat_sn),
            next_tag: FIRST_CMD_SN,
            tasks: HashMap::new(),
            waiting: VecDeque::new(),
            bursts: VecDeque::new(),
            urgent: VecDeque::new(),
            silent_beats: 0,
            leaving: false,
            failed: None,
        }
    }

    /// Takes a command; its answer goes to the asker, at once if the session is over.
    pub(super) fn submit(&mut self, command: Command, asker: Asker) {
        if let Some(over) = self.over() {
            asker.answer(Err(over));
            return;
        }
        let bytes = match &command.data {
            Data::None => 0,
            Data::In(bytes) => *bytes,
            Data::Out(data) => u32::try_from(data.len()).unwrap_or(u32::MAX),
        };
        let (room, unsent) = match command.data {
            Data::In(_) => (usize::try_from(bytes).unwrap_or(0), 0),
            Data::Out(_) => (0, bytes),
            Data::None => (0, 0),
        };
        let received = Vec::with_capacity(room);
        let task = ScsiTask {
            asker,
            command,
            received,
            sent: false,
            counted: 0,
            promised: 0,
            unsent,
            open_r2ts: 0,
            beats: 0,
        };
        let itt = self.tag();
        self.tasks.insert(itt, Task::Scsi(task));
        self.waiting.push_back(itt);
    }

    /// Asks the target to drop every command at one unit; answered when it has (RFC 7143 §4.2.3.3).
    pub(super) fn reset_unit(&mut self, lun: LunField, asker: Asker) {
        if let Some(kind) = &self.failed {
            asker.answer(Err(kind.clone()));
            return;
        }
        let itt = self.tag();
        self.tasks.insert(itt, Task::Reset(asker));
        self.urgent.push_back((Request::LogicalUnitReset { lun, itt }, Bytes::new()));
    }

    /// Asks the target to close the session; no command is taken from now on.
    pub(super) fn logout(&mut self, asker: Option<Asker>) {
        if let Some(kind) = &self.failed {
            if let Some(asker) = asker {
                asker.answer(Err(kind.clone()));
            }
            return;
        }
        self.leaving = true;
        let itt = self.tag();
        self.tasks.insert(itt, Task::Logout(asker));
        self.urgent.push_back((Request::Logout { itt }, Bytes::new()));
    }

    /// Takes no more commands, and takes back those not sent yet.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
        for itt in std::mem::take(&mut self.waiting) {
            if let Some(Task::Scsi(task)) = self.tasks.remove(&itt) {
                task.asker.answer(Err(left()));
            }
        }
    }

    /// Ends the session: every command fails with `kind`, and so does every later one. The first reason stays.
    pub(super) fn fail(&mut self, kind: &ErrorKind) {
        let kind = self.failed.get_or_insert_with(|| kind.clone()).clone();
        self.waiting.clear();
        self.bursts.clear();
        self.urgent.clear();
        for (_, task) in self.tasks.drain() {
            if let Task::Scsi(ScsiTask { asker, .. })
            | Task::Reset(asker)
            | Task::Logout(Some(asker)) = task
            {
                asker.answer(Err(kind.clone()));
            }
        }
    }

    /// One beat of the keepalive clock; the error is the limit that has passed. In silence the target is asked for a sign of life (NOP-Out).
    pub(super) fn beat(&mut self, limits: Beats) -> Result<(), u32> {
        let mut oldest = 0;
        let mut pinging = false;
        for task in self.tasks.values_mut() {
            match task {
                Task::Scsi(task) => {
                    task.beats += 1;
                    oldest = oldest.max(task.beats);
                }
                Task::Ping => pinging = true,
                Task::Reset(_) | Task::Logout(_) => {}
            }
        }
        self.silent_beats += 1;
        if self.silent_beats == 2 && !pinging && self.failed.is_none() {
            let itt = self.tag();
            self.tasks.insert(itt, Task::Ping);
            self.urgent
                .push_back((Request::NopOut { lun: [0; 8], itt, ttt: NO_TAG }, Bytes::new()));
        }
        if self.silent_beats > limits.silent_max {
            return Err(limits.silent_max);
        }
        if oldest > limits.command_max {
            return Err(limits.command_max);
        }
        Ok(())
    }

    /// The next PDU to send. First what is urgent, then data the target waits for, then new commands as the window allows:
    /// unsolicited data thus follows its command before another command does (RFC 7143 §4.2.4.2).
    pub(super) fn next_pdu(&mut self) -> Option<Pdu> {
        if let Some((request, data)) = self.urgent.pop_front() {
            return Some(self.encode(&request, data));
        }
        if !self.bursts.is_empty() {
            return self.next_data_out();
        }
        if !self.window.is_open() {
            return None;
        }
        let itt = self.waiting.pop_front()?;
        self.start(itt)
    }

    fn start(&mut self, itt: u32) -> Option<Pdu> {
        let agreed = self.agreed;
        let Some(Task::Scsi(task)) = self.tasks.get_mut(&itt) else { return None };
        let (direction, bytes, data) = match &task.command.data {
            Data::None => (Direction::None, 0, Bytes::new()),
            Data::In(bytes) => (Direction::Read, *bytes, Bytes::new()),
            Data::Out(data) => (Direction::Write, task.unsent, data.clone()),
        };
        let first =
            if direction == Direction::Write { bytes.min(agreed.first_burst_bytes) } else { 0 };
        let immediate = if agreed.immediate_data { first.min(agreed.max_send_bytes) } else { 0 };
        let unsolicited = if agreed.initial_r2t { immediate } else { first };
        task.sent = true;
        task.promised = unsolicited;
        task.unsent -= immediate;
        if immediate < unsolicited {
            self.bursts.push_back(Burst {
                itt,
                ttt: NO_TAG,
                offset: immediate,
                end: unsolicited,
                data_sn: 0,
            });
        }
        let last = immediate == unsolicited;
        let (lun, cdb) = (task.command.lun, task.command.cdb);
        let pdu = self.encode(
            &Request::Scsi { last, direction, lun, itt, bytes, cdb },
            slice(&data, 0, immediate),
        );
        self.window.command_sent();
        Some(pdu)
    }

    fn next_data_out(&mut self) -> Option<Pdu> {
        let burst = self.bursts.front_mut()?;
        // A task that ended takes its bursts along, so this one is there.
        let Some(Task::Scsi(task)) = self.tasks.get_mut(&burst.itt) else { return None };
        let Data::Out(data) = &task.command.data else { return None };
        let (offset, bytes) =
            (burst.offset, (burst.end - burst.offset).min(self.agreed.max_send_bytes));
        let last = offset + bytes == burst.end;
        let request = Request::DataOut {
            last,
            lun: task.command.lun,
            itt: burst.itt,
            ttt: burst.ttt,
            data_sn: burst.data_sn,
            offset,
        };
        let data = slice(data, offset, bytes);
        task.unsent -= bytes;
        burst.offset += bytes;
        burst.data_sn += 1;
        if last {
            if burst.ttt != NO_TAG {
                task.open_r2ts -= 1;
            }
            self.bursts.pop_front();
        }
        Some(self.encode(&request, data))
    }

    fn encode(&self, request: &Request, data: Bytes) -> Pdu {
        let sequence =
            Sequence { cmd_sn: self.window.next_cmd_sn(), exp_stat_sn: self.window.exp_stat_sn() };
        let bytes = u32::try_from(data.len()).unwrap_or(0);
        Pdu { bhs: request.encode(sequence, bytes), data }
    }

    /// Takes one PDU. An error is the end: the caller passes it to [`Session::fail`].
    pub(super) fn receive(&mut self, bhs: &Bhs, data: &[u8]) -> Result<(), ErrorKind> {
        let response = pdu::decode(bhs)
            .map_err(|opcode| violation(format!("opcode {opcode:02x}, which no target sends")))?;
        self.silent_beats = 0;
        if !self.window.update(response.exp_cmd_sn, response.max_cmd_sn) {
            return Err(violation(
                "ExpCmdSN acknowledges a command that was never sent".to_owned(),
            ));
        }
        if has_status(&response.body) && !self.window.status_received(response.stat_sn) {
            return Err(violation(format!(
                "StatSN {}, expected {}",
                response.stat_sn,
                self.window.exp_stat_sn()
            )));
        }
        self.dispatch(&response, data)
    }

    fn dispatch(&mut self, response: &Response, data: &[u8]) -> Result<(), ErrorKind> {
        match response.body {
            Body::Scsi { itt, response, status, residual } => {
                let short = residual != Residual::None;
                self.complete(
                    itt,
                    Outcome { response, status, sense: data.to_vec(), short, ..Outcome::default() },
                )
            }
            Body::R2t { itt, ttt, r2t_sn, offset, bytes } => {
                self.ready_to_transfer(itt, ttt, r2t_sn, offset, bytes)
            }
            Body::DataIn { itt, data_sn, offset, status } => {
                self.data_in(itt, data_sn, offset, status, data)
            }
            Body::NopIn { lun, itt, ttt } => self.nop_in(lun, itt, ttt, data),
            Body::TaskManagement { itt, response } => {
                match self.take(itt, |task| matches!(task, Task::Reset(_))) {
                    Some(Task::Reset(asker)) => {
                        asker.answer(Ok(Outcome { response, ..Outcome::default() }));
                    }
                    _ => return Err(unknown_tag("task management response", itt)),
                }
                Ok(())
            }
            Body::Logout { itt, response } => {
                match self.take(itt, |task| matches!(task, Task::Logout(_))) {
                    Some(Task::Logout(Some(asker))) => {
                        asker.answer(Ok(Outcome { response, ..Outcome::default() }));
                    }
                    Some(_) => {}
                    None => return Err(unknown_tag("logout response", itt)),
                }
                Err(left())
            }
            Body::Async { event } => self.asynchronous(event),
            Body::Reject { reason: 0x02 } => Err(ErrorKind::Digest(DigestOf::Data)),
            Body::Reject { reason } => Err(violation(format!(
                "it rejects one of our PDUs: {} ({reason:02x})",
                reject_words(reason)
            ))),
            Body::Login(_) => Err(violation("a login response after the login".to_owned())),
        }
    }

    fn ready_to_transfer(
        &mut self,
        itt: u32,
        ttt: u32,
        r2t_sn: u32,
        offset: u32,
        bytes: u32,
    ) -> Result<(), ErrorKind> {
        let agreed = self.agreed;
        let task = self.sent_task(itt).ok_or_else(|| unknown_tag("R2T", itt))?;
        let Data::Out(data) = &task.command.data else {
            return Err(violation("an R2T for a command without data".to_owned()));
        };
        let total = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let end = offset.checked_add(bytes).filter(|end| *end <= total);
        let (Some(end), true) = (end, offset == task.promised && r2t_sn == task.counted) else {
            return Err(violation(format!(
                "R2T {r2t_sn} for {bytes} bytes at {offset} of {total}, {} were promised",
                task.promised
            )));
        };
        if bytes == 0 || bytes > agreed.max_burst_bytes || ttt == NO_TAG {
            return Err(violation(format!(
                "an R2T for {bytes} bytes, {} agreed",
                agreed.max_burst_bytes
            )));
        }
        if task.open_r2ts == agreed.max_outstanding_r2t {
            return Err(violation(format!(
                "more than {} outstanding R2Ts",
                agreed.max_outstanding_r2t
            )));
        }
        task.open_r2ts += 1;
        task.counted += 1;
        task.promised = end;
        self.bursts.push_back(Burst { itt, ttt, offset, end, data_sn: 0 });
        Ok(())
    }

    fn data_in(
        &mut self,
        itt: u32,
        data_sn: u32,
        offset: u32,
        status: Option<(u8, Residual)>,
        data: &[u8],
    ) -> Result<(), ErrorKind> {
        let task = self.sent_task(itt).ok_or_else(|| unknown_tag("Data-In", itt))?;
        let Data::In(expected) = task.command.data else {
            return Err(violation("Data-In for a command that reads nothing".to_owned()));
        };
        let have = task.received.len();
        let in_order =
            data_sn == task.counted && usize::try_from(offset).is_ok_and(|offset| offset == have);
        if !in_order || have + data.len() > usize::try_from(expected).unwrap_or(0) {
            return Err(violation(format!(
                "Data-In {data_sn} of {} bytes at {offset}, {have} of {expected} are here",
                data.len()
            )));
        }
        task.received.extend_from_slice(data);
        task.counted += 1;
        match status {
            Some((status, residual)) => {
                let short = residual != Residual::None;
                self.complete(itt, Outcome { status, short, ..Outcome::default() })
            }
            None => Ok(()),
        }
    }

    fn complete(&mut self, itt: u32, mut outcome: Outcome) -> Result<(), ErrorKind> {
        let sent = |task: &Task| matches!(task, Task::Scsi(task) if task.sent);
        let Some(Task::Scsi(task)) = self.take(itt, sent) else {
            return Err(unknown_tag("SCSI response", itt));
        };
        // A target may give up early, then nothing more is owed to it.
        if task.unsent > 0 {
            self.bursts.retain(|burst| burst.itt != itt);
        }
        let good = outcome.response == 0 && outcome.status == STATUS_GOOD;
        if good && task.unsent > 0 && !outcome.short {
            let complaint =
                violation(format!("GOOD for a write of which it never took {} bytes", task.unsent));
            task.asker.answer(Err(complaint.clone()));
            return Err(complaint);
        }
        outcome.data = task.received;
        task.asker.answer(Ok(outcome));
        Ok(())
    }

    fn nop_in(&mut self, lun: LunField, itt: u32, ttt: u32, data: &[u8]) -> Result<(), ErrorKind> {
        if itt != NO_TAG {
            let ping = self.take(itt, |task| matches!(task, Task::Ping));
            return ping.map(drop).ok_or_else(|| unknown_tag("NOP-In", itt));
        }
        if ttt == NO_TAG {
            return Ok(());
        }
        if self.urgent.len() >= PONGS_MAX {
            return Err(violation(format!("more than {PONGS_MAX} unanswered NOP-Ins")));
        }
        let most = usize::try_from(self.agreed.max_send_bytes).unwrap_or(usize::MAX);
        let echo = Bytes::copy_from_slice(data.get(..most).unwrap_or(data));
        self.urgent.push_back((Request::NopOut { lun, itt: NO_TAG, ttt }, echo));
        Ok(())
    }

    /// RFC 7143 §11.9.1
    fn asynchronous(&mut self, event: u8) -> Result<(), ErrorKind> {
        match event {
            1 => {
                if !self.leaving {
                    self.logout(None);
                }
                Ok(())
            }
            2 | 3 => Err(ErrorKind::TargetGone(
                "the target announces that it drops the connection".to_owned(),
            )),
            // SCSI events concern us only through later commands; parameters are not renegotiated; the rest is the vendor's.
            _ => Ok(()),
        }
    }

    /// The command with this tag, if the target can know of it.
    fn sent_task(&mut self, itt: u32) -> Option<&mut ScsiTask> {
        match self.tasks.get_mut(&itt) {
            Some(Task::Scsi(task)) if task.sent => Some(task),
            _ => None,
        }
    }

    /// Removes the task with this tag if it is of the right kind; any other stays, to be answered when the session fails.
    fn take(&mut self, itt: u32, right: impl Fn(&Task) -> bool) -> Option<Task> {
        self.tasks.get(&itt).filter(|task| right(task))?;
        self.tasks.remove(&itt)
    }

    fn over(&self) -> Option<ErrorKind> {
        self.failed.clone().or_else(|| self.leaving.then(left))
    }

    /// A task tag nobody uses; at most a few hundred are in use.
    fn tag(&mut self) -> u32 {
        loop {
            let tag = self.next_tag;
            self.next_tag = self.next_tag.wrapping_add(1);
            if tag != NO_TAG && !self.tasks.contains_key(&tag) {
                return tag;
            }
        }
    }
}

/// Whether a PDU uses up a `StatSN` (RFC 7143 §11.7.3, §11.8, §11.19.1).
fn has_status(body: &Body) -> bool {
    match body {
        Body::NopIn { itt, .. } => *itt != NO_TAG,
        Body::DataIn { status, .. } => status.is_some(),
        Body::R2t { .. } => false,
        Body::Scsi { .. }
        | Body::TaskManagement { .. }
        | Body::Login(_)
        | Body::Logout { .. }
        | Body::Async { .. }
        | Body::Reject { .. } => true,
    }
}

/// The part of a write's data one PDU carries; the payload is shared, not copied.
fn slice(data: &Bytes, offset: u32, bytes: u32) -> Bytes {
    let (Ok(from), Ok(bytes)) = (usize::try_from(offset), usize::try_from(bytes)) else {
        return Bytes::new();
    };
    data.slice(from..from + bytes)
}

fn violation(what: String) -> ErrorKind {
    ErrorKind::Protocol(what)
}

fn unknown_tag(what: &str, itt: u32) -> ErrorKind {
    violation(format!("a {what} for task {itt:08x}, which does not exist"))
}

fn left() -> ErrorKind {
    ErrorKind::TargetGone("logged out".to_owned())
}

/// RFC 7143 §11.17.1
fn reject_words(reason: u8) -> &'static str {
    match reason {
        0x03 => "SNACK rejected",
        0x04 => "protocol error",
        0x05 => "command not supported",
        0x06 => "too many immediate commands",
        0x07 => "task in progress",
        0x08 => "invalid data acknowledgement",
        0x09 => "invalid PDU field",
        0x0a => "out of resources",
        0x0b => "negotiation reset",
        0x0c => "waiting for logout",
        _ => "unknown reason",
    }
}

#[cfg(test)]
mod tests;
