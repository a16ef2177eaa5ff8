//! Opening a session: the open session exchange and RAKP messages 1 to 4 (IPMI 2.0 §13.17 to
//! §13.24), on a network that loses, repeats and reorders.
//!
//! The link drives it, and owns socket, clock and randomness; the handshake does no I/O. It must
//! never continue with algorithms other than the proposed ones, nor trust a BMC that has not proved
//! its knowledge of the password.
//!
//! ```text
//! open request ─► Opening ─► RAKP 1 ─► Challenged ─► RAKP 3 ─► Proved ─► session
//! ```
//!
//! A BMC that receives a request twice may begin anew: another session id after the second open
//! request, another challenge after the second RAKP 1. Only its check values show which of them it
//! uses. So the handshake keeps every session id as a candidate, and a later challenge replaces an
//! earlier one. After a mismatch the link starts a fresh handshake from another port.

use super::{
    commands::privilege_level,
    crypto::{AES_BLOCK_BYTES, Keys, algorithms, check_bytes, hmac, matches},
    exchange::LoginFailure,
    packet::{self, Packet, PayloadType},
    session::Session,
};
use crate::model::{
    bmc_key::BmcKey,
    secret::Secret,
    spec::{CipherSuite, Privilege},
};

/// Flag of RAKP 1: look the user up by name alone, at any privilege (IPMI 2.0 table 13-11).
const NAME_ONLY: u8 = 0x10;
/// Most session ids that a BMC may name in one handshake. More come only from a network that
/// repeats datagrams without end.
const CANDIDATES_MAX: usize = 4;
/// RAKP status code "invalid session id" (IPMI 2.0 table 13-15).
const STATUS_INVALID_SESSION: u8 = 0x02;

/// The user that logs in, and the secrets of the login.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    pub(super) username: String,
    pub(super) password: Secret,
    pub(super) kg: Option<BmcKey>,
    pub(super) privilege: Privilege,
}

/// The random values of a handshake, fresh for each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nonces {
    pub(super) tag: u8,
    pub(super) console_id: u32,
    pub(super) challenge: [u8; 16],
}

/// A handshake in progress.
#[derive(Debug)]
pub(super) struct Handshake {
    credentials: Credentials,
    suite: CipherSuite,
    nonces: Nonces,
    /// The session ids the BMC named, newest last.
    candidates: Vec<u32>,
    stage: Stage,
    datagram: Vec<u8>,
}

#[derive(Debug)]
enum Stage {
    Opening,
    Challenged,
    /// The proofs sent so far, newest last.
    Proved(Vec<Proof>),
    Over,
}

/// The values from RAKP message 2.
#[derive(Debug)]
struct Proof {
    managed_id: u32,
    challenge: Vec<u8>,
    guid: Vec<u8>,
    session_integrity_key: Secretive,
    keys: Keys,
}

/// Secret bytes: wiped when dropped, and never shown by `Debug`.
#[derive(zeroize::ZeroizeOnDrop)]
struct Secretive(Vec<u8>);

impl std::fmt::Debug for Secretive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

/// The effect of a datagram on the handshake.
#[derive(Debug)]
pub(super) enum Progress {
    /// A new datagram is ready to send.
    Send,
    /// The BMC proved that it knows the password.
    Established(Session),
    /// The handshake failed.
    Failed(LoginFailure),
}

impl Handshake {
    /// Starts a handshake; its first datagram is the open session request.
    pub(super) fn start(credentials: Credentials, suite: CipherSuite, nonces: Nonces) -> Self {
        let mut payload = vec![nonces.tag, 0, 0, 0];
        payload.extend_from_slice(&nonces.console_id.to_le_bytes());
        for (kind, algorithm) in (0..).zip(algorithms(suite)) {
            payload.extend_from_slice(&[kind, 0, 0, 8, algorithm, 0, 0, 0]);
        }
        let datagram = packet::encode(PayloadType::OpenRequest, 0, 0, &payload);
        let (candidates, stage) = (Vec::new(), Stage::Opening);
        Self { credentials, suite, nonces, candidates, stage, datagram }
    }

    /// The datagram to send now, and to repeat while no answer comes.
    pub(super) fn datagram(&self) -> &[u8] {
        &self.datagram
    }

    /// Whether the BMC has accepted the cipher suite.
    pub(super) fn suite_accepted(&self) -> bool {
        !self.candidates.is_empty()
    }

    /// Whether the BMC may consider the session open; repeating RAKP message 3 then helps little.
    pub(super) fn proved(&self) -> bool {
        matches!(self.stage, Stage::Proved(_))
    }

