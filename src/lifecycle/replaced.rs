//! Specs that name another machine than before, in part or as a whole: the node keeps its knowledge
//! only if it is about the new machine.
//!
//! Called by `node.rs` for a changed spec, and by the [`super::Fleet`] before. An edit that names
//! another machine must never count as consent, whatever else it changes.

use jiff::Timestamp;

use crate::model::{
    machine::MachineChange,
    spec::NodeSpec,
    status::{Installed, LastSeen},
};

use super::{node::Node, state::State};

impl Node {
    /// Whether the node's known installation is on the spec's machine, too.
    pub(super) fn keeps_installation(&self, spec: &NodeSpec) -> bool {
        let change = self.spec().map_or(MachineChange::None, |old| old.machine_change(spec));
        match &self.record.installed {
            _ if change == MachineChange::None => true,
            Some(installed) => is_of(installed, spec, change),
            None => change == MachineChange::Part,
        }
    }

    /// Changes the node's machine, in part or as a whole: observations of the old machine and any
    /// consent end.
    pub(super) fn change_machine(
        &mut self,
        now: Timestamp,
        spec: &NodeSpec,
        change: MachineChange,
    ) {
        self.power = None;
        self.bmc_trouble = None;
        self.record.too_many_changes = false;
        self.record.awaits_restart = false;
        let stays = self.record.installed.as_ref().map(|installed| is_of(installed, spec, change));
        match (stays, self.moved_here.take(), change) {
            (Some(true), _, _) | (None, None, MachineChange::Part) => {}
            (_, Some(known), _) => self.record.know(*known),
            // Successive edits left nothing in common with the installed machine: the machine may
            // be the same or another.
            (Some(false), None, MachineChange::None | MachineChange::Part) => {
                self.record.know(None);
            }
            // A machine never seen before. A damaged record may have been about any machine.
            (_, None, _) => {
                self.record.installed = None;
                self.record.boot_token = None;
            }
        }
        if let Some(installed) = &mut self.record.installed {
            installed.redeploy.clone_from(&spec.redeploy);
        }
        if change == MachineChange::Whole {
            self.record.other_disks.clear();
            self.record.last_error = None;
            self.record.last_seen = LastSeen::default();
            self.record.durations.clear();
        }
        if matches!(self.record.state, State::Held { .. }) {
            self.start_afresh(now);
        }
    }
}

/// Whether an installation is on the spec's machine. `change` is the difference to the last spec,
/// for installations without a machine.
fn is_of(installed: &Installed, spec: &NodeSpec, change: MachineChange) -> bool {
    let since = installed.machine.as_ref().map_or(change, |machine| machine.change_to(spec));
    since != MachineChange::Whole
}
