//! The state machine: all transitions between states.
//!
//! [`next`] has them all. Every change of a node's state goes through [`Node::enter`], with a
//! [`Cause`] from the file that judged the event: `callback.rs`, `attempt.rs`, `power.rs`,
//! `hold.rs` and others. Everything else follows from the state alone: its operation and boot menu
//! (`node.rs`), its deadline (`wait.rs`), its permit (`permits.rs`).
//! `docs/contributing/state-machine.md` is generated from this file.

use crate::model::{callback::DiskRange, disk::Disk, power::PowerState};

use super::state::{
    Attempt, FirstBoot, Hold, Purpose,
    State::{
        self, Booting, CleaningUp, Failed, Held, Idle, Imaging, PoweringOn, Preparing, Restarting,
        SettingPower, Switching, WaitingCompleted, WaitingRamdisk,
    },
    Target,
};

/// A reason to change the state.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    /// The node got its permit for an attempt (`permits.rs`).
    AttemptGranted,
    /// The node got its permit to write the disk (`permits.rs`).
    ImagingGranted,
    /// The machine may not be WIPED or switched without consent (`hold.rs`).
    ConsentMissing { redeploy: Option<String>, reason: Hold },
    /// A machine that was held because it was on is off, or has no BMC any more (`hold.rs`).
    NotSeenOn,
    /// The disk's content is known again, or the spec wants no installation (`hold.rs`).
    DiskKnown,
    /// The machine must be switched on or off (`power.rs`).
    PowerWanted(PowerState),
    /// The BMC has brought the machine into the wanted power state (`power.rs`).
    PowerReached,
    /// The BMC has not reached the power state in all tries, or in time (`power.rs`).
    PowerMissed,
    /// The image is in the cache and verified (`attempt.rs`).
    ImageVerified(Box<Attempt>),
    /// The BMC has confirmed a power state in which the machine may be WIPED (`attempt.rs`).
    PowerConfirmed,
    /// The BMC has switched the machine on (`attempt.rs`).
    PoweredOn,
    /// The machine without a BMC was seen to netboot (`manual_power.rs`).
    SeenBooting,
    /// The agent was stopped while the machine fetched its boot files, or at the deadline of its
    /// first boot (`attempt.rs`, `first_boot.rs`).
    CutOff,
    /// The ramdisk exports its disk (`callback.rs`).
    TargetOffered { disk: Box<Disk>, target: Box<Target> },
    /// The disk is written and flushed (`attempt.rs`).
    Written { verify: Vec<DiskRange>, disk_bytes: u64, root_partuuid: Option<String> },
    /// The ramdisk was told to release its disk (`callback.rs`).
    Released,
    /// The ramdisk has released its disk (`callback.rs`, `ironic.rs`).
    LetGo,
    /// The BMC has restarted the machine (`attempt.rs`).
    Restarted,
    /// The BMC has not restarted the machine in all tries, or in time (`attempt.rs`).
    NotRestarted,
    /// The installed system must show that it is up (`first_boot.rs`).
    BootAwaited(FirstBoot),
    /// The first boot missed its deadline, and the BMC restarts the machine once (`first_boot.rs`).
    BootRepeated,
    /// The installed system is up, or has finally missed its deadline (`first_boot.rs`).
    BootJudged,
    /// A file is missing on the agent's own machine; the node's machine was not touched
    /// (`missing.rs`).
    FileMissing,
    /// The attempt failed, or the spec wants something else (`attempt.rs`).
    Abandoned(Purpose),
    /// The attempt failed or is no longer wanted, and its record could not be written: its machine
    /// was never touched (`attempt.rs`).
    NeverBegun(Purpose),
    /// Nothing of the attempt is under way any more (`attempt.rs`).
    Ended(Purpose),
    /// The spec changed, or an operator retries (`node.rs`).
    StartedAfresh,
}

/// A change of the record that comes with a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// This and repeated attempts may WIPE the disk.
    ConsentGiven,
    /// Another attempt needs consent of its own.
    ConsentEnds,
    /// The attempt counts.
    AttemptCounts,
    /// The attempt does not count.
    AttemptUncounted,
    /// The count of attempts begins again.
    AttemptsForgotten,
    /// Deadline, tries and pause stay. Without this effect, they begin again.
    WaitGoesOn,
}

