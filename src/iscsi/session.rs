//! One session in its full feature phase, RFC 7143 §4 and §11, as a state machine without I/O and
//! without a clock.
//!
//! Inputs are commands ([`Session::submit`]), received PDUs ([`Session::open`],
//! [`Session::receive`]), and ticks of a clock ([`Session::tick`]). Outputs are the next PDU to
//! send ([`Session::next_pdu`]), made only when there is room for it, and one answer per command.
//! So no PDU waits in a queue: a command holds its data and a few numbers, and the number of slots
//! bounds the commands.
//!
//! The connection drives it, and holds the socket. The target is not trusted: each byte of a
//! command is sent once and received once, in order, and any other PDU ends the session. After
//! [`Session::fail`] every command has its answer, and no more are accepted.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::{
    error::{DigestOf, IscsiErrorKind},
    login::{FIRST_CMD_SN, LoggedIn},
    negotiate::Negotiated,
    pdu::{
        self, Bhs, LunField, NO_TAG, Pdu, RequestPdu, Residual, ResponseBody, ResponsePdu, Sequence,
    },
    task::{Burst, CommandOutcome, Completion, IscsiCommand, ScsiTask},
    window::Window,
};

/// Most answers to a target's NOP-Ins that wait to be sent; a target that sends more than it reads
/// misbehaves.
const PONGS_MAX: usize = 16;

/// A session in its full feature phase.
#[derive(Debug)]
pub(super) struct Session {
    agreed: Negotiated,
    window: Window,
    next_tag: u32,
    tasks: HashMap<u32, Task>,
    /// Commands that wait for the window, in order.
    waiting: VecDeque<u32>,
    /// Data that the target has asked for, in the order of its R2Ts.
    bursts: VecDeque<Burst>,
    /// Requests sent before all others; each is immediate.
    urgent: VecDeque<(RequestPdu, Bytes)>,
    silent_ticks: u32,
    closing: bool,
    failed: Option<IscsiErrorKind>,
}

/// A PDU between its header and the end of its data.
#[derive(Debug)]
pub(super) struct Incoming {
    response: ResponsePdu,
    /// The buffer that the data is appended to.
    pub(super) data: BytesMut,
}

#[derive(Debug)]
enum Task {
    Scsi(ScsiTask),
    Ping,
    Reset(Completion),
    Logout(Option<Completion>),
}

/// Limits in ticks of the keepalive clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepaliveLimits {
    /// Limit without any PDU from the target.
    pub(super) silent_max: u32,
    /// Limit for one command, also for a cancelled one.
    pub(super) command_max: u32,
}

impl Session {
    /// Starts a session after its login.
    pub(super) fn new(login: &LoggedIn) -> Self {
        Self {
            agreed: login.negotiated,
            window: Window::new(FIRST_CMD_SN, login.max_cmd_sn, login.exp_stat_sn),
            next_tag: FIRST_CMD_SN,
            tasks: HashMap::new(),
            waiting: VecDeque::new(),
            bursts: VecDeque::new(),
            urgent: VecDeque::new(),
            silent_ticks: 0,
            closing: false,
            failed: None,
        }
    }

    /// Queues a command; its answer goes to the completion, at once if the session is over.
    pub(super) fn submit(&mut self, command: IscsiCommand, completion: Completion) {
        if let Some(over) = self.over() {
            completion.answer(Err(over));
            return;
        }
        let task = ScsiTask::new(command, completion);
        let itt = self.tag();
        self.tasks.insert(itt, Task::Scsi(task));
        self.waiting.push_back(itt);
    }

    /// Asks the target to drop every command of one unit; the completion gets the target's answer
    /// (RFC 7143 §4.2.3.3).
    pub(super) fn reset_unit(&mut self, lun: LunField, completion: Completion) {
        if let Some(kind) = &self.failed {
            completion.answer(Err(kind.clone()));
            return;
        }
        let itt = self.tag();
        self.tasks.insert(itt, Task::Reset(completion));
        self.urgent.push_back((RequestPdu::LogicalUnitReset { lun, itt }, Bytes::new()));
    }

    /// Asks the target to close the session; the session accepts no more commands.
    pub(super) fn logout(&mut self, completion: Option<Completion>) {
        if let Some(kind) = &self.failed {
            if let Some(completion) = completion {
                completion.answer(Err(kind.clone()));
            }
            return;
        }
        self.closing = true;
        let itt = self.tag();
        self.tasks.insert(itt, Task::Logout(completion));
        self.urgent.push_back((RequestPdu::Logout { itt }, Bytes::new()));
    }

    /// Accepts no more commands, and cancels those that were not sent yet.
    pub(super) fn leave(&mut self) {
        self.closing = true;
        for itt in std::mem::take(&mut self.waiting) {
            if let Some(Task::Scsi(task)) = self.tasks.remove(&itt) {
                task.fail(logged_out());
            }
        }
    }

    /// The reason for the session's end, if it has ended.
    pub(super) fn failure(&self) -> Option<IscsiErrorKind> {
        self.failed.clone()
    }

