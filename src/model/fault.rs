//! Why something failed: what the core branches on and what the administrator reads.
//!
//! Made by the adapters' door to the core (the agent), judged by the core, shown in `[last_error]`.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// One failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Where in the job it happened.
    pub step: Step,
    /// A short stable name in CamelCase for programs: `ChecksumMismatch`.
    pub code: Cow<'static, str>,
    /// Whether trying again may help.
    pub retry: RetryAdvice,
    /// The event, the thing it happened to, and the expectation.
    pub message: String,
    /// The administrator's next step.
    pub hint: Cow<'static, str>,
}

/// The steps of the job, as they appear in `[last_error] step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Asking the BMC before anything is started.
    Preflight,
    /// Reading and verifying the image.
    Image,
    /// Boot device and power on.
    PowerOn,
    /// Waiting for the deploy ramdisk.
    Ramdisk,
    /// Writing the disk.
    Imaging,
    /// Waiting for the Completed notice.
    Completed,
    /// Restarting the machine by its BMC.
    Restart,
    /// Waiting for the installed system to come up.
    FirstBoot,
    /// Putting things back after a failure.
    Cleanup,
    /// Switching a machine on or off as its spec says, outside of an attempt.
    Power,
}

/// Whether trying again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RetryAdvice {
    /// After a pause.
    Backoff,
    /// Not before somebody changes something.
    Never,
    /// Once something is there that is missing on the agent's own machine. It uses up no attempt.
    Wait,
}

/// The code of an operation that was told to stop, and did.
pub const CANCELLED: &str = "Cancelled";
/// The message of such an operation. The core reads it only if the operation took too long.
pub const TOOK_TOO_LONG: &str = "it was told to stop, because it took too long";
/// The hint for a target that answers and is not the one the ramdisk reported.
pub const OTHER_MACHINE: &str = "another machine may answer under this address: look for a double \
     address, and at the machine's console";

/// The part that an error's message leaves open: a code for programs, whether trying again may
/// help, and what an administrator can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// A short stable name in CamelCase.
    pub code: &'static str,
    /// Whether trying again may help.
    pub retry: RetryAdvice,
    /// The administrator's next step.
    pub hint: &'static str,
}

impl Advice {
    /// The advice of an operation that was told to stop.
    pub const CANCELLED: Self =
        Self::passing(CANCELLED, "look at the BMC and the machine, or raise [timeouts]");

    /// Advice on an error that may go away by itself.
    pub const fn passing(code: &'static str, hint: &'static str) -> Self {
        Self { code, retry: RetryAdvice::Backoff, hint }
    }

    /// Advice on a file or program that is missing on the agent's own machine.
    pub const fn missing(code: &'static str, hint: &'static str) -> Self {
        Self { code, retry: RetryAdvice::Wait, hint }
    }

    /// Advice on an error that stays until somebody changes something.
    pub const fn lasting(code: &'static str, hint: &'static str) -> Self {
        Self { code, retry: RetryAdvice::Never, hint }
    }
}

/// An adapter's error that knows its own advice.
pub trait Advise: fmt::Display {
    /// The advice that goes with the error's message.
    fn advice(&self) -> Advice;

    /// The message in a status file, if the error's own says too little there.
    fn message(&self) -> String {
        self.to_string()
    }
}

impl<E: Advise> Advise for Arc<E> {
    fn advice(&self) -> Advice {
        E::advice(self)
    }

    fn message(&self) -> String {
        E::message(self)
    }
}

impl Fault {
    /// The fault that an adapter's error is in this step.
    pub fn of(step: Step, error: &impl Advise) -> Self {
        let Advice { code, retry, hint } = error.advice();
        Self { step, code: code.into(), retry, message: error.message(), hint: hint.into() }
    }

    /// A fault that may go away by itself.
    pub fn passing(
        step: Step,
        code: &'static str,
        message: impl Into<String>,
        hint: &'static str,
    ) -> Self {
        Self {
            step,
            code: code.into(),
            retry: RetryAdvice::Backoff,
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// A file or program of the agent's own machine that is missing.
    pub fn missing(
        step: Step,
        code: &'static str,
        message: impl Into<String>,
        hint: &'static str,
    ) -> Self {
        Self { retry: RetryAdvice::Wait, ..Self::passing(step, code, message, hint) }
    }

    /// A fault that stays until somebody changes something.
    pub fn lasting(
        step: Step,
        code: &'static str,
        message: impl Into<String>,
        hint: &'static str,
    ) -> Self {
        Self {
            step,
            code: code.into(),
            retry: RetryAdvice::Never,
            message: message.into(),
            hint: hint.into(),
        }
    }
}
