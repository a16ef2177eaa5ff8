//! Judges the calls of deploy ramdisks.
//!
//! Called by `node.rs`. A call is accepted only with the attempt's key, from the address that first
//! used it, in a phase that expects it. The reply to any other call must never tell why it is
//! refused.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;

use crate::model::{
    callback::{
        Call, Completed, DeployInfo, DeployState, DeployStateReply, FlushedRanges, Lookup,
        LookupAgain, LookupReply, Reply, Then,
    },
    disk::{Disk, NoRootDevice},
    fault::{Fault, RetryAdvice, Step},
    secret::AttemptKey,
    size::show_apart,
    spec::NodeSpec,
    system_guid::SystemGuid,
};

use super::{
    event::Action,
    late_disks::{DISKS_CHARS_MAX, GIVE_HINTS, MissingDisk, NO_ROOT_DEVICE, VagueLookup},
    limits::after,
    node::Node,
    ramdisk_log::READ_ITS_LOG,
    state::{State, Target},
    text::{plain, plain_up_to},
    transitions::Cause,
};

/// Seconds between two polls of the ramdisk. Each poll's answer is delayed while the state is the
/// same.
const POLL_AFTER_S: u32 = 2;
/// The longest time after which a ramdisk without the root device reports its disks again.
const LOOKUP_PAUSE_MAX: Duration = Duration::from_secs(3);
/// Longest attribute of a disk, in characters; the standards allow 40.
const DISK_CHARS_MAX: usize = 128;
/// The reply to a ramdisk whose attempt ended without a fault.
const ATTEMPT_OVER: &str = "this attempt is over";
/// A UUID has 36 characters (RFC 4122 section 3); a longer text is shown cut.
const UUID_CHARS_MAX: usize = 64;
/// Longest CHAP name and secret, in bytes (RFC 7143 section 6.1: a value has 255).
const CHAP_BYTES_MAX: usize = 255;

impl Node {
    pub(super) fn judge(
        &mut self,
        now: Timestamp,
        peer: IpAddr,
        key: &AttemptKey,
        call: Call,
        actions: &mut Vec<Action>,
    ) -> Reply {
        let name = call.name();
        // A log changes nothing, and `ramdisk_log.rs` judges it.
        let is_log = matches!(call, Call::Log(_));
        let admitted = if is_log {
            Ok(())
        } else {
            self.admit(peer, key).map(|()| self.note_manual_power_on(now))
        };
        match admitted.and_then(|()| self.answer(now, peer, key, call, actions)) {
            Ok(reply) if is_log => reply,
            Ok(reply) => {
                let seen = &mut self.record.last_seen;
                seen.address = Some(peer);
                // They are repeated, and each change writes the record.
                if !matches!(name, "deploy_state" | "flushed" | "verifying") {
                    seen.callback = Some(name.to_owned());
                    seen.callback_at = Some(now);
                }
                reply
            }
            Err(reason) => {
                self.refused = self.refused.saturating_add(1);
                self.refused_reason = Some(format!("{name} from {peer}: {reason}"));
                Reply::Refused
            }
        }
    }

