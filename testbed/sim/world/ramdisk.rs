//! The deploy ramdisk: its calls, and its reactions to the answers. Calls get lost, come twice, or
//! arrive long after the machine is off.

use std::net::IpAddr;

use hostler::{
    lifecycle::Event,
    model::{
        callback::{
            Call, Completed, DeployInfo, DeployState, DeployStateReply, Lookup, Reply, Then,
        },
        ids::NodeName,
        secret::{AttemptKey, Secret},
        spec::DeployRamdisk,
    },
};

use super::{
    machine::{Export, Quirk},
    site::{Caller, Happening, Message, Ramdisk, Site, Stage},
};

/// Refusals in a row after which it treats its attempt as unknown.
const REFUSALS_MAX: u32 = 40;

impl Site {
    /// Starts a ramdisk on a machine, with the boot menu it got.
    pub(crate) fn ramdisk_boots(&mut self, machine: usize, node: NodeName, key: AttemptKey) {
        if self.machines[machine].quirk == Quirk::Mute {
            return;
        }
        let session = self.machines[machine].session;
        let id = self.ramdisks.len();
        let spec = self.records.get(&node).and_then(|record| record.spec.as_ref());
        let is_ironics = spec.is_some_and(|spec| spec.boot.ramdisk == DeployRamdisk::Ironic);
        self.ramdisks.push(Ramdisk {
            machine,
            session,
            key,
            stage: Stage::Lookup,
            stamp: 0,
            iqn: if is_ironics { format!("iqn.2026-11.hostler:{node}") } else { String::new() },
            secret: format!("chap-secret-{id}"),
            is_ironics,
            said_compared: false,
            compares: false,
            node,
            then: Then::Wait,
            said_completed: false,
            refused: 0,
        });
        self.after_s(5, 30, Happening::Ramdisk { id, stamp: 0 });
    }

    /// Whether the machine runs a ramdisk with this key.
    pub(crate) fn was_booted_with(&self, machine: usize, key: &AttemptKey) -> bool {
        let session = self.machines[machine].session;
        let mut booted = self.ramdisks.iter().rev();
        booted.any(|r| r.machine == machine && r.session == session && r.key == *key)
    }

    /// Whether the ramdisk with this key has reported completed.
    pub(crate) fn has_completed(&self, key: &AttemptKey) -> bool {
        self.ramdisks.iter().rev().any(|ramdisk| ramdisk.key == *key && ramdisk.said_completed)
    }

    /// Whether the ramdisk with this key has reported that its disk is verified.
    pub(crate) fn has_compared(&self, key: &AttemptKey) -> bool {
        self.ramdisks.iter().rev().any(|ramdisk| ramdisk.key == *key && ramdisk.said_compared)
    }

    /// The machine whose boot menu had this key.
    pub(crate) fn booted_with(&self, key: &AttemptKey) -> Option<&super::machine::Machine> {
        let ramdisk = self.ramdisks.iter().rev().find(|ramdisk| ramdisk.key == *key)?;
        self.machines.get(ramdisk.machine)
    }

    /// The secrets of a node's last attempts: the keys, and the passwords of their targets.
    pub(crate) fn secrets_of(&self, node: &NodeName) -> (Vec<String>, Vec<String>) {
        let ramdisks = self.ramdisks.iter().rev().filter(|ramdisk| ramdisk.node == *node);
        ramdisks.take(2).map(|r| (r.key.expose().to_owned(), r.secret.clone())).unzip()
    }

    fn lives(&self, id: usize) -> bool {
        let ramdisk = &self.ramdisks[id];
        let machine = &self.machines[ramdisk.machine];
        machine.on && machine.session == ramdisk.session && ramdisk.stage != Stage::Over
    }

    /// Makes the next step of a ramdisk's stage.
    pub(crate) fn ramdisk_acts(&mut self, id: usize, stamp: u64) {
        if !self.lives(id) || self.ramdisks[id].stamp != stamp {
            return;
        }
        let mishap = self.mishap(20);
        let Ramdisk { machine, stage, .. } = self.ramdisks[id];
        if (stage, stamp) == (Stage::Lookup, 0) || stage == Stage::Completed {
            self.send_log(id);
        }
        let quirk = self.machines[machine].quirk;
        let call = match stage {
            Stage::Lookup if self.ramdisks[id].is_ironics => {
                let error = mishap || matches!(quirk, Quirk::RamdiskError | Quirk::WrongDisks);
                self.machines[machine].export =
                    (!error).then_some(Export { secret: None, platter: 0 });
                self.deploy_info(id, if error { "could not find disk to use" } else { "" })
            }
            Stage::Poll if self.ramdisks[id].is_ironics => return,
            Stage::Lookup => self.lookup(machine, quirk),
            Stage::Export => {
                let error = mishap || quirk == Quirk::RamdiskError;
                return self.exports(id, error);
            }
            Stage::Pass => self.deploy_info(id, ""),
            Stage::Poll => Call::DeployState,
            Stage::Completed => {
                // The ramdisk repeats its report.
                let fails = mishap && !self.ramdisks[id].said_completed;
                let error = if fails { "the disk is not as it should be" } else { "" };
                // With or without a comparison, as the agent asked.
                let compares = self.ramdisks[id].compares;
                let verified = compares && !(self.plan.other_ramdisks && id % 16 == 15);
                self.ramdisks[id].said_compared |= verified && error.is_empty();
                self.ramdisks[id].said_completed = verified == compares && error.is_empty();
                Call::Completed(Completed { error: error.to_owned(), verified, verify_ms: 1000 })
            }
            Stage::Over => return,
        };
        self.send(id, call);
        // Without an answer the ramdisk repeats its call.
        self.after_s(8, 20, Happening::Ramdisk { id, stamp });
    }

