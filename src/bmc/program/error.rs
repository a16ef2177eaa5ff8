//! Errors of BMC programs, in an administrator's words.

use std::time::Duration;

use thiserror::Error;

use crate::model::{
    fault::{Advice, Advise},
    power::{BootDevice, PowerState},
    spec::BmcAddress,
};

/// A call to a BMC through its program failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("bmc {bmc}: {kind}")]
pub struct ProgramError {
    /// The program and its address argument.
    pub bmc: BmcAddress,
    /// The failure.
    pub kind: ProgramErrorKind,
}

/// The kinds of program errors. The call retried passing failures until the deadline before it
/// returned one of these.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProgramErrorKind {
    /// The program cannot be run, or its file is not safe to run.
    #[error("the program cannot be run: {reason}")]
    Unusable {
        /// The cause, and the requirement.
        reason: String,
    },
    /// The program ended with an exit code that has no documented meaning.
    #[error("refused `{word}`: {reason}")]
    Refused {
        /// The program's argument.
        word: &'static str,
        /// The first line of its standard error, or its exit status.
        reason: String,
    },
    /// The program reported that the BMC refuses the login.
    #[error("refused `{word}` for good: {reason}")]
    LoginRefused {
        /// The program's argument.
        word: &'static str,
        /// The first line of its standard error, or its exit status.
        reason: String,
    },
    /// The program asked for another run until the deadline.
    #[error("put off `{word}` for {} s: {reason}", waited.as_secs())]
    PutOff {
        /// The program's argument.
        word: &'static str,
        /// The first line of its standard error, or its exit status.
        reason: String,
        /// The duration of the tries.
        waited: Duration,
    },
    /// The program did not end in time, and was killed.
    #[error("`{word}` did not end in {} s; the program was killed", waited.as_secs())]
    NotEnded {
        /// The program's argument.
        word: &'static str,
        /// The time waited.
        waited: Duration,
    },
    /// The program's output for `status` is no power state.
    #[error("`status` printed {printed:?}; its first line must be on or off")]
    BadAnswer {
        /// The beginning of the output.
        printed: String,
    },
    /// Another call held the BMC until the deadline.
    #[error("another call to it was not over in {} s", waited.as_secs())]
    InUse {
        /// The time waited.
        waited: Duration,
    },
    /// The program accepted the power command, but the power state did not follow.
    #[error(
        "accepted power {} but stayed {} for {} s",
        wanted.as_str(),
        wanted.opposite().as_str(),
        waited.as_secs()
    )]
    StateNotReached {
        /// The state asked for.
        wanted: PowerState,
        /// The time since the program first accepted the command.
        waited: Duration,
    },
    /// The program accepted the boot device, but reports another one.
    #[error("accepted `{}` but reports `{}`", word_of(*wanted), word_of(*reported))]
    BootDeviceNotKept {
        /// The device asked for.
        wanted: BootDevice,
        /// The device that the program reports.
        reported: BootDevice,
    },
    /// A program cannot report the UUID of its machine.
    #[error("does not say its system's UUID")]
    NoSystemGuid,
}

impl Advise for ProgramError {
    fn advice(&self) -> Advice {
        use ProgramErrorKind as Kind;
        match &self.kind {
            Kind::Unusable { .. } => Advice::missing(
                "BmcProgramUnusable",
                "bmc.program must be an absolute path to an executable regular file of root or \
                 hostler's user that nobody else can write",
            ),
            Kind::Refused { .. } | Kind::BadAnswer { .. } => Advice::passing(
                "BmcRefused",
                "run bmc.program by hand as hostler's user, and look at its output and exit code",
            ),
            Kind::LoginRefused { .. } => Advice::lasting(
                "BmcPasswordWrong",
                "correct bmc.username or the password file, then run `hostler retry` for this \
                 node; hostler does not go on trying, because BMCs lock users out",
            ),
            Kind::PutOff { .. } | Kind::InUse { .. } => Advice::passing(
                "BmcBusy",
                "look at the device that bmc.program speaks to; if it stays so, restart it",
            ),
            Kind::NotEnded { .. } => Advice::passing(
                "BmcSilent",
                "run bmc.program by hand as hostler's user: it must end by itself; if it only \
                 needs longer, raise timeouts.power",
            ),
            Kind::StateNotReached { .. } => Advice::passing(
                "PowerNotReached",
                "bmc.program accepts power commands and nothing happens: look at the machine, or \
                 raise timeouts.power",
            ),
            Kind::BootDeviceNotKept { .. } => Advice::passing(
                "BootDeviceNotKept",
                "bmc.program does not keep the boot device: look at its `status`",
            ),
            Kind::NoSystemGuid => Advice::lasting(
                "NoSystemUuid",
                "set bmc.match_system_uuid = false: a program cannot tell which machine it \
                 switches",
            ),
        }
    }
}

/// The program's word for a boot device.
pub(super) const fn word_of(device: BootDevice) -> &'static str {
    match device {
        BootDevice::Pxe => "boot-network",
        BootDevice::Disk => "boot-disk",
    }
}
