//! Refusals of a BMC: final ones, and those that may pass.
//!
//! Calls use it. The list of final refusals is short; any other may pass. It must never treat one
//! refusal as final where the BMC accepted the same before, nor allow logins at a rate that locks a
//! user out.

use std::{
    collections::HashSet,
    mem::{Discriminant, discriminant},
    time::Duration,
};

use tokio::time::Instant;

use super::commands::IpmiCommand;
use crate::model::backoff::Backoff;

/// Insufficient privilege (IPMI 2.0 table 5-2).
pub(super) const INSUFFICIENT_PRIVILEGE: u8 = 0xd4;
/// Command not supported in the present state (IPMI 2.0 table 5-2).
pub(super) const NOT_IN_THIS_STATE: u8 = 0xd5;
/// Least number of refusals, spread over the whole time of doubt, that make a refusal final.
const DOUBTED_REFUSALS_MIN: u32 = 3;

/// The verdict on a completion code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accepted,
    /// The same command may succeed in a moment: node busy, timeout, out of space, duplicated
    /// request, BMC initializing.
    Busy,
    /// The session's privilege level is too low.
    Privilege,
    /// The BMC does not support this command, or not in this state.
    Final,
    /// The specification gives no meaning, as for `0xff` just after a power change.
    Unclear,
}

impl Verdict {
    /// Judges a completion code (IPMI 2.0 table 5-2).
    pub(super) const fn of(command: IpmiCommand, completion: u8) -> Self {
        match completion {
            0 => Self::Accepted,
            0xc0 | 0xc3 | 0xc4 | 0xcf | 0xd2 => Self::Busy,
            INSUFFICIENT_PRIVILEGE => Self::Privilege,
            // Set Session Privilege Level: not available to this user, or above the limit (§22.18).
            0x80 | 0x81 if matches!(command, IpmiCommand::SetSessionPrivilege(_)) => {
                Self::Privilege
            }
            // Get Chassis Status is valid in any state, and has no completion codes of its own.
            NOT_IN_THIS_STATE | 0x80..=0xbe if matches!(command, IpmiCommand::GetChassisStatus) => {
                Self::Unclear
            }
            // Unknown command, wrong length, out of range, invalid data, disabled; and the codes
            // that the command itself defines.
            NOT_IN_THIS_STATE | 0x80..=0xbe | 0xc1 | 0xc2 | 0xc7..=0xcd | 0xd6 => Self::Final,
            _ => Self::Unclear,
        }
    }
}

/// The commands and credentials that a BMC has accepted, and the time of its first refusal of them.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// Whether a session of these credentials has executed a command.
    trusted: bool,
    /// The kinds of commands that the BMC has executed, with any data.
    executed: HashSet<Discriminant<IpmiCommand>>,
    doubt: Option<Doubt>,
}

/// A series of refusals of a command or credentials that the BMC accepted before.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    since: Instant,
    refusals: u32,
    pauses: Backoff,
}

impl Trust {
    /// The initial state for credentials that are known to have worked.
    pub(super) fn given() -> Self {
        Self { trusted: true, ..Self::default() }
    }

    /// Records that the BMC executed a command.
    pub(super) fn note(&mut self, command: IpmiCommand) {
        self.executed.insert(discriminant(&command));
        (self.trusted, self.doubt) = (true, None);
    }

    /// Whether the BMC has executed a command of this kind.
    pub(super) fn covers(&self, command: IpmiCommand) -> bool {
        self.executed.contains(&discriminant(&command))
    }

    /// Whether the credentials have worked before.
    pub(super) const fn covers_login(&self) -> bool {
        self.trusted
    }

    /// Records a refusal of a command or credentials that the BMC accepted before. Returns the
    /// pause before the next try; `None` once the refusals have lasted for `time`, which makes them
    /// final.
    pub(super) fn doubt(&mut self, time: Duration) -> Option<Duration> {
        let now = Instant::now();
        // With the default of one minute: 5, 10, 20, 30 s, five logins in all, which no BMC treats
        // as an attack.
        let pauses = Backoff::doubling(time / 12, time / 2);
        let doubt = self.doubt.get_or_insert(Doubt { since: now, refusals: 0, pauses });
        doubt.refusals = doubt.refusals.saturating_add(1);
        if doubt.refusals >= DOUBTED_REFUSALS_MIN && now - doubt.since >= time {
            return None;
        }
        Some(doubt.pauses.next_pause())
    }

    /// The time since the first refusal in a row.
    pub(super) fn doubted_for(&self) -> Duration {
        self.doubt.map_or(Duration::ZERO, |doubt| doubt.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{power::ChassisControl, spec::Privilege};

    /// Invariant (bmc): A refusal that may pass ends no attempt, and one that stays is final after
    /// few tries.
    #[test]
    fn the_final_completion_codes_are_a_short_list_and_a_look_at_the_power_has_fewer() {
        let finals = |command| {
            let is_final = |code: &u8| Verdict::of(command, *code) == Verdict::Final;
            (0..=0xff).filter(is_final).collect::<Vec<u8>>()
        };
        let general = [0xc1, 0xc2, 0xc7, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd];
        assert_eq!(finals(IpmiCommand::GetChassisStatus), [&general[..], &[0xd6]].concat());
        let own: Vec<u8> = (0x80..=0xbe).collect();
        let expected = [&own[..], &general, &[0xd5, 0xd6]].concat();
        assert_eq!(finals(IpmiCommand::ChassisControl(ChassisControl::PowerUp)), expected);
        for passing in [0xff, 0xce, 0xd1, 0xd3, 0xd0, 0xc5, 0xc6, 0x01] {
            assert_eq!(Verdict::of(IpmiCommand::GetChassisStatus, passing), Verdict::Unclear);
        }
        let privilege = IpmiCommand::SetSessionPrivilege(Privilege::Operator);
        assert_eq!(Verdict::of(privilege, 0x81), Verdict::Privilege);
        assert_eq!(Verdict::of(privilege, 0xff), Verdict::Unclear);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_accepted_before_is_refused_for_good_after_a_minute_and_few_tries() {
        let (mut trust, began) = (Trust::given(), Instant::now());
        let mut tries = 1;
        while let Some(pause) = trust.doubt(Duration::from_secs(60)) {
            tokio::time::advance(pause).await;
            tries += 1;
        }
        assert_eq!((tries, began.elapsed()), (5, Duration::from_secs(65)));
        assert_eq!(trust.doubt(Duration::from_secs(60)), None, "it stays so");
        trust.note(IpmiCommand::GetChassisStatus);
        assert_eq!(trust.doubt(Duration::from_secs(60)), Some(Duration::from_secs(5)));
        // Two refusals far apart are no series.
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(trust.doubt(Duration::from_secs(60)).is_some());
    }
}
