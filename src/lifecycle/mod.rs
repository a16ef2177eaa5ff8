//! The core: decides what happens to every node. It is pure, synchronous and total: no I/O, no
//! clock, no randomness, no failure.
//!
//! Called by the agent's driver only, which owns the [`Executor`] and passes it each [`Event`] with
//! the time. The [`Fleet`] finds the event's [`Node`], whose step returns [`Action`]s; the executor
//! has the [`Effects`] perform them in an order in which no crash does harm. A node's [`Record`],
//! which is durable *before* anything else, and its [`Menu`] are derived from the node instead of
//! being actions, so that no step can forget them. The core must never call an adapter.
//!
//! `transitions.rs` has every transition between states. In outline:
//!
//! ```text
//!  spec unusable: invalid   paused: paused   "unmanaged": unmanaged   "available": off, available
//!
//!          ┌── on and no consent, or too many at once ──▶ held
//!          │                                              │ off, approved, or redeploy changed
//!  pending ◀──────────────────────────────────────────────┘
//!     │ BMC answers, permit         ▲
//!     ▼                             │ back-off, attempts left
//!  preparing ──── any fault ────▶ clean-up ── attempts used up, or no use trying ──▶ failed
//!     │ image verified, still off   ▲
//!     ▼                             │ any fault
//!  powering-on ──▶ waiting-ramdisk ──▶ imaging ──▶ switching ──▶ waiting-completed
//!                  (lookup, then       (write,     (boot files     │ the target is stopped
//!                   the target)         verify)     of the disk)   ▼
//!                      deployed ◀── booting ◀── restarting (boot device disk, off, on)
//!                     (its own system is up)
//! ```
//!
//! A node that is cleaning up shows `pending`. The core retries a failed restart a few times within
//! its deadline, because the disk is good by then. Without a `[boot_check]`, the node is `deployed`
//! after the restart. The core retries a failed clean-up, too; if all tries fail, the node is
//! `failed` and no attempt follows. In `imaging`, a node may have to wait for another permit.
//! Switching an installed machine on or off does not change its phase.
//!
//! Rules of the core, each with its test in `tests/`:
//! - At most one operation of a node runs. A new one starts only after the old one has *reported*,
//!   so a cancelled write has really stopped before anything else touches the machine.
//! - A result with another operation id than the running one changes nothing.
//! - Every state that waits has a deadline with a reason. A spec with other timeouts moves the
//!   present deadline, too. A clock that is set forward ends waits early; a clock that is set back
//!   makes no wait longer than its full length.
//! - Consent is for one machine (its BMC's address and its NICs), one installation and one series
//!   of attempts. Another machine, another installation, a pause, a clash, success and failure each
//!   end it.
//! - A machine with a damaged record is WIPED, on or off, only after consent or once its disk's
//!   content is known again.
//! - Permits limit how many nodes do the same at once. The holders of permits are derived from the
//!   nodes' states, so that no permit is ever lost.
//! - hostler switches a machine if a change of its spec or an operator orders that. A later
//!   difference is drift, which is only shown.
//! - After a start, no node acts before the spec directory has been read.

#![warn(clippy::wildcard_enum_match_arm)]
#![allow(missing_docs, reason = "many fields and variants need no more than their name and type")]

mod attempt;
mod backoff;
mod boot_evidence;
mod breaker;
mod callback;
mod comparison;
mod event;
mod executor;
mod first_boot;
mod fleet;
pub mod format_1;
mod history;
mod hold;
mod ironic;
mod late_disks;
mod limits;
mod manual_power;
mod missing;
mod netboot_files;
mod netboot_update;
mod node;
mod permits;
mod plan;
mod polling;
mod polls;
mod power;
mod power_control;
mod ramdisk_log;
mod replaced;
mod report;
mod settle;
mod state;
#[cfg(test)]
#[allow(clippy::wildcard_enum_match_arm, reason = "a test looks for what it tests")]
mod tests;
mod text;
mod transitions;
mod unclaimed;
mod unexpected_netboots;
mod wait;
mod wake_ups;

pub use event::{Action, DiskSize, Event, Menu, Operation, Outcome, Permit, ReceivedLog, Stages};
pub use executor::{Effects, Executor};
pub use first_boot::NO_ANSWER;
pub use fleet::{Fleet, Specs};
pub use limits::{POLL_LIMIT, Policy};
pub use node::Node;
pub use plan::{PlannedAction, PlannedChange, Planner};
pub use power_control::PowerControl;
pub use state::{Attempt, FirstBoot, Hold, PreparedImage, Purpose, Record, Records, State, Target};
pub use unclaimed::{Known, UnclaimedInstalls};
