//! The first boot: with a `[boot_check]` in the spec, a machine is deployed only once its installed
//! system has shown that it is up.
//!
//! Called by `settle.rs`, `attempt.rs` and `node.rs`. [`Installed::booted`] is on record from the
//! moment the disk is good, and [`State::Booting`] lasts exactly while it is `waiting` and the spec
//! wants the machine to run. Nothing here may ever cause a write, use up an attempt, or switch a
//! machine except for one restart by the BMC.

use std::{net::IpAddr, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::model::{
    boot_report::BootReport,
    callback::Reply,
    fault::{Fault, Step},
    machine::MachineChange,
    power::PowerState,
    secret::BootToken,
    spec::{BootCheck, Goal, NodeSpec, WantedPower},
    status::{Booted, Installed, InstalledSystem, LastError},
};

use super::{
    event::{Action, Operation},
    limits::{RESTART_TRIES_MAX, after},
    node::Node,
    polls::PollPermit,
    state::{FirstBoot, State},
    text::{plain, plain_up_to},
    transitions::Cause,
};

/// The time that a system still has if its deadline passed while the agent was stopped.
pub(super) const OVERDUE_WAIT: Duration = Duration::from_secs(120);
/// Longest time for which a probe waits for the permit of a poll that is due.
const POLL_WAIT: Duration = Duration::from_secs(5);
/// The code of a probe without an answer, after which the next probe needs no pause.
pub const NO_ANSWER: &str = "NoAnswer";
/// Longest text of a system that is kept, in characters: a banner of SSH has 253 at most (RFC 4253
/// §4.2), and so has a host name.
const TEXT_CHARS_MAX: usize = 253;
/// Most SSH host keys that are kept: a system has three or four.
const HOST_KEYS_MAX: usize = 8;

/// The check that applies to an installation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Check {
    /// This port must answer.
    Port { address: String, port: u16 },
    /// It calls, with its token.
    Call,
}

impl Check {
    /// Returns the spec's check of an installation; `None` without one, or if it cannot be met.
    fn of(spec: &NodeSpec, installed: &Installed, has_token: bool) -> Option<Self> {
        if spec.power == WantedPower::Off {
            return None;
        }
        match &spec.boot_check {
            BootCheck::None => None,
            BootCheck::Call => has_token.then_some(Self::Call),
            BootCheck::Tcp { port, address } => {
                let ramdisks = || installed.address.map(|address| address.to_string());
                let address = address.clone().or_else(ramdisks)?;
                Some(Self::Port { address, port: *port })
            }
        }
    }
}

/// The initial value of [`Installed::booted`].
pub(super) fn booted(spec: &NodeSpec, installed: &Installed, has_token: bool) -> Booted {
    match Check::of(spec, installed, has_token) {
        Some(_) => Booted::Waiting,
        None => Booted::Unchecked,
    }
}

impl Node {
    fn booted(&self) -> Option<Booted> {
        self.record.installed.as_ref()?.booted
    }

    fn set_booted(&mut self, booted: Booted) {
        if let Some(installed) = &mut self.record.installed {
            installed.booted = Some(booted);
        }
    }

    fn check(&self) -> Option<Check> {
        let has_token = self.record.boot_token.is_some();
        Check::of(self.record.spec.as_deref()?, self.record.installed.as_ref()?, has_token)
    }

    /// Whether the first boot missed its deadline and the spec still wants a check.
    pub fn boot_missed(&self) -> bool {
        self.booted() == Some(Booted::Missed) && self.wants_boot_check()
    }

    /// Whether the node waits for the first boot, now or once nothing blocks it.
    pub(super) fn awaits_boot(&self) -> bool {
        self.booted() == Some(Booted::Waiting) && self.wants_boot_check()
    }

    fn wants_boot_check(&self) -> bool {
        let spec = self.record.spec.as_ref();
        spec.is_some_and(|spec| spec.goal == Goal::Deployed && !spec.paused)
            && !self.wants_install()
            && !self.owes_restart()
    }

    /// Enters or leaves [`State::Booting`], as the record and the spec require.
    pub(super) fn await_boot(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if self.unread {
            return;
        }
        self.drop_moot_check();
        let restarts = self.record.state == State::Booting { boot: FirstBoot::Restarting };
        let awaits = self.awaits_boot() && !self.gone;
        let is_booting = matches!(self.record.state, State::Booting { .. });
        if is_booting && (!awaits || restarts && !self.may_restart()) {
            self.end_boot_early(now, actions);
        }
        if self.record.state == State::Idle && awaits && !self.stands_still() && !self.clash {
            let starts = self.is_off() && self.may_restart();
            let boot = if starts { FirstBoot::Restarting } else { FirstBoot::Waiting };
            self.enter(now, Cause::BootAwaited(boot));
        }
    }

