//! `hostler run`: the agent as a service.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::{agent::Agent, config::Config};

use super::Failure;

/// How long what cannot be interrupted, such as reading from a file system that hangs, may keep an agent that stops.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. The service manager hears `READY=1` when every listener answers.
pub(super) fn run(config: Config) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let agent = Agent::start(config).await?;
        let ready = || notify(&[sd_notify::NotifyState::Ready]);
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM"),
                _ = interrupt.recv() => info!("SIGINT"),
            }
            notify(&[sd_notify::NotifyState::Stopping]);
        };
        agent.run(ready, shutdown).await?;
        Ok(())
    });
    runtime.shutdown_timeout(STOP_LIMIT);
    done
}

/// Without a service manager this does nothing.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "the service manager cannot be told");
    }
}
