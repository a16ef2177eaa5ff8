//! Reaching a power state: the loop that every driver shares.
//!
//! Called by the drivers within one call. It must never take an accepted command for a carried-out
//! one: only the state that the BMC reports ends it.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use super::timing::Timing;
use crate::model::power::PowerState;

/// A call under way, as far as power is concerned.
pub(super) trait PowerCall {
    /// The driver's error.
    type Error: Send;

    /// Reads whether the machine is on.
    fn power_state(&mut self) -> impl Future<Output = Result<PowerState, Self::Error>> + Send;

    /// Gives the command for a power state once.
    fn switch(
        &mut self,
        wanted: PowerState,
    ) -> impl Future<Output = Result<Switched<Self::Error>, Self::Error>> + Send;

    /// Asks the system to shut down; `false` if the BMC cannot.
    fn ask_shutdown(&mut self) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Waits; `false` if the call's deadline comes first.
    fn pause(&mut self, length: Duration) -> impl Future<Output = bool> + Send;

    /// Whether the deadline came although nothing stood in the way of the last command.
    fn is_cut_off(&self) -> bool;

    /// The error for a command that was accepted `waited` ago and has shown no effect.
    fn not_reached(&self, wanted: PowerState, waited: Duration) -> Self::Error;

    /// The waits, and the pause between two polls.
    fn pace(&self) -> (Timing, Duration);

    /// Logs that no soft shutdown came about.
    fn log_hard_off(&self);
}

/// The answer to a power command.
pub(super) enum Switched<E> {
    /// The BMC accepted it.
    Accepted,
    /// The BMC refused it in a way that the next poll may explain: the machine is on its way
    /// already, or has just arrived, or the command was done all the same.
    Refused(E),
}

/// Brings the machine to a power state.
pub(super) async fn reach_power<C: PowerCall + Send>(
    call: &mut C,
    wanted: PowerState,
) -> Result<(), C::Error> {
    let (mut accepted_at, mut refused) = (None, None);
    let reached = pursue(call, wanted, &mut accepted_at, &mut refused).await;
    reached.map_err(|error| match (accepted_at, refused) {
        // It answered to the end: that says more than the question it was cut off in.
        (Some(at), _) if call.is_cut_off() => call.not_reached(wanted, at.elapsed()),
        (None, Some(refusal)) if call.is_cut_off() => refusal,
        (Some(_) | None, _) => error,
    })
}

/// Polls, gives the command now and then, and notes when it was first accepted and why it was last
/// refused.
async fn pursue<C: PowerCall + Send>(
    call: &mut C,
    wanted: PowerState,
    accepted_at: &mut Option<Instant>,
    refused: &mut Option<C::Error>,
) -> Result<(), C::Error> {
    let (timing, poll_interval) = call.pace();
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

/// Asks the system to shut down; if it has not within `grace`, or cannot be asked, the power is
/// cut.
pub(super) async fn soft_off<C: PowerCall + Send>(
    call: &mut C,
    grace: Duration,
) -> Result<(), C::Error> {
    if call.power_state().await? == PowerState::Off {
        return Ok(());
    }
    let (_, poll_interval) = call.pace();
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

    /// A BMC that answers some polls with off, and then none: the deadline has come.
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

        fn pace(&self) -> (Timing, Duration) {
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
