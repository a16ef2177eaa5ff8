//! An established session: encrypts and authenticates requests, and matches answers and SOL packets
//! to them.
//!
//! The handshake makes it, and the link, which owns socket and clock, drives it. It does no I/O. It
//! must never accept a packet without a matching check value, nor an answer that belongs to another
//! request.

use super::{
    commands::IpmiCommand,
    crypto::{AES_BLOCK_BYTES, Keys, check_bytes, matches},
    exchange::CommandAnswer,
    packet::{self, Packet, PayloadType},
};
use crate::model::spec::CipherSuite;

/// Slave address of every BMC, and the address of remote console software (IPMI 2.0 §5.5).
const BMC: u8 = 0x20;
const CONSOLE: u8 = 0x81;
/// The "next header" byte before the check value, which has only this value (IPMI 2.0 table 13-8).
const NEXT_HEADER: u8 = 0x07;
/// Highest request number of a session (6 bits). Each number is used once, so that a late repeated
/// answer never matches a later request. A new session follows the last number.
const REQUESTS_MAX: u8 = 0x3f;

/// An established session.
#[derive(Debug)]
pub(super) struct Session {
    suite: CipherSuite,
    console_id: u32,
    managed_id: u32,
    keys: Keys,
    /// Number of the last packet sent. Retransmissions get a new number too, because a BMC drops
    /// numbers that it has seen.
    sequence: u32,
    requests: u8,
    /// Number of the newest SOL packet received.
    sol_sequence: Option<u32>,
}

/// A request that waits for its answer. Retransmissions keep its number, so that the answer to any
/// of them matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IpmiRequest {
    answered_by: u8,
    number: u8,
    command: u8,
    pub(super) message: Vec<u8>,
}

impl Session {
    pub(super) fn new(suite: CipherSuite, console_id: u32, managed_id: u32, keys: Keys) -> Self {
        let (sequence, requests, sol_sequence) = (0, 0, None);
        Self { suite, console_id, managed_id, keys, sequence, requests, sol_sequence }
    }

    /// Numbers the next request; `None` once only the number of the Close Session command is left.
    pub(super) fn request(&mut self, command: IpmiCommand) -> Option<IpmiRequest> {
        (self.requests + 1 < REQUESTS_MAX).then(|| self.numbered(command))
    }

    /// The request that ends this session.
    pub(super) fn close(&mut self) -> IpmiRequest {
        self.requests = self.requests.min(REQUESTS_MAX - 1);
        self.numbered(IpmiCommand::CloseSession(self.managed_id))
    }

    fn numbered(&mut self, command: IpmiCommand) -> IpmiRequest {
        self.requests += 1;
        let (network_function, code, data) = command.encode();
        let mut message = vec![BMC, network_function << 2];
        message.push(checksum(&message));
        let mut body = vec![CONSOLE, self.requests << 2, code];
        body.extend_from_slice(&data);
        body.push(checksum(&body));
        message.extend_from_slice(&body);
        IpmiRequest {
            answered_by: network_function | 1,
            number: self.requests,
            command: code,
            message,
        }
    }

    /// Encodes a request as a datagram, anew for each transmission. `iv` must be random.
    pub(super) fn seal(&mut self, request: &IpmiRequest, iv: [u8; AES_BLOCK_BYTES]) -> Vec<u8> {
        self.seal_as(PayloadType::Ipmi, &request.message, iv)
    }

    /// Encodes a SOL payload as a datagram. `iv` must be random.
    pub(super) fn seal_sol(&mut self, payload: &[u8], iv: [u8; AES_BLOCK_BYTES]) -> Vec<u8> {
        self.seal_as(PayloadType::Sol, payload, iv)
    }