    /// Ends the session: every command fails with `kind`, and so does every later one. The first
    /// reason stays.
    pub(super) fn fail(&mut self, kind: &IscsiErrorKind) {
        let kind = self.failed.get_or_insert_with(|| kind.clone()).clone();
        self.waiting.clear();
        self.bursts.clear();
        self.urgent.clear();
        for (_, task) in self.tasks.drain() {
            match task {
                Task::Scsi(task) => task.fail(kind.clone()),
                Task::Reset(completion) | Task::Logout(Some(completion)) => {
                    completion.answer(Err(kind.clone()));
                }
                Task::Ping | Task::Logout(None) => {}
            }
        }
    }

    /// Counts a tick of the keepalive clock; the error is the exceeded limit. Sends a NOP-Out to a
    /// silent target.
    pub(super) fn tick(&mut self, limits: KeepaliveLimits) -> Result<(), u32> {
        let mut oldest = 0;
        let mut pinging = false;
        for task in self.tasks.values_mut() {
            match task {
                Task::Scsi(task) => oldest = oldest.max(task.tick()),
                Task::Ping => pinging = true,
                Task::Reset(_) | Task::Logout(_) => {}
            }
        }
        self.silent_ticks += 1;
        if self.silent_ticks == 2 && !pinging && self.failed.is_none() {
            let itt = self.tag();
            self.tasks.insert(itt, Task::Ping);
            self.urgent
                .push_back((RequestPdu::NopOut { lun: [0; 8], itt, ttt: NO_TAG }, Bytes::new()));
        }
        if self.silent_ticks > limits.silent_max {
            return Err(limits.silent_max);
        }
        if oldest > limits.command_max {
            return Err(limits.command_max);
        }
        Ok(())
    }

