//! A spec that names another machine than before, in part or as a whole: what the node knows goes
//! along only if it is about that one.
//!
//! Called by `node.rs` when a changed spec is taken up, and by the [`super::Fleet`] before. No edit
//! that names another machine may be taken for consent, whatever else it changes.

use jiff::Timestamp;

use crate::model::{
    machine::MachineChange,
    spec::NodeSpec,
    status::{Installed, LastSeen},
};

use super::{node::Node, state::State};

impl Node {
    /// Whether what the node knows of its machine's disk is about the machine that the spec names,
    /// too.
    pub(super) fn takes_along_what_it_knows(&self, spec: &NodeSpec) -> bool {
        let change = self.spec().map_or(MachineChange::None, |old| old.machine_change(spec));
        match &self.record.installed {
            _ if change == MachineChange::None => true,
            Some(installed) => is_of(installed, spec, change),
            None => change == MachineChange::Part,
        }
    }

    /// The spec names another machine now, in part or as a whole: what was seen of the old one is
    /// not about it, and neither is any consent, whatever else was changed with it.
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
            // The spec has come to share nothing with the installed machine, one thing after the
            // other: it may be that machine or another.
            (Some(false), None, MachineChange::None | MachineChange::Part) => {
                self.record.know(None);
            }
            // Never seen. A damaged record may have been about any machine.
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

/// Whether that is installed on the machine that the spec names, whose change from the one before
/// is given.
fn is_of(installed: &Installed, spec: &NodeSpec, change: MachineChange) -> bool {
    let since = installed.machine.as_ref().map_or(change, |machine| machine.change_to(spec));
    since != MachineChange::Whole
}
