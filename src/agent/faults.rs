//! The agent's own faults, and BMCs' faults with the user's name.
//!
//! Called by the operations. It must never repeat the advice of an adapter's error, which has its
//! own (`Advise` in the model).

use std::time::Duration;

use crate::{
    bmc::BmcError,
    imaging::ImagingError,
    model::{
        fault::{Advice, CANCELLED, Fault, Step, TOOK_TOO_LONG},
        spec::{BmcDriver, NodeSpec},
    },
};

/// The code of a poll that was cancelled before its BMC answered.
pub(super) const POLL_CUT: &str = "PollCut";

/// The fault of a failed BMC call, with the user's name.
pub(super) fn of_bmc(step: Step, spec: &NodeSpec, error: &BmcError) -> Fault {
    let fault = Fault::of(step, error);
    match &spec.bmc {
        // A program may need no user.
        Some(bmc) if bmc.driver != BmcDriver::Program || !bmc.username.is_empty() => {
            Fault { message: format!("{error} (user {:?})", bmc.username), ..fault }
        }
        Some(_) | None => fault,
    }
}

/// The fault of a poll that was cancelled `waited` after its start, and `silence` after its first
/// request to the BMC.
pub(super) fn of_cut_poll(spec: &NodeSpec, waited: Duration, silence: Option<Duration>) -> Fault {
    let bmc = spec.bmc_address().map_or_else(String::new, |address| format!("bmc {address}: "));
    let (waited, silent) = (waited.as_secs(), silence.map(|since| since.as_secs()));
    let message = match silent {
        Some(silent) => format!(
            "{bmc}the poll of its power state was cut after {waited} s, because it had not ended: \
             no answer in {silent} s"
        ),
        None => format!(
            "{bmc}the poll of its power state was cut after {waited} s, because another use of \
             this BMC, by an operator or an attempt, was not over; it was not asked"
        ),
    };
    let hint = "look at the BMC; hostler polls it again by itself, or run \"hostler retry\"";
    Fault::passing(Step::Preflight, POLL_CUT, message, hint)
}

/// The fault of an operation for a BMC that the spec does not have.
pub(super) fn no_bmc(step: Step) -> Fault {
    Fault::lasting(step, "NoBmc", "the spec names no BMC", "set [bmc]")
}

/// The fault of a panicked task.
pub(super) fn internal(error: &tokio::task::JoinError) -> Fault {
    let message = format!("hostler itself failed: {error}");
    Fault::passing(Step::Cleanup, "Internal", message, "report this with the agent's log")
}

/// The fault of a system without random bytes.
pub(super) fn no_randomness(error: getrandom::Error) -> Fault {
    Fault::passing(
        Step::Preflight,
        "NoRandomness",
        format!("the system gives no random bytes: {error}"),
        "look at this machine's kernel log, and whether /dev/urandom is there",
    )
}

/// The fault of a cancelled operation.
pub(super) fn cancelled(step: Step) -> Fault {
    Fault::passing(step, CANCELLED, TOOK_TOO_LONG, Advice::CANCELLED.hint)
}

/// The fault of a target whose disk cannot be opened. A failed connection keeps its own message.
pub(super) fn of_opening(error: &ImagingError) -> Fault {
    match error {
        ImagingError::Connection(error) => {
            Fault::passing(Step::Imaging, error.code, error.message.clone(), error.hint)
        }
        error => Fault::of(Step::Imaging, error),
    }
}
