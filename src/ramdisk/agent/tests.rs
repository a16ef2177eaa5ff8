//! Tests of repeated requests, of the pinned certificate, and of possible answers.

use proptest::prelude::*;
use rcgen::KeyPair;

use super::{
    pretended::{Answer, PATIENCE, Pretended, certificate},
    *,
};
use crate::model::{
    callback::{DiskRange, Then, VERIFY_RANGES_MAX},
    ids::{Digest, DigestAlgorithm},
};

const IMAGING: Answer = Some((200, r#"{"state":"imaging"}"#));
const ABORT: Answer = Some((200, r#"{"state":"abort"}"#));
const UNKNOWN: Answer = Some((404, r#"{"error":"not found"}"#));

#[tokio::test]
async fn trouble_on_the_way_to_an_answer_is_asked_through() {
    let agent = Pretended::start(|_, before| match before {
        0 => None,
        1 => Some((503, r#"{"error":"try again"}"#)),
        2 => UNKNOWN,
        3 => Some((200, "half of a")),
        4 => Some((429, "")),
        5 => IMAGING,
        _ => ABORT,
    })
    .await;
    let ramdisk = agent.seen_by_a_ramdisk();
    let reply = ramdisk.wait_until_done(Duration::from_millis(1)).await.unwrap();
    assert_eq!(reply, DeployState::Abort.into());
    assert_eq!(agent.requested().len(), 7);
}

#[tokio::test]
async fn an_agent_that_knows_no_such_attempt_is_believed_after_a_while() {
    let agent = Pretended::start(|_, _| UNKNOWN).await;
    let ramdisk = agent.seen_by_a_ramdisk();
    let began = Instant::now();
    let over = ramdisk.wait_until_done(Duration::ZERO).await;
    assert!(matches!(over, Err(AgentError::AttemptOver)), "{over:?}");
    assert!(
        began.elapsed() >= PATIENCE.unknown && agent.requested().len() > 2,
        "it might be a mistake"
    );
    assert!(began.elapsed() < PATIENCE.silence);
    let over = ramdisk.completed(&Completed::default()).await;
    assert!(matches!(over, Err(AgentError::AttemptOver)), "{over:?}");
    assert_eq!(agent.requested().iter().filter(|name| *name == "completed").count(), 1, "at once");
}

#[tokio::test]
async fn an_agent_that_is_silent_for_long_is_given_up() {
    let agent = Pretended::start(|_, _| None).await;
    // No process listens there any more.
    let gone = Pretended::start(|_, _| None).await.seen_by_a_ramdisk();
    let ramdisk = agent.seen_by_a_ramdisk();
    let both =
        tokio::join!(ramdisk.wait_until_done(Duration::ZERO), gone.wait_until_done(Duration::ZERO));
    for given_up in <[_; 2]>::from(both) {
        assert!(matches!(given_up, Err(AgentError::Silent(_))), "{given_up:?}");
    }
}

#[tokio::test]
async fn nobody_else_is_told_the_key_or_anything() {
    let agent = Pretended::start(|_, _| ABORT).await;
    let pair = KeyPair::generate().unwrap();
    let another = Pretended::showing(certificate(&pair), &pair, |_, _| ABORT).await;
    // It has the certificate, which is no secret, but not its key.
    let thief = Pretended::showing(agent.certificate(), &pair, |_, _| ABORT).await;
    let meets = async |stranger: &Pretended| {
        let mut ramdisk = agent.seen_by_a_ramdisk();
        ramdisk.args.api = stranger.seen_by_a_ramdisk().args.api;
        let given_up = ramdisk.wait_until_done(Duration::ZERO).await;
        assert!(matches!(given_up, Err(AgentError::Silent(_))), "{given_up:?}");
        assert_eq!(stranger.requested(), [""; 0]);
    };
    tokio::join!(meets(&another), meets(&thief));
}

#[tokio::test]
async fn an_answer_without_an_end_is_cut_off() {
    let agent = Pretended::start(|_, before| match before {
        0 => Some((200, Box::leak("x".repeat(ANSWER_BYTES_MAX + 1).into_boxed_str()))),
        _ => Some((409, r#"{"error":"no"}"#)),
    })
    .await;
    let refused = agent.seen_by_a_ramdisk().wait_until_done(Duration::ZERO).await;
    assert!(matches!(refused, Err(AgentError::Refused(why)) if why == "no"));
}

/// Invariant (ramdisk): Sending the log never holds up the boot sequence.
#[tokio::test]
async fn the_log_is_sent_once_whatever_the_agent_says_and_nobody_waits_long_for_one_that_is_silent()
{
    let answers: [Answer; 6] = [
        Some((202, "{}")),
        UNKNOWN,
        Some((409, r#"{"error":"no"}"#)),
        Some((413, "")),
        Some((429, "")),
        None,
    ];
    for answer in answers {
        let agent = Pretended::start(move |_, _| answer).await;
        let began = Instant::now();
        agent.seen_by_a_ramdisk().send_log().await;
        assert_eq!(agent.requested(), ["log"], "{answer:?}");
        assert!(began.elapsed() < LOG_LIMIT, "{answer:?}");
    }
    // It accepts the connection and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent = Pretended::start(|_, _| None).await;
    let mut ramdisk = agent.seen_by_a_ramdisk();
    ramdisk.args.api = listener.local_addr().unwrap();
    tokio::time::pause();
    let began = Instant::now();
    ramdisk.send_log().await;
    assert!((LOG_LIMIT..LOG_LIMIT * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[test]
fn the_longest_list_to_compare_fits_into_an_answer() {
    let digest = Digest::from_bytes(DigestAlgorithm::Sha512, &[0xff; 64]);
    let range = DiskRange { from: u64::MAX, bytes: u64::MAX, digest: digest.unwrap(), salt: None };
    let verify = vec![range; VERIFY_RANGES_MAX];
    let reply = DeployStateReply { state: DeployState::Release, verify, then: Then::Wait };
    let body = serde_json::to_vec(&reply).unwrap();
    assert!(body.len() < ANSWER_BYTES_MAX, "{}", body.len());
    let read = read_answer::<DeployStateReply>(StatusCode::OK, &body).unwrap().unwrap();
    assert_eq!(read, reply);
}

proptest! {
    #[test]
    fn reading_an_answer_never_panics_on_any_bytes(
        status in 100_u16..1000,
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        json in r#"\{"(state|verify|disk|iqn|poll_after|error)":[\[\]{}":,a-z0-9\\-]{0,60}\}?"#,
    ) {
        let status = StatusCode::from_u16(status).unwrap();
        for body in [bytes.as_slice(), json.as_bytes()] {
            let _ignored = read_answer::<LookupReply>(status, body);
            let _ignored = read_answer::<DeployStateReply>(status, body);
            let reported = read_answer::<Ignored>(status, body);
            prop_assert!(!matches!(reported, Ok(Ok(_))) || status.is_success());
        }
    }

    #[test]
    fn what_the_agent_writes_is_read_as_it_was_meant(
        disk in ".{0,20}",
        iqn in ".{0,40}",
        poll_after: u32,
    ) {
        let reply = LookupReply { disk, iqn, poll_after };
        let body = serde_json::to_vec(&reply).unwrap();
        let read = read_answer::<LookupReply>(StatusCode::OK, &body).unwrap().unwrap();
        prop_assert_eq!(read, reply);
    }
}
