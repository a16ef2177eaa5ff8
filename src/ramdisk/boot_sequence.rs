//! The steps of the deploy ramdisk, in order.
//!
//! [`super::init`] runs it. Each step is a separate module; this one knows their order, and reports
//! a failed step to the agent.

use std::{
    convert::Infallible,
    fs,
    future::pending,
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
    verify::verify,
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
    let (answer, stopped) = offer(agent, &info, pause, || target.stop()).await;
    let answer = answer?;
    if answer.state == DeployState::Release {
        return complete(agent, stopped, disk, answer).await;
    }
    Ok(answer.then)
}

/// Keeps the target until the agent does not need it any more, does not know this attempt, or does
/// not answer. Then stops it in any case, so that no initiator can write to the disk from there on.
async fn offer<E: ToString + Send + 'static>(
    agent: &Agent,
    info: &DeployInfo,
    pause: Duration,
    stop: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> (Result<DeployStateReply, AgentError>, Result<(), String>) {
    let answer = match accepted(agent.pass_deploy_info(info).await) {
        Ok(()) => agent.wait_until_done(pause).await,
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
    }
}

/// Flushes the disk, and reports the end to the agent.
async fn complete(
    agent: &Agent,
    stopped: Result<(), String>,
    disk: Disk,
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
        Ok(()) => compare(agent, &disk, ranges).await,
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
async fn compare(agent: &Agent, disk: &Disk, ranges: Vec<DiskRange>) -> Completed {
    let began = Instant::now();
    info!(%disk, ranges = ranges.len(), "comparing");
    let read_bytes = Arc::default();
    let compared = tokio::select! {
        compared = verify(disk, ranges, Arc::clone(&read_bytes)) => compared,
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
mod tests {
    use std::fs;

    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::{
        model::ids::{Digest, DigestAlgorithm},
        ramdisk::agent::pretended::{Answer, PATIENCE, Pretended},
    };

    const RELEASE: &str = r#"{"state":"release"}"#;
    const ABORT: &str = r#"{"state":"abort"}"#;

    fn info() -> DeployInfo {
        let reply = LookupReply { disk: "vda".into(), iqn: "iqn.x".into(), poll_after: 0 };
        deploy_info([127, 0, 0, 1].into(), &reply, None, String::new())
    }

    /// Runs `offer` against an agent with these answers; returns its result, and whether the target
    /// is stopped by then.
    async fn offered(
        answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> (Result<DeployState, AgentError>, bool) {
        let agent = Pretended::start(answer).await;
        let info = info();
        let (stopping, stopped) = std::sync::mpsc::channel();
        let stop = move || stopping.send(()).map_err(|error| error.to_string());
        let ramdisk = agent.seen_by_a_ramdisk();
        let (answer, reported) = offer(&ramdisk, &info, Duration::ZERO, stop).await;
        assert_eq!(reported, Ok(()));
        (answer.map(|reply| reply.state), stopped.try_recv().is_ok())
    }

    /// Invariant (ramdisk): A target is stopped before its ramdisk stops listening to the agent.
    #[tokio::test]
    async fn whatever_the_agent_says_or_does_not_say_the_target_is_stopped_before_the_offer_ends() {
        const TAKEN: Answer = Some((202, "{}"));
        const IMAGING: Answer = Some((200, r#"{"state":"imaging"}"#));
        const UNKNOWN: Answer = Some((404, r#"{"error":"not found"}"#));
        let after = |last: Answer| {
            move |name: &str, before| match (name, before) {
                ("pass_deploy_info", _) => TAKEN,
                ("deploy_state", 0) => IMAGING,
                _ => last,
            }
        };
        for (said, state) in [(RELEASE, DeployState::Release), (ABORT, DeployState::Abort)] {
            let (ended, stopped) = offered(after(Some((200, said)))).await;
            assert!(stopped && matches!(ended, Ok(reported) if reported == state), "{ended:?}");
        }
        let began = Instant::now();
        let (ended, stopped) = offered(after(UNKNOWN)).await;
        assert!(stopped && matches!(ended, Err(AgentError::AttemptOver)), "{ended:?}");
        let (ended, stopped) = offered(|_, _| UNKNOWN).await;
        assert!(stopped && matches!(ended, Err(AgentError::AttemptOver)), "{ended:?}");
        assert!(began.elapsed() < PATIENCE.silence, "a late ramdisk is told, not left alone");
        let (ended, stopped) = offered(after(None)).await;
        assert!(stopped && matches!(ended, Err(AgentError::Silent(_))), "{ended:?}");
        // An agent that refuses the target.
        let refused = |name: &str, _: usize| match name {
            "pass_deploy_info" => Some((409, r#"{"error":"no"}"#)),
            _ => Some((200, ABORT)),
        };
        let (ended, stopped) = offered(refused).await;
        assert!(stopped && matches!(ended, Ok(DeployState::Abort)), "{ended:?}");
    }

    /// Invariant (ramdisk): The log is sent before the call, or beside the work, after which a
    /// machine may be switched off.
    #[tokio::test]
    async fn the_log_is_sent_before_completed_and_when_the_agent_has_ended_the_attempt() {
        let answer = |last: Answer| {
            move |name: &str, _| match name {
                "deploy_state" => last,
                _ => Some((202, "{}")),
            }
        };
        let abort = Some((200, ABORT));
        let release = Some((200, RELEASE));
        for (last, requested) in [
            (abort, &["pass_deploy_info", "deploy_state", "log"][..]),
            (release, &["pass_deploy_info", "deploy_state"]),
        ] {
            let agent = Pretended::start(answer(last)).await;
            let (ramdisk, info) = (agent.seen_by_a_ramdisk(), info());
            // The ramdisk sends its log although the target does not stop.
            let (sent, waits) = std::sync::mpsc::channel::<()>();
            let stop = move || waits.recv().map_err(|error| error.to_string());
            let offered = offer(&ramdisk, &info, Duration::ZERO, stop);
            let logged = async {
                let until = Instant::now() + PATIENCE.silence;
                while agent.requested() != requested && Instant::now() < until {
                    sleep(Duration::from_millis(1)).await;
                }
                assert_eq!(agent.requested(), requested, "while the target is being stopped");
                sent.send(()).unwrap();
            };
            let ((ended, stopped), ()) = tokio::join!(offered, logged);
            assert!(ended.is_ok() && stopped.is_ok(), "{ended:?} {stopped:?}");
            assert_eq!(agent.requested(), requested);
        }
        let agent = Pretended::start(answer(release)).await;
        let released = DeployState::Release.into();
        let failed = Err("the target did not stop".to_owned());
        let ramdisk = agent.seen_by_a_ramdisk();
        complete(&ramdisk, failed, Disk::default(), released).await.unwrap();
        assert_eq!(agent.requested(), ["log", "completed"]);
    }

    /// Invariant (ramdisk): A late root device is waited for; its node is given up only after a
    /// second start.
    #[tokio::test]
    async fn a_late_root_device_is_looked_for_until_the_agent_chooses_or_gives_up() {
        const NOT_YET: Answer =
            Some((409, r#"{"error":"no disk matches serial","look_again_after":3}"#));
        let named = |name: &str| Disk { name: name.into(), ..Disk::default() };
        for (last, is_chosen) in [
            (Some((200, r#"{"disk":"vdb","iqn":"iqn.x","poll_after":2}"#)), true),
            (Some((409, r#"{"error":"no disk matches serial"}"#)), false),
        ] {
            let agent =
                Pretended::start(move |_, before| if before < 3 { NOT_YET } else { last }).await;
            let pauses = std::sync::Mutex::new(Vec::new());
            let since = tokio::time::Instant::now();
            let look = async |known: &Inventory, pause: Duration| {
                pauses.lock().unwrap().push(pause.as_secs());
                Inventory { disks: [&known.disks[..], &[named("vdb")]].concat(), since }
            };
            let mut disks = Inventory { disks: vec![named("vda")], since };
            let answer = look_up(&agent.seen_by_a_ramdisk(), &mut disks, look).await;
            match answer {
                Ok(reply) => assert!(is_chosen && reply.disk == "vdb", "{reply:?}"),
                Err(AgentError::Refused(why)) => assert!(!is_chosen && why.contains("serial")),
                Err(other) => panic!("{other}"),
            }
            assert_eq!((agent.requested().len(), disks.disks.len()), (4, 4));
            assert_eq!(*pauses.lock().unwrap(), [3, 3, 3]);
        }
    }

    #[test]
    fn a_machine_without_a_bmc_is_restarted_only_into_a_disk_that_is_whole() {
        let left = |then, error, reported| leave(then, error, reported).unwrap();
        let unknown = || Err(AgentError::AttemptOver);
        assert_eq!(left(Then::Wait, "", Ok(())), Then::Wait);
        assert_eq!(left(Then::Wait, "it differs", Ok(())), Then::Wait);
        assert!(leave(Then::Wait, "", unknown()).is_err());
        assert_eq!(left(Then::Reboot, "", Ok(())), Then::Reboot);
        assert_eq!(left(Then::PowerOff, "", Ok(())), Then::PowerOff);
        assert_eq!(left(Then::Reboot, "", unknown()), Then::Reboot, "its answer was lost");
        assert_eq!(left(Then::Reboot, "it differs", Ok(())), Then::PowerOff);
        assert_eq!(left(Then::Reboot, "it differs", unknown()), Then::PowerOff);
    }

    #[tokio::test]
    async fn the_agent_is_told_that_the_disk_was_compared_only_if_it_was_and_how_it_differs() {
        const BYTES: usize = 64 << 10;
        let dir = crate::ramdisk::dir_on_disk();
        let path = dir.path().join("disk");
        let digest = Digest::from_bytes(DigestAlgorithm::Sha256, &Sha256::digest(vec![7; BYTES]));
        let range = DiskRange { from: 0, bytes: BYTES as u64, digest: digest.unwrap() };
        let disk = Disk { name: path.to_str().unwrap().to_owned(), ..Disk::default() };
        // An older agent, which does not know the reports, is asked once.
        let agent = Pretended::start(|_, _| Some((404, "{}"))).await;
        let ramdisk = agent.seen_by_a_ramdisk();
        let reported = async || compare(&ramdisk, &disk, vec![range.clone()]).await;

        let missing = reported().await;
        assert!(!missing.verified && missing.error.contains("at byte 0: "), "{missing:?}");
        fs::write(&path, vec![8; BYTES]).unwrap();
        let differs = reported().await;
        assert!(differs.verified && differs.error.contains("its bytes 0 to 65535"), "{differs:?}");
        fs::write(&path, vec![7; BYTES]).unwrap();
        let same = reported().await;
        assert!(same.verified && same.error.is_empty(), "{same:?}");
        assert!(agent.requested().iter().all(|name| name == "verifying"));
    }

    #[tokio::test]
    async fn the_progress_is_reported_again_and_again_to_an_agent_that_takes_it_and_once_to_others()
    {
        const UNKNOWN: Answer = Some((404, "{}"));
        for answer in [Some((202, "{}")), Some((503, "{}")), None, UNKNOWN] {
            let agent = Pretended::start(move |_, _| answer).await;
            let (ramdisk, read_bytes) = (agent.seen_by_a_ramdisk(), AtomicU64::new(7));
            let reporting = report_progress(&ramdisk, &read_bytes, Duration::from_millis(1));
            let reported_often = async {
                while agent.requested().len() < 3 {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            let limit = if answer == UNKNOWN { PATIENCE.unknown } else { PATIENCE.silence };
            let often = tokio::select! {
                () = reported_often => true,
                _ = timeout(limit, reporting) => false,
            };
            assert_eq!(often, answer != UNKNOWN, "{answer:?}");
            assert!(agent.requested().iter().all(|name| name == "verifying"));
            assert!(often || agent.requested().len() == 1);
        }
    }
}