    /// Processes a datagram from the BMC; `None` for one of another handshake or without news.
    pub(super) fn receive(&mut self, datagram: &[u8]) -> Option<Progress> {
        let Packet { payload_type, payload, .. } = Packet::decode(datagram)?;
        // A refusal may end after its status.
        let [tag, status] = payload.first_chunk::<2>()?;
        let console_id = payload.get(4..).and_then(<[u8]>::first_chunk::<4>);
        let console_id = console_id.map(|id| u32::from_le_bytes(*id));
        // Some BMCs refuse with session id 0; the tag still names the handshake.
        let nobody = *status != 0 && console_id == Some(0);
        if !nobody && console_id.is_some_and(|id| id != self.nonces.console_id) {
            return None;
        }
        let (step, expected) = match payload_type {
            PayloadType::OpenResponse => (0, matches!(self.stage, Stage::Opening)),
            PayloadType::Rakp2 => (1, matches!(self.stage, Stage::Challenged)),
            PayloadType::Rakp4 => (2, matches!(self.stage, Stage::Proved(_))),
            PayloadType::Ipmi
            | PayloadType::Sol
            | PayloadType::OpenRequest
            | PayloadType::Rakp1
            | PayloadType::Rakp3 => return None,
        };
        if *tag != self.tag(step) {
            return None;
        }
        if *status != 0 {
            let failure = match payload_type {
                PayloadType::OpenResponse => LoginFailure::of_open_response(*status),
                _ => LoginFailure::of_rakp(*status),
            };
            return expected.then_some(Progress::Failed(failure));
        }
        let body = payload.get(8..)?;
        match step {
            0 => self.opened(body),
            1 => self.challenged(body),
            _ => self.confirmed(body),
        }
    }

    /// The tag of the handshake's request number `step`.
    fn tag(&self, step: u8) -> u8 {
        self.nonces.tag.wrapping_add(step)
    }

    /// Processes the open session response: the BMC's session id and its algorithms (IPMI 2.0
    /// §13.18).
    fn opened(&mut self, body: &[u8]) -> Option<Progress> {
        let (id, chosen) = body.split_first_chunk::<4>()?;
        let chosen = [*chosen.get(4)?, *chosen.get(12)?, *chosen.get(20)?];
        let id = u32::from_le_bytes(*id);
        let opening = matches!(self.stage, Stage::Opening);
        if chosen != algorithms(self.suite) {
            // The BMC must not choose the suite: an attacker in the network could then force a
            // weaker one.
            return opening.then_some(Progress::Failed(LoginFailure::SuiteRefused));
        }
        if id == 0 || self.candidates.contains(&id) || self.candidates.len() == CANDIDATES_MAX {
            return None;
        }
        self.candidates.push(id);
        if opening || matches!(self.stage, Stage::Challenged) {
            self.datagram = self.rakp1(id);
        }
        if opening {
            self.stage = Stage::Challenged;
        }
        opening.then_some(Progress::Send)
    }

    /// Builds RAKP message 1: hostler's challenge and user (IPMI 2.0 §13.20).
    fn rakp1(&self, managed_id: u32) -> Vec<u8> {
        let mut payload = vec![self.tag(1), 0, 0, 0];
        payload.extend_from_slice(&managed_id.to_le_bytes());
        payload.extend_from_slice(&self.nonces.challenge);
        let [role, name_bytes] = self.role();
        payload.extend_from_slice(&[role, 0, 0, name_bytes]);
        payload.extend_from_slice(self.username());
        packet::encode(PayloadType::Rakp1, 0, 0, &payload)
    }

