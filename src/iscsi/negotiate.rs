//! The operational keys, RFC 7143 §13: the initiator's offer, and the session parameters after the
//! target's answers.
//!
//! The login uses it. It checks every answer against the offer, so that a session never uses a
//! value that the initiator did not agree to.

use super::{
    error::{DigestOf, IscsiErrorKind, LoginRefusal, QUOTED_CHARS_MAX},
    pdu::DATA_SEGMENT_BYTES_MAX,
    text::{self, Pairs},
};
use crate::model::printable::excerpt;

/// Largest data segment that the initiator accepts: large enough that headers cost nothing, small
/// enough for one buffer per session.
pub(super) const MAX_RECV_BYTES: u32 = 256 << 10;
/// Offered limit of unsolicited data per command.
const FIRST_BURST_BYTES: u32 = 256 << 10;
/// Offered limit of data per R2T.
const MAX_BURST_BYTES: u32 = 1 << 20;
/// Offered limit of outstanding R2Ts per command.
const MAX_OUTSTANDING_R2T: u32 = 8;
/// Least value of every length key.
const LENGTH_BYTES_MIN: u32 = 512;

/// The negotiated parameters of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Negotiated {
    pub(super) digests: Digests,
    /// The target's `MaxRecvDataSegmentLength`: most data in one PDU to it.
    pub(super) max_send_bytes: u32,
    pub(super) initial_r2t: bool,
    pub(super) immediate_data: bool,
    pub(super) first_burst_bytes: u32,
    pub(super) max_burst_bytes: u32,
    pub(super) max_outstanding_r2t: u32,
}

/// The defaults of RFC 7143 §13, for keys that the target does not answer.
impl Default for Negotiated {
    fn default() -> Self {
        Self {
            digests: Digests::default(),
            max_send_bytes: 8192,
            initial_r2t: true,
            immediate_data: true,
            first_burst_bytes: 65_536,
            max_burst_bytes: 262_144,
            max_outstanding_r2t: 1,
        }
    }
}

/// The parts of a PDU that carry a CRC32C.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digests {
    pub(super) header: bool,
    pub(super) data: bool,
}

/// The keys of the initiator's only operational offer.
pub(super) fn offer(digests: Digests) -> Pairs {
    let digest = |wanted| if wanted { "CRC32C" } else { "None" };
    let mut pairs = Pairs::default();
    pairs.push("HeaderDigest", digest(digests.header));
    pairs.push("DataDigest", digest(digests.data));
    pairs.push("MaxRecvDataSegmentLength", &MAX_RECV_BYTES.to_string());
    pairs.push("InitialR2T", "No");
    pairs.push("ImmediateData", "Yes");
    pairs.push("FirstBurstLength", &FIRST_BURST_BYTES.to_string());
    pairs.push("MaxBurstLength", &MAX_BURST_BYTES.to_string());
    pairs.push("MaxOutstandingR2T", &MAX_OUTSTANDING_R2T.to_string());
    pairs.push("MaxConnections", "1");
    pairs.push("ErrorRecoveryLevel", "0");
    pairs.push("DefaultTime2Wait", "2");
    pairs.push("DefaultTime2Retain", "0");
    pairs.push("DataPDUInOrder", "Yes");
    pairs.push("DataSequenceInOrder", "Yes");
    pairs
}

impl Negotiated {
    /// Processes one pair of the target's, and adds a reply to `replies` if one is due.
    pub(super) fn take(
        &mut self,
        key: &str,
        value: &str,
        replies: &mut Pairs,
    ) -> Result<(), IscsiErrorKind> {
        // The key's default then holds (RFC 7143 §6.2); `finish` checks whether that is enough.
        if matches!(value, "Irrelevant" | "NotUnderstood" | "Reject") {
            return Ok(());
        }
        let wrong = || {
            IscsiErrorKind::Protocol(format!(
                "login answer {key}=\"{}\"",
                excerpt(value, QUOTED_CHARS_MAX)
            ))
        };
        let length = |most: u32| {
            text::number(value)
                .filter(|bytes| (LENGTH_BYTES_MIN..=most).contains(bytes))
                .ok_or_else(wrong)
        };
        let yes = || match value {
            "Yes" => Ok(true),
            "No" => Ok(false),
            _ => Err(wrong()),
        };
        match key {
            "HeaderDigest" => self.digests.header = digest(value).ok_or_else(wrong)?,
            "DataDigest" => self.digests.data = digest(value).ok_or_else(wrong)?,
            "MaxRecvDataSegmentLength" => self.max_send_bytes = length(DATA_SEGMENT_BYTES_MAX)?,
            "InitialR2T" => self.initial_r2t = yes()?,
            "ImmediateData" => self.immediate_data = yes()?,
            "FirstBurstLength" => self.first_burst_bytes = length(FIRST_BURST_BYTES)?,
            "MaxBurstLength" => self.max_burst_bytes = length(MAX_BURST_BYTES)?,
            "MaxOutstandingR2T" => {
                let within = |count: &u32| (1..=MAX_OUTSTANDING_R2T).contains(count);
                self.max_outstanding_r2t = text::number(value).filter(within).ok_or_else(wrong)?;
            }
            // The offer leaves a target only one answer to these keys.
            "DataPDUInOrder" | "DataSequenceInOrder" if value == "Yes" => {}
            "MaxConnections" if value == "1" => {}
            "ErrorRecoveryLevel" if value == "0" => {}
            "DataPDUInOrder" | "DataSequenceInOrder" | "MaxConnections" | "ErrorRecoveryLevel" => {
                return Err(wrong());
            }
            // These keys have no effect: the initiator never reinstates a session.
            "DefaultTime2Wait"
            | "DefaultTime2Retain"
            | "TargetAlias"
            | "TargetAddress"
            | "TargetPortalGroupTag"
            | "InitiatorAlias" => {}
            _ => replies.push(key, "NotUnderstood"),
        }
        Ok(())
    }

