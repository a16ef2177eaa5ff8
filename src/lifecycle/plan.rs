//! The plan: what would be done about a directory of specs, as the core itself judges.
//!
//! Called by `hostler plan`, without a running agent. The fleet is made from status files, which
//! say less than the agent's records; it takes the specs as the agent's would, and every poll is
//! answered with the power state last seen. The next act of each node is then read off it. No rule
//! may be written here: each question goes to [`Fleet`] and [`Node`].

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

/// Every power state was seen so long ago that the fleet wants to look at each again.
const LONG_AGO: Duration = Duration::from_secs(24 * 60 * 60);

/// The act that would follow for one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedChange {
    pub node: NodeName,
    /// The machine that its spec names.
    pub machine: Option<Machine>,
    pub action: PlannedAction,
    /// The disk that would be wiped by it: now, or once the breaker is overruled.
    pub wipes: Option<String>,
    /// Whether that depends on the machine being off, which nobody knows.
    pub unless_on: bool,
    /// The reason, in one sentence.
    pub reason: String,
}

/// An act on a machine. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlannedAction {
    /// Installed for the first time.
    Install,
    /// Wiped and installed again.
    Reinstall,
    /// Nothing before an operator consents.
    Hold,
    /// Nothing before an operator consents, because too many machines would be reinstalled at once.
    Breaker,
    /// Nothing, although something else is installed than the spec wants.
    Drift,
    /// Served another kernel or ramdisk, or other kernel arguments, once they are verified. Its
    /// disk and its power stay as they are.
    Netboot,
    /// Switched on.
    SwitchOn,
    /// Shut down.
    SwitchOff,
    /// No longer known; its disk and its power stay as they are.
    Forget,
    /// Nothing.
    Nothing,
    /// Nothing new: its spec cannot be used.
    Invalid,
    /// Nothing: another spec claims its machine, too.
    Clash,
}

impl PlannedAction {
    /// The action as it stands in what is printed.
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

/// A fleet as the status files describe it, with the specs that are to be judged.
#[derive(Debug)]
pub struct Planner {
    fleet: Fleet,
    specs: Specs,
    statuses: BTreeMap<NodeName, Status>,
    /// The power state that each machine was last seen in.
    power: BTreeMap<MachineId, PowerState>,
    now: Timestamp,
}

impl Planner {
    /// Takes status files and specs. `before` are the specs that may be effective by now: each
    /// counts if it is the one its status speaks of. They say what the status does not, such as the
    /// machine that a node had so far.
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
            records.insert(status.node.clone(), record(status, old, now));
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

    /// The specs that would be effective, for the reader of specs to find clashes among.
    pub fn effective_specs(&self) -> Vec<Arc<NodeSpec>> {
        self.fleet.effective_specs(&self.specs)
    }

    /// Judges each node, in the order of their names.
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

    /// Brings one event, and the BMC's answer if the node then asks for the power state.
    fn play(&mut self, name: &NodeName, event: Event) {
        let mut question = None;
        // A node that is new is polled when its time comes; here it comes at once.
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

    /// The phase of the attempt that goes on under this very spec.
    fn under_way(&self, node: &Node) -> Option<Phase> {
        let status = self.statuses.get(node.name())?;
        (status.phase.is_busy() && status.spec_digest == node.wanted).then_some(status.phase)
    }
}

/// The spec the agent acts on: the one that the status speaks of, or else what the status and the
/// new spec tell of it.
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
        // Stands for one that nobody knows any more: it only has to be another one.
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

/// The machine is in no digest: it may have been changed since, and the status says which one it
/// was.
fn name_machine(spec: &mut NodeSpec, machine: &Machine) {
    spec.boot.macs.clone_from(&machine.macs);
    let before = spec.bmc.take();
    let bmc = machine.bmc.clone().map(|address| match before {
        Some(bmc) => Bmc { address, ..*bmc },
        // Nobody knows any more how that BMC was addressed, and nothing will be asked of it.
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

/// As much of the agent's record as the status tells.
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
    // A machine that is on, and waits for its attempt and not for an operator, has consent.
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

/// Whether nothing is left to do but to see whether its system is up.
fn is_installed_unseen(status: &Status) -> bool {
    let booted = status.installed.as_ref().and_then(|installed| installed.booted);
    booted == Some(Booted::Missed)
}

/// A machine in an attempt is hostler's own, on or off: whatever ends the attempt switches it off.
/// A first boot switches nothing off.
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

/// The remark about the installed disk if another one is to be written: its file systems are found
/// beside the new ones.
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

/// The disk in words. The installed one is named only if it is the one that would be chosen again.
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
