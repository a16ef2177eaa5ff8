//! The first boot's invariants: a node is deployed only after its installed system was up, and the
//! agent restarts its machine at most once for that.

use hostler::{
    lifecycle::{FirstBoot, Record, State},
    model::{
        ids::NodeName,
        spec::{BootCheck, NodeSpec},
        status::{Booted, Installed},
    },
};

use crate::world::{
    Site,
    machine::{Content, Platter},
};

impl Site {
    /// Judges a node's new record by its record before.
    pub(crate) fn judge_first_boot(&mut self, node: &NodeName, record: &Record) {
        let before = self.decided(node);
        let state_before = before.map(|before| before.state.clone());
        let booted = |record: &Record| record.installed.as_ref().and_then(|it| it.booted);
        let was_up = before.and_then(booted) == Some(Booted::Up);
        if let (Some(installed), false) = (&record.installed, was_up)
            && installed.booted == Some(Booted::Up)
            && before.is_some_and(|before| before.installed.is_some())
        {
            self.judge_up(node, installed);
        }
        let waits = matches!(
            state_before,
            Some(State::Booting { boot: FirstBoot::Waiting | FirstBoot::Overdue })
        );
        let restarts = record.state == State::Booting { boot: FirstBoot::Restarting };
        let cleans_up = matches!(record.state, State::CleaningUp { .. });
        if matches!(state_before, Some(State::Booting { .. })) && cleans_up {
            let what = "a first boot is cleaned up, which switches the machine off".to_owned();
            self.broken("a_first_boot_switches_once", Some(node), what);
        }
        let Some(at) = record.installed.as_ref().map(|installed| installed.at) else { return };
        if waits && restarts && self.ledger(node).restarted_again.replace(at) == Some(at) {
            let what = "the BMC restarts it a second time for one installation".to_owned();
            self.broken("a_first_boot_switches_once", Some(node), what);
        }
    }

    /// Requires that the machine at the installation's address was up, with the installed image. A
    /// port proves only that a system is up there, which may be another node's by now.
    fn judge_up(&mut self, node: &NodeName, installed: &Installed) {
        let spec = self.ledger(node).spec.clone();
        let by_port = spec.is_some_and(|spec| matches!(spec.boot_check, BootCheck::Tcp { .. }));
        let machine = self.machines.iter().find(|machine| Some(machine.ip) == installed.address);
        let is_true = machine.is_some_and(|machine| {
            let Platter { content, token, .. } = &machine.platters[0];
            let is_anothers = token.as_ref().is_some_and(|(owner, _)| owner != node);
            let is_installed = *content == Content::Whole(installed.image.to_string());
            machine.ups > 0 && (is_installed || by_port && is_anothers)
        });
        if !is_true {
            let what = format!("it never came up: {machine:?}");
            self.broken("deployed_is_up", Some(node), what);
        }
    }

    /// Requires that a first boot's restart is of the installed machine, and that the spec is not
    /// paused.
    pub(crate) fn judge_boot_restart(&mut self, node: &NodeName, spec: &NodeSpec) {
        let ledger = self.ledger(node);
        let is_installed = ledger.under.is_some();
        let here = ledger
            .installed_as
            .as_ref()
            .is_some_and(|machine| machine.bmc.as_ref() == spec.bmc_address());
        if !is_installed || !here || spec.paused {
            let what = format!("a first boot restarts another machine: {ledger:?}");
            self.broken("never_switches_unasked", Some(node), what);
        }
        // A restart that is cut short leaves the machine off, and is made good.
        self.ledger(node).unrestarted = true;
    }
}
