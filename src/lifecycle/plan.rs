//! The planner, which predicts the effect of changed specs by the core itself.
//!
//! Called by `hostler plan`, without a running agent. It makes a fleet from status files, which
//! have less than the agent's records, compares it with the specs as the agent would, and answers
//! every poll with the last observed power state. Each node's next action follows from its state.
//! No rule of the core may be repeated here: [`Fleet`] and [`Node`] decide.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::model::{
    ids::{NodeName, OpId},
    machine::Machine,
    power::PowerState,
    problem::Problem,
    spec::{Bmc, BmcDriver, Checksum, Goal, MachineId, NodeSpec, Privilege},
    status::{Booted, Installed, Phase, Status},
};

use super::{
    event::{Action, Event, Operation, Outcome, Permit},
    fleet::{Fleet, Specs},
    limits::Policy,
    node::Node,
    state::{Hold, Record, State},
    unclaimed::UnclaimedInstalls,
};

/// The age of the planner's fleet, after which all polls are due.
const LONG_AGO: Duration = Duration::from_secs(24 * 60 * 60);

/// The predicted action for one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedChange {
    pub node: NodeName,
    /// The machine of the node's spec.
    pub machine: Option<Machine>,
    pub action: PlannedAction,
    /// The disk that the action would WIPE, now or after approval of a held change.
    pub wipes: Option<String>,
    /// Whether the action needs the machine to be off and its power state is unknown.
    pub unless_on: bool,
    /// The reason, in one sentence.
    pub reason: String,
}

/// An action on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlannedAction {
    /// The machine is installed for the first time.
    Install,
    /// The machine is WIPED and installed again.
    Reinstall,
    /// An operator must consent first.
    Hold,
    /// An operator must consent first, because too many machines would be reinstalled at once.
    Breaker,
    /// Nothing happens, although the installation differs from the spec.
    Drift,
    /// The machine is served another kernel or ramdisk, or other kernel arguments, once they are
    /// verified. Disk and power do not change.
    Netboot,
    /// The machine is switched on.
    SwitchOn,
    /// The machine is shut down.
    SwitchOff,
    /// The node is forgotten; disk and power do not change.
    Forget,
    /// Nothing happens.
    Nothing,
    /// Nothing new happens: the spec is invalid.
    Invalid,
    /// Nothing happens: another spec names the same machine.
    Clash,
}

impl PlannedAction {
    /// The action's name in the output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Reinstall => "reinstall",
            Self::Hold => "hold",
            Self::Breaker => "breaker",
            Self::Drift => "drift",
            Self::Netboot => "netboot",
            Self::SwitchOn => "switch-on",
            Self::SwitchOff => "switch-off",
            Self::Forget => "forget",
            Self::Nothing => "nothing",
            Self::Invalid => "invalid",
            Self::Clash => "clash",
        }
    }
}

/// A fleet from status files, with the specs to judge.
#[derive(Debug)]
pub struct Planner {
    fleet: Fleet,
    specs: Specs,
    statuses: BTreeMap<NodeName, Status>,
    /// The last observed power state of each machine.
    power: BTreeMap<MachineId, PowerState>,
    now: Timestamp,
}

impl Planner {
    /// Makes a planner. `before` are the specs before the change, which complete the status files:
    /// each counts if it has the digest in its node's status.
    pub fn new(
        policy: Policy,
        statuses: Vec<Status>,
        before: &Specs,
        specs: Specs,
        now: Timestamp,
    ) -> Self {
        let mut power = BTreeMap::new();
        let mut records = BTreeMap::new();
        for status in &statuses {
            let old = effective_spec(status, before, &specs);
            if let (Some(old), Some(seen)) = (&old, last_power(status)) {
                power.insert(old.machine(), seen);
            }
            records.insert(status.node.clone(), Box::new(record(status, old, now)));
        }
        let long_ago = SignedDuration::try_from(LONG_AGO).unwrap_or_default();
        let began = now.checked_sub(long_ago).unwrap_or(now);
        Self {
            fleet: Fleet::resume(
                policy,
                records,
                UnclaimedInstalls::default(),
                BTreeMap::new(),
                began,
            ),
            specs,
            statuses: statuses.into_iter().map(|status| (status.node.clone(), status)).collect(),
            power,
            now,
        }
    }

