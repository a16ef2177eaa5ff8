//! Tests of the boot sequence against a simulated agent.

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
    let (answer, reported) = offer(&ramdisk, &info, Duration::ZERO, pending(), stop).await;
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
        let offered = offer(&ramdisk, &info, Duration::ZERO, pending(), stop);
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
    let none = EarlyComparison::default();
    complete(&ramdisk, failed, Disk::default(), &none, released).await.unwrap();
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
    let range = DiskRange { from: 0, bytes: BYTES as u64, digest: digest.unwrap(), salt: None };
    let disk = Disk { name: path.to_str().unwrap().to_owned(), ..Disk::default() };
    // An older agent, which does not know the reports, is asked once.
    let agent = Pretended::start(|_, _| Some((404, "{}"))).await;
    let ramdisk = agent.seen_by_a_ramdisk();
    let reported =
        async || compare(&ramdisk, &disk, vec![range.clone()], &EarlyComparison::default()).await;

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
async fn a_difference_during_the_write_is_reported_and_the_rest_waits_for_the_agent() {
    let dir = crate::ramdisk::dir_on_disk();
    let path = dir.path().join("disk");
    fs::write(&path, vec![8; 64 << 10]).unwrap();
    let disk = Disk { name: path.to_str().unwrap().to_owned(), ..Disk::default() };
    let digest = format!("sha256:{}", "5a".repeat(32));
    let ranges =
        format!(r#"{{"ranges":[{{"from":0,"bytes":65536,"digest":"{digest}","salt":7}}]}}"#);
    for (flushed, calls) in [
        // The agent hangs up, and then names a range.
        (Some((200, &*ranges.leak())), vec!["flushed", "flushed", "flushed", "completed"]),
        // An older agent.
        (Some((404, "{}")), vec!["flushed", "flushed"]),
    ] {
        let agent = Pretended::start(move |name, before| match (name, before) {
            ("flushed", 0) => None,
            ("flushed", _) => flushed,
            _ => Some((202, "{}")),
        })
        .await;
        let ramdisk = agent.seen_by_a_ramdisk();
        let early = EarlyComparison::default();
        let pause = Duration::from_millis(1);
        let comparing = compare_early(&ramdisk, &disk, &early, pause);
        let reported = async {
            while agent.requested().len() < calls.len() {
                sleep(Duration::from_millis(1)).await;
            }
            // Nothing follows.
            sleep(Duration::from_millis(50)).await;
        };
        tokio::select! {
            never = comparing => match never {},
            () = reported => {}
        }
        assert_eq!(agent.requested(), calls);
    }
}

#[tokio::test]
async fn the_progress_is_reported_again_and_again_to_an_agent_that_takes_it_and_once_to_others() {
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