    /// Drops a check that the spec no longer wants or that cannot be met.
    fn drop_moot_check(&mut self) {
        let is_open = matches!(self.booted(), Some(Booted::Waiting | Booted::Missed));
        let deployed = self.record.spec.as_ref().is_some_and(|spec| spec.goal == Goal::Deployed);
        if is_open && deployed && !self.wants_install() && self.check().is_none() {
            self.set_booted(Booted::Unchecked);
            self.record.last_error.take_if(|error| error.fault.step == Step::FirstBoot);
        }
    }

    /// Ends the first boot without a result, because the spec wants something else or names another
    /// machine.
    fn end_boot_early(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let restarts = self.record.state == State::Booting { boot: FirstBoot::Restarting };
        if restarts && self.has_begun() {
            // The restart may be interrupted while the machine is off.
            self.record.power_ordered = self.wanted_power().is_some();
            self.polls.ask(now);
        }
        self.stop_at_rest(now, actions);
        self.enter(now, Cause::StartedAfresh);
    }

    /// Whether the installed machine's own BMC can restart it.
    fn may_restart(&self) -> bool {
        self.power_control().can_switch() && self.answers_where_installed()
    }

    /// Waits again for a missed first boot after a change of the check.
    pub(super) fn reconsider_boot(&mut self, old: &NodeSpec, new: &NodeSpec) {
        let checks_otherwise =
            old.boot_check != new.boot_check || old.timeouts.first_boot != new.timeouts.first_boot;
        if checks_otherwise && self.booted() == Some(Booted::Missed) {
            self.wait_for_boot_again();
        }
    }

    /// Cancels the probe or restart after a change of the BMC or of the check. A restart of another
    /// machine orders nothing of the new one.
    pub(super) fn restart_boot_check(
        &mut self,
        now: Timestamp,
        old: &NodeSpec,
        new: &NodeSpec,
        actions: &mut Vec<Action>,
    ) {
        let is_booting = matches!(self.record.state, State::Booting { .. });
        if is_booting && (old.bmc != new.bmc || old.boot_check != new.boot_check) {
            self.boot_trouble = None;
            self.cancel(actions);
        }
        let restarts = self.record.state == State::Booting { boot: FirstBoot::Restarting };
        if restarts && old.machine_change(new) != MachineChange::None {
            self.stop_at_rest(now, actions);
            self.start_afresh(now);
        }
    }

    /// Waits again for a missed first boot, by an operator's order. Returns whether it was missed.
    pub(super) fn retry_boot(&mut self) -> bool {
        let was_missed = self.boot_missed();
        if was_missed {
            self.wait_for_boot_again();
        }
        was_missed
    }

    fn wait_for_boot_again(&mut self) {
        self.set_booted(Booted::Waiting);
        // The trouble was that of another wait.
        self.boot_trouble = None;
    }

    /// Whether the node waits for its installed system to come up. Its BMC is polled meanwhile, and
    /// operators may use it.
    pub fn awaits_system(&self) -> bool {
        let waits = State::Booting { boot: FirstBoot::Waiting };
        self.record.state == waits
            || self.record.state == State::Booting { boot: FirstBoot::Overdue }
    }

    /// The operation of a first boot that is due: a poll between two probes, a probe, or the
    /// restart.
    pub(super) fn boot_operation_at(&self, now: Timestamp, boot: FirstBoot) -> Option<Operation> {
        if self.polls.granted() && self.wants_poll(now) {
            return Some(Operation::PollPower);
        }
        let waits_to_poll = match self.polls.permit {
            PollPermit::Waiting { since, .. } => now < after(since, POLL_WAIT),
            // The node queues for the poll at the end of this step.
            PollPermit::None => self.wants_poll(now),
            PollPermit::Granted | PollPermit::Running => false,
        };
        let is_due = self.record.not_before.is_none_or(|at| at <= now);
        self.boot_operation(boot).filter(|_| is_due && !waits_to_poll)
    }

    /// When the next probe or restart starts, if something keeps it waiting.
    pub(super) fn probe_at(&self, boot: FirstBoot) -> Option<Timestamp> {
        self.boot_operation(boot)?;
        let polled_by = match self.polls.permit {
            PollPermit::Waiting { since, .. } => Some(after(since, POLL_WAIT)),
            PollPermit::None | PollPermit::Granted | PollPermit::Running => None,
        };
        self.record.not_before.max(polled_by)
    }

    /// The operation of a first boot.
    fn boot_operation(&self, boot: FirstBoot) -> Option<Operation> {
        match (boot, self.check()?) {
            (FirstBoot::Restarting, _) => Some(Operation::Restart { wanted: PowerState::On }),
            (FirstBoot::Waiting | FirstBoot::Overdue, Check::Call) => None,
            (FirstBoot::Waiting | FirstBoot::Overdue, Check::Port { address, port }) => {
                Some(Operation::ProbePort { address, port })
            }
        }
    }

