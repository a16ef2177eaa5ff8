//! Running operations: calls to BMCs, preparation of images, and writes. Each reports exactly once;
//! a cancelled one reports when it has stopped. They end with the agent's process, but a command in
//! flight may still take effect.

use std::sync::Arc;

use hostler::{
    lifecycle::{Event, NO_ANSWER, Operation, Outcome, PreparedImage, Target},
    model::{
        callback::DiskRange,
        fault::{Fault, Step},
        ids::NodeName,
        power::PowerState,
        secret::{AttemptKey, BootToken, Secret},
        spec::{BootCheck, Checksum, NodeSpec, Verify},
        status::{ImagingStage, Progress},
    },
};

use super::{
    machine::{Content, Device, Machine, Quirk},
    site::{Happening, Job, JobKey, Move, Site},
};

/// The size of every image.
pub(crate) const IMAGE_BYTES: u64 = 64 << 20;

impl Site {
    pub(crate) fn begin_job(&mut self, key: &JobKey, operation: Operation, spec: Arc<NodeSpec>) {
        use Move::{Boot, Hash, Login, Netboot, Off, On, Poll, Probe, Verify, Write};
        let networked = spec.image.netboot.is_some();
        let own = if networked { Device::Network } else { Device::Disk };
        let moves: &[Move] = match &operation {
            Operation::PollPower | Operation::ConfirmPower => &[Poll],
            Operation::Prepare | Operation::NetbootFiles { .. } => &[Hash],
            Operation::PowerOn => &[Off, Netboot, On],
            Operation::Image { .. } => &[Login, Write, Write, Write, Verify],
            Operation::Restart { wanted: PowerState::On } => &[Off, Boot(own), On],
            Operation::Restart { wanted: PowerState::Off } => &[Off, Boot(own)],
            Operation::CleanUp => &[Off, Boot(Device::Disk)],
            Operation::SetPower(PowerState::On) => &[Boot(own), On],
            Operation::SetPower(PowerState::Off) => &[Off],
            Operation::Release(_) => &[],
            Operation::ProbePort { .. } => &[Probe],
        };
        let machine = self.machines.iter().position(|m| spec.bmc.is_some() && m.is_meant(&spec));
        self.jobs_begun += 1;
        let job = Job {
            operation,
            spec,
            machine,
            moves: moves.iter().copied().collect(),
            cancelled: false,
            failure: None,
            writing: None,
            id: self.jobs_begun,
            stamp: 0,
        };
        self.jobs.insert(key.clone(), job);
        self.arrange(key, 300, 3000);
    }

