//! The session's state machine against scripted and arbitrary targets.

use proptest::prelude::*;

use tokio::sync::oneshot;

use super::*;
use crate::iscsi::{scsi, task::Data};

const LUN: LunField = [0, 1, 0, 0, 0, 0, 0, 0];

const LIMITS: KeepaliveLimits = KeepaliveLimits { silent_max: 4, command_max: 10 };

type Answer = oneshot::Receiver<Result<CommandOutcome, IscsiErrorKind>>;

fn session(agreed: Negotiated) -> Session {
    Session::new(&LoggedIn { negotiated: agreed, exp_stat_sn: 100, max_cmd_sn: 32 })
}

fn small() -> Negotiated {
    Negotiated {
        max_send_bytes: 1024,
        initial_r2t: false,
        first_burst_bytes: 2048,
        max_burst_bytes: 4096,
        max_outstanding_r2t: 2,
        ..Negotiated::default()
    }
}

fn submit(session: &mut Session, data: Data) -> Answer {
    let (answer, receiver) = oneshot::channel();
    let command = IscsiCommand { lun: LUN, cdb: scsi::test_unit_ready(), data };
    session.submit(command, Completion { answer, slot: None });
    receiver
}

fn payload(bytes: usize) -> Data {
    Data::Out((0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect::<Vec<u8>>().into())
}

/// A target's PDU; `to` sets the sequence numbers.
struct From {
    bhs: Bhs,
}

impl From {
    fn new(opcode: u8, flags: u8, itt: u32) -> Self {
        let mut bhs = [0; pdu::BHS_BYTES];
        (bhs[0], bhs[1]) = (opcode, flags);
        Self { bhs }.u32(16, itt).u32(28, 1).u32(32, 32)
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    fn r2t(itt: u32, sn: u32, offset: u32, bytes: u32) -> Self {
        Self::new(0x31, 0x80, itt).u32(20, 0x77).u32(36, sn).u32(40, offset).u32(44, bytes)
    }

    fn status(itt: u32, stat_sn: u32) -> Self {
        Self::new(0x21, 0x80, itt).u32(24, stat_sn)
    }

    fn data_in(itt: u32, sn: u32, offset: u32) -> Self {
        Self::new(0x25, 0, itt).u32(36, sn).u32(40, offset)
    }

    fn to(mut self, session: &mut Session, data: &[u8]) -> Result<(), IscsiErrorKind> {
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.bhs[5..8].copy_from_slice(&bytes.to_be_bytes()[1..]);
        let mut incoming = session.open(&self.bhs)?;
        incoming.data.extend_from_slice(data);
        session.receive(incoming)
    }
}

/// Takes all PDUs that the session can send now: opcode, F bit, target tag, number, offset and
/// length of each.
fn sent(session: &mut Session) -> Vec<(u8, bool, u32, u32, u32, usize)> {
    let field = |bhs: &Bhs, at: usize| u32::from_be_bytes(bhs[at..at + 4].try_into().unwrap());
    std::iter::from_fn(|| session.next_pdu())
        .map(|Pdu { bhs, data }| {
            let (ttt, sn, offset) = match bhs[0] {
                0x05 => (field(&bhs, 20), field(&bhs, 36), field(&bhs, 40)),
                _ => (0, field(&bhs, 24), 0),
            };
            assert_eq!(field(&bhs, 4) as usize, data.len());
            (bhs[0], bhs[1] & 0x80 != 0, ttt, sn, offset, data.len())
        })
        .collect()
}

fn is_violation(result: &Result<(), IscsiErrorKind>) -> bool {
    matches!(result, Err(IscsiErrorKind::Protocol(_)))
}

#[test]
fn a_write_sends_immediate_then_unsolicited_then_solicited_data() {
    let mut session = session(small());
    let mut answer = submit(&mut session, payload(5000));
    let mut second = submit(&mut session, Data::None);
    assert_eq!(
        sent(&mut session),
        [
            (0x01, false, 0, 1, 0, 1024),
            (0x05, true, NO_TAG, 0, 1024, 1024),
            (0x01, true, 0, 2, 0, 0)
        ],
        "unsolicited data goes before the next command"
    );
    From::r2t(1, 0, 2048, 2048).to(&mut session, &[]).unwrap();
    From::r2t(1, 1, 4096, 904).to(&mut session, &[]).unwrap();
    assert_eq!(
        sent(&mut session),
        [
            (0x05, false, 0x77, 0, 2048, 1024),
            (0x05, true, 0x77, 1, 3072, 1024),
            (0x05, true, 0x77, 0, 4096, 904)
        ]
    );
    From::status(1, 100).to(&mut session, &[]).unwrap();
    assert_eq!(answer.try_recv().unwrap(), Ok(CommandOutcome::default()));
    second.try_recv().unwrap_err();
}

#[test]
fn data_follows_what_was_agreed_in_every_combination() {
    for (initial_r2t, immediate_data, expected) in [
        (true, true, vec![(true, 1024)]),
        (true, false, vec![(true, 0)]),
        (false, true, vec![(false, 1024), (true, 1024)]),
        (false, false, vec![(false, 0), (false, 1024), (true, 1024)]),
    ] {
        let mut session = session(Negotiated { initial_r2t, immediate_data, ..small() });
        let _answer = submit(&mut session, payload(5000));
        let pdus: Vec<(bool, usize)> =
            sent(&mut session).iter().map(|pdu| (pdu.1, pdu.5)).collect();
        assert_eq!(pdus, expected, "InitialR2T {initial_r2t} ImmediateData {immediate_data}");
    }
}

#[test]
fn r2ts_that_ask_for_anything_but_the_next_bytes_are_violations() {
    for (sn, offset, bytes) in [
        (0, 0, 1024),
        (0, 4096, 904),
        (1, 2048, 1024),
        (0, 2048, 0),
        (0, 2048, 2953),
        (0, 2048, u32::MAX),
        (0, u32::MAX, 2),
    ] {
        let mut session = session(small());
        let _answer = submit(&mut session, payload(5000));
        sent(&mut session);
        let result = From::r2t(1, sn, offset, bytes).to(&mut session, &[]);
        assert!(is_violation(&result), "{sn} {offset} {bytes}");
    }
    let mut session = session(small());
    let _big = submit(&mut session, payload(50_000));
    sent(&mut session);
    assert!(
        is_violation(&From::r2t(1, 0, 2048, 4097).to(&mut session, &[])),
        "longer than a burst"
    );
    From::r2t(1, 0, 2048, 1).to(&mut session, &[]).unwrap();
    From::r2t(1, 1, 2049, 1).to(&mut session, &[]).unwrap();
    assert!(is_violation(&From::r2t(1, 2, 2050, 1).to(&mut session, &[])), "more than two open");
}

#[test]
fn a_command_the_target_cannot_know_of_cannot_be_answered() {
    let mut closed =
        Session::new(&LoggedIn { negotiated: small(), exp_stat_sn: 100, max_cmd_sn: 0 });
    let _write = submit(&mut closed, payload(5000));
    let mut other = submit(&mut closed, Data::None);
    assert_eq!(sent(&mut closed), []);
    assert!(is_violation(&From::r2t(1, 0, 0, 512).to(&mut closed, &[])));
    assert!(is_violation(&From::status(2, 100).to(&mut closed, &[])));
    other.try_recv().unwrap_err();
    assert!(is_violation(&From::status(99, 101).to(&mut closed, &[])));
}

#[test]
fn the_window_holds_commands_back_and_opens_again() {
    let mut session =
        Session::new(&LoggedIn { negotiated: small(), exp_stat_sn: 100, max_cmd_sn: 2 });
    let _answers: Vec<Answer> = (0..4).map(|_| submit(&mut session, Data::None)).collect();
    assert_eq!(sent(&mut session).len(), 2);
    From::status(1, 100).u32(28, 3).u32(32, 3).to(&mut session, &[]).unwrap();
    assert_eq!(sent(&mut session).len(), 1);
}

#[test]
fn good_for_a_write_the_target_never_took_is_a_lie() {
    let mut session = session(small());
    let mut answer = submit(&mut session, payload(5000));
    sent(&mut session);
    assert!(is_violation(&From::status(1, 100).to(&mut session, &[])));
    assert!(matches!(answer.try_recv().unwrap(), Err(IscsiErrorKind::Protocol(_))));
}

#[test]
fn a_write_that_fails_early_takes_its_unsent_data_along() {
    let mut session = session(small());
    let mut answer = submit(&mut session, payload(5000));
    session.next_pdu().unwrap();
    let mut failed = From::status(1, 100);
    failed.bhs[3] = 2;
    failed.to(&mut session, &[0, 2, 0x70, 0]).unwrap();
    let outcome = answer.try_recv().unwrap().unwrap();
    assert_eq!((outcome.status, outcome.sense), (2, vec![0, 2, 0x70, 0]));
    let _next = submit(&mut session, Data::None);
    assert_eq!(sent(&mut session), [(0x01, true, 0, 2, 0, 0)], "only the next command");
}

#[test]
fn read_data_is_taken_in_order_and_never_more_than_asked() {
    let mut session = session(small());
    let mut answer = submit(&mut session, Data::In(10));
    sent(&mut session);
    From::data_in(1, 0, 0).to(&mut session, &[1; 6]).unwrap();
    let mut last = From::data_in(1, 1, 6).u32(24, 100);
    last.bhs[1] = 0x81;
    last.to(&mut session, &[2; 4]).unwrap();
    assert_eq!(answer.try_recv().unwrap().unwrap().data[..], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]);

    for (sn, offset, bytes) in [(1, 0, 4), (0, 4, 4), (0, 0, 11), (0, u32::MAX, 1)] {
        let mut session = self::session(small());
        let _answer = submit(&mut session, Data::In(10));
        sent(&mut session);
        let result = From::data_in(1, sn, offset).to(&mut session, &vec![0; bytes]);
        assert!(is_violation(&result), "{sn} {offset} {bytes}");
    }
}

#[test]
fn data_the_wrong_way_round_is_a_violation() {
    let mut session = session(small());
    let _read = submit(&mut session, Data::In(512));
    let _write = submit(&mut session, payload(5000));
    sent(&mut session);
    assert!(is_violation(&From::r2t(1, 0, 0, 512).to(&mut session, &[])));
    assert!(is_violation(&From::data_in(2, 0, 0).to(&mut session, &[0; 512])));
}

#[test]
fn status_numbers_and_acknowledgements_must_fit() {
    let mut session = session(small());
    let _answer = submit(&mut session, Data::None);
    sent(&mut session);
    assert!(is_violation(&From::status(1, 101).to(&mut session, &[])), "a status was left out");
    assert!(
        is_violation(&From::status(1, 100).u32(28, 3).to(&mut session, &[])),
        "command 2 was not sent"
    );
}

#[test]
fn a_target_that_pings_gets_its_data_back_and_cannot_flood() {
    let mut session = session(small());
    let ping = || From::new(0x20, 0x80, NO_TAG).u32(20, 0x55);
    ping().to(&mut session, b"hello").unwrap();
    let echo = session.next_pdu().unwrap();
    assert_eq!(
        (echo.bhs[0], &echo.bhs[20..24], &echo.data[..]),
        (0x40, &[0, 0, 0, 0x55][..], &b"hello"[..])
    );
    assert_eq!(
        echo.bhs[24..28],
        1_u32.to_be_bytes(),
        "an immediate request does not use up a number"
    );
    let flood = (0..100).find_map(|_| ping().to(&mut session, &[]).err());
    assert!(matches!(flood, Some(IscsiErrorKind::Protocol(_))));
}

#[test]
fn silence_is_answered_with_one_ping_and_then_given_up() {
    let mut session = session(small());
    session.tick(LIMITS).unwrap();
    assert_eq!(sent(&mut session), []);
    session.tick(LIMITS).unwrap();
    assert_eq!(sent(&mut session).len(), 1);
    From::new(0x20, 0x80, 1).u32(24, 100).to(&mut session, &[]).unwrap();
    let ends: Vec<_> = (0..5).map(|_| session.tick(LIMITS)).collect();
    assert_eq!(ends, [Ok(()), Ok(()), Ok(()), Ok(()), Err(4)]);
    assert_eq!(sent(&mut session).len(), 1, "one ping for all of the silence");
}

#[test]
fn a_command_nobody_waits_for_any_more_still_has_a_limit() {
    let mut session = session(small());
    drop(submit(&mut session, Data::None));
    sent(&mut session);
    for _ in 0..10 {
        session.tick(LIMITS).unwrap();
        From::new(0x20, 0x80, NO_TAG).u32(20, NO_TAG).to(&mut session, &[]).unwrap();
    }
    assert_eq!(session.tick(LIMITS), Err(10), "a target that says it lives, and does nothing");
}

#[test]
fn leaving_takes_back_what_was_not_sent() {
    let mut session =
        Session::new(&LoggedIn { negotiated: small(), exp_stat_sn: 100, max_cmd_sn: 1 });
    let mut answers: Vec<Answer> = (0..3).map(|_| submit(&mut session, Data::None)).collect();
    assert_eq!(sent(&mut session).len(), 1);
    session.leave();
    From::status(1, 100).u32(28, 2).to(&mut session, &[]).unwrap();
    assert_eq!(sent(&mut session), []);
    assert_eq!(answers[0].try_recv().unwrap(), Ok(CommandOutcome::default()));
    for answer in &mut answers[1..] {
        assert!(matches!(answer.try_recv().unwrap(), Err(IscsiErrorKind::TargetGone(_))));
    }
}

#[test]
fn the_target_can_ask_to_end_the_session() {
    let mut session = session(small());
    let mut answer = submit(&mut session, Data::None);
    sent(&mut session);
    From::new(0x32, 0x80, NO_TAG).u32(24, 100).u32(36, 1 << 24).to(&mut session, &[]).unwrap();
    assert_eq!(sent(&mut session)[0].0, 0x46, "a logout");
    let mut late = submit(&mut session, Data::None);
    assert!(matches!(late.try_recv().unwrap(), Err(IscsiErrorKind::TargetGone(_))));
    From::status(1, 101).to(&mut session, &[]).unwrap();
    answer.try_recv().unwrap().unwrap();
    let end = From::new(0x26, 0x80, 2).u32(24, 102).to(&mut session, &[]);
    assert!(matches!(end, Err(IscsiErrorKind::TargetGone(_))));

    let mut session = self::session(small());
    let dropped = From::new(0x32, 0x80, NO_TAG).u32(24, 100).u32(36, 2 << 24).to(&mut session, &[]);
    assert!(matches!(dropped, Err(IscsiErrorKind::TargetGone(_))));
}

#[test]
fn a_rejected_pdu_ends_the_session_with_the_reason() {
    for (reason, expected) in [
        (2, IscsiErrorKind::Digest(DigestOf::Data)),
        (
            9,
            IscsiErrorKind::Protocol(
                "it rejects one of our PDUs: invalid PDU field (09)".to_owned(),
            ),
        ),
    ] {
        let mut session = session(small());
        let mut reject = From::new(0x3f, 0x80, NO_TAG).u32(24, 100);
        reject.bhs[2] = reason;
        assert_eq!(reject.to(&mut session, &[0; 48]), Err(expected));
    }
}

#[test]
fn after_a_failure_everybody_has_an_answer_and_nothing_is_sent() {
    let mut session = session(small());
    let mut answers: Vec<Answer> = (0..40).map(|_| submit(&mut session, payload(5000))).collect();
    sent(&mut session);
    let reason = IscsiErrorKind::TargetGone("closed by the target".to_owned());
    session.fail(&reason);
    session.fail(&IscsiErrorKind::TargetGone("later".to_owned()));
    answers.push(submit(&mut session, Data::None));
    for answer in &mut answers {
        assert_eq!(answer.try_recv().unwrap(), Err(reason.clone()));
    }
    assert_eq!(sent(&mut session), []);
}

#[derive(Clone, Debug)]
enum Move {
    Write(usize),
    Read(u32),
    Send(u8),
    Tick,
    /// Opcode, flags, tag, the numbers near the expected ones, and fields 36, 40, 44.
    Pdu(u8, u8, u32, u32, [u32; 3], usize),
    Reset,
}

fn any_move() -> impl Strategy<Value = Move> {
    let opcode = prop_oneof![
        Just(0x21),
        Just(0x25),
        Just(0x31),
        Just(0x31),
        Just(0x20),
        Just(0x32),
        any::<u8>()
    ];
    let flags = prop_oneof![Just(0x80_u8), Just(0x81), Just(0), any::<u8>()];
    let tag = prop_oneof![1..6_u32, Just(NO_TAG)];
    let field = prop_oneof![0..4_u32, Just(1024), Just(2048), Just(3072), any::<u32>()];
    let fields = [field.clone(), field.clone(), field];
    prop_oneof![
        (0..9000_usize).prop_map(Move::Write),
        (0..9000_u32).prop_map(Move::Read),
        any::<u8>().prop_map(Move::Send),
        Just(Move::Tick),
        (opcode, flags, tag, 0..3_u32, fields, 0..3000_usize).prop_map(
            |(opcode, flags, tag, near, fields, bytes)| Move::Pdu(
                opcode, flags, tag, near, fields, bytes
            )
        ),
        Just(Move::Reset),
    ]
}

proptest! {
    #[test]
    fn whatever_a_target_says_no_byte_is_sent_twice_and_every_command_is_answered(
        moves in proptest::collection::vec(any_move(), 1..60),
        initial_r2t in any::<bool>(),
        immediate_data in any::<bool>(),
    ) {
        let mut session = session(Negotiated { initial_r2t, immediate_data, ..small() });
        let (mut answers, mut owed, mut paid, mut stat_sn) = (Vec::new(), 0, 0, 100_u32);
        for step in moves {
            match step {
                Move::Write(bytes) => {
                    owed += bytes;
                    answers.push(submit(&mut session, payload(bytes)));
                }
                Move::Read(bytes) => answers.push(submit(&mut session, Data::In(bytes))),
                Move::Send(count) => {
                    let pdus = (0..count).map_while(|_| session.next_pdu());
                    let data = pdus.filter(|pdu| matches!(pdu.bhs[0], 1 | 5));
                    paid += data.map(|pdu| pdu.data.len()).sum::<usize>();
                }
                Move::Tick => drop(session.tick(LIMITS).ok()),
                Move::Reset => {
                    let (answer, receiver) = oneshot::channel();
                    session.reset_unit(LUN, Completion { answer, slot: None });
                    answers.push(receiver);
                }
                Move::Pdu(opcode, flags, tag, near, [a, b, c], bytes) => {
                    let pdu = From::new(opcode, flags, tag).u32(20, near).u32(24, stat_sn);
                    let pdu = pdu.u32(28, near).u32(36, a).u32(40, b).u32(44, c);
                    let before = session.window.exp_stat_sn();
                    if let Err(kind) = pdu.to(&mut session, &vec![0; bytes]) {
                        session.fail(&kind);
                    }
                    stat_sn += session.window.exp_stat_sn().wrapping_sub(before);
                }
            }
            prop_assert!(paid <= owed);
            prop_assert!(session.urgent.len() < 60);
            prop_assert!(session.bursts.len() <= 3 * session.tasks.len());
        }
        session.fail(&IscsiErrorKind::TargetGone("the end".to_owned()));
        for mut answer in answers {
            prop_assert!(answer.try_recv().is_ok());
        }
    }
}
