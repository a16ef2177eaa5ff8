//! hostler's initiator against tgtd and istgt, other authors' targets.

mod istgt;
mod proxy;
pub(crate) mod tgtd;
mod zeros;

use std::time::{Duration, Instant};

use bytes::Bytes;
use hostler::{
    iscsi::{
        Chap, DigestOf, IscsiError, IscsiErrorKind, IscsiOptions, LoginRefusal, Lun, ScsiFailure,
        Sense, TargetAddress,
    },
    model::secret::Secret,
};
use tokio::{sync::oneshot, task::JoinSet};

use self::{
    proxy::{Proxy, Way},
    tgtd::{DISK_BYTES, IQN, Tgtd},
};

/// Time limit of fast operations, on a machine that runs many tests at once.
const QUICK: Duration = Duration::from_secs(10);

fn options() -> IscsiOptions {
    IscsiOptions::default()
}

fn digests() -> IscsiOptions {
    IscsiOptions { header_digest: true, data_digest: true, ..IscsiOptions::default() }
}

async fn connect(target: &TargetAddress) -> Lun {
    Lun::connect(target, None, &options()).await.unwrap()
}

/// Bytes without near repetitions, so that a block in a wrong place shows.
fn noise(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise.into()
}

/// Writes `data` at `offset` as many concurrent writes of `chunk` bytes, the last first.
async fn write_all(lun: &Lun, offset: u64, data: &Bytes, chunk: usize) -> Result<(), IscsiError> {
    let mut writes = JoinSet::new();
    for at in (0..data.len()).step_by(chunk).rev() {
        let (lun, piece) = (lun.clone(), data.slice(at..data.len().min(at + chunk)));
        writes.spawn(async move { lun.write(offset + at as u64, piece).await });
    }
    while let Some(done) = writes.join_next().await {
        done.unwrap()?;
    }
    Ok(())
}