    /// Checks that the caller is this attempt's ramdisk, and binds the key to the first address
    /// that uses it.
    fn admit(&mut self, peer: IpAddr, key: &AttemptKey) -> Result<(), &'static str> {
        let attempt = self.record.state.attempt_mut().ok_or("no attempt is under way")?;
        if *key != attempt.key {
            return Err("wrong key");
        }
        if *attempt.peer.get_or_insert(peer) == peer {
            Ok(())
        } else {
            Err("another address than the one that used the key first")
        }
    }

    fn answer(
        &mut self,
        now: Timestamp,
        peer: IpAddr,
        key: &AttemptKey,
        call: Call,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        if call.ramdisk() != self.ramdisk() {
            return Err("a call of another ramdisk than the one that boot.ramdisk names");
        }
        match call {
            Call::Lookup(lookup) => self.lookup(now, lookup, actions),
            Call::PassDeployInfo(info) | Call::IronicDeployInfo(info) => {
                self.pass_deploy_info(now, peer, info, actions)
            }
            Call::DeployState => Ok(Reply::State(self.deploy_state(now))),
            Call::Completed(completed) => self.completed(now, &completed, actions),
            Call::Flushed(_) => Ok(Reply::Flushed(FlushedRanges::default())),
            Call::Verifying(progress) => self.note_comparison(now, progress),
            Call::Log(log) => self.take_log(peer, key, log, actions),
            Call::IronicBootloader(error) => self.ironic_bootloader(now, &error, actions),
        }
    }

    fn lookup(
        &mut self,
        now: Timestamp,
        lookup: Lookup,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        let attempt = match &mut self.record.state {
            // A quick machine's ramdisk may call while the BMC has not yet reported it on.
            State::WaitingRamdisk { attempt } | State::PoweringOn { attempt } => attempt,
            // The ramdisk did not receive the reply that ended its attempt.
            State::CleaningUp { .. } => {
                let last_error = self.record.last_error.as_ref();
                let why = last_error.map_or(ATTEMPT_OVER, |error| &error.fault.message);
                return Ok(Reply::Failed(why.to_owned()));
            }
            State::Idle
            | State::Held { .. }
            | State::Failed
            | State::SettingPower { .. }
            | State::Preparing { .. }
            | State::Imaging { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. }
            | State::Restarting { .. }
            | State::Booting { .. } => return Err("no lookup is expected in this phase"),
        };
        let Some(spec) = &self.record.spec else { return Err("the spec is gone") };
        let right = right_machine(spec, attempt.system_guid, &lookup).map_err(NotChosen::Fault);
        let same_for = lookup.disks_same_for_ms.map(Duration::from_millis);
        let disks: Vec<Disk> = lookup.disks.into_iter().map(plain_disk).collect();
        let writable = disks.iter().filter(|disk| !disk.read_only && !disk.removable).count();
        self.record.last_seen.disks = u32::try_from(writable).ok();
        let chosen = right.and_then(|()| choose_disk(spec, attempt.image.disk_bytes, &disks));
        let vague = !spec.root_device.name_one();
        match chosen {
            Ok(disk) => {
                let late = VagueLookup { fitting: &disk, disks: &disks, same_for };
                let limit = spec.timeouts.root_device;
                if vague && let Some(rest) = late.must_wait(&mut self.missing_disk, now, limit) {
                    let waiting = self.missing_disk.as_ref().map(|m| m.fault.message.clone());
                    return Ok(lookup_again(waiting.unwrap_or_default(), rest));
                }
                let installed = self.record.installed.iter().map(|installed| &installed.disk);
                let others = installed.chain(&self.record.other_disks);
                self.record.other_disks = others_there(others, &disks, &disk);
                let name = disk.name.clone();
                attempt.disk = Some(Box::new(disk));
                self.missing_disk = None;
                let (disk, iqn) = (name, self.iqn());
                Ok(Reply::Lookup(LookupReply { disk, iqn, poll_after: POLL_AFTER_S }))
            }
            Err(NotChosen::NoRootDevice(none @ NoRootDevice::NoMatch { .. })) => {
                let wait = spec.timeouts.root_device;
                // This report replaces an earlier one.
                attempt.disk = None;
                let fault = self.no_root_device(&none);
                let until = self.missing_disk.as_ref().map_or(after(now, wait), |m| m.until);
                let error = fault.message.clone();
                self.missing_disk = Some(Box::new(MissingDisk { until, fault, late: None }));
                match self.missed_disk(now) {
                    Some(fault) => Ok(self.not_chosen(now, fault, actions)),
                    None => Ok(lookup_again(error, LOOKUP_PAUSE_MAX)),
                }
            }
            Err(NotChosen::NoRootDevice(none)) => {
                let fault = self.no_root_device(&none);
                Ok(self.not_chosen(now, fault, actions))
            }
            Err(NotChosen::Fault(fault)) => Ok(self.not_chosen(now, fault, actions)),
        }
    }

    fn not_chosen(&mut self, now: Timestamp, fault: Fault, actions: &mut Vec<Action>) -> Reply {
        let message = fault.message.clone();
        self.fail(now, fault, actions);
        Reply::Failed(message)
    }

    /// The root device that the node waits for.
    pub(super) fn missing_disk(&self) -> Option<&MissingDisk> {
        let waits =
            matches!(self.record.state, State::PoweringOn { .. } | State::WaitingRamdisk { .. });
        self.missing_disk.as_deref().filter(|_| waits)
    }

    /// The fault that ends the attempt, once the wait for the root device is over.
    pub(super) fn missed_disk(&self, now: Timestamp) -> Option<Fault> {
        let missing = self.missing_disk().filter(|missing| missing.until <= now)?;
        Some(missing.fault.clone())
    }

    /// The fault of a machine without the root device. The first one may pass, because a disk or a
    /// controller may start up the next time; the second one in a row needs a change of the spec.
    fn no_root_device(&self, none: &NoRootDevice) -> Fault {
        let last = self.record.last_error.as_ref();
        let is_first = !last.is_some_and(|last| {
            last.fault.code == NO_ROOT_DEVICE
                && last.attempt.saturating_add(1) == self.record.attempt
        });
        let fault = Fault::lasting(
            Step::Ramdisk,
            NO_ROOT_DEVICE,
            plain_up_to(DISKS_CHARS_MAX, &none.to_string()),
            GIVE_HINTS,
        );
        if is_first { Fault { retry: RetryAdvice::Backoff, ..fault } } else { fault }
    }

    /// The iSCSI name of this node's target.
    pub fn iqn(&self) -> String {
        format!("iqn.2026-11.hostler:{}", self.name)
    }

    fn pass_deploy_info(
        &mut self,
        now: Timestamp,
        peer: IpAddr,
        info: DeployInfo,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        if !info.error.is_empty() {
            return Ok(self.ramdisk_failed(now, &info.error, actions));
        }
        let target = self.target(peer, info)?;
        match &self.record.state {
            State::PoweringOn { attempt } | State::WaitingRamdisk { attempt } => {
                let disk = self.chosen_disk(attempt).ok_or("no disk was asked for before")?;
                // A power-on that still runs, or waits for its record, would end this ramdisk.
                self.cancel(actions);
                let (disk, target) = (Box::new(disk), Box::new(target));
                self.enter(now, Cause::TargetOffered { disk, target });
                Ok(Reply::Accepted)
            }
            // A repeated call, because the first answer was lost.
            State::Imaging { target: known, .. } if **known == target => Ok(Reply::Accepted),
            // A repeated call so late that the disk is already written.
            State::Switching { .. } | State::WaitingCompleted { .. } | State::Restarting { .. } => {
                Ok(Reply::Accepted)
            }
            State::Idle
            | State::Held { .. }
            | State::Failed
            | State::SettingPower { .. }
            | State::Preparing { .. }
            | State::Imaging { .. }
            | State::Booting { .. }
            | State::CleaningUp { .. } => Err("no target is expected in this phase"),
        }
    }

    /// Checks the target that the ramdisk offers.
    fn target(&self, peer: IpAddr, info: DeployInfo) -> Result<Target, &'static str> {
        if info.address.is_some_and(|address| address != peer) {
            return Err("the target's address is not the caller's own");
        }
        if info.iqn != self.iqn() {
            return Err("not the target name that was asked for");
        }
        let within = |text: &str| (1..=CHAP_BYTES_MAX).contains(&text.len());
        match &info.chap_password {
            Some(secret) if within(&info.chap_username) && within(secret.expose()) => {}
            None if info.chap_username.is_empty() && !self.requires_chap() => {}
            None => return Err("the target has no CHAP secret"),
            Some(_) => return Err("a CHAP name and secret have 1 to 255 bytes"),
        }
        Ok(Target {
            address: peer,
            port: info.port,
            lun: info.lun,
            iqn: info.iqn,
            chap_username: info.chap_username,
            chap_password: info.chap_password,
            knows_salt: info.knows_salt,
        })
    }

    /// Whether a target without CHAP is refused, as it is without a spec.
    fn requires_chap(&self) -> bool {
        self.record.spec.as_ref().is_none_or(|spec| spec.boot.require_chap)
    }

    fn deploy_state(&mut self, now: Timestamp) -> DeployStateReply {
        let state = match &self.record.state {
            State::PoweringOn { .. } | State::WaitingRamdisk { .. } | State::Imaging { .. } => {
                DeployState::Imaging
            }
            State::Switching { .. } => {
                self.enter(now, Cause::Released);
                DeployState::Release
            }
            State::WaitingCompleted { .. } | State::Restarting { .. } => DeployState::Release,
            // The running write still needs the target until it has stopped.
            State::CleaningUp { .. } if self.running.is_some() && self.ramdisk_cleans_up() => {
                DeployState::Imaging
            }
            State::CleaningUp { .. } if self.ramdisk_cleans_up() => {
                self.note_manual_cleanup_done(now);
                return DeployStateReply { then: Then::PowerOff, ..DeployState::Abort.into() };
            }
            State::Idle
            | State::Held { .. }
            | State::Failed
            | State::SettingPower { .. }
            | State::Preparing { .. }
            | State::Booting { .. }
            | State::CleaningUp { .. } => DeployState::Abort,
        };
        match self.record.state.attempt() {
            Some(attempt) if state == DeployState::Release => {
                DeployStateReply { state, verify: attempt.verify.clone(), then: self.then(attempt) }
            }
            _ => state.into(),
        }
    }

    fn completed(
        &mut self,
        now: Timestamp,
        completed: &Completed,
        actions: &mut Vec<Action>,
    ) -> Result<Reply, &'static str> {
        match &self.record.state {
            // The call may arrive before the answer that released the disk is recorded.
            State::Switching { attempt, disk } | State::WaitingCompleted { attempt, disk }
                if completed.error.is_empty() =>
            {
                let (attempt, disk) = (attempt.clone(), disk.clone());
                if completed.verified {
                    self.note_verified(now, completed.verify_ms);
                } else if !attempt.verify.is_empty() {
                    self.fail(now, not_verified(&disk), actions);
                    return Ok(Reply::Accepted);
                }
                self.let_go(now);
                Ok(Reply::Accepted)
            }
            // The ramdisk compares during the write, too.
            State::Imaging { disk, .. }
            | State::Switching { disk, .. }
            | State::WaitingCompleted { disk, .. }
                if completed.verified && !completed.error.is_empty() =>
            {
                let fault = lies(disk, &completed.error);
                self.fail(now, fault, actions);
                Ok(Reply::Accepted)
            }
            _ if !completed.error.is_empty() => {
                Ok(self.ramdisk_failed(now, &completed.error, actions))
            }
            State::Restarting { .. } => Ok(Reply::Accepted),
            State::Idle
            | State::Held { .. }
            | State::Failed
            | State::SettingPower { .. }
            | State::Preparing { .. }
            | State::PoweringOn { .. }
            | State::WaitingRamdisk { .. }
            | State::Imaging { .. }
            | State::Switching { .. }
            | State::WaitingCompleted { .. }
            | State::Booting { .. }
            | State::CleaningUp { .. } => Err("no completed notice is expected in this phase"),
        }
    }

    /// Ends the attempt because of a failure that the ramdisk reports.
    pub(super) fn ramdisk_failed(
        &mut self,
        now: Timestamp,
        error: &str,
        actions: &mut Vec<Action>,
    ) -> Reply {
        if !matches!(self.record.state, State::CleaningUp { .. } | State::Restarting { .. }) {
            let message = plain(&format!("the deploy ramdisk failed: {error}"));
            self.fail(
                now,
                Fault::passing(Step::Ramdisk, "RamdiskFailed", message, READ_ITS_LOG),
                actions,
            );
        }
        Reply::Accepted
    }
}