    /// The specs that would be effective, among which the caller finds clashes.
    pub fn effective_specs(&self) -> Vec<Arc<NodeSpec>> {
        self.fleet.effective_specs(&self.specs)
    }

    /// Predicts the action of each node, in the order of their names.
    pub fn judge(mut self, clashes: &BTreeMap<NodeName, Vec<Problem>>) -> Vec<PlannedChange> {
        let specs = std::mem::take(&mut self.specs);
        let mut changes = Vec::new();
        let mut gone = BTreeSet::new();
        for (name, event) in self.fleet.compare(self.now, specs, clashes) {
            let is_broken = matches!(event, Event::SpecProblems(_));
            let is_clash = matches!(event, Event::SpecClash(_));
            let kind = is_broken.then_some(PlannedAction::Invalid);
            let kind = kind.or(is_clash.then_some(PlannedAction::Clash));
            self.play(&name, event);
            match self.fleet.node(&name) {
                Some(node) => changes.push(self.change(node, kind)),
                None => drop(gone.insert(name)),
            }
        }
        changes.extend(gone.into_iter().map(forgotten));
        changes.sort_by(|one, other| one.node.cmp(&other.node));
        changes
    }

    /// Passes an event to a node, and answers the poll that follows.
    fn play(&mut self, name: &NodeName, event: Event) {
        let mut question = None;
        // A new node's first poll is due at once here.
        let is_new = self.fleet.node(name).is_none();
        let then = if is_new { Event::PowerMayHaveChanged } else { Event::Tick };
        for event in [event, then] {
            let mut actions = self.fleet.step(self.now, name, event).unwrap_or_default();
            if let Some((permit, _)) = self.fleet.node(name).and_then(Node::waits_to_poll) {
                let granted = self.fleet.step(self.now, name, Event::Granted(permit));
                actions.extend(granted.unwrap_or_default());
            }
            question = question.or_else(|| actions.into_iter().find_map(poll_request));
        }
        if let Some((op, spec)) = question {
            let answer = self.power_of(&spec).unwrap_or(PowerState::Off);
            let outcome = Ok(Outcome::Power(answer));
            self.fleet.step(self.now, name, Event::Done { op, outcome });
        }
    }

    fn power_of(&self, spec: &NodeSpec) -> Option<PowerState> {
        self.power.get(&spec.machine()).copied()
    }

