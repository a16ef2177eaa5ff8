//! The outer layer of a datagram: RMCP and the RMCP+ session header (IPMI 2.0 §13.1.3, table 13-8).
//!
//! The handshake and the session use it. It knows no keys, and passes an authenticated payload on
//! unchanged.

/// Bytes of RMCP and session header before the payload.
const HEADER_BYTES: usize = 16;
/// RMCP version 1.0, reserved, no RMCP acknowledgement, class IPMI.
pub(super) const RMCP: [u8; 4] = [0x06, 0x00, 0xff, 0x07];
/// The bits of the class byte that name the class; the top one is the acknowledgement flag.
const RMCP_CLASS_MASK: u8 = 0x1f;
/// Authentication type "RMCP+".
const RMCP_PLUS: u8 = 0x06;
/// Flags of an encrypted and authenticated RMCP+ payload.
const PROTECTED: u8 = 0xc0;

/// Largest accepted datagram, in bytes: more than the content of an Ethernet frame. The largest
/// answer to hostler's commands has 100, a console's packet some 300.
pub(super) const DATAGRAM_BYTES_MAX: usize = 1500;

/// The kinds of payload in an RMCP+ datagram (IPMI 2.0 table 13-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PayloadType {
    /// An IPMI message, encrypted and authenticated. hostler accepts no other.
    Ipmi,
    /// A console's output, or its acknowledgement; encrypted and authenticated as well.
    Sol,
    OpenRequest,
    OpenResponse,
    Rakp1,
    Rakp2,
    Rakp3,
    Rakp4,
}

impl PayloadType {
    const fn code(self) -> u8 {
        match self {
            Self::Ipmi => PROTECTED,
            Self::Sol => PROTECTED | 0x01,
            Self::OpenRequest => 0x10,
            Self::OpenResponse => 0x11,
            Self::Rakp1 => 0x12,
            Self::Rakp2 => 0x13,
            Self::Rakp3 => 0x14,
            Self::Rakp4 => 0x15,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [
            Self::Ipmi,
            Self::Sol,
            Self::OpenRequest,
            Self::OpenResponse,
            Self::Rakp1,
            Self::Rakp2,
            Self::Rakp3,
            Self::Rakp4,
        ]
        .into_iter()
        .find(|payload_type| payload_type.code() == code)
    }
}

/// A decoded RMCP+ datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) payload_type: PayloadType,
    /// The receiver's session id; 0 before there is a session.
    pub(super) session_id: u32,
    /// The packet's number within its session; 0 before there is a session.
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
    /// The bytes after the RMCP header: those that the check value covers, and the check value
    /// itself.
    pub(super) authenticated: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Decodes a datagram; `None` if it is not RMCP+ of a known kind, or is cut short.
    pub(super) fn decode(datagram: &'a [u8]) -> Option<Self> {
        let (header, rest) = datagram.split_first_chunk::<HEADER_BYTES>()?;
        let [version, _, _, class, auth, payload_type, s0, s1, s2, s3, n0, n1, n2, n3, l0, l1] =
            *header;
        if [version, class & RMCP_CLASS_MASK, auth] != [RMCP[0], RMCP[3], RMCP_PLUS] {
            return None;
        }
        Some(Self {
            payload_type: PayloadType::from_code(payload_type)?,
            session_id: u32::from_le_bytes([s0, s1, s2, s3]),
            sequence: u32::from_le_bytes([n0, n1, n2, n3]),
            payload: rest.get(..u16::from_le_bytes([l0, l1]).into())?,
            authenticated: datagram.get(RMCP.len()..)?,
        })
    }
}

/// Encodes a datagram without trailer. `payload` has at most 65535 bytes; hostler's have at most
/// 100.
pub(super) fn encode(
    payload_type: PayloadType,
    session_id: u32,
    sequence: u32,
    payload: &[u8],
) -> Vec<u8> {
    let length =
        u16::try_from(payload.len()).unwrap_or_else(|_| unreachable!("payloads are short"));
    let mut datagram = Vec::with_capacity(HEADER_BYTES + payload.len());
    datagram.extend_from_slice(&RMCP);
    datagram.extend_from_slice(&[RMCP_PLUS, payload_type.code()]);
    datagram.extend_from_slice(&session_id.to_le_bytes());
    datagram.extend_from_slice(&sequence.to_le_bytes());
    datagram.extend_from_slice(&length.to_le_bytes());
    datagram.extend_from_slice(payload);
    datagram
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_packet_is_laid_out_as_in_table_13_8() {
        let datagram = encode(PayloadType::Rakp1, 0x0403_0201, 7, b"xy");
        assert_eq!(datagram, [6, 0, 0xff, 7, 6, 0x12, 1, 2, 3, 4, 7, 0, 0, 0, 2, 0, b'x', b'y']);
        let packet = Packet::decode(&datagram).unwrap();
        assert_eq!(packet.payload_type, PayloadType::Rakp1);
        assert_eq!((packet.session_id, packet.sequence), (0x0403_0201, 7));
        assert_eq!(packet.payload, b"xy");
        assert_eq!(packet.authenticated, datagram.get(4..).unwrap());
    }

    #[test]
    fn other_protocols_and_short_packets_are_not_taken_apart() {
        let good = encode(PayloadType::OpenResponse, 0, 0, b"0123");
        for (at, byte) in [(0, 5), (3, 6), (4, 2), (5, 0x16), (5, 0x00), (14, 5), (15, 1)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(Packet::decode(&bad), None, "byte {at} = {byte:#x}");
        }
        assert_eq!(Packet::decode(&good[..good.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn decoding_never_panics_on_any_bytes(bytes: Vec<u8>) {
            let _ignored = Packet::decode(&bytes);
        }

        #[test]
        fn what_was_encoded_is_decoded(
            session_id: u32,
            sequence: u32,
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let datagram = encode(PayloadType::Ipmi, session_id, sequence, &payload);
            let packet = Packet::decode(&datagram).unwrap();
            let decoded = (packet.session_id, packet.sequence, packet.payload);
            prop_assert_eq!(decoded, (session_id, sequence, payload.as_slice()));
        }
    }
}
