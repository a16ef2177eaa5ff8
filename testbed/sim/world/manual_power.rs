//! An operator who presses power buttons: those that status files ask for, and sometimes others.

use hostler::model::ids::NodeName;

use super::{
    machine::Device,
    site::{Happening, Site},
};

/// The time between two rounds, in seconds.
const ROUND_S: (u64, u64) = (30, 900);

impl Site {
    pub(crate) fn operator_comes(&mut self) {
        self.after_s(ROUND_S.0, ROUND_S.1, Happening::Manual);
        let waiting: Vec<NodeName> = self
            .shown
            .iter()
            .filter(|(_, status)| {
                status.conditions.iter().any(|one| one.kind == "WaitingForPerson")
            })
            .map(|(name, _)| name.clone())
            .collect();
        if self.calm {
            return waiting.iter().for_each(|node| self.do_as_shown(node));
        }
        let manual_power: Vec<usize> =
            (0..self.machines.len()).filter(|m| !self.machines[*m].has_bmc).collect();
        if manual_power.is_empty() {
            return;
        }
        let any = *self.dice.pick(&manual_power);
        match self.dice.roll(12) {
            0 => self.restart_manually(any, true),
            1 => self.restart_manually(any, false),
            2 => {
                self.note(None, || format!("somebody switches machine {any} off"));
                self.switch(any, false);
            }
            // The wrong machine, which may even have a BMC.
            3 if !waiting.is_empty() => {
                let wrong = self.dice.index(self.machines.len());
                self.restart_manually(wrong, true);
            }
            4..=9 if !waiting.is_empty() => {
                let node = self.dice.pick(&waiting).clone();
                self.do_as_shown(&node);
            }
            _ => {}
        }
    }

    /// Boots the spec's machine from the network.
    fn do_as_shown(&mut self, node: &NodeName) {
        if let Some(home) = self.files.get(node).map(|file| file.home) {
            self.restart_manually(home, true);
        }
    }

    pub(crate) fn restart_manually(&mut self, m: usize, network: bool) {
        self.note(None, || format!("somebody restarts machine {m}; network: {network}"));
        self.machines[m].ordered = false;
        self.machines[m].once = Some(if network { Device::Network } else { Device::Disk });
        self.switch(m, false);
        self.switch(m, true);
    }
}