    /// Processes RAKP message 2: the BMC's challenge, and its proof that it knows the password
    /// (IPMI 2.0 §13.21).
    fn challenged(&mut self, body: &[u8]) -> Option<Progress> {
        let (challenge, rest) = body.split_first_chunk::<16>()?;
        let (guid, check) = rest.split_first_chunk::<16>()?;
        let known = |id: &&u32| {
            matches(
                &self.keyed(&[
                    &self.nonces.console_id.to_le_bytes(),
                    &id.to_le_bytes(),
                    &self.nonces.challenge,
                    challenge,
                    guid,
                    &self.role(),
                    self.username(),
                ]),
                check,
            )
        };
        let Some(&managed_id) = self.candidates.iter().rev().find(known) else {
            if !matches!(self.stage, Stage::Challenged) {
                return None;
            }
            // The BMC gets no message about the mismatch: it might count as a failed login, and a
            // few of those lock the user out.
            self.stage = Stage::Over;
            return Some(Progress::Failed(LoginFailure::Mismatch));
        };
        match &self.stage {
            Stage::Proved(proofs)
                if proofs.iter().any(|proof| proof.challenge == challenge)
                    || proofs.len() == CANDIDATES_MAX =>
            {
                return None;
            }
            Stage::Challenged | Stage::Proved(_) => {}
            Stage::Opening | Stage::Over => return None,
        }
        let parts = [&self.nonces.challenge, challenge, &self.role()[..], self.username()];
        // Two-key login derives it from the BMC key, one-key login from the user's key (§13.31).
        let session_integrity_key = match &self.credentials.kg {
            Some(kg) => hmac(self.suite, kg.expose(), &parts),
            None => self.keyed(&parts),
        };
        let check = self.keyed(&[
            challenge,
            &self.nonces.console_id.to_le_bytes(),
            &self.role(),
            self.username(),
        ]);
        self.datagram = self.rakp3(managed_id, 0, &check);
        let proof = Proof {
            managed_id,
            challenge: challenge.to_vec(),
            guid: guid.to_vec(),
            keys: Keys::derive(self.suite, &session_integrity_key),
            session_integrity_key: Secretive(session_integrity_key),
        };
        match &mut self.stage {
            // The BMC may confirm either.
            Stage::Proved(proofs) => proofs.push(proof),
            stage => *stage = Stage::Proved(vec![proof]),
        }
        Some(Progress::Send)
    }

    /// Builds RAKP message 3: hostler's proof, or the reason for giving up (IPMI 2.0 §13.22).
    fn rakp3(&self, managed_id: u32, status: u8, check: &[u8]) -> Vec<u8> {
        let mut payload = vec![self.tag(2), status, 0, 0];
        payload.extend_from_slice(&managed_id.to_le_bytes());
        payload.extend_from_slice(check);
        packet::encode(PayloadType::Rakp3, 0, 0, &payload)
    }

    /// Processes RAKP message 4: the BMC's proof that it has the same session integrity key (IPMI
    /// 2.0 §13.23).
    fn confirmed(&mut self, check: &[u8]) -> Option<Progress> {
        let Stage::Proved(proofs) = &self.stage else { return None };
        let fits = |proof: &Proof, id: u32| {
            let mut expected = hmac(
                self.suite,
                &proof.session_integrity_key.0,
                &[&self.nonces.challenge, &id.to_le_bytes(), &proof.guid],
            );
            expected.truncate(check_bytes(self.suite));
            matches(&expected, check)
        };
        let confirmed = proofs.iter().rev().find_map(|proof| {
            let id = self.candidates.iter().rev().find(|id| fits(proof, **id))?;
            Some((*id, proof.keys.clone()))
        });
        let Some((managed_id, keys)) = confirmed else {
            return Some(Progress::Failed(LoginFailure::KeyMismatch));
        };
        let session = Session::new(self.suite, self.nonces.console_id, managed_id, keys);
        self.stage = Stage::Over;
        Some(Progress::Established(session))
    }

    /// The datagrams that cancel the handshake, so that the BMC need not keep its half of the
    /// session until a timeout: a RAKP message 3 with an error for each session id, and a Close
    /// Session if the BMC may consider the session open. Later calls return none.
    pub(super) fn abandon(&mut self, iv: [u8; AES_BLOCK_BYTES]) -> Vec<Vec<u8>> {
        let mut farewells = Vec::new();
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Opening | Stage::Over => return farewells,
            Stage::Challenged => {}
            Stage::Proved(proofs) => {
                for Proof { managed_id, keys, .. } in proofs {
                    let mut session =
                        Session::new(self.suite, self.nonces.console_id, managed_id, keys);
                    let close = session.close();
                    farewells.push(session.seal(&close, iv));
                }
            }
        }
        for id in &self.candidates {
            farewells.push(self.rakp3(*id, STATUS_INVALID_SESSION, &[]));
        }
        farewells
    }

    fn username(&self) -> &[u8] {
        self.credentials.username.as_bytes()
    }

    /// The role byte and the length of the user's name, which every check value covers.
    fn role(&self) -> [u8; 2] {
        let length = u8::try_from(self.username().len())
            .unwrap_or_else(|_| unreachable!("the spec's user names have at most 16 bytes"));
        [NAME_ONLY | privilege_level(self.credentials.privilege), length]
    }

    fn keyed(&self, parts: &[&[u8]]) -> Vec<u8> {
        hmac(self.suite, self.credentials.password.expose().as_bytes(), parts)
    }
}

#[cfg(test)]
mod tests;
