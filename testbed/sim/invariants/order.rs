//! The order of effects: the record before the menu before the action, and deadlines that nothing
//! moves.

use hostler::{
    lifecycle::{Executor, FirstBoot, Menu, Node, Operation, Record, State},
    model::{ids::NodeName, spec::NodeSpec},
};
use jiff::SignedDuration;

use crate::{
    names::{operation_name, state_name},
    watch::Wait,
    world::Site,
};

/// The longest wait with the simulation's specs.
const WAIT_MAX: SignedDuration = SignedDuration::from_hours(4);

impl Site {
    /// The last record that the core decided on. It has an effect only once it is durable.
    pub(crate) fn decided(&self, node: &NodeName) -> Option<&Record> {
        self.watch.decided.get(node).or_else(|| self.records.get(node))
    }

    /// Judges a decision of the core, whether or not its record can be written.
    pub(crate) fn judge_decision(&mut self, node: &NodeName, record: &Record) {
        self.deliver_update(node);
        self.judge_comparison(node, record);
        self.judge_first_boot(node, record);
        self.note_record(node, record);
        self.watch.decided.insert(node.clone(), record.clone());
    }

    /// Notes that the core's last decision is durable.
    pub(crate) fn judge_save(&mut self, node: &NodeName, record: &Record) {
        self.unsaved.remove(node);
        self.note_durable(node, record);
        self.judge_saved_secrets(node, record);
        self.records.insert(node.clone(), record.clone());
        self.touch(node);
    }

    /// Judges a node's boot menu.
    pub(crate) fn judge_node(&mut self, node: &Node) {
        self.deliver_update(node.name());
        let (name, record) = (node.name(), node.record());
        self.touch(name);
        if self.records.get(name) != Some(record) {
            let what = format!("the menu follows {} before it is durable", state_name(record));
            self.broken("record_before_action", Some(name), what);
        }
        self.judge_menu(node);
        self.judge_wait(node);
    }

    fn judge_menu(&mut self, node: &Node) {
        let attempt = match &node.record().state {
            State::PoweringOn { attempt }
            | State::WaitingRamdisk { attempt }
            | State::Imaging { attempt, .. } => Some(&attempt.key),
            _ => None,
        };
        let shown = match node.menu() {
            Menu::Deploy(key) => Some(key),
            Menu::LocalDisk | Menu::Network { .. } | Menu::Unknown => None,
        };
        if let Some(key) = &shown {
            self.note_key(node.name(), key, node.record().attempt);
        }
        if shown.as_ref() != attempt {
            let what = format!("the wrong menu in {}", state_name(node.record()));
            self.broken("menu_only_for_the_present_attempt", Some(node.name()), what);
        }
    }

    fn judge_wait(&mut self, node: &Node) {
        let (name, record, now) = (node.name(), node.record(), self.now());
        let wait = Wait::of(record);
        let wake = node.next_wake().map(|(at, _)| at);
        let rests = record.state.at_rest();
        let endless = !rests && wake.is_none() && !self.runs(name) && self.is_informed(name);
        if endless
            || self.is_informed(name) && wake.is_some_and(|at| at.duration_since(now) > WAIT_MAX)
        {
            let what = format!("{} waits until {wake:?}", wait.state);
            self.broken("deadlines_absolute", Some(name), what);
        }
        let before = self.watch.waits.insert(name.clone(), wait.clone());
        // Each try to clean up has its own deadline.
        if let Some(before) = before.filter(|_| wait.state != "cleaning-up") {
            let same = Wait { deadline: None, ..before.clone() }
                == Wait { deadline: None, ..wait.clone() };
            if same && wait.deadline > before.deadline {
                let what =
                    format!("{}: {:?} became {:?}", wait.state, before.deadline, wait.deadline);
                self.broken("deadlines_absolute", Some(name), what);
            }
        }
    }

    /// Requires that no woken node asks for another wake-up at the same time.
    pub(crate) fn judge_wake_ups(&mut self, executor: &Executor, due: &[NodeName]) {
        if self.dead {
            return;
        }
        for name in due {
            let wake = executor.fleet().node(name).and_then(Node::next_wake);
            if let Some((at, reason)) = wake
                && at <= self.now()
                && self.is_informed(name)
                && !self.unsaved.contains(name)
            {
                let what = format!("it waits for {reason}, until {at}");
                self.broken("never_woken_in_vain", Some(name), what);
            }
        }
    }

    /// Notes a record that could not be written: the next start does not find its deadline.
    pub(crate) fn judge_unsaved(&mut self, node: &NodeName) {
        self.unsaved.insert(node.clone());
        self.watch.waits.remove(node);
    }

    /// Judges the start of an operation.
    pub(crate) fn judge_start(&mut self, node: &NodeName, operation: &Operation, spec: &NodeSpec) {
        let record = self.records.get(node).filter(|record| self.decided(node) == Some(*record));
        let announced = match (operation, record.map(|record| &record.state)) {
            (_, None) => false,
            // It changes nothing, so that one that waited for the disk may still run.
            (Operation::PollPower, Some(state)) => {
                state.at_rest() || matches!(state, State::Booting { .. })
            }
            (Operation::NetbootFiles { .. }, Some(state)) => state.at_rest(),
            (Operation::ConfirmPower, Some(state)) => {
                matches!(state, State::Preparing { ready: Some(_) })
            }
            (Operation::Prepare, Some(state)) => matches!(state, State::Preparing { ready: None }),
            (Operation::PowerOn, Some(state)) => matches!(state, State::PoweringOn { .. }),
            (Operation::Image { .. }, Some(state)) => {
                matches!(state, State::Imaging { granted: true, .. })
            }
            (Operation::Release(_), Some(state)) => matches!(state, State::Switching { .. }),
            (Operation::Restart { wanted }, Some(state)) => {
                let ordered = record.is_some_and(|record| record.awaits_restart)
                    && *state == State::SettingPower { wanted: *wanted };
                let again = State::Booting { boot: FirstBoot::Restarting };
                ordered || matches!(state, State::Restarting { .. }) || *state == again
            }
            (Operation::ProbePort { .. }, Some(state)) => {
                matches!(state, State::Booting { boot: FirstBoot::Waiting | FirstBoot::Overdue })
            }
            (Operation::SetPower(power), Some(state)) => {
                *state == State::SettingPower { wanted: *power }
            }
            (Operation::CleanUp, Some(state)) => matches!(state, State::CleaningUp { .. }),
        };
        if !announced {
            let what = format!(
                "{} starts, and the record says {:?}",
                operation_name(operation),
                record.map(state_name)
            );
            self.broken("record_before_action", Some(node), what);
        }
        if operation.needs_bmc() && spec.bmc.is_none() {
            let what = format!("{} starts", operation_name(operation));
            self.broken("never_asks_a_bmc_that_is_not_there", Some(node), what);
        }
        if *operation == Operation::Prepare {
            self.note_next_attempt(node);
        }
        self.judge_consent(node, operation, spec);
        self.judge_means(node, operation, spec);
    }

    pub(crate) fn forget_watch(&mut self, node: &NodeName) {
        self.watch.waits.remove(node);
        self.watch.shares.remove(node);
        self.watch.queue.remove(node);
        self.watch.decided.remove(node);
    }
}
