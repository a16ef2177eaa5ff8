//! The login's state machine against scripted answers.

use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::{
    iscsi::pdu::{BHS_BYTES, Bhs, decode},
    model::{ids::hex, secret::Secret},
};

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
/// Response flags: transit to the operational stage, and to the full feature phase.
const TO_OPERATIONAL: u8 = 0x81;
const TO_FULL: u8 = 0x87;

fn chap(mutual: bool) -> Chap {
    let theirs = ("target".to_owned(), Secret::new("their secret".to_owned()));
    Chap {
        username: "node".to_owned(),
        secret: Secret::new("our secret".to_owned()),
        mutual: mutual.then_some(theirs),
    }
}

fn identity(chap: Option<&Chap>) -> Identity<'_> {
    Identity {
        initiator_iqn: "iqn.test:i",
        target_iqn: "iqn.test:t",
        chap,
        digests: Digests::default(),
        random: Random { isid: [0x80, 1, 2, 3, 4, 5], identifier: [7], challenge: [9; 16] },
    }
}

fn answer(flags: u8, stat_sn: u32, status: (u8, u8)) -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    (bhs[0], bhs[1]) = (0x23, flags);
    bhs[15] = 3;
    bhs[16..20].copy_from_slice(&1_u32.to_be_bytes());
    bhs[24..28].copy_from_slice(&stat_sn.to_be_bytes());
    bhs[31] = 1;
    bhs[35] = 64;
    (bhs[36], bhs[37]) = status;
    bhs
}

/// Runs a login against answers of flags and text (`|` for NUL); returns the sent requests and the
/// result.
fn run(
    identity: &Identity<'_>,
    answers: &[(u8, &str)],
) -> (String, Result<LoggedIn, IscsiErrorKind>) {
    let (mut login, first) = Login::start(identity).unwrap();
    let shown = |pdu: &Pdu| {
        let text = String::from_utf8(pdu.data.to_vec()).unwrap().replace('\0', "|");
        format!("{:02x} {text}\n", pdu.bhs[1])
    };
    let mut sent = shown(&first);
    for (stat_sn, (flags, text)) in (100..).zip(answers) {
        let response = decode(&answer(*flags, stat_sn, (0, 0))).unwrap();
        match login.receive(&response, text.replace('|', "\0").as_bytes()) {
            Ok(LoginAction::Send(pdu)) => {
                assert_eq!(pdu.bhs[28..32], (stat_sn + 1).to_be_bytes(), "ExpStatSN");
                sent += &shown(&pdu);
            }
            Ok(LoginAction::Done(done)) => return (sent, Ok(done)),
            Err(kind) => return (sent, Err(kind)),
        }
    }
    panic!("the login goes on after\n{sent}")
}

fn refused(refusal: LoginRefusal) -> Result<LoggedIn, IscsiErrorKind> {
    Err(IscsiErrorKind::LoginRefused(refusal))
}

