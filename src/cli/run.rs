//! `hostler run`: the agent as a service.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

use crate::{
    agent::{Agent, AgentEnd, Claim},
    config::Config,
    model::printable::escaped,
};

use super::{Failure, log::LeftOut};

/// Longest delay of the agent's stop by work that cannot be interrupted, such as a read from a
/// hanging file system.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. Sends `READY=1` to the service manager when every listener
/// answers, or when the agent stands by because another one acts upon its status directory.
pub(super) fn run(config: Config, left_out: LeftOut) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        drop(tokio::spawn(left_out.tell()));
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM"),
                _ = interrupt.recv() => info!("SIGINT"),
            }
            notify(&[sd_notify::NotifyState::Stopping]);
            stop.send_replace(true);
        });
        act(config, stopping).await
    });
    runtime.shutdown_timeout(STOP_LIMIT);
    done
}

/// Runs the agent, or stands by while another agent acts.
async fn act(config: Config, stopping: watch::Receiver<bool>) -> Result<(), Failure> {
    let requested = || {
        let mut stopping = stopping.clone();
        async move { drop(stopping.wait_for(|stop| *stop).await) }
    };
    let mut was_overtaken = false;
    loop {
        let claim = tokio::select! {
            claim = Claim::take(&config, was_overtaken, stand_by) => claim?,
            () = requested() => return Ok(()),
        };
        let agent = Agent::start(config.clone(), claim).await?;
        let ready = || notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status("")]);
        match agent.run(ready, requested()).await? {
            AgentEnd::Shutdown => return Ok(()),
            AgentEnd::Overtaken => was_overtaken = true,
        }
    }
}

/// Reports the stand-by to the service manager, for which the start is complete.
fn stand_by(other: &str) {
    // A line break would start another message to the service manager.
    let status = format!("standing by: another agent acts, {}", escaped(other));
    notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&status)]);
}

/// Sends a notification to the service manager, if there is one.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "the service manager cannot be notified");
    }
}
