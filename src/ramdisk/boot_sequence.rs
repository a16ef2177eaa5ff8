//! The steps of the deploy ramdisk, in order.
//!
//! [`super::init`] runs it. Each step is a separate module; this one knows their order, and reports
//! a failed step to the agent.

use std::{
    convert::Infallible,
    fs,
    future::{Future, pending},
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{error, info};

use super::{
    agent::{Agent, AgentError},
    disks::{self, Inventory},
    log::Log,
    machine,
    modules::{Modules, NoModules},
    mounts::{self, MountError},
    network::{self, NetworkError},
    send_log,
    target::{self, Chap, LioTarget},
    verify::{early::EarlyComparison, verify},
};
use crate::model::{
    boot::RamdiskArgs,
    callback::{
        Completed, DeployInfo, DeployState, DeployStateReply, DiskRange, LookupReply, Then,
    },
    disk::Disk,
};

/// The pause between two requests for the deploy state, if the agent has set none.
const PAUSE_DEFAULT: Duration = Duration::from_secs(5);
/// The least pause between two requests for the deploy state, and between two lookups.
const PAUSE_SHORTEST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(30);
/// Time limit of starting or stopping the target, which waits for the disk's pending commands; a
/// disk that keeps them longer is broken.
const TARGET_LIMIT: Duration = Duration::from_secs(120);
/// Time limit of a flush of the disk's cache.
const FLUSH_LIMIT: Duration = Duration::from_secs(300);
/// The pause between two reports of the comparison's progress.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// A failure that the boot sequence could not report to the agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("/proc/cmdline: {0}")]
    CommandLine(String),
    #[error(transparent)]
    Modules(#[from] NoModules),
    #[error("a thread to load modules: {0}")]
    Thread(std::io::Error),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Runs the boot sequence. On success the agent knows the result, and has decided how the machine
/// ends.
pub(super) async fn run(log: &Log) -> Result<Then, Trouble> {
    mounts::basic()?;
    let command_line = command_line()?;
    let args = RamdiskArgs::from_command_line(&command_line).map_err(Trouble::CommandLine)?;
    info!(node = %args.node, agent = %args.api, version = env!("CARGO_PKG_VERSION"), "hostler");

    let mut modules = Modules::open()?;
    modules.load_always();
    mounts::configfs()?;
    let drivers = modules.load_drivers().map_err(Trouble::Thread)?;

    let boot_nic = network::boot_nic(&command_line);
    let sys = Path::new("/sys");
    let (address, disks) = tokio::join!(network::up(boot_nic), disks::settled(sys, drivers));
    let address = address?;
    // The network setup may have taken a minute.
    let mut disks = disks::changed(sys, &disks, Duration::ZERO).await;
    for disk in &disks.disks {
        info!(%disk, "found");
    }

    let agent = Agent::new(args, log.clone())?;
    // Before the lookup: the agent may switch the machine off at its response, or the machine may
    // hang.
    agent.send_log().await;
    let look = async |known: &Inventory, pause| disks::changed(sys, known, pause).await;
    match look_up(&agent, &mut disks, look).await {
        Ok(reply) => serve(&agent, address, &disks.disks, &reply).await,
        Err(AgentError::Refused(reason)) => {
            error!(reason, "the agent chose no disk");
            agent.send_log().await;
            wait_for_the_end(&agent, PAUSE_DEFAULT).await
        }
        Err(over) => Err(over.into()),
    }
}

/// Sends the log with the reason of the boot sequence's end to the agent, if the agent answers.
pub(super) async fn send_last_log(log: &Log) {
    let args = command_line().map(|line| RamdiskArgs::from_command_line(&line));
    if let Ok(Ok(args)) = args
        && let Err(error) = send_log(args, log.clone()).await
    {
        error!(%error, "TLS");
    }
}

fn command_line() -> Result<String, Trouble> {
    fs::read_to_string("/proc/cmdline").map_err(|error| Trouble::CommandLine(error.to_string()))
}

/// Requests the agent's choice of a disk. While the root device is missing, reports the disks again
/// when they change, and at intervals; the agent ends the wait.
async fn look_up(
    agent: &Agent,
    disks: &mut Inventory,
    look: impl AsyncFn(&Inventory, Duration) -> Inventory,
) -> Result<LookupReply, AgentError> {
    let mut said = None;
    loop {
        let answer = agent.lookup(&machine::describe(disks)).await;
        let Err(AgentError::LookupAgain(reason, pause)) = answer else { return answer };
        if said.as_ref() != Some(&reason) {
            info!(reason, "waiting for the root device");
            said = Some(reason);
        }
        let now = look(disks, pause.clamp(PAUSE_SHORTEST, PAUSE_LONGEST)).await;
        for disk in now.disks.iter().filter(|disk| !disks.disks.contains(disk)) {
            info!(%disk, "appeared");
        }
        *disks = now;
    }
}

/// Exports the chosen disk for as long as the agent needs it.
async fn serve(
    agent: &Agent,
    address: IpAddr,
    disks: &[Disk],
    reply: &LookupReply,
) -> Result<Then, Trouble> {
    let pause = Duration::from_secs(reply.poll_after.into()).min(PAUSE_LONGEST);
    let (disk, target, info) = match export(address, disks, reply).await {
        Ok(exported) => exported,
        Err(reason) => {
            error!(reason, "no target");
            agent.send_log().await;
            accepted(agent.pass_deploy_info(&deploy_info(address, reply, None, reason)).await)?;
            return wait_for_the_end(agent, pause).await;
        }
    };
    info!(disk = reply.disk, iqn = reply.iqn, %address, "the disk is exported");
    let early = EarlyComparison::default();
    let beside = Box::pin(compare_early(agent, &disk, &early, PAUSE_DEFAULT));
    let (answer, stopped) = offer(agent, &info, pause, beside, || target.stop()).await;
    let answer = answer?;
    if answer.state == DeployState::Release {
        return complete(agent, stopped, disk, &early, answer).await;
    }
    Ok(answer.then)
}

/// Keeps the target until the agent does not need it any more, does not know this attempt, or does
/// not answer. Then stops it in any case, so that no initiator can write to the disk from there on.
/// Meanwhile runs `beside`.
async fn offer<E: ToString + Send + 'static>(
    agent: &Agent,
    info: &DeployInfo,
    pause: Duration,
    beside: impl Future<Output = Infallible>,
    stop: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> (Result<DeployStateReply, AgentError>, Result<(), String>) {
    let answer = match accepted(agent.pass_deploy_info(info).await) {
        Ok(()) => tokio::select! {
            answer = agent.wait_until_done(pause) => answer,
            never = beside => match never {},
        },
        Err(over) => Err(over),
    };
    let is_over = !matches!(&answer, Ok(reply) if reply.state == DeployState::Release);
    let last_words = async {
        if is_over {
            info!(over = ?answer.as_ref().map(|reply| reply.state), "the target is wanted no more");
            // Before the target stops: the agent may switch the machine off by then.
            agent.send_log().await;
        }
    };
    let stopping = blocking(TARGET_LIMIT, "stopping the target", stop);
    let (stopped, ()) = tokio::join!(stopping, last_words);
    match &stopped {
        Ok(()) => info!("the target is stopped"),
        Err(reason) => error!(reason, "the target did not stop"),
    }
    (answer, stopped)
}

/// Compares during the write. A difference ends the attempt: the agent learns of it, and answers
/// the next request for the deploy state accordingly.
async fn compare_early(
    agent: &Agent,
    disk: &Disk,
    early: &EarlyComparison,
    pause: Duration,
) -> Infallible {
    let flushed = async |known| agent.flushed(known, pause).await;
    if let Some(differs) = early.run(disk, flushed).await {
        error!(error = %differs, "the disk is not verified");
        let error = differs.to_string();
        let notice = Completed { error, verified: true, ..Completed::default() };
        if let Err(error) = accepted(agent.completed(&notice).await) {
            error!(%error, "the difference was not reported");
        }
    }
    pending().await
}

/// Starts the target, and returns its properties for the agent.
async fn export(
    address: IpAddr,
    disks: &[Disk],
    reply: &LookupReply,
) -> Result<(Disk, LioTarget, DeployInfo), String> {
    let chosen = disks.iter().find(|disk| disk.name == reply.disk).cloned();
    let chosen = chosen
        .ok_or_else(|| format!("the agent chose disk {:?}, which is not here", reply.disk))?;
    if !reply.iqn.starts_with("iqn.") || reply.iqn.contains('/') {
        return Err(format!("the agent chose target name {:?}, must be an iqn.…", reply.iqn));
    }
    let chap = Chap::random().map_err(|error| format!("random numbers: {error}"))?;
    let info = deploy_info(address, reply, Some(&chap), String::new());
    let (disk, iqn) = (reply.disk.clone(), reply.iqn.clone());
    let make = move || LioTarget::export(&disk, &iqn, address, &chap);
    let target = blocking(TARGET_LIMIT, "making the target", make).await?;
    Ok((chosen, target, info))
}

fn deploy_info(
    address: IpAddr,
    reply: &LookupReply,
    chap: Option<&Chap>,
    error: String,
) -> DeployInfo {
    DeployInfo {
        address: Some(address),
        port: target::PORT,
        lun: target::LUN,
        iqn: reply.iqn.clone(),
        chap_username: chap.map(|chap| chap.username.clone()).unwrap_or_default(),
        chap_password: chap.map(|chap| chap.password.clone()),
        error,
        knows_salt: true,
    }
}

/// Flushes the disk, and reports the end to the agent.
async fn complete(
    agent: &Agent,
    stopped: Result<(), String>,
    disk: Disk,
    early: &EarlyComparison,
    released: DeployStateReply,
) -> Result<Then, Trouble> {
    let DeployStateReply { verify: ranges, then, .. } = released;
    let name = disk.name.clone();
    let flushed = match stopped {
        Ok(()) => blocking(FLUSH_LIMIT, "flushing the disk", move || target::flush(&name)).await,
        failed @ Err(_) => failed,
    };
    match &flushed {
        Ok(()) => info!("the disk is flushed"),
        Err(reason) => error!(reason, "the disk is not safe"),
    }
    let notice = match flushed {
        Err(error) => Completed { error, ..Completed::default() },
        Ok(()) if ranges.is_empty() => Completed::default(),
        Ok(()) => compare(agent, &disk, ranges, early).await,
    };
    agent.send_log().await;
    leave(then, &notice.error, accepted(agent.completed(&notice).await))
}

/// Decides how the machine ends after the completed notice.
fn leave(then: Then, error: &str, reported: Result<(), AgentError>) -> Result<Then, Trouble> {
    match (then, reported) {
        (Then::Wait, reported) => {
            reported?;
            info!("completed; the agent restarts this machine");
            Ok(Then::Wait)
        }
        // The machine must not boot from this disk, and has no BMC to prevent it.
        (Then::Reboot | Then::PowerOff, _) if !error.is_empty() => Ok(Then::PowerOff),
        // An agent that does not know the attempt has received the notice before: its answer was
        // lost.
        (then @ (Then::Reboot | Then::PowerOff), _) => {
            info!(?then, "completed");
            Ok(then)
        }
    }
}

/// Compares the disk with the agent's digests, and returns the notice for the agent.
async fn compare(
    agent: &Agent,
    disk: &Disk,
    ranges: Vec<DiskRange>,
    early: &EarlyComparison,
) -> Completed {
    let began = Instant::now();
    let during_write_bytes = early.compared_bytes();
    info!(%disk, ranges = ranges.len(), during_write_bytes, "comparing");
    let read_bytes = Arc::default();
    let compared = tokio::select! {
        // It notes the bytes that were compared during the write, which the first report has.
        biased;
        compared = verify(disk, ranges, early, Arc::clone(&read_bytes)) => compared,
        never = report_progress(agent, &read_bytes, REPORT_EVERY) => match never {},
    };
    let verify_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match compared {
        Ok(()) => {
            info!(verify_ms, "the disk holds what was written");
            Completed { error: String::new(), verified: true, verify_ms }
        }
        Err(error) => {
            error!(%error, verify_ms, "the disk is not verified");
            Completed { error: error.to_string(), verified: error.differs(), verify_ms }
        }
    }
}

/// Reports the progress of the comparison as long as the agent takes that. An agent that is slow or
/// gone must never delay the comparison.
async fn report_progress(agent: &Agent, read_bytes: &AtomicU64, pause: Duration) -> Infallible {
    while agent.verifying(read_bytes.load(Ordering::Relaxed)).await {
        sleep(pause).await;
    }
    pending().await
}

/// Waits after a reported failure: the agent ends the attempt, and switches the machine off or
/// tells the ramdisk to do it.
async fn wait_for_the_end(agent: &Agent, pause: Duration) -> Result<Then, Trouble> {
    let DeployStateReply { state, then, .. } = agent.wait_until_done(pause).await?;
    info!(?state, "the agent has ended this attempt");
    Ok(then)
}

/// Ignores the agent's refusal of a report; the deploy state decides about the next step.
fn accepted(reported: Result<(), AgentError>) -> Result<(), AgentError> {
    match reported {
        Err(AgentError::Refused(reason)) => {
            error!(reason, "the agent refuses");
            Ok(())
        }
        other => other,
    }
}

/// Runs work that may hang in the kernel on a separate thread, for a limited time. The error is a
/// text for the agent.
async fn blocking<T: Send + 'static, E: ToString + Send + 'static>(
    limit: Duration,
    doing: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match timeout(limit, spawn_blocking(work)).await {
        Ok(Ok(Ok(done))) => Ok(done),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(panicked)) => Err(format!("{doing}: {panicked}")),
        Err(_) => Err(format!("{doing}: not done within {} s", limit.as_secs())),
    }
}

#[cfg(test)]
mod tests;