/// Waits until the target has no session.
fn await_no_session(tgtd: &Tgtd) {
    let started = Instant::now();
    loop {
        let shown = tgtd.sessions();
        if !shown.contains("Session") {
            return;
        }
        assert!(started.elapsed() < QUICK, "sessions left: {shown}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writes_of_every_size_arrive_bit_exact() {
    let tgtd = Tgtd::start();
    let lun = connect(&tgtd.lun(1)).await;
    assert_eq!((lun.block_bytes(), lun.capacity_bytes()), (512, DISK_BYTES));
    let data = noise(24 << 20, 1);
    for (index, chunk) in [512, 4096, 60 << 10, 1 << 20, 5 << 20].into_iter().enumerate() {
        // With the smallest sizes, the whole data would need tens of thousands of commands.
        let part = data.slice(..data.len().min(chunk * 512));
        let offset = index as u64 * (8 << 20) + 512;
        write_all(&lun, offset, &part, chunk).await.unwrap();
        lun.flush().await.unwrap();
        let from = usize::try_from(offset).unwrap();
        assert!(tgtd.disk()[from..from + part.len()] == part, "chunk {chunk}");
        let step = 1_000_448;
        for at in (0..part.len()).step_by(step) {
            let expected = part.slice(at..part.len().min(at + step));
            let read = lun.read(offset + at as u64, u32::try_from(expected.len()).unwrap()).await;
            assert!(read.unwrap() == expected, "read at {at}, chunk {chunk}");
        }
    }
    assert!(tgtd.disk()[..512] == [0; 512]);
    lun.logout().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_extreme_of_negotiation_writes_and_reads_the_same_bytes() {
    let tgtd = Tgtd::start();
    let mut seed = 10;
    for segment in ["512", "8192", "262144", "16776704"] {
        for (first, burst) in [("512", "512"), ("4096", "262144"), ("262144", "1048576")] {
            for (initial_r2t, immediate) in
                [("Yes", "Yes"), ("Yes", "No"), ("No", "Yes"), ("No", "No")]
            {
                let case = format!("{segment} {first} {burst} {initial_r2t} {immediate}");
                tgtd.set("MaxRecvDataSegmentLength", segment);
                tgtd.set("MaxXmitDataSegmentLength", segment);
                tgtd.set("FirstBurstLength", first);
                tgtd.set("MaxBurstLength", burst);
                tgtd.set("InitialR2T", initial_r2t);
                tgtd.set("ImmediateData", immediate);
                seed += 1;
                let data = noise(1_500_000 / 512 * 512, seed);
                let lun = connect(&tgtd.lun(1)).await;
                write_all(&lun, 0, &data, 300 << 10).await.expect(&case);
                let bytes = u32::try_from(data.len()).unwrap();
                assert!(lun.read(0, bytes).await.expect(&case) == data, "{case}");
                assert!(tgtd.disk()[..data.len()] == data, "{case}");
                lun.logout().await.expect(&case);
            }
        }
    }
}

#[tokio::test]
async fn a_disk_of_4096_byte_blocks_is_addressed_in_its_own_blocks() {
    let tgtd = Tgtd::start();
    tgtd.add_disk(2, 4096);
    let lun = connect(&tgtd.lun(2)).await;
    assert_eq!((lun.block_bytes(), lun.capacity_bytes()), (4096, DISK_BYTES));
    let data = noise(8192, 3);
    lun.write(40960, data.clone()).await.unwrap();
    assert!(lun.read(40960, 8192).await.unwrap() == data);
    assert!(tgtd.disk()[40960..49152] == data);
    let error = lun.write(512, data).await.unwrap_err();
    assert!(matches!(error.kind, IscsiErrorKind::Request(_)), "{error}");
    lun.logout().await.unwrap();
}

#[tokio::test]
async fn what_a_disk_works_best_in_is_what_it_says_in_its_blocks() {
    let tgtd = Tgtd::start();
    tgtd.add_disk(2, 4096);
    let optimal = async |lun| connect(&tgtd.lun(lun)).await.optimal_bytes();
    assert_eq!((optimal(1).await, optimal(2).await), (None, None));
    for lun in [1, 2] {
        tgtd.update_disk(lun, "optimal_xfer_gran=128");
    }
    assert_eq!((optimal(1).await, optimal(2).await), (Some(64 << 10), Some(512 << 10)));
    for lun in [1, 2] {
        tgtd.update_disk(lun, "optimal_xfer_len=384");
    }
    assert_eq!((optimal(1).await, optimal(2).await), (Some(192 << 10), Some(1536 << 10)));
    tgtd.update_disk(1, "optimal_xfer_len=385");
    assert_eq!(optimal(1).await, Some(64 << 10), "no whole number of its own pieces");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_bursts_and_every_depth_of_queue_write_and_read_the_same_bytes() {
    let tgtd = Tgtd::start();
    let most = "16777215";
    for name in [
        "MaxRecvDataSegmentLength",
        "MaxXmitDataSegmentLength",
        "FirstBurstLength",
        "MaxBurstLength",
    ] {
        tgtd.set(name, most);
    }
    let mut seed = 200;
    for (window, r2ts, initial_r2t) in [("1", "1", "Yes"), ("8", "8", "No"), ("512", "64", "No")] {
        tgtd.set("MaxQueueCmd", window);
        tgtd.set("MaxOutstandingR2T", r2ts);
        tgtd.set("InitialR2T", initial_r2t);
        for (queue_depth, chunk) in [(1, 512 << 10), (1024, 4096), (32, 16 << 20)] {
            let case = format!("window {window}, {r2ts} R2Ts, {queue_depth} commands of {chunk}");
            seed += 1;
            let data = noise(if chunk == 4096 { 4 << 20 } else { 16 << 20 }, seed);
            let options = IscsiOptions { queue_depth, ..options() };
            let lun = Lun::connect(&tgtd.lun(1), None, &options).await.unwrap();
            write_all(&lun, 0, &data, chunk).await.expect(&case);
            let bytes = u32::try_from(data.len()).unwrap();
            assert!(lun.read(0, bytes).await.expect(&case) == data, "{case}");
            assert!(tgtd.disk()[..data.len()] == data, "{case}");
            lun.logout().await.expect(&case);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_sessions_of_one_initiator_write_to_one_disk_at_once() {
    let tgtd = Tgtd::start();
    let data = noise(16 << 20, 31);
    let mut sessions = JoinSet::new();
    let connected = std::sync::Arc::new(tokio::sync::Barrier::new(4));
    for part in 0..4 {
        let (target, connected) = (tgtd.lun(1), connected.clone());
        let piece = data.slice(part * (4 << 20)..(part + 1) * (4 << 20));
        sessions.spawn(async move {
            let lun = connect(&target).await;
            // A session with the name and ISID of another would end that one (RFC 7143 §6.3.5).
            connected.wait().await;
            write_all(&lun, (part * (4 << 20)) as u64, &piece, 256 << 10).await.unwrap();
            lun.flush().await.unwrap();
            lun.logout().await.unwrap();
        });
    }
    while let Some(done) = sessions.join_next().await {
        done.unwrap();
    }
    assert!(tgtd.disk()[..data.len()] == data);
    await_no_session(&tgtd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_was_restarted_takes_a_new_session_and_the_rest_of_the_data() {
    let mut tgtd = Tgtd::start();
    let lun = connect(&tgtd.lun(1)).await;
    let data = noise(8 << 20, 41);
    write_all(&lun, 0, &data.slice(..4 << 20), 1 << 20).await.unwrap();
    lun.flush().await.unwrap();
    tgtd.restart();
    let error = lun.read(0, 512).await.unwrap_err();
    assert!(matches!(error.kind, IscsiErrorKind::TargetGone(_)), "{error}");
    let lun = connect(&tgtd.lun(1)).await;
    write_all(&lun, 4 << 20, &data.slice(4 << 20..), 1 << 20).await.unwrap();
    assert!(lun.read(0, 8 << 20).await.unwrap() == data);
    lun.logout().await.unwrap();
    assert!(tgtd.disk()[..data.len()] == data);
}

fn chap(secret: &str, mutual: Option<(&str, &str)>) -> Chap {
    Chap {
        username: "node".to_owned(),
        secret: Secret::new(secret.to_owned()),
        mutual: mutual.map(|(name, secret)| (name.to_owned(), Secret::new(secret.to_owned()))),
    }
}

#[tokio::test]
async fn chap_lets_in_who_knows_the_secret_and_nobody_else() {
    let tgtd = Tgtd::start();
    tgtd.demand_chap("node", "a-secret-of-twelve");
    tgtd.prove_by_chap("target", "another-secret-12");
    let target = tgtd.lun(1);
    let right = "a-secret-of-twelve";
    let cases = [
        (Some(chap(right, None)), Ok(())),
        (Some(chap(right, Some(("target", "another-secret-12")))), Ok(())),
        (Some(chap("a-secret-of-twelv", None)), Err(LoginRefusal::WrongSecret)),
        (Some(chap("", None)), Err(LoginRefusal::WrongSecret)),
        (
            Some(chap(right, Some(("target", "not-the-secret-12")))),
            Err(LoginRefusal::TargetUnproven),
        ),
        (
            Some(chap(right, Some(("other", "another-secret-12")))),
            Err(LoginRefusal::TargetUnproven),
        ),
        (None, Err(LoginRefusal::CredentialsNeeded)),
    ];
    for (chap, expected) in cases {
        let lun = Lun::connect(&target, chap.as_ref(), &options()).await;
        match (lun, expected) {
            (Ok(lun), Ok(())) => lun.logout().await.unwrap(),
            (Err(error), Err(refusal)) => {
                assert_eq!(error.kind, IscsiErrorKind::LoginRefused(refusal), "{chap:?}");
                assert!(!format!("{error} {error:?}").contains("secret-"), "{error:?}");
            }
            (lun, expected) => panic!("{chap:?}: {lun:?}, expected {expected:?}"),
        }
    }
    await_no_session(&tgtd);
}

#[tokio::test]
async fn a_target_that_does_not_ask_for_chap_is_refused() {
    let tgtd = Tgtd::start();
    let chap = chap("a-secret-of-twelve", None);
    let error = Lun::connect(&tgtd.lun(1), Some(&chap), &options()).await.unwrap_err();
    assert_eq!(error.kind, IscsiErrorKind::LoginRefused(LoginRefusal::ChapNotDemanded));
    assert_eq!(
        error.to_string(),
        format!("target {IQN}: login: refused: the target does not ask for CHAP, must")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_both_digests_data_arrives_and_segments_are_padded_right() {
    let tgtd = Tgtd::start();
    tgtd.set("HeaderDigest", "CRC32C");
    tgtd.set("DataDigest", "CRC32C");
    let lun = Lun::connect(&tgtd.lun(1), None, &digests()).await.unwrap();
    let data = noise(6 << 20, 5);
    write_all(&lun, 0, &data, 700 << 10).await.unwrap();
    assert!(lun.read(0, 6 << 20).await.unwrap() == data);
    assert!(tgtd.disk()[..data.len()] == data);
    lun.logout().await.unwrap();
}

#[tokio::test]
async fn a_target_without_the_digests_asked_for_is_refused() {
    let tgtd = Tgtd::start();
    let error = Lun::connect(&tgtd.lun(1), None, &digests()).await.unwrap_err();
    assert_eq!(error.kind, IscsiErrorKind::LoginRefused(LoginRefusal::NoDigest(DigestOf::Header)));
}

/// A disk behind a proxy, with digests on.
async fn behind_proxy(tgtd: &Tgtd, way: Way) -> (Proxy, Lun) {
    tgtd.set("HeaderDigest", "CRC32C");
    tgtd.set("DataDigest", "CRC32C");
    let proxy = Proxy::start(tgtd.portal, way).await;
    let target = TargetAddress { portal: proxy.address, ..tgtd.lun(1) };
    let lun = Lun::connect(&target, None, &digests()).await.unwrap();
    lun.read(0, 4096).await.unwrap();
    (proxy, lun)
}

#[tokio::test]
async fn a_byte_changed_on_the_way_back_is_found_by_its_digest() {
    // The header with its digest has 52 bytes.
    for (byte, of) in [(40, DigestOf::Header), (1000, DigestOf::Data)] {
        let tgtd = Tgtd::start();
        let (proxy, lun) = behind_proxy(&tgtd, Way::FromTarget).await;
        proxy.spoil(byte);
        assert_eq!(lun.read(0, 4096).await.unwrap_err().kind, IscsiErrorKind::Digest(of));
        assert_eq!(
            lun.flush().await.unwrap_err().kind,
            IscsiErrorKind::Digest(of),
            "the session is over"
        );
    }
}

#[tokio::test]
async fn a_byte_changed_on_the_way_there_never_reaches_the_disk() {
    for byte in [40, 1000] {
        let tgtd = Tgtd::start();
        let (proxy, lun) = behind_proxy(&tgtd, Way::ToTarget).await;
        proxy.spoil(byte);
        let started = Instant::now();
        let error = lun.write(0, noise(4096, 7)).await.unwrap_err();
        assert!(started.elapsed() < QUICK, "{error}");
        assert!(
            matches!(error.kind, IscsiErrorKind::TargetGone(_) | IscsiErrorKind::Digest(_)),
            "{error}"
        );
        assert!(tgtd.disk()[..4096] == [0; 4096]);
    }
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let tgtd = Tgtd::start();
    let unknown = TargetAddress { iqn: "iqn.2026-01.test:other".to_owned(), ..tgtd.lun(1) };
    let error = Lun::connect(&unknown, None, &options()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "target iqn.2026-01.test:other: login: refused: no such target at this portal (02/03)"
    );
    for lun in [0, 7] {
        let error = Lun::connect(&tgtd.lun(lun), None, &options()).await.unwrap_err();
        let text = format!("LUN {lun} is not a disk; the target has LUN 0, 1");
        assert_eq!(error.kind, IscsiErrorKind::NoDisk(text));
    }
    let nobody = TargetAddress { portal: "127.0.0.1:1".parse().unwrap(), ..tgtd.lun(1) };
    let error = Lun::connect(&nobody, None, &options()).await.unwrap_err();
    assert!(matches!(error.kind, IscsiErrorKind::Unreachable(_)), "{error}");
    await_no_session(&tgtd);
}

#[tokio::test]
async fn reading_and_writing_past_the_end_gives_the_targets_sense() {
    let tgtd = Tgtd::start();
    let lun = connect(&tgtd.lun(1)).await;
    let beyond = IscsiErrorKind::Scsi(ScsiFailure::Sense(Sense { key: 5, asc: 0x21, ascq: 0 }));
    assert_eq!(lun.read(DISK_BYTES - 512, 1024).await.unwrap_err().kind, beyond);
    let error = lun.write(DISK_BYTES - 512, noise(1 << 20, 1)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "target {IQN}: write of 1.0 MiB at 63.9 MiB: ILLEGAL REQUEST, beyond the end of the \
             disk (05/21/00)"
        )
    );
    // A failed command leaves the session as it was.
    lun.write(DISK_BYTES - 512, noise(512, 1)).await.unwrap();
    lun.logout().await.unwrap();
}

/// Writes until a write fails, and runs `event` in the middle; returns the error, and its delay
/// after the event.
async fn write_until_failure(lun: &Lun, event: impl FnOnce()) -> (IscsiError, Duration) {
    let (lun, data) = (lun.clone(), noise(16 << 20, 9));
    let (running, is_running) = oneshot::channel();
    let writer = tokio::spawn(async move {
        write_all(&lun, 0, &data, 1 << 20).await.unwrap();
        running.send(()).unwrap();
        loop {
            if let Err(error) = write_all(&lun, 0, &data, 1 << 20).await {
                return error;
            }
        }
    });
    is_running.await.unwrap();
    event();
    let started = Instant::now();
    (writer.await.unwrap(), started.elapsed())
}

/// Invariant (disk): Every exchange with a target has a time limit; a target that dies or hangs is
/// noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_killed_during_writes_is_reported_at_once() {
    let tgtd = Tgtd::start();
    let lun = connect(&tgtd.lun(1)).await;
    let (error, after) = write_until_failure(&lun, || tgtd.signal("-KILL")).await;
    assert!(matches!(error.kind, IscsiErrorKind::TargetGone(_)), "{error}");
    assert!(after < Duration::from_secs(2), "{after:?}");
    let started = Instant::now();
    assert!(matches!(lun.flush().await.unwrap_err().kind, IscsiErrorKind::TargetGone(_)));
    lun.logout().await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(1));
}

/// Invariant (disk): Every exchange with a target has a time limit; a target that dies or hangs is
/// noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_hangs_is_given_up_within_the_command_limit() {
    let tgtd = Tgtd::start();
    let limit = Duration::from_secs(2);
    let hasty = IscsiOptions { command_timeout: limit, ..options() };
    let lun = Lun::connect(&tgtd.lun(1), None, &hasty).await.unwrap();
    let (error, after) = write_until_failure(&lun, || tgtd.signal("-STOP")).await;
    assert_eq!(error.kind, IscsiErrorKind::TimedOut(limit));
    assert!(after < limit + Duration::from_secs(1), "{after:?}");
    tgtd.signal("-CONT");
    await_no_session(&tgtd);
}

#[tokio::test]
async fn a_target_that_hangs_while_nothing_is_asked_is_found_by_the_keepalive() {
    let tgtd = Tgtd::start();
    let before = alive_tasks();
    let brisk = IscsiOptions { keepalive: Duration::from_millis(200), ..options() };
    let lun = Lun::connect(&tgtd.lun(1), None, &brisk).await.unwrap();
    // The initiator is silent for longer than the limit: the target answers its NOP-Outs, and the
    // session lives.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    lun.flush().await.unwrap();
    tgtd.signal("-STOP");
    await_tasks(before).await;
    let error = lun.flush().await.unwrap_err();
    assert_eq!(error.kind, IscsiErrorKind::TimedOut(Duration::from_millis(800)));
    tgtd.signal("-CONT");
    await_no_session(&tgtd);
}

fn alive_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Waits until no more than `count` tasks are left.
async fn await_tasks(count: usize) {
    let started = Instant::now();
    while alive_tasks() > count {
        assert!(started.elapsed() < QUICK, "{} tasks left", alive_tasks() - count);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_the_target_deletes_is_reported_at_once() {
    let tgtd = Tgtd::start();
    let lun = connect(&tgtd.lun(1)).await;
    let (error, after) = write_until_failure(&lun, || tgtd.delete_connections()).await;
    assert!(matches!(error.kind, IscsiErrorKind::TargetGone(_)), "{error}");
    assert!(after < Duration::from_secs(2), "{after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_ends_cancelled_writes_before_it_returns_and_leaves_no_session() {
    let tgtd = Tgtd::start();
    let lun = connect(&tgtd.lun(1)).await;
    assert!(tgtd.sessions().contains("Session"));
    let data = noise(1 << 20, 11);
    let other = lun.clone();
    let mut writes = JoinSet::new();
    for at in 0..32 {
        let (lun, data) = (lun.clone(), data.clone());
        writes.spawn(async move { lun.write(at << 20, data).await });
    }
    writes.join_next().await.unwrap().unwrap().unwrap();
    drop(writes);
    lun.logout().await.unwrap();
    let disk = tgtd.disk();
    await_no_session(&tgtd);
    assert!(tgtd.disk() == disk, "something was written after the logout");
    assert!(matches!(other.flush().await.unwrap_err().kind, IscsiErrorKind::TargetGone(_)));
}

#[tokio::test]
async fn dropping_the_disk_closes_the_connection_and_ends_its_task() {
    let tgtd = Tgtd::start();
    let before = alive_tasks();
    let lun = connect(&tgtd.lun(1)).await;
    assert_eq!(alive_tasks(), before + 1);
    drop(lun);
    await_tasks(before).await;
    await_no_session(&tgtd);
}