    fn seal_as(
        &mut self,
        payload_type: PayloadType,
        message: &[u8],
        iv: [u8; AES_BLOCK_BYTES],
    ) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let payload = self.keys.encrypt(message, iv);
        let mut datagram = packet::encode(payload_type, self.managed_id, self.sequence, &payload);
        // The authenticated part is padded to a multiple of four, and ends with the pad length and
        // the next header.
        let mut pad = 0;
        while !(datagram.len() + 2).is_multiple_of(4) {
            datagram.push(0xff);
            pad += 1;
        }
        datagram.extend_from_slice(&[pad, NEXT_HEADER]);
        let check = self.keys.check_value(datagram.get(packet::RMCP.len()..).unwrap_or_default());
        datagram.extend_from_slice(&check);
        datagram
    }

    /// Decodes a datagram as the answer to `request`; `None` if it is not.
    pub(super) fn answer(&self, request: &IpmiRequest, datagram: &[u8]) -> Option<CommandAnswer> {
        let (_, message) = self.open(PayloadType::Ipmi, datagram)?;
        let (head, body) = message.split_first_chunk::<3>()?;
        if checksum(head) != 0 || checksum(body) != 0 {
            return None;
        }
        let ([_, number, command, completion], rest) = body.split_first_chunk::<4>()?;
        let [_, function, _] = head;
        let for_this = (function >> 2, number >> 2, *command)
            == (request.answered_by, request.number, request.command);
        let (_checksum, data) = rest.split_last()?;
        for_this.then(|| CommandAnswer { completion: *completion, data: data.to_vec() })
    }

    /// Decodes a SOL payload; `None` for a packet that is older than the last one. A BMC waits for
    /// each acknowledgement, so that an older packet is a repetition by the network.
    pub(super) fn sol(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let (sequence, payload) = self.open(PayloadType::Sol, datagram)?;
        let ahead = self.sol_sequence.map_or(0, |newest| sequence.wrapping_sub(newest));
        (ahead <= u32::MAX / 2).then(|| {
            self.sol_sequence = Some(sequence);
            payload
        })
    }

    /// Authenticates and decrypts a datagram of this session and payload type: its sequence number
    /// and payload.
    fn open(&self, payload_type: PayloadType, datagram: &[u8]) -> Option<(u32, Vec<u8>)> {
        let packet = Packet::decode(datagram)?;
        if packet.payload_type != payload_type || packet.session_id != self.console_id {
            return None;
        }
        let covered_bytes = packet.authenticated.len().checked_sub(check_bytes(self.suite))?;
        let (covered, check) = packet.authenticated.split_at_checked(covered_bytes)?;
        if !matches(&self.keys.check_value(covered), check) {
            return None;
        }
        Some((packet.sequence, self.keys.decrypt(packet.payload)?))
    }
}

