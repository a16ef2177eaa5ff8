//! `hostler run`: the agent as a service.

use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::{agent::Agent, config::Config};

use super::{Failure, log::LeftOut};

/// Runs until SIGTERM or SIGINT. The service manager hears `READY=1` when every socket is bound and every record read.
pub(super) fn run(config: Config, left_out: LeftOut) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        drop(tokio::spawn(left_out.tell()));
        let agent = Agent::start(config).await?;
        notify(&[sd_notify::NotifyState::Ready]);
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM"),
                _ = interrupt.recv() => info!("SIGINT"),
            }
            notify(&[sd_notify::NotifyState::Stopping]);
        };
        agent.run(shutdown).await?;
        Ok(())
    })
}

/// Without a service manager this does nothing.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "the service manager cannot be told");
    }
}
