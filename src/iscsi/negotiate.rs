//! The operational keys, RFC 7143 §13: what we offer, and what the target's answers make of it.
//!
//! Called by the login. Every answer is checked against the offer, so that a session never works
//! with a value we did not agree to.

use super::{
    error::{DigestOf, IscsiErrorKind, LoginRefusal, QUOTED_CHARS_MAX},
    pdu::DATA_SEGMENT_BYTES_MAX,
    text::{self, Pairs},
};
use crate::model::printable::excerpt;

/// Largest data segment we take: large enough that headers cost nothing, small enough for one
/// buffer per session.
pub(super) const MAX_RECV_BYTES: u32 = 256 << 10;
/// The most unsolicited data per command we offer to send.
const FIRST_BURST_BYTES: u32 = 256 << 10;
/// The most data per R2T we offer.
const MAX_BURST_BYTES: u32 = 1 << 20;
/// R2Ts per command we are ready to hold.
const MAX_OUTSTANDING_R2T: u32 = 8;
/// Least value of every length key.
const LENGTH_BYTES_MIN: u32 = 512;

/// The result of the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Negotiated {
    pub(super) digests: Digests,
    /// The target's `MaxRecvDataSegmentLength`: the most data in one PDU of ours.
    pub(super) max_send_bytes: u32,
    pub(super) initial_r2t: bool,
    pub(super) immediate_data: bool,
    pub(super) first_burst_bytes: u32,
    pub(super) max_burst_bytes: u32,
    pub(super) max_outstanding_r2t: u32,
}

/// The defaults of RFC 7143 §13, which hold for every key the target leaves unanswered.
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

/// The keys of our one operational offer.
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
    /// Takes one pair the target sent; a reply to give is added to `replies`.
    pub(super) fn take(
        &mut self,
        key: &str,
        value: &str,
        replies: &mut Pairs,
    ) -> Result<(), IscsiErrorKind> {
        // The key's default then holds (RFC 7143 §6.2); whether that will do is checked at the end.
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
            // Our offers leave a target only one answer to these.
            "DataPDUInOrder" | "DataSequenceInOrder" if value == "Yes" => {}
            "MaxConnections" if value == "1" => {}
            "ErrorRecoveryLevel" if value == "0" => {}
            "DataPDUInOrder" | "DataSequenceInOrder" | "MaxConnections" | "ErrorRecoveryLevel" => {
                return Err(wrong());
            }
            // These have no effect: nothing is retained, and a session is not reinstated.
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

    /// The result, once the target is ready for the full feature phase.
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