    /// Extends a first boot whose deadline passed while the agent was stopped, so that hostler
    /// probes the system before it restarts the machine.
    pub(super) fn give_boot_time_if_cut_off(&mut self, now: Timestamp) {
        let ends_at = self.record.deadline.unwrap_or(Timestamp::MAX);
        if self.record.state == (State::Booting { boot: FirstBoot::Waiting })
            && ends_at < after(now, OVERDUE_WAIT)
        {
            self.enter(now, Cause::CutOff);
        }
    }

    /// Notes that the BMC has restarted the machine.
    pub(super) fn boot_restarted(&mut self, now: Timestamp) {
        self.see_power(now, PowerState::On);
        self.record.last_seen.netbooted_at = None;
        self.note_own_boot(now);
        self.boot_trouble = None;
        if !self.power_differs() {
            // An interrupted attempt may owe the machine its power.
            self.record.power_ordered = false;
        }
        self.enter(now, Cause::Restarted);
    }

    /// Notes that the system is up.
    pub(super) fn boot_seen(&mut self, now: Timestamp, address: IpAddr, banner: Option<&str>) {
        let ssh_banner = banner.map(|banner| plain_up_to(TEXT_CHARS_MAX, banner));
        let address = Some(address);
        self.note_up(now, InstalledSystem { address, ssh_banner, ..InstalledSystem::default() });
        self.enter(now, Cause::BootJudged);
        self.polls.ask(now);
    }

    /// Judges a call of an installed system. Only the token of this very installation counts,
    /// whenever it comes; a repetition changes nothing, and neither does anything else.
    pub(super) fn boot_called(
        &mut self,
        now: Timestamp,
        peer: IpAddr,
        token: &BootToken,
        report: BootReport,
        actions: &mut Vec<Action>,
    ) -> Reply {
        if self.record.boot_token.as_ref() != Some(token) || self.booted().is_none() {
            return Reply::Refused;
        }
        if self.booted() == Some(Booted::Up) {
            return Reply::Accepted;
        }
        let short = |text: String| plain_up_to(TEXT_CHARS_MAX, &text);
        let keys = report.ssh_host_keys.into_iter().take(HOST_KEYS_MAX).map(short).collect();
        self.note_up(
            now,
            InstalledSystem {
                address: Some(peer),
                ssh_banner: None,
                hostname: report.hostname.map(short),
                instance_id: report.instance_id.map(short),
                ssh_host_keys: keys,
            },
        );
        match self.record.state {
            State::Booting { boot: FirstBoot::Waiting | FirstBoot::Overdue } => {
                self.stop_at_rest(now, actions);
                self.enter(now, Cause::BootJudged);
                self.polls.ask(now);
            }
            // It runs its own system, whoever restarted it.
            State::Idle | State::Failed => self.record.awaits_restart = false,
            // The operation under way ends by itself, and finds the system up.
            State::Booting { boot: FirstBoot::Restarting }
            | State::Held { .. }
            | State::SettingPower { .. }
            | State::Preparing { .. }
            | State::PoweringOn { .. }
            | State::WaitingRamdisk { .. }
            | State::Imaging { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. }
            | State::Restarting { .. }
            | State::CleaningUp { .. } => {}
        }
        Reply::Accepted
    }

    fn note_up(&mut self, now: Timestamp, system: InstalledSystem) {
        if let Some(installed) = &mut self.record.installed {
            installed.booted = Some(Booted::Up);
            installed.booted_at = Some(now);
            installed.system = Some(system);
        }
        self.record.switched_on_at = None;
        let is_settled = |step| matches!(step, Step::FirstBoot | Step::Restart);
        self.record.last_error.take_if(|error| is_settled(error.fault.step));
        self.boot_trouble = None;
    }

    /// Notes the failure of a probe.
    pub(super) fn boot_probe_failed(&mut self, now: Timestamp, fault: Fault) {
        if fault.code != NO_ANSWER {
            // The agent's own fault: the next probe waits.
            self.record.tries = self.record.tries.saturating_add(1);
            self.record.not_before = Some(after(now, self.pause_after(self.record.tries)));
        }
        self.boot_trouble = Some(fault.message);
    }

    /// Notes that the BMC could not restart the machine.
    pub(super) fn boot_not_restarted(&mut self, now: Timestamp, fault: &Fault) {
        let message = format!(
            "the installed system did not show that it is up, and the machine could not be \
             restarted: {}",
            fault.message
        );
        self.miss_power(now, fault.clone());
        self.boot_was_missed(now, fault.code.clone().into_owned(), &message);
    }