/// The warning about a written disk that may boot with wrong content.
const NOT_TO_BE_BOOTED: &str = "what is on it may boot, so the machine is switched off and must \
    stay so until it is installed again";

/// The fault of a disk that does not hold what was written.
fn lies(disk: &Disk, error: &str) -> Fault {
    Fault::passing(
        Step::Completed,
        "DiskLies",
        plain(&format!(
            "the deploy ramdisk compared {disk} with the image: {error}; {NOT_TO_BE_BOOTED}"
        )),
        "the disk acknowledged writes and does not hold them: replace it, or choose another with \
         [root_device]",
    )
}

/// The fault of a ramdisk that skipped the comparison; it would do so again.
fn not_verified(disk: &Disk) -> Fault {
    Fault::lasting(
        Step::Completed,
        "NotVerified",
        plain(&format!(
            "the deploy ramdisk said completed and did not compare {disk} with the image; \
             {NOT_TO_BE_BOOTED}"
        )),
        "the ramdisk may be older than hostler: make it anew with `hostler ramdisk build`; or set \
         image.verify = \"full\"",
    )
}

/// Checks by NICs and UUID that the ramdisk runs on the spec's machine. The report is untrusted.
fn right_machine(
    spec: &NodeSpec,
    system_guid: Option<SystemGuid>,
    lookup: &Lookup,
) -> Result<(), Fault> {
    let wrong = |message: String, hint| {
        let message = format!("another machine booted the deploy ramdisk: {message}");
        Err(Fault::lasting(Step::Ramdisk, "WrongMachine", plain(&message), hint))
    };
    if !lookup.macs.is_empty() && !lookup.macs.iter().any(|mac| spec.boot.macs.contains(mac)) {
        let macs: Vec<String> = lookup.macs.iter().map(ToString::to_string).collect();
        return wrong(
            format!("its network interfaces are {}", macs.join(", ")),
            "look which machine fetched this node's boot menu, and correct boot.mac",
        );
    }
    let Some(guid) = system_guid else { return Ok(()) };
    let uuid = lookup.system_uuid.as_deref();
    if uuid.is_some_and(|uuid| guid.is(uuid)) {
        return Ok(());
    }
    let uuid = uuid.unwrap_or("not known to its firmware").chars().take(UUID_CHARS_MAX);
    let uuid: String = uuid.collect();
    wrong(
        format!("its UUID is {uuid}, and the BMC's system has {}", guid.readings().join(" or ")),
        "look whether bmc.address is the BMC of this very machine; if it is, the two do not agree \
         on the UUID: set bmc.match_system_uuid = false",
    )
}