    fn change(&self, node: &Node, kind: Option<PlannedAction>) -> PlannedChange {
        let installed = node.record().installed.as_ref();
        let starts = node.waits_for().is_some_and(|(permit, _)| permit == Permit::Attempt);
        let under_way = self.under_way(node).filter(|phase| starts || is_written(*phase));
        let action = kind.unwrap_or(match (&node.record().state, node.phase()) {
            _ if under_way.is_some_and(is_written) => PlannedAction::Nothing,
            _ if starts && installed.is_some() => PlannedAction::Reinstall,
            _ if starts => PlannedAction::Install,
            _ if node.held_for() == Some(Hold::TooManyChanges) => PlannedAction::Breaker,
            (_, Phase::Held) => PlannedAction::Hold,
            (State::SettingPower { wanted: PowerState::On }, _) => PlannedAction::SwitchOn,
            (State::SettingPower { wanted: PowerState::Off }, _) => PlannedAction::SwitchOff,
            (_, Phase::Deployed) if node.netboot_operation().is_some() => PlannedAction::Netboot,
            (_, Phase::Deployed) if node.drifted() => PlannedAction::Drift,
            _ => PlannedAction::Nothing,
        });
        let wiping = matches!(
            action,
            PlannedAction::Install | PlannedAction::Reinstall | PlannedAction::Breaker
        );
        let consent = node.may_wipe(PowerState::On);
        let unknown = node.spec().is_some_and(|spec| self.power_of(spec).is_none());
        let reason = match (action, installed, node.spec(), under_way) {
            (.., Some(phase)) => format!("under way: {}", phase.as_str()),
            (PlannedAction::Reinstall, Some(installed), Some(spec), _) => format!(
                "redeploy changed from {} to {}",
                quoted(installed.redeploy.as_ref()),
                quoted(spec.redeploy.as_ref())
            ),
            (PlannedAction::Install, ..) if consent => {
                "not installed yet, and consented to".to_owned()
            }
            (PlannedAction::Install, ..) => "never installed by hostler".to_owned(),
            _ => node.message(),
        };
        let begins = matches!(action, PlannedAction::Install | PlannedAction::Reinstall)
            && under_way.is_none();
        let once = if begins && node.power_control().waits_for_operator() {
            "; once somebody has it boot from the network"
        } else {
            ""
        };
        PlannedChange {
            node: node.name().clone(),
            machine: node.spec().map(|spec| Machine::named_by(spec)),
            action,
            wipes: node.spec().filter(|_| wiping).map(|spec| wiped(spec, installed)),
            unless_on: action == PlannedAction::Install
                && unknown
                && !consent
                && node.power_control().can_switch(),
            reason: format!("{reason}{}{once}", left_behind(action, node)),
        }
    }

    /// The phase of an attempt that goes on with the same spec.
    fn under_way(&self, node: &Node) -> Option<Phase> {
        let status = self.statuses.get(node.name())?;
        (status.phase.is_busy() && status.spec_digest == node.wanted).then_some(status.phase)
    }
}

/// The spec that is effective before the change: the one with the status's digest, or else a
/// reconstruction from the status and the new spec.
fn effective_spec(status: &Status, before: &Specs, specs: &Specs) -> Option<Arc<NodeSpec>> {
    let digest = status.spec_digest.as_ref()?;
    let good = |specs: &Specs| specs.get(&status.node)?.as_ref().ok().cloned();
    let known = good(before).filter(|spec| spec.digest() == *digest);
    let mut spec = known.or_else(|| good(specs))?;
    let changed = Arc::make_mut(&mut spec);
    if let Some(machine) = &status.machine {
        name_machine(changed, machine);
    }
    if changed.digest() != *digest {
        changed.redeploy =
            status.installed.as_ref().and_then(|installed| installed.redeploy.clone());
        // Stands for an unknown image, which only has to differ.
        changed.image.checksum = Checksum::Inline(digest.clone());
    }
    changed.goal = match status.phase {
        Phase::Available => Goal::Available,
        Phase::Unmanaged => Goal::Unmanaged,
        Phase::Invalid | Phase::Paused | Phase::Held => changed.goal,
        Phase::Pending
        | Phase::Preparing
        | Phase::PoweringOn
        | Phase::WaitingRamdisk
        | Phase::Imaging
        | Phase::Switching
        | Phase::WaitingCompleted
        | Phase::Restarting
        | Phase::Booting
        | Phase::Deployed
        | Phase::Failed => Goal::Deployed,
    };
    Some(spec)
}

/// Sets the machine of a spec to the one in the status, because no digest includes it.
fn name_machine(spec: &mut NodeSpec, machine: &Machine) {
    spec.boot.macs.clone_from(&machine.macs);
    let before = spec.bmc.take();
    let bmc = machine.bmc.clone().map(|address| match before {
        Some(bmc) => Bmc { address, ..*bmc },
        // The BMC's login is unknown, and the planner sends no command.
        None => Bmc {
            driver: BmcDriver::default(),
            address,
            username: String::new(),
            password: None,
            privilege: Privilege::Administrator,
            kg_file: None,
            cipher_suite: None,
            match_system_uuid: false,
            console: false,
        },
    });
    spec.bmc = bmc.map(Box::new);
}