    fn lookup(&mut self, machine: usize, quirk: Quirk) -> Call {
        let mishap = self.mishap(10);
        // Often shorter than the agent waits for further disks.
        let same_for_ms = self.t % 16_000;
        let machine = &self.machines[machine];
        let mut disks: Vec<_> = machine.platters.iter().map(|p| p.disk.clone()).collect();
        if quirk == Quirk::WrongDisks || mishap {
            disks.remove(0);
        }
        Call::Lookup(Lookup {
            macs: vec![machine.mac],
            disks_same_for_ms: Some(same_for_ms),
            system_uuid: None,
            system_serial: None,
            disks,
            memory: 0,
            cpus: 1,
        })
    }

    fn exports(&mut self, id: usize, error: bool) {
        let Ramdisk { machine, secret, .. } = self.ramdisks[id].clone();
        if error {
            let call = self.deploy_info(id, "no LIO in this kernel");
            self.send(id, call);
            let stamp = self.ramdisks[id].stamp;
            self.after_s(8, 20, Happening::Ramdisk { id, stamp });
            return;
        }
        self.machines[machine].export = Some(Export { secret: Some(secret), platter: 0 });
        self.enter(id, Stage::Pass, 1);
    }

    fn deploy_info(&self, id: usize, error: &str) -> Call {
        let ramdisk = &self.ramdisks[id];
        let secret = (!ramdisk.is_ironics).then(|| Secret::new(ramdisk.secret.clone()));
        let info = DeployInfo {
            address: Some(self.machines[ramdisk.machine].ip),
            port: 3260,
            lun: 0,
            iqn: ramdisk.iqn.clone(),
            chap_username: secret.iter().map(|_| "user").collect(),
            chap_password: secret,
            error: error.to_owned(),
            knows_salt: !ramdisk.is_ironics,
        };
        if ramdisk.is_ironics { Call::IronicDeployInfo(info) } else { Call::PassDeployInfo(info) }
    }

    /// Sends a call over the network, which may lose, delay or repeat it.
    pub(super) fn send(&mut self, id: usize, call: Call) {
        let ramdisk = &self.ramdisks[id];
        let (node, key) = (ramdisk.node.clone(), ramdisk.key.clone());
        let peer = self.machines[ramdisk.machine].ip;
        let message = Message { ramdisk: Some(id), node, peer, key, call };
        let bad = self.t < self.bad_network_until;
        if self.mishap(10) || bad && self.dice.permille(300) {
            // The call arrives again much later.
            self.after_s(30, 3600, Happening::Arrival(Box::new(message.clone())));
        }
        if !(self.mishap(30) || bad && self.dice.permille(400)) {
            self.after_ms(
                20,
                if bad { 20_000 } else { 900 },
                Happening::Arrival(Box::new(message)),
            );
        }
    }

    /// A call arrives at the agent.
    pub(crate) fn event_of(&mut self, message: Message) -> (NodeName, Event) {
        let Message { ramdisk, node, peer, key, call } = message;
        self.requests += 1;
        let request = self.requests;
        let caller = ramdisk.map_or(Caller::Stranger, |id| match call {
            Call::Log(_) => Caller::Log(id, self.may_log(id)),
            _ => Caller::Ramdisk(id),
        });
        self.open_requests.insert(request, caller);
        (node, Event::Callback { request, peer, key, call })
    }