    fn arrange(&mut self, key: &JobKey, from_ms: u64, to_ms: u64) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.stamp += 1;
        let happening = Happening::Work { key: key.clone(), id: job.id, stamp: job.stamp };
        self.after_ms(from_ms, to_ms, happening);
    }

    pub(crate) fn stop_job(&mut self, key: &JobKey) {
        let slow = self.mishap(100);
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.cancelled = true;
        self.arrange(key, 0, if slow { 90_000 } else { 1500 });
    }

    /// Makes the operation's next step; returns its end, if it has ended.
    pub(crate) fn work(&mut self, key: &JobKey, id: u64, stamp: u64) -> Option<(NodeName, Event)> {
        let job = self.jobs.get_mut(key).filter(|job| job.id == id && job.stamp == stamp)?;
        if let Some(fault) = job.failure.take() {
            return Some(self.end(key, Err(fault)));
        }
        if job.cancelled && (job.writing.is_some() || !job.moves.is_empty()) {
            if self.dice.permille(200) {
                self.last_command(key);
            }
            let fault = Fault::passing(Step::Imaging, "Cancelled", "stopped", "");
            return Some(self.end(key, Err(fault)));
        }
        match job.moves.pop_front() {
            None => {
                let outcome = self.outcome(key);
                Some(self.end(key, Ok(outcome)))
            }
            Some(next) => self.make(key, next),
        }
    }

    /// Executes the last command of a cancelled operation, which was in flight.
    fn last_command(&mut self, key: &JobKey) {
        let Some(job) = self.jobs.get(key) else { return };
        let (machine, next) = (job.machine, job.moves.front().copied());
        let Some(machine) = machine else { return };
        match next {
            Some(Move::Off) => self.switch(machine, false),
            Some(choice @ (Move::Netboot | Move::Boot(_))) => self.set_boot(machine, choice),
            _ => {}
        }
    }

    fn make(&mut self, key: &JobKey, next: Move) -> Option<(NodeName, Event)> {
        let job = &self.jobs[key];
        let (spec, machine) = (Arc::clone(&job.spec), job.machine);
        match next {
            Move::Poll | Move::Off | Move::On | Move::Netboot | Move::Boot(_) => {
                self.ask_bmc(key, machine, next, &spec);
                None
            }
            Move::Hash => {
                let bad = self.mishap(20);
                if bad {
                    self.fail_in(key, 1000, passing(Step::Image, "ImageMissing"));
                } else {
                    self.arrange(key, 1000, 120_000);
                }
                None
            }
            Move::Login => {
                self.log_in(key);
                None
            }
            Move::Probe => {
                self.probe(key);
                None
            }
            Move::Write | Move::Verify => self.write_on(key, next),
        }
    }

    fn ask_bmc(&mut self, key: &JobKey, machine: Option<usize>, next: Move, spec: &NodeSpec) {
        let silence_ms = u64::try_from(spec.timeouts.power.as_millis()).unwrap();
        let silent = || passing(Step::PowerOn, "BmcSilent");
        let Some(m) = machine else { return self.fail_in(key, silence_ms, silent()) };
        let (now, faults) = (self.t, self.machines[m].faults);
        if faults.silent_until > now || self.mishap(5) {
            return self.fail_in(key, silence_ms, silent());
        }
        if faults.locked_until > now {
            let fault = Fault::lasting(Step::PowerOn, "WrongPassword", "the BMC refuses", "");
            return self.fail_in(key, 2000, fault);
        }
        let changes = matches!(next, Move::Off | Move::On);
        if changes && faults.idle_until > now && self.machines[m].on != (next == Move::On) {
            return self.fail_in(key, silence_ms, passing(Step::PowerOn, "NoEffect"));
        }
        match next {
            Move::Off => self.switch(m, false),
            Move::On => {
                // A machine that operators put in another's place keeps its disk, and may be
                // switched on as the spec says.
                let is_one = spec.boot.macs.contains(&self.machines[m].mac);
                let restart = matches!(self.jobs[key].operation, Operation::Restart { .. });
                self.machines[m].ordered = restart && is_one;
                self.switch(m, true);
            }
            Move::Netboot | Move::Boot(_) => self.set_boot(m, next),
            _ => {}
        }
        if faults.slow_until > now {
            self.arrange(key, 10_000, silence_ms.saturating_sub(1).max(10_000));
        } else {
            self.arrange(key, 500, 4000);
        }
    }

    fn set_boot(&mut self, m: usize, choice: Move) {
        let machine = &mut self.machines[m];
        if machine.faults.forgets_until > self.t {
            return;
        }
        match choice {
            Move::Boot(device) => (machine.once, machine.always) = (None, device),
            _ => machine.once = Some(Device::Network),
        }
    }

    fn fail_in(&mut self, key: &JobKey, ms: u64, fault: Fault) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.failure = Some(fault);
        }
        self.arrange(key, ms, ms);
    }

    fn target_of(&self, key: &JobKey) -> Option<Target> {
        match &self.jobs.get(key)?.operation {
            Operation::Image { target, .. } => Some(target.as_ref().clone()),
            _ => None,
        }
    }

    /// Logs in to the machine that answers at the target's address, if it exports with the secret.
    fn log_in(&mut self, key: &JobKey) {
        let Some(target) = self.target_of(key) else { return };
        let found = self.machines.iter().position(|machine| {
            let export = machine.export.as_ref();
            let secret = target.chap_password.as_ref().map(Secret::expose);
            let fits = export.is_some_and(|export| export.secret.as_deref() == secret);
            machine.on && machine.ip == target.address && fits
        });
        let Some(m) = found.filter(|_| !self.mishap(20)) else {
            return self.fail_in(key, 10_000, passing(Step::Imaging, "LoginFailed"));
        };
        let platter = self.machines[m].export.as_ref().map_or(0, |export| export.platter);
        self.judge_write(key, m, platter);
        let job = self.jobs.get_mut(key).unwrap();
        job.writing = Some((m, platter));
        let id = job.id;
        let disk = &mut self.machines[m].platters[platter];
        disk.content = Content::Half;
        disk.writers.push(id);
        self.machines[m].ups = 0;
        self.judge_writers(key, m, platter);
        self.arrange(key, 1000, 5000);
    }

    fn write_on(&mut self, key: &JobKey, next: Move) -> Option<(NodeName, Event)> {
        let job = &self.jobs[key];
        let (m, platter) = job.writing?;
        let (op, image) = (key.1, job.spec.image.checksum.to_string());
        let stall_ms = u64::try_from(job.spec.timeouts.imaging_stall.as_millis()).unwrap();
        let machine = &self.machines[m];
        let quirk = machine.quirk;
        let gone = machine.export.is_none() || !machine.on;
        if gone || quirk == Quirk::StalledWrite || self.mishap(5) {
            self.fail_in(key, stall_ms, passing(Step::Imaging, "Stalled"));
            return None;
        }
        if quirk == Quirk::TargetDies || self.mishap(10) {
            self.machines[m].export = None;
            self.fail_in(key, 3000, passing(Step::Imaging, "TargetDied"));
            return None;
        }
        if next == Move::Verify {
            let token = match &self.jobs[key].operation {
                Operation::Image { boot_token, .. } => boot_token.clone(),
                _ => None,
            };
            self.machines[m].platters[platter].token = token.map(|token| (key.0.clone(), token));
            self.machines[m].platters[platter].content = Content::Whole(image);
            self.arrange(key, 500, 3000);
            return None;
        }
        let part_ms = self.plan.write_m * 20_000;
        self.arrange(key, part_ms / 2, part_ms);
        let progress = Progress {
            stage: ImagingStage::Write,
            done_bytes: 1 << 20,
            total_bytes: IMAGE_BYTES,
            rate_bytes: 1 << 20,
            remaining_s: None,
        };
        Some((key.0.clone(), Event::Progress { op, progress }))
    }

    /// Makes the attempt's token, if the spec has a boot check by a call.
    fn boot_token(&mut self, key: &JobKey) -> Option<BootToken> {
        let job = &self.jobs[key];
        let calls = job.spec.boot_check == BootCheck::Call;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&job.id.to_be_bytes());
        bytes[8] = 0xbb;
        let token = calls.then(|| BootToken::from_bytes(&bytes))?;
        self.tokens.push((key.0.clone(), token.clone()));
        Some(token)
    }

    /// Probes for half a minute whether the installed system at the operation's address answers.
    fn probe(&mut self, key: &JobKey) {
        let Operation::ProbePort { address, .. } = &self.jobs[key].operation else { return };
        let probed = self.machines.iter().find(|machine| machine.ip.to_string() == *address);
        if probed.is_some_and(Machine::is_up) && !self.mishap(20) {
            return self.arrange(key, 10, 500);
        }
        let fault = Fault::passing(Step::FirstBoot, NO_ANSWER, "nobody answers", "");
        self.fail_in(key, 30_000, fault);
    }

    fn outcome(&mut self, key: &JobKey) -> Outcome {
        let job = &self.jobs[key];
        match &job.operation {
            Operation::PollPower | Operation::ConfirmPower => {
                let on = job.machine.is_some_and(|m| self.machines[m].on);
                Outcome::Power(if on { PowerState::On } else { PowerState::Off })
            }
            Operation::Prepare => {
                let mut bytes = [0; 32];
                bytes[..8].copy_from_slice(&job.id.to_be_bytes());
                bytes[8] = 0xaa;
                let Checksum::Inline(digest) = job.spec.image.checksum.clone() else {
                    unreachable!()
                };
                let root_uuid =
                    job.spec.image.netboot.as_ref().map(|_| root_of(&digest.to_string()));
                let netboot = job.spec.image.netboot.clone().map(|wanted| self.verify(&wanted));
                let image = PreparedImage {
                    digest,
                    disk_bytes: IMAGE_BYTES,
                    root_uuid,
                    root_partuuid: None,
                    netboot,
                    boot_token: self.boot_token(key),
                };
                let key = AttemptKey::from_bytes(&bytes);
                Outcome::Prepared { image, key, system_guid: None, stages: Vec::new() }
            }
            Operation::PowerOn => Outcome::PoweredOn,
            Operation::Image { image, .. } => {
                let digest = image.clone();
                let range = DiskRange { from: 0, bytes: IMAGE_BYTES, digest, salt: None };
                let compares = job.spec.image.verify == Verify::Node;
                let verify = if compares { vec![range] } else { Vec::new() };
                let written = job.writing.map(|(m, platter)| &self.machines[m].platters[platter]);
                let disk_bytes = written.map_or(0, |platter| platter.disk.size);
                Outcome::Imaged { verify, disk_bytes, root_partuuid: None, stages: Vec::new() }
            }
            Operation::Restart { wanted } => Outcome::Restarted(*wanted),
            Operation::ProbePort { address, .. } => {
                let address = address.parse().unwrap();
                Outcome::PortAnswered { address, ssh_banner: None }
            }
            Operation::SetPower(state) => Outcome::PowerSet(*state),
            Operation::NetbootFiles { served, renew } => {
                let wanted = job.spec.image.netboot.clone().filter(|_| *renew);
                let served = served.clone().filter(|_| !renew);
                Outcome::NetbootFiles(wanted.map(|wanted| self.verify(&wanted)).or(served))
            }
            Operation::CleanUp => Outcome::CleanedUp,
            Operation::Release(peer) => {
                let peer = *peer;
                self.ironics_is_called(peer);
                Outcome::Released
            }
        }
    }

    fn end(&mut self, key: &JobKey, outcome: Result<Outcome, Fault>) -> (NodeName, Event) {
        let mut outcome = outcome;
        if let Some(job) = self.jobs.remove(key) {
            if let Some((m, platter)) = job.writing {
                self.leave_disk(job.id, m, platter, outcome.is_ok());
            }
            // The state that the poll found.
            if let (Ok(Outcome::Power(_)), Some(m)) = (&outcome, job.machine) {
                let on = self.machines[m].on;
                outcome = Ok(Outcome::Power(if on { PowerState::On } else { PowerState::Off }));
            }
            self.note_end(&key.0, &job.operation, &job.spec, &outcome);
        }
        (key.0.clone(), Event::Done { op: key.1, outcome })
    }

    /// Ends a write. An incomplete disk is wiped, if its target still answers.
    fn leave_disk(&mut self, id: u64, m: usize, platter: usize, whole: bool) {
        let reachable = self.machines[m].export.is_some() && !self.mishap(50);
        let disk = &mut self.machines[m].platters[platter];
        disk.writers.retain(|writer| *writer != id);
        if !whole && reachable {
            disk.content = Content::Wiped;
        }
    }

    /// Stops all operations of a killed agent.
    pub(crate) fn kill_jobs(&mut self) {
        let keys: Vec<JobKey> = self.jobs.keys().cloned().collect();
        for key in keys {
            if self.dice.permille(300) {
                self.last_command(&key);
            }
            if let Some(Job { writing: Some((m, platter)), id, .. }) = self.jobs.remove(&key) {
                self.machines[m].platters[platter].writers.retain(|writer| *writer != id);
            }
        }
    }

    /// Switches a machine, and starts the firmware of one that comes on.
    pub(crate) fn switch(&mut self, m: usize, on: bool) {
        if self.machines[m].switch(on) {
            let session = self.machines[m].session;
            self.after_s(20, 90, Happening::Firmware { machine: m, session });
        }
    }
}

/// The UUID of an image's file system.
pub(crate) fn root_of(image: &str) -> String {
    format!("root of {image}")
}

fn passing(step: Step, code: &'static str) -> Fault {
    Fault::passing(step, code, code, "mend it")
}
