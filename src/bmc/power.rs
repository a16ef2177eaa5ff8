//! Reaching a power state: the loop that every driver shares.
//!
//! The drivers run it within one call. It must never treat an accepted command as a completed one:
//! it ends when the BMC reports the state.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use super::timing::Timing;
use crate::model::power::PowerState;

/// The operations of a call that the loop needs.
pub(super) trait PowerCall {
    /// The driver's error.
    type Error: Send;

    /// Reads whether the machine is on.
    fn power_state(&mut self) -> impl Future<Output = Result<PowerState, Self::Error>> + Send;

    /// Sends the command for a power state once.
    fn switch(
        &mut self,
        wanted: PowerState,
    ) -> impl Future<Output = Result<Switched<Self::Error>, Self::Error>> + Send;

    /// Asks the system to shut down; `false` if the BMC cannot.
    fn ask_shutdown(&mut self) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Waits; `false` if the call's deadline comes first.
    fn pause(&mut self, length: Duration) -> impl Future<Output = bool> + Send;

    /// Whether the deadline interrupted a command that met no obstacle.
    fn is_cut_off(&self) -> bool;

    /// The error for a command that the BMC accepted `waited` ago and that has had no effect.
    fn not_reached(&self, wanted: PowerState, waited: Duration) -> Self::Error;

    /// The driver's waits, and the pause between two polls.
    fn waits(&self) -> (Timing, Duration);

    /// Logs that the soft shutdown failed and the power is about to be cut.
    fn log_hard_off(&self);
}

/// A BMC's answer to a power command.
pub(super) enum Switched<E> {
    /// The BMC accepted the command.
    Accepted,
    /// The BMC refused the command, and the next poll may explain it: the machine is changing its
    /// power, or has just done so, or the BMC executed the command all the same.
    Refused(E),
}

/// Repeats polls and commands until the machine has the power state.
pub(super) async fn reach_power<C: PowerCall + Send>(
    call: &mut C,
    wanted: PowerState,
) -> Result<(), C::Error> {
    let (mut accepted_at, mut refused) = (None, None);
    let reached = pursue(call, wanted, &mut accepted_at, &mut refused).await;
    reached.map_err(|error| match (accepted_at, refused) {
        // The BMC answered until the deadline, so that its answer to the command says more than the
        // interrupted poll.
        (Some(at), _) if call.is_cut_off() => call.not_reached(wanted, at.elapsed()),
        (None, Some(refusal)) if call.is_cut_off() => refusal,
        (Some(_) | None, _) => error,
    })
}

/// Polls, repeats the command at intervals, and records the time of its first acceptance and its
/// last refusal.
async fn pursue<C: PowerCall + Send>(
    call: &mut C,
    wanted: PowerState,
    accepted_at: &mut Option<Instant>,
    refused: &mut Option<C::Error>,
) -> Result<(), C::Error> {
    let (timing, poll_interval) = call.waits();
    let mut reissue_at = Instant::now();
    while call.power_state().await? != wanted {
        if reissue_at <= Instant::now() {
            match call.switch(wanted).await? {
                Switched::Accepted => {
                    accepted_at.get_or_insert_with(Instant::now);
                }
                Switched::Refused(error) => *refused = Some(error),
            }
            reissue_at = Instant::now() + timing.reissue;
        }
        if !call.pause(poll_interval).await {
            let waited = accepted_at.map_or(Duration::ZERO, |at| at.elapsed());
            return Err(refused.take().unwrap_or_else(|| call.not_reached(wanted, waited)));
        }
    }
    Ok(())
}

/// Asks the operating system to shut down, and cuts the power if the system is still on after
/// `grace` or the BMC cannot ask.
pub(super) async fn soft_off<C: PowerCall + Send>(
    call: &mut C,
    grace: Duration,
) -> Result<(), C::Error> {
    if call.power_state().await? == PowerState::Off {
        return Ok(());
    }
    let (_, poll_interval) = call.waits();
    let patience = Instant::now() + grace;
    if call.ask_shutdown().await? {
        while Instant::now() < patience && call.pause(poll_interval).await {
            if call.power_state().await? == PowerState::Off {
                return Ok(());
            }
        }
    }
    call.log_hard_off();
    reach_power(call, PowerState::Off).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BMC that answers some polls with "off", and no later one: the deadline has come.
    struct CutOff {
        polls_left: u32,
        accepts: bool,
    }

    #[derive(Debug, PartialEq)]
    enum Failure {
        NoAnswer,
        Refused,
        NotReached,
    }

    impl PowerCall for CutOff {
        type Error = Failure;

        async fn power_state(&mut self) -> Result<PowerState, Failure> {
            self.polls_left = self.polls_left.checked_sub(1).ok_or(Failure::NoAnswer)?;
            Ok(PowerState::Off)
        }

        async fn switch(&mut self, _wanted: PowerState) -> Result<Switched<Failure>, Failure> {
            Ok(if self.accepts { Switched::Accepted } else { Switched::Refused(Failure::Refused) })
        }

        async fn ask_shutdown(&mut self) -> Result<bool, Failure> {
            Ok(false)
        }

        async fn pause(&mut self, _length: Duration) -> bool {
            true
        }

        fn is_cut_off(&self) -> bool {
            self.polls_left == 0
        }

        fn not_reached(&self, _wanted: PowerState, _waited: Duration) -> Failure {
            Failure::NotReached
        }

        fn waits(&self) -> (Timing, Duration) {
            (Timing::default(), Duration::ZERO)
        }

        fn log_hard_off(&self) {}
    }

    /// Invariant (bmc): The answer to a power command says more than the poll that its deadline cut
    /// off.
    #[tokio::test]
    async fn a_poll_that_the_deadline_cuts_off_hides_no_answer_to_the_command() {
        for (polls_left, accepts, expected) in [
            (2, false, Failure::Refused),
            (2, true, Failure::NotReached),
            (0, true, Failure::NoAnswer),
        ] {
            let mut call = CutOff { polls_left, accepts };
            let failed = reach_power(&mut call, PowerState::On).await.unwrap_err();
            assert_eq!(failed, expected, "{polls_left} polls, accepts: {accepts}");
        }
    }
}