    /// The next PDU to send: first urgent requests, then data that the target waits for, then new
    /// commands as the window allows. Unsolicited data thus follows its command before another
    /// command does (RFC 7143 §4.2.4.2).
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
        let Some(Task::Scsi(task)) = self.tasks.get_mut(&itt) else { return None };
        let (request, data, burst) = task.start(itt, &self.agreed);
        self.bursts.extend(burst);
        let pdu = self.encode(&request, data);
        self.window.command_sent();
        Some(pdu)
    }

    fn next_data_out(&mut self) -> Option<Pdu> {
        let burst = self.bursts.front_mut()?;
        // A task's end removes its bursts, so that this task exists.
        let Some(Task::Scsi(task)) = self.tasks.get_mut(&burst.itt) else { return None };
        let (request, data) = task.data_out(burst, &self.agreed);
        if burst.is_sent() {
            self.bursts.pop_front();
        }
        Some(self.encode(&request, data))
    }

    fn encode(&self, request: &RequestPdu, data: Bytes) -> Pdu {
        let sequence =
            Sequence { cmd_sn: self.window.next_cmd_sn(), exp_stat_sn: self.window.exp_stat_sn() };
        let bytes = u32::try_from(data.len()).unwrap_or(0);
        Pdu { bhs: request.encode(sequence, bytes), data }
    }

    /// Processes the header of a PDU, and returns the buffer for its data. The caller passes an
    /// error to [`Session::fail`].
    pub(super) fn open(&mut self, bhs: &Bhs) -> Result<Incoming, IscsiErrorKind> {
        let response = pdu::decode(bhs)
            .map_err(|opcode| violation(format!("opcode {opcode:02x}, which no target sends")))?;
        let data = match response.body {
            ResponseBody::DataIn { itt, data_sn, offset, .. } => {
                let bytes = usize::try_from(pdu::lengths(bhs).1).unwrap_or(usize::MAX);
                let task = self.sent_task(itt).ok_or_else(|| unknown_tag("Data-In", itt))?;
                task.lend(data_sn, offset, bytes)?
            }
            _ => BytesMut::new(),
        };
        Ok(Incoming { response, data })
    }

    /// Processes one PDU with its data. The caller passes an error to [`Session::fail`].
    pub(super) fn receive(&mut self, incoming: Incoming) -> Result<(), IscsiErrorKind> {
        let Incoming { response, data } = incoming;
        self.silent_ticks = 0;
        // istgt counts an immediate logout as a command; no numbers follow it.
        let last = matches!(response.body, ResponseBody::Logout { .. });
        if !self.window.update(response.exp_cmd_sn, response.max_cmd_sn) && !last {
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

    fn dispatch(&mut self, response: &ResponsePdu, data: BytesMut) -> Result<(), IscsiErrorKind> {
        match response.body {
            ResponseBody::Scsi { itt, response, status, residual } => {
                let short = residual != Residual::None;
                self.complete(
                    itt,
                    CommandOutcome {
                        response,
                        status,
                        sense: data.to_vec(),
                        short,
                        ..CommandOutcome::default()
                    },
                )
            }
            ResponseBody::R2t(r2t) => {
                let agreed = self.agreed;
                let task = self.sent_task(r2t.itt).ok_or_else(|| unknown_tag("R2T", r2t.itt))?;
                let burst = task.take_r2t(&r2t, &agreed)?;
                self.bursts.push_back(burst);
                Ok(())
            }
            ResponseBody::DataIn { itt, status, .. } => {
                let task = self.sent_task(itt).ok_or_else(|| unknown_tag("Data-In", itt))?;
                task.take_back(data);
                status.map_or(Ok(()), |(status, residual)| {
                    let short = residual != Residual::None;
                    self.complete(
                        itt,
                        CommandOutcome { status, short, ..CommandOutcome::default() },
                    )
                })
            }
            ResponseBody::NopIn { lun, itt, ttt } => self.nop_in(lun, itt, ttt, &data),
            ResponseBody::TaskManagement { itt, response } => {
                match self.take(itt, |task| matches!(task, Task::Reset(_))) {
                    Some(Task::Reset(completion)) => {
                        completion
                            .answer(Ok(CommandOutcome { response, ..CommandOutcome::default() }));
                    }
                    _ => return Err(unknown_tag("task management response", itt)),
                }
                Ok(())
            }
            ResponseBody::Logout { itt, response } => {
                match self.take(itt, |task| matches!(task, Task::Logout(_))) {
                    Some(Task::Logout(Some(completion))) => {
                        completion
                            .answer(Ok(CommandOutcome { response, ..CommandOutcome::default() }));
                    }
                    Some(_) => {}
                    None => return Err(unknown_tag("logout response", itt)),
                }
                Err(logged_out())
            }
            ResponseBody::Async { event } => self.asynchronous(event),
            ResponseBody::Reject { reason: 0x02 } => Err(IscsiErrorKind::Digest(DigestOf::Data)),
            ResponseBody::Reject { reason } => Err(violation(format!(
                "it rejects one of our PDUs: {} ({reason:02x})",
                reject_words(reason)
            ))),
            ResponseBody::Login(_) => Err(violation("a login response after the login".to_owned())),
        }
    }

    fn complete(&mut self, itt: u32, outcome: CommandOutcome) -> Result<(), IscsiErrorKind> {
        let sent = |task: &Task| matches!(task, Task::Scsi(task) if task.is_sent());
        let Some(Task::Scsi(task)) = self.take(itt, sent) else {
            return Err(unknown_tag("SCSI response", itt));
        };
        // A target may end a write early, and then gets no more data for it.
        if task.has_unsent_data() {
            self.bursts.retain(|burst| burst.itt != itt);
        }
        task.finish(outcome)
    }

    fn nop_in(
        &mut self,
        lun: LunField,
        itt: u32,
        ttt: u32,
        data: &[u8],
    ) -> Result<(), IscsiErrorKind> {
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
        self.urgent.push_back((RequestPdu::NopOut { lun, itt: NO_TAG, ttt }, echo));
        Ok(())
    }

    /// Processes an asynchronous message (RFC 7143 §11.9.1).
    fn asynchronous(&mut self, event: u8) -> Result<(), IscsiErrorKind> {
        match event {
            1 => {
                if !self.closing {
                    self.logout(None);
                }
                Ok(())
            }
            2 | 3 => Err(IscsiErrorKind::TargetGone(
                "the target announces that it drops the connection".to_owned(),
            )),
            // SCSI events show in later commands, parameters are not renegotiated, and other events
            // are vendor-specific.
            _ => Ok(()),
        }
    }

    /// The command with this tag, if it was sent.
    fn sent_task(&mut self, itt: u32) -> Option<&mut ScsiTask> {
        match self.tasks.get_mut(&itt) {
            Some(Task::Scsi(task)) if task.is_sent() => Some(task),
            _ => None,
        }
    }

    /// Removes the task with this tag if it is of the right kind; another task stays, and gets its
    /// answer when the session fails.
    fn take(&mut self, itt: u32, right: impl Fn(&Task) -> bool) -> Option<Task> {
        self.tasks.get(&itt).filter(|task| right(task))?;
        self.tasks.remove(&itt)
    }

    fn over(&self) -> Option<IscsiErrorKind> {
        self.failed.clone().or_else(|| self.closing.then(logged_out))
    }

    /// An unused task tag; at most a few hundred are in use.
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
fn has_status(body: &ResponseBody) -> bool {
    match body {
        ResponseBody::NopIn { itt, .. } => *itt != NO_TAG,
        ResponseBody::DataIn { status, .. } => status.is_some(),
        ResponseBody::R2t { .. } => false,
        ResponseBody::Scsi { .. }
        | ResponseBody::TaskManagement { .. }
        | ResponseBody::Login(_)
        | ResponseBody::Logout { .. }
        | ResponseBody::Async { .. }
        | ResponseBody::Reject { .. } => true,
    }
}

fn violation(what: String) -> IscsiErrorKind {
    IscsiErrorKind::Protocol(what)
}

fn unknown_tag(what: &str, itt: u32) -> IscsiErrorKind {
    violation(format!("a {what} for task {itt:08x}, which does not exist"))
}

fn logged_out() -> IscsiErrorKind {
    IscsiErrorKind::TargetGone("logged out".to_owned())
}

/// Describes the reason of a Reject (RFC 7143 §11.17.1).
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
