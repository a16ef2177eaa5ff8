//! The handshake against dialogues captured from `ipmi_sim` 2.0.33 (suite 3) and pyghmi 1.6.19 with
//! suite 17.

use proptest::prelude::*;

use super::*;
use crate::bmc::ipmi::exchange::CommandAnswer;

/// One recorded session, without RMCP headers.
struct Capture {
    suite: CipherSuite,
    /// The requests and responses of the handshake.
    handshake: [(&'static str, &'static str); 3],
    /// Set Session Privilege Level to administrator, and its answer.
    privilege: (&'static str, &'static str),
}

const IPMI_SIM: Capture = Capture {
    suite: CipherSuite::Sha1,
    handshake: [
        (
            "0610000000000000000020007600000035deb640000000080100000001000008010000000200000801000000",
            "0611000000000000000024007600000035deb64002000000000000080100000001000008010000000200000801000000",
        ),
        (
            "0612000000000000000021007700000002000000e80ccf8959d5437ae2b1402c5e551a191400000561646d696e",
            "061300000000000000003c007700000035deb640b77882f3b9769f79011f944abda690eba123456789abcdefa123456789abcdef74ca2e74ab7528d2360549b13b89e2b23cebdbf7",
        ),
        (
            "061400000000000000001c0078000000020000005394eaac918eb99f8938ba5d2b03eb60c7c666c3",
            "0615000000000000000014007800000035deb640938cd8114e7f161b7855f6f4",
        ),
    ],
    privilege: (
        "06c0020000000100000020000908b3be3448c80eb0e30d5710b81d78436d1a51f8ce0dc018cd82d3deda6a38ffff0207ca0f86e9ef3db11741128146",
        "06c035deb640010000002000f7dca744b13a7143d6139f73d9306e328311071daf827827f12843938f2f4e08ffff0207cbf32a79d0eda4c614c8ae69",
    ),
};

const PYGHMI: Capture = Capture {
    suite: CipherSuite::Sha256,
    handshake: [
        (
            "0610000000000000000020007e00000029934031000000080300000001000008040000000200000801000000",
            "0611000000000000000024007e0004002993403120b0ab46000000080300000001000008040000000200000801000000",
        ),
        (
            "0612000000000000000021007f00000020b0ab464330c59013e6c6bffcb42280d67ec9451400000561646d696e",
            "0613000000000000000048007f00000029934031db13fa46e6945399a5c22ef6d3ab67b7c9212009709243328d328e75f7179cad5c9628edb76684e578ece31b3542cd1c9867ff462e71fc3b08414b1428cb3224",
        ),
        (
            "0614000000000000000028008000000020b0ab465a035b7a0de721d38bc11056d88b97e12badec7222e59891019efdab57798efb",
            "06150000000000000000180080000000299340315d437f705de0caa0ea2e5de9cb740bad",
        ),
    ],
    privilege: (
        "06c020b0ab460100000020004578d1b2666eb522dd67570effb4e56324d2e5a0941d5fdc4817a5b223b3fb18ffff020767b7f01c0e780cff1fb966b1aca156d4",
        "06c029934031010000002000be8fe0435655822d4027eee4530717fb5017aa77fef104fb52d81b756fa2b5cbffff0207be8b4517f8e483502693009e6bc28691",
    ),
};

const CAPTURES: [Capture; 2] = [IPMI_SIM, PYGHMI];

fn datagram(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let mut datagram = packet::RMCP.to_vec();
    datagram.extend((0..hex.len()).step_by(2).map(byte));
    datagram
}

impl Capture {
    fn received(&self, step: usize) -> Vec<u8> {
        datagram(self.handshake[step].1)
    }

    /// Starts the recorded handshake again, with the same random values.
    fn start(&self, password: &str) -> Handshake {
        let open = datagram(self.handshake[0].0);
        let rakp1 = datagram(self.handshake[1].0);
        let credentials = Credentials {
            username: "admin".to_owned(),
            password: Secret::new(password.to_owned()),
            kg: None,
            privilege: Privilege::Administrator,
        };
        let nonces = Nonces {
            tag: open[16],
            console_id: u32::from_le_bytes(open[20..24].try_into().unwrap()),
            challenge: rakp1[24..40].try_into().unwrap(),
        };
        Handshake::start(credentials, self.suite, nonces)
    }

