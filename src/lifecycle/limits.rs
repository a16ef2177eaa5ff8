//! Limits that several files of the core need, and arithmetic of times.
//!
//! Used throughout the core. A limit that only one file needs is in that file.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::model::spec::Timeouts;

use super::event::Operation;

/// Tries of a clean-up before the node gives up and says so.
pub(super) const CLEANUP_TRIES_MAX: u32 = 8;
/// Tries of a restart: the disk is good, and a BMC's passing error is no reason to write it again.
pub(super) const RESTART_TRIES_MAX: u32 = 4;
/// Tries to bring a machine into its spec's power state.
pub(super) const POWER_TRIES_MAX: u32 = 4;
/// The time after which a cancelled operation that has not ended is cancelled again.
pub(super) const CANCEL_PATIENCE: Duration = Duration::from_secs(60);
/// The time added to an operation's own limits before the core interrupts it.
const OPERATION_SLACK: Duration = Duration::from_secs(30);

/// The limit of a poll outside of an attempt. A slow BMC takes a second or two, even if a datagram
/// is lost.
pub const POLL_LIMIT: Duration = Duration::from_secs(15);

/// The pause between polls outside of an attempt: BMCs are fragile, and drift may be noticed after
/// a minute.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Most programs that poll at the same time: each is a process.
pub(super) const PROGRAM_POLLS_MAX: usize = 64;

/// The limits and permissions of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Most machines brought up for imaging at the same time, at least 1.
    pub attempts_max: usize,
    /// Most disks written at the same time, at least 1.
    pub imagings_max: usize,
    /// Most polls of BMCs at the same time, at least 1.
    pub polls_max: usize,
    /// Whether many reinstalls at once need consent.
    pub breaker: bool,
    /// Whether hostler corrects the power of an installed machine that differs from its spec.
    pub enforce_power: bool,
}

/// The time after which an operation of a node at rest is interrupted. In an attempt, the state's
/// deadline does that.
pub(super) fn patience(operation: &Operation, timeouts: &Timeouts) -> Duration {
    let limit = match operation {
        Operation::PollPower => POLL_LIMIT.min(timeouts.power),
        Operation::NetbootFiles { .. } => timeouts.imaging,
        Operation::ConfirmPower
        | Operation::Prepare
        | Operation::PowerOn
        | Operation::Image { .. }
        | Operation::Release(_)
        | Operation::Restart { .. }
        | Operation::ProbePort { .. }
        | Operation::SetPower(_)
        | Operation::CleanUp => return power_limit(timeouts),
    };
    limit.saturating_add(OPERATION_SLACK).max(CANCEL_PATIENCE)
}

/// The limit of a BMC's operation: off, boot device and on, each within `timeouts.power`.
pub(super) fn power_limit(timeouts: &Timeouts) -> Duration {
    timeouts.power.saturating_mul(3).saturating_add(OPERATION_SLACK).max(CANCEL_PATIENCE)
}

/// Adds a duration to a time, up to the latest representable one.
pub(super) fn after(now: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait)
        .ok()
        .and_then(|wait| now.checked_add(wait).ok())
        .unwrap_or(Timestamp::MAX)
}