/// Reconstructs a node's record from its status.
fn record(status: &Status, spec: Option<Arc<NodeSpec>>, now: Timestamp) -> Record {
    let is_shown = |hold: &Hold| {
        let reason = hold.as_str();
        status.conditions.iter().any(|one| one.kind == "Held" && one.reason == reason)
    };
    let hold = Hold::ALL.into_iter().find(is_shown);
    let state = match (status.phase, hold) {
        (Phase::Failed, _) if is_installed_unseen(status) => State::Idle,
        (Phase::Failed, _) => State::Failed,
        (Phase::Held, Some(reason @ Hold::PoweredOn)) => {
            let redeploy = spec.as_ref().and_then(|spec| spec.redeploy.clone());
            State::Held { redeploy, reason }
        }
        _ => State::Idle,
    };
    // A machine that is on and pending instead of held has consent.
    let seen_on = status.power.is_some_and(|power| power.observed == PowerState::On);
    Record {
        spec,
        state,
        consented: status.phase == Phase::Pending && seen_on,
        too_many_changes: hold == Some(Hold::TooManyChanges),
        record_lost: status.is_record_lost() && !status.phase.is_busy(),
        attempt: status.attempt,
        installed: status.installed.clone(),
        last_error: status.last_error.clone(),
        ..Record::new(now)
    }
}

/// Whether the status is that of a missed first boot.
fn is_installed_unseen(status: &Status) -> bool {
    let booted = status.installed.as_ref().and_then(|installed| installed.booted);
    booted == Some(Booted::Missed)
}

/// The last observed power state, or off during an attempt, whose clean-up switches the machine
/// off. A first boot switches nothing off.
fn last_power(status: &Status) -> Option<PowerState> {
    if status.phase.is_busy() && status.phase != Phase::Booting {
        return Some(PowerState::Off);
    }
    status.power.map(|power| power.observed)
}

fn is_written(phase: Phase) -> bool {
    matches!(phase, Phase::Switching | Phase::WaitingCompleted | Phase::Restarting | Phase::Booting)
}

fn poll_request(action: Action) -> Option<(OpId, Arc<NodeSpec>)> {
    if let Action::Start { op, operation: Operation::PollPower, spec } = action {
        return Some((op, spec));
    }
    None
}

/// The remark about the installed disk if another one would be written: it keeps its file systems.
fn left_behind(action: PlannedAction, node: &Node) -> String {
    let moves =
        matches!(action, PlannedAction::Reinstall | PlannedAction::Breaker | PlannedAction::Drift);
    let (Some(spec), Some(installed), true) = (node.spec(), &node.record().installed, moves) else {
        return String::new();
    };
    let disk = &installed.disk;
    if spec.root_device.choose(std::slice::from_ref(disk)).is_ok() {
        return String::new();
    }
    format!("; {disk} is no longer its root device and keeps what is installed on it")
}

/// The disk in words. The installed one is named only if the hints choose it again.
fn wiped(spec: &NodeSpec, installed: Option<&Installed>) -> String {
    let hints = &spec.root_device;
    match installed.map(|installed| &installed.disk) {
        Some(disk) if hints.choose(std::slice::from_ref(disk)).is_ok() => disk.to_string(),
        _ if hints.is_empty() => "its root device".to_owned(),
        _ => format!("its root device ({hints})"),
    }
}

fn forgotten(node: NodeName) -> PlannedChange {
    let reason = "its spec is gone; its disk and an installed machine's power stay as they are";
    PlannedChange {
        node,
        machine: None,
        action: PlannedAction::Forget,
        wipes: None,
        unless_on: false,
        reason: reason.to_owned(),
    }
}

fn quoted(text: Option<&String>) -> String {
    text.map_or_else(|| "nothing".to_owned(), |text| format!("{text:?}"))
}
