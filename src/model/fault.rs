//! Why something failed: what the core branches on and what the administrator reads.
//!
//! Made by the adapters' door to the core (the agent), judged by the core, shown in `[last_error]`.

use std::borrow::Cow;

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

impl Fault {
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