/// The two's complement of the sum: bytes with their checksum add up to 0 (IPMI 2.0 §13.8).
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ids::hex;

    fn session(suite: CipherSuite) -> Session {
        Session::new(suite, 0x1111_1111, 0x2222_2222, Keys::derive(suite, &[7; 20]))
    }

    /// An answer that a BMC with the same keys sends.
    fn answered(suite: CipherSuite, message: &[u8]) -> Vec<u8> {
        let mut bmc = Session::new(suite, 0x2222_2222, 0x1111_1111, Keys::derive(suite, &[7; 20]));
        let request =
            IpmiRequest { answered_by: 0, number: 0, command: 0, message: message.to_vec() };
        bmc.seal(&request, [9; 16])
    }

    /// An answer to request `number`: chassis status "on".
    fn status(number: u8) -> Vec<u8> {
        let mut message = vec![CONSOLE, 0x01 << 2];
        message.push(checksum(&message));
        let mut body = vec![BMC, number << 2, 0x01, 0x00, 0x01, 0x00, 0x00];
        body.push(checksum(&body));
        message.extend(body);
        message
    }

    const SUITES: [CipherSuite; 2] = [CipherSuite::Sha1, CipherSuite::Sha256];

    #[test]
    fn a_request_is_the_message_of_figure_13_4() {
        let request = session(CipherSuite::Sha1).request(IpmiCommand::GetChassisStatus).unwrap();
        assert_eq!(hex(&request.message), "2000e0810401 7a".replace(' ', ""));
    }

    #[test]
    fn a_retransmission_has_its_own_sequence_and_the_same_number() {
        let mut session = session(CipherSuite::Sha256);
        let request = session.request(IpmiCommand::GetChassisStatus).unwrap();
        let (first, second) = (session.seal(&request, [1; 16]), session.seal(&request, [2; 16]));
        assert_eq!((first[10], second[10]), (1, 2));
        let answer = session.answer(&request, &answered(CipherSuite::Sha256, &status(1)));
        assert_eq!(answer, Some(CommandAnswer { completion: 0, data: vec![1, 0, 0] }));
    }

    #[test]
    fn an_answer_to_another_request_is_not_taken() {
        for suite in SUITES {
            let mut session = session(suite);
            let first = session.request(IpmiCommand::GetChassisStatus).unwrap();
            let second = session.request(IpmiCommand::GetChassisStatus).unwrap();
            let late = answered(suite, &status(1));
            assert!(session.answer(&first, &late).is_some());
            assert_eq!(session.answer(&second, &late), None);
        }
    }

    #[test]
    fn a_console_packet_that_was_overtaken_is_not_taken_again() {
        let suite = CipherSuite::Sha256;
        let mut bmc = Session::new(suite, 0x2222_2222, 0x1111_1111, Keys::derive(suite, &[7; 20]));
        let [first, second, third] = [b"1", b"2", b"3"].map(|text| bmc.seal_sol(text, [9; 16]));
        let mut session = session(suite);
        assert_eq!(session.sol(&first).as_deref(), Some(&b"1"[..]));
        // A repetition with its own packet number is for `sol` to detect.
        assert!(session.sol(&first).is_some());
        assert!(session.sol(&third).is_some());
        assert_eq!((session.sol(&second), session.sol(&first)), (None, None));
        // An answer is no SOL packet, and a SOL packet is no answer.
        assert_eq!(session.sol(&answered(suite, &status(1))), None);
        let request = session.request(IpmiCommand::GetChassisStatus).unwrap();
        assert_eq!(session.answer(&request, &bmc.seal_sol(&status(1), [9; 16])), None);
    }

    #[test]
    fn no_request_number_is_used_twice_in_a_session() {
        let mut session = session(CipherSuite::Sha1);
        let mut numbers: Vec<u8> = Vec::new();
        while let Some(request) = session.request(IpmiCommand::GetChassisStatus) {
            numbers.push(request.number);
        }
        numbers.push(session.close().number);
        assert_eq!(numbers, (1..=REQUESTS_MAX).collect::<Vec<u8>>());
    }

    proptest! {
        #[test]
        fn a_changed_bit_anywhere_after_the_rmcp_header_is_refused(sha256: bool, bit: usize) {
            let suite = SUITES[usize::from(sha256)];
            let mut session = session(suite);
            let request = session.request(IpmiCommand::GetChassisStatus).unwrap();
            let mut datagram = answered(suite, &status(1));
            let bit = 32 + bit % ((datagram.len() - 4) * 8);
            datagram[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(session.answer(&request, &datagram), None);
            prop_assert_eq!(session.sol(&datagram), None);
        }

        #[test]
        fn reading_an_answer_never_panics_on_any_bytes(bytes: Vec<u8>, sealed: bool) {
            let mut session = session(CipherSuite::Sha1);
            let request = session.request(IpmiCommand::GetChassisStatus).unwrap();
            // Sealed bytes reach the decoder behind cipher and check value.
            let datagram = if sealed { answered(CipherSuite::Sha1, &bytes) } else { bytes };
            let _ignored = (session.answer(&request, &datagram), session.sol(&datagram));
        }
    }
}
