//! One call to a BMC: its lock, its session, and the retries of passing failures until the
//! deadline.
//!
//! The client makes a call for each operation. A call must never outlast its deadline, repeat a
//! wrong password, or open a second session beside the first.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::lookup_host,
    sync::MutexGuard,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    client::{IpmiClient, Memory},
    commands::IpmiCommand,
    error::{IpmiError, IpmiErrorKind, is_short_of_sessions},
    exchange::{CommandAnswer, Exchange, LoginFailure, NotOpened},
    link::{Link, SENDS_MAX},
    refusal::Verdict,
    transport::{Channel, Tries},
};
use crate::{
    bmc::timing::Timing,
    model::{backoff::Backoff, spec::CipherSuite},
};

/// Cipher suites in the order of the tries, if the spec names none.
const SUITES: [CipherSuite; 2] = [CipherSuite::Sha256, CipherSuite::Sha1];
/// Longest user key (IPMI 2.0 §13.31).
const PASSWORD_BYTES_MAX: usize = 20;

/// A call in progress. It holds the BMC's lock.
pub(super) struct IpmiCall<'a> {
    pub(super) bmc: &'a IpmiClient,
    pub(super) memory: MutexGuard<'a, Memory>,
    started: Instant,
    deadline: Instant,
    channel: Option<Box<dyn Channel>>,
    /// The unfinished search for a channel.
    search: Option<Search>,
    /// The waits for answers, and the number of times that each datagram of a login is sent.
    timing: Timing,
    sends_max: u32,
    /// The last obstacle, which becomes the error if the deadline comes now.
    trouble: Trouble,
}

#[derive(Clone, Debug)]
enum Trouble {
    /// The last command was answered.
    None,
    Unresolved(String),
    Silence(Option<io::ErrorKind>),
    Status(u8),
    Busy(IpmiCommand, u8),
    /// The BMC refused a command, and the refusal may pass.
    Refused(IpmiCommand, u8),
    /// Refused, although it was accepted before.
    Doubted(IpmiErrorKind),
    Program(String),
}

/// Unanswered polls in a row before a poll sends fewer datagrams.
const SILENT_POLLS_SPARED: u32 = 2;
/// Datagrams of each kind in such a poll: one may be lost.
const SPARING_SENDS_MAX: u32 = 2;
/// Tries of a command that its caller can do without, while the refusals may pass.
const OPTIONAL_SENDS_MAX: u32 = 2;

impl<'a> IpmiCall<'a> {
    /// Waits for the BMC's lock, and for the pause since the last call.
    pub(super) async fn begin(bmc: &'a IpmiClient, deadline: Instant) -> Result<Self, IpmiError> {
        let started = Instant::now();
        let waited = || started.elapsed();
        let in_use = || bmc.error(IpmiErrorKind::InUse { waited: waited() });
        let memory = timeout_at(deadline, bmc.memory.lock()).await.map_err(|_| in_use())?;
        let trouble = Trouble::None;
        let (timing, sends_max) = (bmc.timing, SENDS_MAX);
        let (channel, search) = (None, None);
        let call =
            Self { bmc, memory, started, deadline, channel, search, timing, sends_max, trouble };
        call.rest().await;
        Ok(call)
    }

    /// Waits out the pause since the last contact with the BMC.
    async fn rest(&self) {
        if let Some(last) = self.memory.last_contact {
            sleep_until((last + self.bmc.config.spacing).min(self.deadline)).await;
        }
    }

    /// Ends the call and closes its session, if one is open.
    pub(super) async fn end(mut self) {
        self.close_channel().await;
    }

    /// Ends the call, and gives its open session to the caller.
    pub(super) fn end_with_link(mut self) -> Result<Link, IpmiError> {
        let link = self.channel.take().and_then(Channel::into_link);
        link.ok_or_else(|| self.overdue())
    }

    /// Moves the deadline forward to `deadline`, if that is earlier.
    pub(super) fn shorten_deadline(&mut self, deadline: Instant) {
        self.deadline = self.deadline.min(deadline);
    }