/// The reason why no disk is chosen.
enum NotChosen {
    /// No disk fits, or several do.
    NoRootDevice(NoRootDevice),
    Fault(Fault),
}

/// Chooses the disk to write from an untrusted report.
fn choose_disk(spec: &NodeSpec, needed_bytes: u64, disks: &[Disk]) -> Result<Disk, NotChosen> {
    let disk = spec.root_device.choose(disks).map_err(NotChosen::NoRootDevice)?;
    if disk.size < needed_bytes {
        let [has, needed] = show_apart(disk.size, needed_bytes);
        return Err(NotChosen::Fault(Fault::lasting(
            Step::Ramdisk,
            "DiskTooSmall",
            plain(&format!(
                "the root device {disk} is smaller than what is to be on it, which has {needed}; \
                 the disk has {has}"
            )),
            "choose a larger disk with [root_device] or a smaller image",
        )));
    }
    Ok(disk.clone())
}

/// The answer to a ramdisk that is to report its disks again, after `rest` at the latest.
fn lookup_again(error: String, rest: Duration) -> Reply {
    let seconds = rest.min(LOOKUP_PAUSE_MAX).as_millis().div_ceil(1000);
    let look_again_after = u32::try_from(seconds).unwrap_or(u32::MAX);
    Reply::LookupAgain(LookupAgain { error, look_again_after })
}

/// Returns the previously written disks that are still present, except the chosen one, as reported
/// now.
fn others_there<'a>(
    before: impl Iterator<Item = &'a Disk>,
    disks: &[Disk],
    chosen: &Disk,
) -> Vec<Disk> {
    let mut others: Vec<Disk> = Vec::new();
    for one in before {
        let now = disks.iter().find(|disk| disk.is_same(one) && !disk.is_same(chosen));
        others.extend(now.filter(|disk| !others.contains(disk)).cloned());
    }
    others
}

/// Makes a reported disk safe to show and record: bounded texts without control characters, and a
/// size that TOML can hold.
fn plain_disk(disk: Disk) -> Disk {
    let short = |text: String| plain(&text).chars().take(DISK_CHARS_MAX).collect::<String>();
    Disk {
        name: short(disk.name),
        size: disk.size.min(i64::MAX.unsigned_abs()),
        serial: disk.serial.map(short),
        wwn: disk.wwn.map(short),
        model: disk.model.map(short),
        vendor: disk.vendor.map(short),
        hctl: disk.hctl.map(short),
        by_path: disk.by_path.map(short),
        ..disk
    }
}
