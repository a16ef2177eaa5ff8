//! Failures: a code and advice for the core, a message and a hint for the administrator.
//!
//! The agent makes a fault of an adapter's error; the core judges it; `[last_error]` shows it.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// One failure of an attempt or of power control.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The step that failed.
    pub step: Step,
    /// A short stable name in CamelCase for programs: `ChecksumMismatch`.
    pub code: Cow<'static, str>,
    /// Whether trying again may help.
    pub retry: RetryAdvice,
    /// The event, the thing that it happened to, and the expectation.
    pub message: String,
    /// The administrator's next step.
    pub hint: Cow<'static, str>,
}

/// The steps of an attempt, as `[last_error] step` shows them.
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
    /// Only after somebody changes something.
    Never,
    /// Once a file or program exists on the agent's machine. The wait uses up no attempt.
    Wait,
}

/// The code of a cancelled operation.
pub const CANCELLED: &str = "Cancelled";
/// The message of a cancelled operation, which the core uses only for a timeout.
pub const TOOK_TOO_LONG: &str = "it was told to stop, because it took too long";
/// The hint for a target that answers and is not the ramdisk's.
pub const OTHER_MACHINE: &str = "another machine may answer under this address: look for a double \
     address, and at the machine's console";

/// An error's code for programs, its retry advice, and a hint for administrators.
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
    /// The advice for a cancelled operation.
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

/// An adapter's error that has advice of its own.
pub trait Advise: fmt::Display {
    /// The advice that goes with the error's message.
    fn advice(&self) -> Advice;

    /// The message for status files, if it differs from the error's own.
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
    /// Makes a fault of an adapter's error in this step.
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

    /// A fault by a file or program that is missing on the agent's own machine.
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