    /// The recorded RAKP message 2 with another challenge.
    fn challenges_anew(&self, handshake: &Handshake, number: u8) -> Vec<u8> {
        let mut anew = self.received(1);
        // The challenge, the GUID, and the check over both.
        let (challenge, guid) = ([number; 16], anew[40..56].to_vec());
        anew[24..40].copy_from_slice(&challenge);
        let check = handshake.keyed(&[
            &handshake.nonces.console_id.to_le_bytes(),
            &handshake.candidates[0].to_le_bytes(),
            &handshake.nonces.challenge,
            &challenge,
            &guid,
            &handshake.role(),
            handshake.username(),
        ]);
        anew[56..].copy_from_slice(&check);
        anew
    }

    /// Starts the recorded handshake, and feeds it this many responses.
    fn after(&self, answers: usize) -> Handshake {
        let mut handshake = self.start("correct-horse");
        for step in 0..answers {
            assert!(matches!(handshake.receive(&self.received(step)), Some(Progress::Send)));
        }
        handshake
    }
}

#[test]
fn every_datagram_of_a_session_is_as_captured() {
    for capture in CAPTURES {
        let mut handshake = capture.start("correct-horse");
        let mut session = None;
        for (sent, received) in capture.handshake {
            assert_eq!(handshake.datagram(), datagram(sent));
            if let Some(Progress::Established(established)) = handshake.receive(&datagram(received))
            {
                session = Some(established);
            }
        }
        let mut session = session.unwrap();
        let command =
            crate::bmc::ipmi::commands::IpmiCommand::SetSessionPrivilege(Privilege::Administrator);
        let request = session.request(command).unwrap();
        let (sent, received) = (datagram(capture.privilege.0), datagram(capture.privilege.1));
        let iv = sent[16..32].try_into().unwrap();
        assert_eq!(session.seal(&request, iv), sent);
        let answer = session.answer(&request, &received);
        assert_eq!(answer, Some(CommandAnswer { completion: 0, data: vec![4] }));
    }
}

#[test]
fn an_answer_heard_twice_changes_nothing() {
    for capture in CAPTURES {
        for step in 0..2 {
            let mut handshake = capture.after(step + 1);
            let before = handshake.datagram().to_vec();
            assert!(handshake.receive(&capture.received(step)).is_none());
            assert_eq!(handshake.datagram(), before);
        }
        let mut handshake = capture.after(2);
        assert!(matches!(handshake.receive(&capture.received(2)), Some(Progress::Established(_))));
        assert!(handshake.receive(&capture.received(2)).is_none());
    }
}

#[test]
fn a_bmc_that_heard_the_open_request_twice_may_hold_to_either_session_id() {
    for capture in CAPTURES {
        for real_first in [true, false] {
            let real = capture.received(0);
            let mut other = real.clone();
            other[24] ^= 0xff;
            let [first, second] = if real_first { [real, other] } else { [other, real] };
            let mut handshake = capture.start("correct-horse");
            assert!(matches!(handshake.receive(&first), Some(Progress::Send)));
            assert!(handshake.receive(&second).is_none());
            assert!(matches!(handshake.receive(&capture.received(1)), Some(Progress::Send)));
            assert_eq!(handshake.datagram(), datagram(capture.handshake[2].0));
            assert!(matches!(
                handshake.receive(&capture.received(2)),
                Some(Progress::Established(_))
            ));
        }
    }
}

/// Invariant (bmc): A BMC that begins a login anew may confirm either challenge, whichever arrives
/// first.
#[test]
fn a_bmc_that_heard_rakp_message_1_twice_may_confirm_either_challenge() {
    for capture in CAPTURES {
        for real_first in [true, false] {
            let mut handshake = capture.after(1);
            let real = capture.received(1);
            let other = capture.challenges_anew(&handshake, 7);
            let [first, second] = if real_first { [real, other] } else { [other, real] };
            assert!(matches!(handshake.receive(&first), Some(Progress::Send)));
            assert!(matches!(handshake.receive(&second), Some(Progress::Send)));
            assert!(handshake.receive(&first).is_none(), "it is heard already");
            let progress = handshake.receive(&capture.received(2));
            assert!(matches!(progress, Some(Progress::Established(_))), "real first: {real_first}");
        }
    }
}

#[test]
fn a_bmc_that_begins_anew_without_end_is_followed_a_few_times_only() {
    for capture in CAPTURES {
        let mut handshake = capture.after(2);
        let anew = (1..100).map(|number| capture.challenges_anew(&handshake, number));
        let anew: Vec<_> = anew.collect();
        let followed = anew.iter().filter(|anew| handshake.receive(anew).is_some()).count();
        assert_eq!(followed, CANDIDATES_MAX - 1);
    }
}

