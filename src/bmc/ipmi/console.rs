//! A machine's output on its serial line, by serial over LAN (IPMI 2.0 §15, §24).
//!
//! The driver opens it for the agent. It must never send the machine a character, hold the BMC's
//! lock while it reads, take the console over twice, or leave its session open.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    call::IpmiCall,
    client::IpmiClient,
    commands::{self, IpmiCommand},
    error::{IpmiError, IpmiErrorKind},
    exchange::Exchange,
    link::Link,
    power::accepted,
    sol::{Acknowledgement, Stream},
};
use crate::{
    bmc::{driver::ConsoleEvent, error::BmcError},
    model::backoff::Backoff,
};

/// Longest wait for the BMC's lock. The holder may be waiting for a machine to go off, and nothing
/// waits for a console.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3600);
/// Longest time for closing a console.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(3);
/// Completion codes of a refused Activate Payload (IPMI 2.0 §24.1, table 5-2). Some BMCs answer
/// "disabled" while the machine is off.
const ACTIVE_ELSEWHERE: u8 = 0x80;
const DISABLED: u8 = 0x81;
const ALL_ACTIVE: u8 = 0x82;
const NEVER_WITHOUT_CIPHER: u8 = 0x84;
const NOT_NOW: u8 = 0xd5;

impl IpmiClient {
    /// Passes on the machine's serial output until `stop` is ready or the BMC proves to have no
    /// console. Opening the console holds the BMC's lock, for at most `limit`; reading does not.
    ///
    /// The call takes the console from another session when it begins, because that is usually an
    /// abandoned session. It does not take the console again from a later session. One caller reads
    /// at a time. A dropped future closes its session as far as that goes without waiting.
    pub async fn console(
        &self,
        limit: Duration,
        mut tell: impl FnMut(ConsoleEvent<'_>) + Send,
        stop: impl Future<Output = ()>,
    ) {
        tokio::pin!(stop);
        let Some(_lock) = unless(&mut stop, self.console.lock()).await else { return };
        let alive = self.timing.console_alive;
        let mut pauses = self.console_pauses();
        let mut take_over = true;
        loop {
            let opening = self.open_console(limit, take_over);
            let pause = match unless(&mut stop, opening).await {
                None => return,
                Some(Ok(mut link)) => {
                    take_over = false;
                    tell(ConsoleEvent::Opened);
                    let begun = Instant::now();
                    let listening = listen(&mut link, alive, &mut tell);
                    let stopped = unless(&mut stop, listening).await.is_none();
                    leave(link, stopped).await;
                    if stopped {
                        return;
                    }
                    tell(ConsoleEvent::Gap);
                    if begun.elapsed() > alive {
                        pauses = self.console_pauses();
                    }
                    pauses.next_pause()
                }
                Some(Err(error)) => {
                    let kind = error.kind.clone();
                    tell(ConsoleEvent::Trouble(&BmcError::Ipmi(error)));
                    match kind {
                        IpmiErrorKind::NoConsole { completion: ACTIVE_ELSEWHERE } => {
                            self.timing.console_retry
                        }
                        kind if passes(&kind) => pauses.next_pause(),
                        _ => return,
                    }
                }
            };
            if unless(&mut stop, sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    fn console_pauses(&self) -> Backoff {
        Backoff::doubling(self.timing.resend_first, self.timing.console_retry)
    }

    /// Opens a session and the console in it.
    async fn open_console(&self, limit: Duration, take_over: bool) -> Result<Link, IpmiError> {
        let mut call = IpmiCall::begin(self, Instant::now() + LOCK_WAIT_MAX).await?;
        call.shorten_deadline(Instant::now() + limit);
        match call.open_console(take_over).await {
            // The answer's port is ignored: it may be forwarded, and some BMCs swap its bytes.
            Ok(_sizes_and_port) => call.end_with_link(),
            Err(error) => {
                call.end().await;
                Err(error)
            }
        }
    }
}

impl IpmiCall<'_> {
    async fn open_console(&mut self, take_over: bool) -> Result<Vec<u8>, IpmiError> {
        let mut opened = self.optional(IpmiCommand::OpenConsole).await;
        if take_over && refusal(&opened) == Some(ACTIVE_ELSEWHERE) {
            accepted(self.optional(IpmiCommand::CloseConsole).await, |_| true)?;
            opened = self.optional(IpmiCommand::OpenConsole).await;
        }
        match refusal(&opened) {
            Some(completion @ (ACTIVE_ELSEWHERE..=NEVER_WITHOUT_CIPHER | NOT_NOW)) => {
                Err(self.error(IpmiErrorKind::NoConsole { completion }))
            }
            _ => opened,
        }
    }
}

/// Reads until the console or its session is lost. Keeps the session alive by asking for the
/// console's owner.
async fn listen(
    link: &mut Link,
    alive: Duration,
    tell: &mut (impl FnMut(ConsoleEvent<'_>) + Send),
) {
    let mut ear = ConsoleReceiver { stream: Stream::default(), over: false, tell };
    while !ear.over {
        let until = Instant::now() + alive;
        while Instant::now() < until
            && link.listen(until, &mut |payload| ear.take(payload)).await
            && !ear.over
        {}
        if ear.over {
            return;
        }
        let take = &mut |payload: &[u8]| ear.take(payload);
        match link.send_beside(IpmiCommand::GetConsoleOwner, take).await {
            Exchange::Answer(answer) if commands::console_is_closed(&answer.data) => return,
            // Any answer is a sign of life, also a refusal of the command.
            Exchange::Answer(_) => {}
            _ => return,
        }
    }
}

/// Closes the session, and before it the console, unless another session owns the console.
async fn leave(mut link: Link, is_ours: bool) {
    let deadline = Instant::now() + LEAVE_TIME_MAX;
    if is_ours && timeout_at(deadline, link.send(IpmiCommand::CloseConsole)).await.is_err() {
        tracing::debug!("a bmc did not answer that its console is closed");
    }
    link.close(deadline).await;
}

/// Receives the packets of a console, and reports its events.
struct ConsoleReceiver<'a, T> {
    stream: Stream,
    /// The BMC has ended the console.
    over: bool,
    tell: &'a mut T,
}

impl<T: FnMut(ConsoleEvent<'_>)> ConsoleReceiver<'_, T> {
    fn take(&mut self, payload: &[u8]) -> Option<Acknowledgement> {
        let brought = self.stream.take(payload)?;
        self.over |= brought.over;
        if brought.gap {
            (self.tell)(ConsoleEvent::Gap);
        }
        if !brought.text.is_empty() {
            (self.tell)(ConsoleEvent::Text(brought.text));
        }
        brought.acknowledgement
    }
}

fn refusal(result: &Result<Vec<u8>, IpmiError>) -> Option<u8> {
    match result {
        Err(IpmiError { kind: IpmiErrorKind::CommandRefused { completion, .. }, .. }) => {
            Some(*completion)
        }
        Ok(_) | Err(_) => None,
    }
}

/// Whether a console may open later. A final refusal is not retried: BMCs lock out a user after
/// repeated wrong passwords.
const fn passes(kind: &IpmiErrorKind) -> bool {
    matches!(
        kind,
        IpmiErrorKind::Unresolved { .. }
            | IpmiErrorKind::NoAnswer { .. }
            | IpmiErrorKind::NoSession { .. }
            | IpmiErrorKind::Busy { .. }
            | IpmiErrorKind::InUse { .. }
            | IpmiErrorKind::NoConsole { completion: DISABLED | ALL_ACTIVE | NOT_NOW }
    )
}

/// The result of the work; `None` if `stop` is ready first.
async fn unless<T>(
    stop: &mut (impl Future<Output = ()> + Unpin),
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        () = stop => None,
        done = work => Some(done),
    }
}
