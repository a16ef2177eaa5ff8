//! Faults that are the agent's own, and those of BMCs with the user's name in them.
//!
//! Called by the operations. An adapter's error says its own advice (`Advise` in the model).

use std::time::Duration;

use crate::{
    bmc::BmcError,
    imaging::ImagingError,
    model::{
        fault::{Advice, CANCELLED, Fault, Step, TOOK_TOO_LONG},
        spec::{BmcDriver, NodeSpec},
    },
};

/// The code of a poll that was told to stop before its BMC answered.
pub(super) const POLL_CUT: &str = "PollCut";

/// The fault of a failed BMC call, which names the user that the BMC was asked with.
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

/// The fault of a poll that was cut `waited` after it began and `silence` after the BMC was first
/// asked.
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

/// The core wanted something of a BMC that is not there.
pub(super) fn no_bmc(step: Step) -> Fault {
    Fault::lasting(step, "NoBmc", "the spec names no BMC", "set [bmc]")
}

/// The fault of a task of the agent's own that panicked.
pub(super) fn internal(error: &tokio::task::JoinError) -> Fault {
    let message = format!("hostler itself failed: {error}");
    Fault::passing(Step::Cleanup, "Internal", message, "report this with the agent's log")
}

/// The fault of a system that has nothing to make keys of.
pub(super) fn no_randomness(error: getrandom::Error) -> Fault {
    Fault::passing(
        Step::Preflight,
        "NoRandomness",
        format!("the system gives no random bytes: {error}"),
        "look at this machine's kernel log, and whether /dev/urandom is there",
    )
}

/// The fault of an operation that was told to stop.
pub(super) fn cancelled(step: Step) -> Fault {
    Fault::passing(step, CANCELLED, TOOK_TOO_LONG, Advice::CANCELLED.hint)
}

/// The fault of a target whose disk cannot be opened: a failed connection speaks for itself.
pub(super) fn of_opening(error: &ImagingError) -> Fault {
    match error {
        ImagingError::Connection(error) => {
            Fault::passing(Step::Imaging, error.code, error.message.clone(), error.hint)
        }
        error => Fault::of(Step::Imaging, error),
    }
}