#[test]
fn a_bmc_that_does_not_know_the_password_is_not_believed() {
    for capture in CAPTURES {
        let mut handshake = capture.start("another");
        assert!(matches!(handshake.receive(&capture.received(0)), Some(Progress::Send)));
        let progress = handshake.receive(&capture.received(1));
        assert!(matches!(progress, Some(Progress::Failed(LoginFailure::Mismatch))));
        assert!(handshake.abandon([0; 16]).is_empty(), "nothing that may count as a failed login");
    }
}

#[test]
fn a_bmc_without_the_session_integrity_key_is_not_believed() {
    for capture in CAPTURES {
        let mut received = capture.received(2);
        *received.last_mut().unwrap() ^= 1;
        let progress = capture.after(2).receive(&received);
        assert!(matches!(progress, Some(Progress::Failed(LoginFailure::KeyMismatch))));
    }
}

#[test]
fn a_suite_other_than_the_one_asked_for_is_refused() {
    for capture in CAPTURES {
        for algorithm in [32, 40, 48] {
            let mut received = capture.received(0);
            received[algorithm] = 0;
            let progress = capture.after(0).receive(&received);
            assert!(
                matches!(progress, Some(Progress::Failed(LoginFailure::SuiteRefused))),
                "{algorithm}"
            );
        }
    }
}

#[test]
fn a_refusal_is_told_apart_by_its_status() {
    use LoginFailure::{PrivilegeRefused, Status, SuiteRefused, UnknownUser};
    let check = |step: usize, status: u8, expected: LoginFailure| {
        // Some BMCs end a refusal after its status, some name session 0, some fill it up.
        for (length, nobody) in [(2, false), (8, false), (8, true), (20, true)] {
            let whole = IPMI_SIM.received(step);
            let mut payload = whole[16..16 + length].to_vec();
            payload[1] = status;
            if nobody {
                payload[4..].fill(0);
            }
            let kind = [PayloadType::OpenResponse, PayloadType::Rakp2, PayloadType::Rakp4][step];
            let progress = IPMI_SIM.after(step).receive(&packet::encode(kind, 0, 0, &payload));
            let Some(Progress::Failed(failure)) = progress else { panic!("{progress:?}") };
            assert_eq!(failure, expected, "step {step}, status {status:#x}");
        }
    };
    check(0, 0x01, Status(0x01));
    check(0, 0x04, SuiteRefused);
    check(0, 0x11, SuiteRefused);
    check(1, 0x02, Status(0x02));
    check(1, 0x09, PrivilegeRefused);
    check(1, 0x0a, PrivilegeRefused);
    check(1, 0x0d, UnknownUser);
    check(2, 0x0f, Status(0x0f));
}

#[test]
fn only_a_refusal_may_come_in_the_name_of_session_0() {
    for capture in CAPTURES {
        for step in 0..3 {
            let mut received = capture.received(step);
            received[20..24].fill(0);
            assert!(capture.after(step).receive(&received).is_none(), "step {step}");
        }
    }
}

#[test]
fn what_belongs_to_another_handshake_is_ignored() {
    for capture in CAPTURES {
        for step in 0..3 {
            for byte in [16, 20] {
                let mut received = capture.received(step);
                received[byte] ^= 0x80;
                assert!(capture.after(step).receive(&received).is_none());
            }
        }
    }
}

#[test]
fn a_handshake_given_up_tells_the_bmc_once() {
    for capture in CAPTURES {
        assert!(capture.after(0).abandon([0; 16]).is_empty());
        let kinds = |datagrams: &[Vec<u8>]| {
            datagrams
                .iter()
                .map(|datagram| Packet::decode(datagram).unwrap().payload_type)
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(&capture.after(1).abandon([0; 16])), [PayloadType::Rakp3]);
        let mut proved = capture.after(2);
        assert_eq!(kinds(&proved.abandon([0; 16])), [PayloadType::Ipmi, PayloadType::Rakp3]);
        assert!(proved.abandon([0; 16]).is_empty());
    }
}

proptest! {
    #[test]
    fn receiving_never_panics_on_any_bytes(bytes: Vec<u8>, step in 0_usize..3) {
        let mut handshake = PYGHMI.after(step);
        let _ignored = handshake.receive(&bytes);
        // The tag, status and session id are right, so that the bytes reach the decoder.
        let kind = [PayloadType::OpenResponse, PayloadType::Rakp2, PayloadType::Rakp4][step];
        let mut payload = PYGHMI.received(step)[16..24].to_vec();
        payload.extend(bytes);
        let _ignored = handshake.receive(&packet::encode(kind, 0, 0, &payload));
    }
}