    /// Sends few datagrams, spread over the call's time, if the last polls got no answer: a site
    /// may have many BMCs that stay silent for ever.
    pub(super) fn spare_silent(&mut self) {
        if self.memory.silent_polls >= SILENT_POLLS_SPARED {
            let left = self.deadline.saturating_duration_since(Instant::now());
            // Both cipher suites get the same number of datagrams, and the last wait takes the
            // remaining time.
            let wait = left * 4 / 15;
            self.timing = Timing { resend_first: wait, resend_max: wait, ..self.timing };
            self.sends_max = SPARING_SENDS_MAX;
        }
    }

    /// Counts the unanswered polls in a row.
    pub(super) fn note_poll<T>(&mut self, end: &Result<T, IpmiError>) {
        let is_silent = matches!(
            end,
            Err(IpmiError { kind: IpmiErrorKind::NoAnswer { network: None, .. }, .. })
        );
        self.memory.silent_polls =
            if is_silent { self.memory.silent_polls.saturating_add(1) } else { 0 };
    }

    /// Sends a command until the BMC accepts it or refuses it for good. Returns the answer's data.
    pub(super) async fn command(&mut self, command: IpmiCommand) -> Result<Vec<u8>, IpmiError> {
        self.command_few_times(command, u32::MAX).await
    }

    /// Sends a command that the caller can do without: few refusals end the tries.
    pub(super) async fn optional(&mut self, command: IpmiCommand) -> Result<Vec<u8>, IpmiError> {
        self.command_few_times(command, OPTIONAL_SENDS_MAX).await
    }

    /// Sends a command until the BMC answers it, and repeats it while the refusals may pass:
    /// `sends_max` times in all.
    pub(super) async fn command_few_times(
        &mut self,
        command: IpmiCommand,
        sends_max: u32,
    ) -> Result<Vec<u8>, IpmiError> {
        match timeout_at(self.deadline, self.persist(command, sends_max)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(self.overdue()),
        }
    }

    /// A pause between two commands; `false` if the deadline comes first.
    pub(super) async fn pause(&self, length: Duration) -> bool {
        let end = Instant::now() + length;
        sleep_until(end.min(self.deadline)).await;
        end < self.deadline
    }

    /// Whether the deadline interrupted a command that met no obstacle.
    pub(super) fn cut_off(&self) -> bool {
        matches!(self.trouble, Trouble::None) && self.deadline <= Instant::now()
    }

    pub(super) fn error(&self, kind: IpmiErrorKind) -> IpmiError {
        self.bmc.error(kind)
    }

    async fn persist(
        &mut self,
        command: IpmiCommand,
        sends_max: u32,
    ) -> Result<Vec<u8>, IpmiError> {
        let mut pauses = self.pauses();
        let mut unclear = 0;
        loop {
            let Some(answer) = self.send(command).await? else { continue };
            self.trouble = Trouble::None;
            let completion = answer.completion;
            let refused = || IpmiErrorKind::CommandRefused { command: command.name(), completion };
            match Verdict::of(command, completion) {
                Verdict::Accepted => {
                    self.memory.trust.note(command);
                    return Ok(answer.data);
                }
                Verdict::Busy => {
                    self.trouble = Trouble::Busy(command, completion);
                    sleep(pauses.next_pause()).await;
                }
                Verdict::Privilege => {
                    let trusted = self.memory.trust.covers(command);
                    // The session has the privilege, so that a new one needs a new session.
                    self.close_channel().await;
                    self.doubt(trusted, self.privilege_refused()).await?;
                }
                // A BMC that is still starting knows fewer commands.
                Verdict::Final
                    if command == IpmiCommand::GetChassisStatus
                        && self.memory.trust.covers(command) =>
                {
                    self.trouble = Trouble::Refused(command, completion);
                    sleep(pauses.next_pause()).await;
                }
                Verdict::Final => {
                    let trusted = sends_max == u32::MAX && self.is_doubtful(command);
                    self.doubt(trusted, refused()).await?;
                }
                Verdict::Unclear => {
                    unclear += 1;
                    if unclear >= sends_max {
                        return Err(self.error(refused()));
                    }
                    self.trouble = Trouble::Refused(command, completion);
                    sleep(pauses.next_pause()).await;
                }
            }
        }
    }