    /// Handles the deadline of a first boot: one restart, and then the end.
    pub(super) fn miss_boot(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if self.record.state == (State::Booting { boot: FirstBoot::Restarting }) {
            let message = "the installed system did not show that it is up, and the machine was \
                not restarted in time";
            self.boot_was_missed(now, "RestartTimeout".to_owned(), message);
        } else if self.may_restart()
            && !self.record.restarted_again
            && !self.may_have_called()
            && !self.is_left_off()
        {
            self.record.restarted_again = true;
            self.cancel(actions);
            self.enter(now, Cause::BootRepeated);
            return;
        } else {
            let message = self.boot_timeout();
            self.boot_was_missed(now, "NotBooted".to_owned(), &message);
        }
        self.stop_at_rest(now, actions);
    }

    /// Whether somebody has switched the machine off, which hostler does not undo by itself.
    fn is_left_off(&self) -> bool {
        self.is_off() && !self.policy.enforce_power
    }

    /// Whether the system's only call may have come while the agent was stopped.
    fn may_have_called(&self) -> bool {
        self.record.state == State::Booting { boot: FirstBoot::Overdue }
            && self.check() == Some(Check::Call)
    }

    /// Ends a missed first boot. The machine stays as it is, because its disk is whole.
    fn boot_was_missed(&mut self, now: Timestamp, code: String, message: &str) {
        let (node, guessed) = (&self.name, self.guessed_address());
        let hint = format!(
            "its disk is whole, and disk and power stay as they are: look at the machine's \
             console, which bmc.console = true keeps, and at [boot_check]{guessed}; `hostler retry \
             {node}` waits for it again and writes nothing"
        );
        let fault = Fault {
            code: code.into(),
            hint: hint.into(),
            ..Fault::passing(Step::FirstBoot, "NotBooted", plain(message), "")
        };
        self.set_booted(Booted::Missed);
        self.record.last_error = Some(LastError { at: now, attempt: self.record.attempt, fault });
        self.enter(now, Cause::BootJudged);
    }

    /// The advice about an address that no spec and no config drive gives; empty with one.
    fn guessed_address(&self) -> String {
        let spec = self.record.spec.as_ref();
        let is_given = !spec
            .is_some_and(|spec| matches!(spec.boot_check, BootCheck::Tcp { address: None, .. }));
        match self.check() {
            Some(Check::Port { address, .. }) if !is_given => format!(
                ": {address} is the address that its deploy ramdisk had, so write the system's own \
                 in boot_check.address if that is another one"
            ),
            _ => String::new(),
        }
    }

    fn boot_timeout(&self) -> String {
        let limit = self.record.spec.as_ref().map(|spec| spec.timeouts.first_boot);
        let limit =
            limit.and_then(|limit| SignedDuration::try_from(limit).ok()).unwrap_or_default();
        let trouble = self.boot_trouble.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let evidence = self.netboot_evidence();
        let gone = if self.may_have_called() {
            "; it may have called while hostler did not run"
        } else {
            ""
        };
        let off = if self.is_off() { "; the machine is off" } else { "" };
        let again = if self.record.restarted_again { ", nor after another restart" } else { "" };
        format!(
            "the installed system did not come up within \
             {limit:#}{again}{trouble}{evidence}{gone}{off}"
        )
    }

    /// The remark about a boot from the wrong device.
    fn netboot_evidence(&self) -> &'static str {
        let boots_disk = self.record.installed.as_ref().is_some_and(|it| it.netboot.is_none());
        match (boots_disk, self.record.last_seen.netbooted_at) {
            (true, Some(_)) => {
                "; the machine netbooted instead of booting its disk: look at its boot order"
            }
            (false, None) => "; the machine did not fetch its boot menu: look at its boot order",
            (true, None) | (false, Some(_)) => "",
        }
    }

    /// The message of a first boot under way.
    pub(super) fn boot_message(&self, boot: FirstBoot) -> String {
        if boot == FirstBoot::Restarting {
            let again = self.again(RESTART_TRIES_MAX);
            return format!("its own system did not come up: the BMC restarts it once more{again}");
        }
        let sign = match self.check() {
            Some(Check::Port { address, port }) => format!("port {port} of {address} to answer"),
            Some(Check::Call) => "it to call".to_owned(),
            None => "its own system".to_owned(),
        };
        let trouble = self.boot_trouble.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
        let evidence = self.netboot_evidence();
        let evidence = if self.record.last_seen.netbooted_at.is_some() { evidence } else { "" };
        let off = if self.is_off() { "; the machine is off" } else { "" };
        format!("it boots its own system; waiting for {sign}{trouble}{evidence}{off}")
    }
}