/// The next state, or both arguments if the cause has no meaning in the state.
type Next = Result<(State, &'static [Effect]), Box<(State, Cause)>>;

/// Returns the next state and the effects on the record.
#[expect(clippy::too_many_lines, reason = "the whole state machine, in one match")]
#[expect(clippy::match_same_arms, reason = "the arms stand by the state that they lead out of")]
pub(super) fn next(from: State, cause: Cause) -> Next {
    use Effect::{
        AttemptCounts, AttemptUncounted, AttemptsForgotten, ConsentEnds, ConsentGiven, WaitGoesOn,
    };
    use Purpose::{GiveUp, Retry, StartOver};
    let next: (State, &[Effect]) = match (from, cause) {
        (Idle, Cause::AttemptGranted) => (Preparing { ready: None }, &[AttemptCounts]),
        (Idle, Cause::PowerWanted(wanted)) => (SettingPower { wanted }, &[]),
        (Idle | Preparing { ready: Some(_) }, Cause::ConsentMissing { redeploy, reason }) => {
            (Held { redeploy, reason }, &[])
        }
        (Idle | Held { .. } | Failed | Booting { .. }, Cause::StartedAfresh) => {
            (Idle, &[AttemptsForgotten])
        }

        (Held { reason: Hold::PoweredOn, .. }, Cause::NotSeenOn) => (Idle, &[]),
        (Held { reason: Hold::RecordLost, .. }, Cause::DiskKnown) => (Idle, &[]),

        (SettingPower { .. }, Cause::PowerReached | Cause::PowerMissed) => (Idle, &[ConsentEnds]),
        (SettingPower { .. } | Preparing { .. }, Cause::Abandoned(purpose)) => {
            (CleaningUp { attempt: None, purpose }, &[])
        }

        (Preparing { .. }, Cause::FileMissing) => (Idle, &[AttemptUncounted]),
        (Preparing { ready: None }, Cause::ImageVerified(attempt))
            if attempt.power_control().waits_for_operator() =>
        {
            (PoweringOn { attempt }, &[ConsentGiven])
        }
        (Preparing { ready: None }, Cause::ImageVerified(attempt)) => {
            (Preparing { ready: Some(attempt) }, &[WaitGoesOn])
        }
        (Preparing { ready: Some(attempt) }, Cause::PowerConfirmed) => {
            (PoweringOn { attempt }, &[ConsentGiven])
        }

        (PoweringOn { attempt }, Cause::PoweredOn | Cause::SeenBooting) => {
            (WaitingRamdisk { attempt }, &[])
        }
        (PoweringOn { .. }, Cause::NeverBegun(purpose)) => {
            (CleaningUp { attempt: None, purpose }, &[ConsentEnds])
        }
        (WaitingRamdisk { attempt }, Cause::CutOff) => (PoweringOn { attempt }, &[WaitGoesOn]),
        (
            PoweringOn { attempt } | WaitingRamdisk { attempt },
            Cause::TargetOffered { disk, target },
        ) => (Imaging { attempt, disk, target, granted: false }, &[]),

        (Imaging { attempt, disk, target, granted: false }, Cause::ImagingGranted) => {
            (Imaging { attempt, disk, target, granted: true }, &[])
        }
        (
            Imaging { mut attempt, mut disk, granted: true, .. },
            Cause::Written { verify, disk_bytes, root_partuuid },
        ) => {
            attempt.verify = verify;
            attempt.image.root_partuuid = root_partuuid;
            disk.size = disk_bytes;
            (Switching { attempt, disk }, &[])
        }

        (Switching { attempt, disk }, Cause::Released) => (WaitingCompleted { attempt, disk }, &[]),
        (Switching { attempt, .. } | WaitingCompleted { attempt, .. }, Cause::LetGo)
            if attempt.power_control().restarts_itself() =>
        {
            (Idle, &[ConsentEnds])
        }
        (Switching { attempt, disk } | WaitingCompleted { attempt, disk }, Cause::LetGo) => {
            (Restarting { attempt, disk }, &[])
        }
        (Restarting { .. }, Cause::Restarted | Cause::NotRestarted) => (Idle, &[ConsentEnds]),

        (Idle, Cause::BootAwaited(boot)) => (Booting { boot }, &[]),
        (Booting { boot: FirstBoot::Waiting }, Cause::CutOff) => {
            (Booting { boot: FirstBoot::Overdue }, &[])
        }
        (Booting { boot: FirstBoot::Waiting | FirstBoot::Overdue }, Cause::BootRepeated) => {
            (Booting { boot: FirstBoot::Restarting }, &[])
        }
        (Booting { boot: FirstBoot::Restarting }, Cause::Restarted) => {
            (Booting { boot: FirstBoot::Waiting }, &[])
        }
        (Booting { .. }, Cause::BootJudged) => (Idle, &[ConsentEnds]),

        (
            PoweringOn { attempt }
            | WaitingRamdisk { attempt }
            | Imaging { attempt, .. }
            | Switching { attempt, .. }
            | WaitingCompleted { attempt, .. }
            | Restarting { attempt, .. },
            Cause::Abandoned(purpose),
        ) => (CleaningUp { attempt: Some(attempt), purpose }, &[]),
        (CleaningUp { attempt, .. }, Cause::Abandoned(purpose)) => {
            (CleaningUp { attempt, purpose }, &[WaitGoesOn])
        }

        // From `Idle` if the preflight failed.
        (Idle | CleaningUp { .. }, Cause::Ended(Retry)) => (Idle, &[]),
        (Idle | CleaningUp { .. }, Cause::Ended(GiveUp)) => (Failed, &[ConsentEnds]),
        (CleaningUp { .. }, Cause::Ended(StartOver)) => (Idle, &[ConsentEnds, AttemptsForgotten]),

        (from, cause) => return Err(Box::new((from, cause))),
    };
    Ok(next)
}