#[test]
fn a_login_without_credentials_takes_two_rounds() {
    let (sent, result) = run(
        &identity(None),
        &[
            (TO_OPERATIONAL, "AuthMethod=None|TargetPortalGroupTag=1|"),
            (TO_FULL, "MaxBurstLength=512|"),
        ],
    );
    expect![[r"
        81 InitiatorName=iqn.test:i|TargetName=iqn.test:t|SessionType=Normal|AuthMethod=None|
        87 HeaderDigest=None|DataDigest=None|MaxRecvDataSegmentLength=262144|InitialR2T=No|ImmediateData=Yes|FirstBurstLength=262144|MaxBurstLength=1048576|MaxOutstandingR2T=8|MaxConnections=1|ErrorRecoveryLevel=0|DefaultTime2Wait=2|DefaultTime2Retain=0|DataPDUInOrder=Yes|DataSequenceInOrder=Yes|
    "]]
    .assert_eq(&sent);
    let done = result.unwrap();
    assert_eq!(
        (done.exp_stat_sn, done.max_cmd_sn, done.negotiated.max_burst_bytes),
        (102, 64, 512)
    );
}

#[test]
fn mutual_chap_proves_both_sides() {
    let chap = chap(true);
    let ours = hex(&chap::response(5, &chap.secret, &[0xab, 0xcd]));
    let theirs = hex(&chap::response(7, &Secret::new("their secret".to_owned()), &[9; 16]));
    let proof = format!("CHAP_N=target|CHAP_R=0x{theirs}|");
    let answers = [
        (SECURITY, "AuthMethod=CHAP|TargetPortalGroupTag=1|"),
        (SECURITY, "CHAP_A=5|CHAP_I=5|CHAP_C=0xabcd|"),
        (TO_OPERATIONAL, &proof),
        (TO_FULL, ""),
    ];
    let (sent, result) = run(&identity(Some(&chap)), &answers);
    result.unwrap();
    let lines: Vec<&str> = sent.lines().collect();
    assert!(lines[0].ends_with("|AuthMethod=CHAP|") && lines[0].starts_with("00 "), "{sent}");
    assert_eq!(lines[1], "00 CHAP_A=5|");
    let challenge = "09".repeat(16);
    assert_eq!(lines[2], format!("81 CHAP_N=node|CHAP_R=0x{ours}|CHAP_I=7|CHAP_C=0x{challenge}|"));
}

#[test]
fn a_target_cannot_get_round_chap() {
    let (one_way, mutual) = (chap(false), chap(true));
    let ask = (SECURITY, "AuthMethod=CHAP|");
    let challenge = (SECURITY, "CHAP_A=5|CHAP_I=5|CHAP_C=0xabcd|");
    let reflected =
        format!("CHAP_N=target|CHAP_R=0x{}|", hex(&chap::response(7, &mutual.secret, &[9; 16])));
    let not_demanded = || refused(LoginRefusal::ChapNotDemanded);
    let unproven = || refused(LoginRefusal::TargetUnproven);
    for (chap, answers, expected) in [
        (&one_way, vec![(SECURITY, "AuthMethod=None|")], not_demanded()),
        (&one_way, vec![(SECURITY, "AuthMethod=Reject|")], not_demanded()),
        (&one_way, vec![(SECURITY, "")], not_demanded()),
        (&one_way, vec![(TO_OPERATIONAL, "AuthMethod=CHAP|")], not_demanded()),
        (
            &one_way,
            vec![(TO_FULL, "AuthMethod=None|")],
            Err(violation("a login response of another stage")),
        ),
        (&one_way, vec![ask, (TO_OPERATIONAL, "")], not_demanded()),
        (&mutual, vec![ask, challenge, (TO_OPERATIONAL, "")], unproven()),
        (&mutual, vec![ask, challenge, (SECURITY, "CHAP_N=target|CHAP_R=0x00|")], unproven()),
        (&mutual, vec![ask, challenge, (TO_OPERATIONAL, &reflected)], unproven()),
    ] {
        assert_eq!(run(&identity(Some(chap)), &answers).1, expected, "{answers:?}");
    }
    let demands = run(&identity(None), &[(SECURITY, "AuthMethod=CHAP|")]).1;
    assert_eq!(demands, refused(LoginRefusal::CredentialsNeeded));
    let mut same = chap(true);
    same.mutual = Some(("target".to_owned(), same.secret.clone()));
    assert!(matches!(Login::start(&identity(Some(&same))), Err(IscsiErrorKind::Request(_))));
}

#[test]
fn answers_the_rfc_does_not_allow_end_the_login() {
    let chap = chap(false);
    let ask = (SECURITY, "AuthMethod=CHAP|");
    let long = format!("CHAP_A=5|CHAP_I=1|CHAP_C=0x{}|", "00".repeat(1025));
    for answers in [
        vec![ask, (SECURITY, "CHAP_A=7|CHAP_I=1|CHAP_C=0x00|")],
        vec![ask, (SECURITY, "CHAP_A=5|CHAP_I=256|CHAP_C=0x00|")],
        vec![ask, (SECURITY, "CHAP_A=5|CHAP_I=1|")],
        vec![ask, (SECURITY, &long)],
        vec![(SECURITY, "no pair")],
        vec![(OPERATIONAL << 2, "AuthMethod=CHAP|")],
        vec![ask; 20],
    ] {
        let result = run(&identity(Some(&chap)), &answers).1;
        assert!(matches!(result, Err(IscsiErrorKind::Protocol(_))), "{answers:?}: {result:?}");
    }
    let endless = vec![(OPERATIONAL << 2, "X-key=1|"); 30];
    let mut answers = vec![(TO_OPERATIONAL, "")];
    answers.extend(endless);
    let result = run(&identity(None), &answers).1;
    assert_eq!(result, Err(violation("the login takes more than 16 rounds")));
}

#[test]
fn answers_may_be_spread_over_pdus_and_unknown_keys_are_not_understood() {
    let more = 0x40;
    let answers = [
        (SECURITY | more, "AuthMeth"),
        (TO_OPERATIONAL, "od=None|"),
        (OPERATIONAL << 2, "X-org.test=1|MaxRecvDataSegmentLength=512|"),
        (TO_FULL, ""),
    ];
    let (sent, result) = run(&identity(None), &answers);
    assert_eq!(result.unwrap().negotiated.max_send_bytes, 512);
    let lines: Vec<&str> = sent.lines().collect();
    assert_eq!((lines[1], lines[3]), ("81 ", "87 X-org.test=NotUnderstood|"));
    let endless = vec![(SECURITY | more, "k".repeat(8192)); 20];
    let endless: Vec<(u8, &str)> =
        endless.iter().map(|(flags, text)| (*flags, text.as_str())).collect();
    assert!(matches!(run(&identity(None), &endless).1, Err(IscsiErrorKind::Protocol(_))));
}

#[test]
fn a_status_says_what_to_do_about_it() {
    let given = chap(false);
    for (chap, status, text, expected) in [
        (None, (2, 3), "", LoginRefusal::Status { class: 2, detail: 3 }),
        (None, (2, 1), "", LoginRefusal::CredentialsNeeded),
        (Some(&given), (2, 1), "", LoginRefusal::ChapNotDemanded),
        (
            None,
            (1, 1),
            "TargetAddress=192.0.2.1:3260\0",
            LoginRefusal::Moved("\"192.0.2.1:3260\"".to_owned()),
        ),
    ] {
        let identity = identity(chap);
        let (mut login, _) = Login::start(&identity).unwrap();
        let response = decode(&answer(SECURITY, 1, status)).unwrap();
        let result = login.receive(&response, text.as_bytes());
        assert_eq!(result.unwrap_err(), IscsiErrorKind::LoginRefused(expected));
    }
    assert!(LoginRefusal::Status { class: 3, detail: 1 }.may_pass());
    assert!(!LoginRefusal::WrongSecret.may_pass());
}

/// Invariant (log): Every log line is one line of some KiB, whatever a machine, target or stranger
/// sends.
#[test]
fn what_a_target_says_is_quoted_in_short_and_escaped() {
    let long = "\u{1}\n\u{85}".repeat(10_000);
    let identity = identity(None);
    for (status, text) in [
        ((1, 1), format!("TargetAddress={long}\0")),
        ((0, 0), format!("MaxRecvDataSegmentLength={long}\0")),
        ((0, 0), format!("HeaderDigest={long}\0")),
    ] {
        let (mut login, _) = Login::start(&identity).unwrap();
        let [first, second] = [(TO_OPERATIONAL, 1), (TO_FULL, 2)]
            .map(|(flags, number)| decode(&answer(flags, number, status)).unwrap());
        let received = login.receive(&first, text.as_bytes());
        // Some keys take effect in the next stage.
        let received = received.and_then(|_| login.receive(&second, text.as_bytes()));
        let error = received.unwrap_err();
        let said = error.to_string();
        assert!(said.len() < 2_000 && said.contains("\\u{1}\\n\\u{85}"), "{said}");
        assert!(!said.contains(char::is_control), "{said}");
    }
}

#[test]
fn a_response_out_of_sequence_or_with_another_tag_is_refused() {
    let identity = identity(None);
    let (mut login, _) = Login::start(&identity).unwrap();
    login.receive(&decode(&answer(TO_OPERATIONAL, 5, (0, 0))).unwrap(), b"").unwrap();
    let late = login.receive(&decode(&answer(TO_FULL, 7, (0, 0))).unwrap(), b"");
    assert!(matches!(late, Err(IscsiErrorKind::Protocol(_))));
    let (mut login, _) = Login::start(&identity).unwrap();
    let mut other = answer(TO_OPERATIONAL, 5, (0, 0));
    other[19] = 9;
    assert!(matches!(
        login.receive(&decode(&other).unwrap(), b""),
        Err(IscsiErrorKind::Protocol(_))
    ));
}

proptest! {
    #[test]
    fn a_login_never_panics_on_any_answers(
        mutual in any::<Option<bool>>(),
        answers in proptest::collection::vec((any::<u8>(), 0..4_u8, 0..3_u8, ".{0,60}"), 1..20),
    ) {
        const TEXTS: [&str; 3] =
            ["AuthMethod=CHAP\0", "CHAP_A=5\0CHAP_I=5\0CHAP_C=0xab\0", "AuthMethod=None\0"];
        let chap = mutual.map(chap);
        let identity = identity(chap.as_ref());
        let (mut login, _) = Login::start(&identity).unwrap();
        for (stat_sn, (flags, kind, status, text)) in (1..).zip(answers) {
            let text = TEXTS.get(usize::from(kind)).copied().unwrap_or(&text);
            let status = if status == 2 { (2, 1) } else { (0, 0) };
            let response = decode(&answer(flags, stat_sn, status)).unwrap();
            if let Ok(LoginAction::Send(pdu)) = login.receive(&response, text.as_bytes()) {
                prop_assert!(pdu.data.len() <= REQUEST_BYTES_MAX);
            }
        }
    }
}
