//! Somebody who goes through the rack and presses buttons: those that status files ask for, and now and then others.

use hostler::model::ids::NodeName;

use super::{Happening, Site, machine::Device};

/// From one round to the next, in seconds.
const ROUND_S: (u64, u64) = (30, 900);

impl Site {
    pub(crate) fn operator_comes(&mut self) {
        self.after_s(ROUND_S.0, ROUND_S.1, Happening::Manual);
        let asked: Vec<NodeName> = self
            .shown
            .iter()
            .filter(|(_, status)| {
                status.conditions.iter().any(|one| one.kind == "WaitingForPerson")
            })
            .map(|(name, _)| name.clone())
            .collect();
        if self.calm {
            return asked.iter().for_each(|node| self.do_as_asked(node));
        }
        let manual_power: Vec<usize> =
            (0..self.machines.len()).filter(|m| !self.machines[*m].has_bmc).collect();
        if manual_power.is_empty() {
            return;
        }
        let any = *self.dice.pick(&manual_power);
        match self.dice.roll(12) {
            0 => self.restart_by_hand(any, true),
            1 => self.restart_by_hand(any, false),
            2 => {
                self.note(None, || format!("somebody switches machine {any} off"));
                self.switch(any, false);
            }
            // The wrong one, which may even have a BMC.
            3 if !asked.is_empty() => {
                let wrong = self.dice.index(self.machines.len());
                self.restart_by_hand(wrong, true);
            }
            4..=9 if !asked.is_empty() => {
                let node = self.dice.pick(&asked).clone();
                self.do_as_asked(&node);
            }
            _ => {}
        }
    }

    /// The machine that the spec is meant for boots from the network.
    fn do_as_asked(&mut self, node: &NodeName) {
        if let Some(home) = self.files.get(node).map(|file| file.home) {
            self.restart_by_hand(home, true);
        }
    }

    fn restart_by_hand(&mut self, m: usize, network: bool) {
        self.note(None, || format!("somebody restarts machine {m}; network: {network}"));
        self.machines[m].ordered = false;
        self.machines[m].once = Some(if network { Device::Network } else { Device::Disk });
        self.switch(m, false);
        self.switch(m, true);
    }
}