    /// The answer arrives at the ramdisk.
    pub(crate) fn ramdisk_hears(&mut self, id: usize, reply: &Reply) {
        if !self.lives(id) {
            return;
        }
        let quirk = self.machines[self.ramdisks[id].machine].quirk;
        let refused = matches!(reply, Reply::Refused);
        let ramdisk = &mut self.ramdisks[id];
        ramdisk.refused = if refused { ramdisk.refused + 1 } else { 0 };
        match (ramdisk.stage, reply) {
            (Stage::Lookup, Reply::Lookup(answer)) => {
                self.ramdisks[id].iqn.clone_from(&answer.iqn);
                self.enter(id, Stage::Export, 3);
            }
            (Stage::Lookup, Reply::LookupAgain(_)) => self.enter(id, Stage::Lookup, 3),
            (Stage::Lookup | Stage::Pass, Reply::Accepted) => self.enter(id, Stage::Poll, 4),
            (Stage::Poll, Reply::State(DeployStateReply { state: DeployState::Imaging, .. })) => {
                self.enter(id, Stage::Poll, 10);
            }
            (
                Stage::Poll,
                Reply::State(DeployStateReply { state: DeployState::Release, verify, then }),
            ) => {
                self.stop_target(id);
                self.ramdisks[id].then = *then;
                self.ramdisks[id].compares = !verify.is_empty();
                let reading = if verify.is_empty() { 2 } else { 600 };
                let late = if quirk == Quirk::LateCompleted { 12_000 } else { reading };
                self.enter(id, Stage::Completed, late);
            }
            (
                Stage::Poll,
                Reply::State(DeployStateReply { state: DeployState::Abort, then, .. }),
            ) => {
                self.stop_target(id);
                self.ramdisks[id].then = *then;
                self.send_log(id);
                self.leave(id);
            }
            // The ramdisk still needs to know how to end the machine.
            (_, Reply::Failed(_)) => {
                self.stop_target(id);
                self.enter(id, Stage::Poll, 1);
            }
            (Stage::Completed, Reply::Accepted | Reply::Refused) => {
                self.stop_target(id);
                if !self.ramdisks[id].said_completed && self.ramdisks[id].then != Then::Wait {
                    self.ramdisks[id].then = Then::PowerOff;
                }
                self.leave(id);
            }
            _ if self.ramdisks[id].refused > REFUSALS_MAX => {
                self.send_log(id);
                self.ramdisks[id].then = Then::PowerOff;
                self.leave(id);
            }
            _ => {}
        }
    }

    /// The agent calls Ironic's ramdisk after the write.
    pub(crate) fn ironics_is_called(&mut self, peer: IpAddr) {
        let Self { machines, ramdisks, .. } = self;
        let lives = |ramdisk: &&mut Ramdisk| {
            let machine = &machines[ramdisk.machine];
            machine.on && machine.ip == peer && machine.session == ramdisk.session
        };
        let Some(ramdisk) = ramdisks.iter_mut().rev().find(lives) else { return };
        (ramdisk.said_completed, ramdisk.stage) = (true, Stage::Over);
        machines[ramdisk.machine].export = None;
    }

    /// Ends the ramdisk, and its machine as the agent decided.
    fn leave(&mut self, id: usize) {
        let (machine, then) = (self.ramdisks[id].machine, self.ramdisks[id].then);
        self.ramdisks[id].stage = Stage::Over;
        self.note(None, || format!("the ramdisk of machine {machine} leaves it: {then:?}"));
        match then {
            Then::Wait => {}
            Then::PowerOff => self.switch(machine, false),
            Then::Reboot => {
                self.switch(machine, false);
                self.switch(machine, true);
                self.machines[machine].ordered = true;
            }
        }
    }

    fn stop_target(&mut self, id: usize) {
        let machine = self.ramdisks[id].machine;
        self.machines[machine].export = None;
    }

    fn enter(&mut self, id: usize, stage: Stage, wait_s: u64) {
        let ramdisk = &mut self.ramdisks[id];
        ramdisk.stage = stage;
        ramdisk.stamp += 1;
        let stamp = ramdisk.stamp;
        self.after_s(wait_s, wait_s + wait_s / 2, Happening::Ramdisk { id, stamp });
    }

    /// A stranger on the deploy network makes a call.
    pub(crate) fn stranger_calls(&mut self) {
        if self.dice.permille(300) {
            return self.stranger_boots();
        }
        let Some(n) = self.ramdisks.len().checked_sub(1) else { return };
        let newest = n.saturating_sub(self.dice.index(8));
        let Ramdisk { node, key, machine, .. } = self.ramdisks[newest].clone();
        let own = self.machines[machine].ip;
        let knows_key = self.dice.permille(500) && self.ramdisks[newest].stage != Stage::Lookup;
        let key = if knows_key { key } else { AttemptKey::from_bytes(&[7; 32]) };
        let peer = if knows_key { IpAddr::from([203, 0, 113, 66]) } else { own };
        let calls = if self.plan.ramdisk_logs { 4 } else { 3 };
        let call = match self.dice.roll(calls) {
            3 => Call::Log(self.hostile_log(&key)),
            0 => Call::DeployState,
            1 => Call::Completed(Completed { verified: true, ..Completed::default() }),
            _ => self.deploy_info(newest, ""),
        };
        self.after_ms(
            10,
            500,
            Happening::Arrival(Box::new(Message { ramdisk: None, node, peer, key, call })),
        );
    }
}