    /// The parameters, once the target is ready for the full feature phase.
    pub(super) fn finish(mut self, wanted: Digests) -> Result<Self, IscsiErrorKind> {
        for (of, wanted, agreed) in [
            (DigestOf::Header, wanted.header, self.digests.header),
            (DigestOf::Data, wanted.data, self.digests.data),
        ] {
            match (wanted, agreed) {
                (true, false) => {
                    return Err(IscsiErrorKind::LoginRefused(LoginRefusal::NoDigest(of)));
                }
                (false, true) => {
                    return Err(IscsiErrorKind::Protocol(format!(
                        "the target chose a {of} digest we did not offer"
                    )));
                }
                (true, true) | (false, false) => {}
            }
        }
        self.first_burst_bytes = self.first_burst_bytes.min(self.max_burst_bytes);
        Ok(self)
    }
}

fn digest(value: &str) -> Option<bool> {
    match value {
        "CRC32C" => Some(true),
        "None" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(answers: &[(&str, &str)], wanted: Digests) -> Result<Negotiated, IscsiErrorKind> {
        let mut negotiated = Negotiated::default();
        for (key, value) in answers {
            negotiated.take(key, value, &mut Pairs::default())?;
        }
        negotiated.finish(wanted)
    }

    #[test]
    fn every_extreme_a_target_may_answer_is_accepted() {
        let least = [
            ("MaxRecvDataSegmentLength", "512"),
            ("MaxBurstLength", "512"),
            ("FirstBurstLength", "512"),
            ("MaxOutstandingR2T", "1"),
            ("InitialR2T", "Yes"),
            ("ImmediateData", "No"),
        ];
        let result = negotiate(&least, Digests::default()).unwrap();
        assert_eq!(
            (result.max_send_bytes, result.max_burst_bytes, result.first_burst_bytes),
            (512, 512, 512)
        );
        assert!(result.initial_r2t && !result.immediate_data);
        let most = [
            ("MaxRecvDataSegmentLength", "16777215"),
            ("MaxBurstLength", "0x100000"),
            ("InitialR2T", "No"),
        ];
        let result = negotiate(&most, Digests::default()).unwrap();
        assert_eq!((result.max_send_bytes, result.max_burst_bytes), (16_777_215, 1 << 20));
        assert!(!result.initial_r2t);
    }

    #[test]
    fn answers_beyond_the_offer_are_refused() {
        for (key, value) in [
            ("MaxBurstLength", "2097152"),
            ("FirstBurstLength", "511"),
            ("MaxRecvDataSegmentLength", "16777216"),
            ("MaxOutstandingR2T", "0"),
            ("MaxOutstandingR2T", "9"),
            ("ErrorRecoveryLevel", "1"),
            ("MaxConnections", "2"),
            ("DataPDUInOrder", "No"),
            ("HeaderDigest", "SHA-3"),
            ("InitialR2T", "Maybe"),
            ("HeaderDigest", "CRC32C"),
        ] {
            let answer = negotiate(&[(key, value)], Digests::default());
            assert!(
                matches!(answer, Err(IscsiErrorKind::Protocol(_))),
                "{key}={value}: {answer:?}"
            );
        }
    }

    #[test]
    fn a_digest_that_was_asked_for_is_never_given_up_silently() {
        let wanted = Digests { header: true, data: true };
        for answer in ["None", "Reject", "NotUnderstood"] {
            let result = negotiate(&[("HeaderDigest", "CRC32C"), ("DataDigest", answer)], wanted);
            assert_eq!(
                result,
                Err(IscsiErrorKind::LoginRefused(LoginRefusal::NoDigest(DigestOf::Data)))
            );
        }
    }

    #[test]
    fn the_first_burst_is_never_longer_than_a_burst() {
        let result = negotiate(
            &[("MaxBurstLength", "4096"), ("FirstBurstLength", "Irrelevant")],
            Digests::default(),
        );
        assert_eq!(result.unwrap().first_burst_bytes, 4096);
    }
}