    /// Whether a final refusal contradicts an earlier success of the same command. Power commands
    /// are left to their callers: one may be right in one state and wrong in the other.
    fn is_doubtful(&self, command: IpmiCommand) -> bool {
        !matches!(command, IpmiCommand::ChassisControl(_)) && self.memory.trust.covers(command)
    }

    /// Returns a refusal as final, or waits before the next try. Just after a power change, BMCs
    /// refuse commands that they accepted before.
    async fn doubt(&mut self, trusted: bool, refusal: IpmiErrorKind) -> Result<(), IpmiError> {
        let time = self.bmc.timing.doubt;
        let pause = if trusted { self.memory.trust.doubt(time) } else { None };
        let Some(pause) = pause else { return Err(self.error(refusal)) };
        let bmc = &self.bmc.config.address;
        tracing::debug!(%bmc, ?refusal, "the bmc refused what it accepted before");
        self.trouble = Trouble::Doubted(refusal);
        sleep(pause).await;
        Ok(())
    }

    async fn close_channel(&mut self) {
        if let Some(channel) = self.channel.take() {
            channel.close(self.deadline).await;
        }
    }

    /// Sends a command once, on the open channel or a new one. `None`: no answer came.
    async fn send(&mut self, command: IpmiCommand) -> Result<Option<CommandAnswer>, IpmiError> {
        // The channel is a local variable during the exchange: if the deadline drops this future,
        // the channel is dropped too, and closes its session.
        let mut channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.connect().await?,
        };
        let exchange = channel.exchange(command).await;
        let keeps_session = self.bmc.transport.habits().keeps_session;
        if !keeps_session {
            self.memory.last_contact = Some(Instant::now());
        }
        match exchange {
            Exchange::Answer(answer) => {
                if keeps_session {
                    self.channel = Some(channel);
                } else if let Some(search) = self.search.take() {
                    self.memory.suite = Some(search.suite);
                }
                return Ok(Some(answer));
            }
            Exchange::Spent => channel.close(self.deadline).await,
            Exchange::Silence(network) => self.trouble = Trouble::Silence(network),
            Exchange::NotOpened(failed) => {
                let mut search = self.take_search()?;
                self.learn(&mut search, &failed).await?;
                self.search = Some(search);
            }
            Exchange::Unclear(said) => {
                self.trouble = Trouble::Program(said);
                let mut search = self.take_search()?;
                sleep(search.pauses.next_pause()).await;
                self.search = Some(search);
            }
            Exchange::Unusable(kind) => return Err(self.error(kind)),
        }
        Ok(None)
    }

    /// Opens a channel, with as many tries as it takes, and raises its session to the wanted
    /// privilege.
    async fn connect(&mut self) -> Result<Box<dyn Channel>, IpmiError> {
        let bmc = self.bmc;
        let keeps_session = bmc.transport.habits().keeps_session;
        let tries = Tries { timing: self.timing, sends_max: self.sends_max };
        let mut search = self.take_search()?;
        loop {
            let address = self.candidate(&mut search).await?;
            if !keeps_session {
                self.rest().await;
            }
            match bmc.transport.open(&bmc.config, tries, address, search.suite).await {
                Ok(channel) if keeps_session => {
                    self.memory.suite = Some(search.suite);
                    if let Some(channel) = self.raise_privilege(channel).await? {
                        return Ok(channel);
                    }
                }
                Ok(channel) => {
                    self.search = Some(search);
                    return Ok(channel);
                }
                Err(failed) => self.learn(&mut search, &failed).await?,
            }
        }
    }

    /// Takes the unfinished search, or starts a new one.
    fn take_search(&mut self) -> Result<Search, IpmiError> {
        self.search.take().map_or_else(|| self.search(), Ok)
    }

    fn search(&self) -> Result<Search, IpmiError> {
        let Timing { resend_max, .. } = self.bmc.timing;
        let bytes = self.bmc.config.password.expose().len();
        if bytes > PASSWORD_BYTES_MAX {
            return Err(self.error(IpmiErrorKind::PasswordTooLong { bytes }));
        }
        Ok(Search {
            attempts: 0,
            suite: SUITES[0],
            mismatches: 0,
            key_mismatches: 0,
            refused: Vec::new(),
            pauses: self.pauses(),
            refusal_pauses: Backoff::doubling(resend_max * 2, resend_max * 8),
        })
    }

    /// Sets the next cipher suite in the search and returns the next address: all addresses with
    /// one suite, then all with the other.
    async fn candidate(&mut self, search: &mut Search) -> Result<SocketAddr, IpmiError> {
        loop {
            let addresses = self.resolve().await;
            let attempt = search.attempts;
            search.attempts += 1;
            if let Some(address) = addresses.iter().cycle().nth(attempt % addresses.len().max(1)) {
                match self.suite(&search.refused, attempt / addresses.len()) {
                    Ok(suite) => {
                        search.suite = suite;
                        return Ok(*address);
                    }
                    Err(refused) => {
                        self.doubt(self.memory.trust.covers_login(), refused).await?;
                        search.refused.clear();
                        continue;
                    }
                }
            }
            sleep(search.pauses.next_pause()).await;
        }
    }

    /// The suite of a try: the spec's; else the last one that worked; else 17 and 3 alternately,
    /// without refused ones.
    fn suite(&self, refused: &[CipherSuite], round: usize) -> Result<CipherSuite, IpmiErrorKind> {
        let allowed: &[CipherSuite] = self.bmc.config.cipher_suite.as_slice();
        let allowed = if allowed.is_empty() { &SUITES } else { allowed };
        let left: Vec<CipherSuite> =
            allowed.iter().copied().filter(|suite| !refused.contains(suite)).collect();
        let alternating = left.iter().cycle().nth(round % SUITES.len());
        self.memory
            .suite
            .filter(|suite| left.contains(suite))
            .or(alternating.copied())
            .ok_or_else(|| IpmiErrorKind::SuitesRefused { suites: allowed.to_vec() })
    }

    /// Resolves the BMC's name; empty if the resolver fails now.
    async fn resolve(&mut self) -> Vec<SocketAddr> {
        let address = &self.bmc.config.address;
        match lookup_host((address.host.as_str(), address.port)).await {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                self.trouble = Trouble::Unresolved(error.to_string());
                Vec::new()
            }
        }
    }

    /// Adapts the next try to a failure, and pauses if the BMC needs time to recover.
    async fn learn(&mut self, search: &mut Search, failed: &NotOpened) -> Result<(), IpmiError> {
        let (suite, habits) = (search.suite, self.bmc.transport.habits());
        tracing::debug!(bmc = %self.bmc.config.address, suite = u8::from(suite), ?failed, "no \
            session");
        if failed.suite_accepted {
            self.memory.suite = Some(suite);
        }
        match failed.failure {
            LoginFailure::Silent => {
                self.trouble = Trouble::Silence(failed.network);
                let nothing_received = failed.network.is_none() && !failed.suite_accepted;
                if nothing_received && self.memory.suite.take().is_some() {
                    // New firmware may ignore the suite that the old firmware accepted.
                    search.attempts = 0;
                }
                // An error from the network or from `ipmitool` may come at once; a silent BMC has
                // already cost its time.
                if failed.network.is_some() || !habits.keeps_session {
                    sleep(search.pauses.next_pause()).await;
                }
            }
            LoginFailure::Mismatch => {
                search.mismatches += 1;
                // One mismatch does no harm if the next refusal is not final anyway.
                let trusted = self.memory.trust.covers_login();
                let max = if trusted { 1 } else { habits.mismatches_max };
                if search.mismatches >= max {
                    self.doubt(trusted, IpmiErrorKind::WrongPassword).await?;
                }
            }
            LoginFailure::KeyMismatch => {
                search.key_mismatches += 1;
                if search.key_mismatches >= habits.mismatches_max {
                    let given = self.bmc.config.kg.is_some();
                    let wrong = IpmiErrorKind::WrongKey { given };
                    self.doubt(self.memory.trust.covers_login(), wrong).await?;
                }
            }
            LoginFailure::SuiteRefused => {
                self.memory.suite = None;
                search.refused.push(suite);
            }
            LoginFailure::UnknownUser => {
                let trusted = self.memory.trust.covers_login();
                self.doubt(trusted, IpmiErrorKind::WrongPassword).await?;
            }
            LoginFailure::PrivilegeRefused => {
                let trusted = self.memory.trust.covers_login();
                self.doubt(trusted, self.privilege_refused()).await?;
            }
            LoginFailure::Status(status) => {
                self.trouble = Trouble::Status(status);
                let pauses = if is_short_of_sessions(status) {
                    &mut search.pauses
                } else {
                    &mut search.refusal_pauses
                };
                sleep(pauses.next_pause()).await;
            }
        }
        Ok(())
    }

    /// Raises the session's privilege: every session begins as `user`, who may not change anything.
    /// `None`: the BMC lost the session at once.
    async fn raise_privilege(
        &mut self,
        mut channel: Box<dyn Channel>,
    ) -> Result<Option<Box<dyn Channel>>, IpmiError> {
        let command = IpmiCommand::SetSessionPrivilege(self.bmc.config.privilege);
        match channel.exchange(command).await {
            Exchange::Answer(answer) => {
                let completion = answer.completion;
                let verdict = Verdict::of(command, completion);
                if verdict == Verdict::Accepted {
                    return Ok(Some(channel));
                }
                channel.close(self.deadline).await;
                match verdict {
                    Verdict::Privilege => {
                        let trusted = self.memory.trust.covers_login();
                        self.doubt(trusted, self.privilege_refused()).await?;
                        return Ok(None);
                    }
                    Verdict::Final => {
                        let trusted = self.memory.trust.covers_login();
                        let command = command.name();
                        let refused = IpmiErrorKind::CommandRefused { command, completion };
                        self.doubt(trusted, refused).await?;
                        return Ok(None);
                    }
                    Verdict::Busy => self.trouble = Trouble::Busy(command, completion),
                    Verdict::Unclear | Verdict::Accepted => {
                        self.trouble = Trouble::Refused(command, completion);
                    }
                }
                sleep(self.pauses().next_pause()).await;
                Ok(None)
            }
            Exchange::Silence(network) => {
                self.trouble = Trouble::Silence(network);
                Ok(None)
            }
            Exchange::Spent
            | Exchange::NotOpened(_)
            | Exchange::Unclear(_)
            | Exchange::Unusable(_) => Ok(None),
        }
    }

    fn privilege_refused(&self) -> IpmiErrorKind {
        let config = &self.bmc.config;
        IpmiErrorKind::PrivilegeRefused {
            username: config.username.clone(),
            privilege: config.privilege,
        }
    }

    /// The error of a call whose deadline came before the answer.
    fn overdue(&self) -> IpmiError {
        let waited = self.started.elapsed();
        self.error(match &self.trouble {
            Trouble::Unresolved(reason) => IpmiErrorKind::Unresolved { reason: reason.clone() },
            Trouble::None => IpmiErrorKind::NoAnswer { waited, network: None },
            Trouble::Silence(network) => IpmiErrorKind::NoAnswer { waited, network: *network },
            Trouble::Status(status) => IpmiErrorKind::NoSession { status: *status, waited },
            Trouble::Busy(command, completion) => {
                IpmiErrorKind::Busy { command: command.name(), completion: *completion, waited }
            }
            Trouble::Refused(command, completion) => {
                IpmiErrorKind::CommandRefused { command: command.name(), completion: *completion }
            }
            Trouble::Doubted(refusal) => IpmiErrorKind::Doubted {
                refusal: Box::new(refusal.clone()),
                doubted: self.memory.trust.doubted_for(),
            },
            Trouble::Program(said) => IpmiErrorKind::Unclear { said: said.clone(), waited },
        })
    }

    fn pauses(&self) -> Backoff {
        Backoff::doubling(self.bmc.timing.resend_first, self.bmc.timing.resend_max)
    }
}

impl Drop for IpmiCall<'_> {
    fn drop(&mut self) {
        self.memory.last_contact = Some(Instant::now());
    }
}

/// The search for a session, and its failures so far.
struct Search {
    attempts: usize,
    /// The suite of the current try.
    suite: CipherSuite,
    mismatches: u32,
    key_mismatches: u32,
    refused: Vec<CipherSuite>,
    pauses: Backoff,
    /// Pauses after refusals that a BMC may count as failed logins.
    refusal_pauses: Backoff,
}
