//! The login phase, RFC 7143 §6.3, as a state machine without I/O: a response in, the next request
//! or the result out.
//!
//! ```text
//!   Method ── AuthMethod=None, T ─────────────────────────────────▶ Operational ── T ──▶ done
//!      │ AuthMethod=CHAP                                               ▲
//!      └──▶ Algorithm ── CHAP_A,I,C ──▶ Proof ── (CHAP_N,R verified) T ┘
//! ```
//!
//! The connection drives it, and brings the bytes and the time limit. The target is not trusted:
//! each step accepts only the answers that the RFC allows there, texts and rounds are bounded, and
//! a target that does not demand CHAP gets no further.

use bytes::Bytes;
use subtle::ConstantTimeEq as _;

use super::{
    chap::{self, Chap},
    error::{IscsiErrorKind, LoginRefusal, QUOTED_CHARS_MAX},
    negotiate::{self, Digests, Negotiated},
    pdu::{LoginResponse, Pdu, RequestPdu, ResponseBody, ResponsePdu, Sequence, Stage},
    text::{self, Pairs},
};
use crate::model::printable::excerpt;

/// Most rounds of a login; mutual CHAP with a talkative target takes about six.
const ROUNDS_MAX: u32 = 16;
/// Most text of one answer, over all its PDUs.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most text of a request: a target declares a higher limit only later (RFC 7143 §13.12).
const REQUEST_BYTES_MAX: usize = 8192;
/// The task tag of all login requests.
const LOGIN_TAG: u32 = 1;
/// The first command's number; login requests carry it without using it up.
pub(super) const FIRST_CMD_SN: u32 = 1;

/// The initiator, the target, and the demands of a login.
#[derive(Debug)]
pub(super) struct Identity<'a> {
    pub(super) initiator_iqn: &'a str,
    pub(super) target_iqn: &'a str,
    pub(super) chap: Option<&'a Chap>,
    pub(super) digests: Digests,
    /// Random bytes, fresh for each login: for the ISID, the mutual challenge and its identifier.
    pub(super) random: Random,
}

/// The random bytes of a login.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random {
    /// An ISID of the type "random" (RFC 7143 §11.12.5), so that two agents never take over each
    /// other's session.
    pub(super) isid: [u8; 6],
    pub(super) identifier: [u8; 1],
    pub(super) challenge: [u8; 16],
}

/// A login in progress.
#[derive(Debug)]
pub(super) struct Login<'a> {
    identity: &'a Identity<'a>,
    step: LoginStep,
    requested: Option<Stage>,
    tsih: u16,
    exp_stat_sn: Option<u32>,
    rounds: u32,
    partial: Vec<u8>,
    negotiated: Negotiated,
}

/// The expected content of the next response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoginStep {
    Method,
    Algorithm,
    Proof { verified: bool },
    Operational,
}

/// The connection's next action in a login.
#[derive(Debug)]
pub(super) enum LoginAction {
    /// Send the PDU, and wait for its answer.
    Send(Pdu),
    /// The full feature phase begins.
    Done(LoggedIn),
}

/// The result of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LoggedIn {
    pub(super) negotiated: Negotiated,
    pub(super) exp_stat_sn: u32,
    pub(super) max_cmd_sn: u32,
}

impl<'a> Login<'a> {
    /// Starts a login, and returns its first request.
    pub(super) fn start(identity: &'a Identity<'a>) -> Result<(Self, Pdu), IscsiErrorKind> {
        if let Some(Chap { secret, mutual: Some((_, theirs)), .. }) = identity.chap
            && secret == theirs
        {
            // With equal secrets, a target could answer the initiator's challenge with the
            // initiator's own response (RFC 7143 §12.1.3).
            return Err(IscsiErrorKind::Request(
                "both CHAP secrets are the same, must differ".to_owned(),
            ));
        }
        let mut login = Self {
            identity,
            step: LoginStep::Method,
            requested: None,
            tsih: 0,
            exp_stat_sn: None,
            rounds: 0,
            partial: Vec::new(),
            negotiated: Negotiated::default(),
        };
        let mut pairs = Pairs::default();
        pairs.push("InitiatorName", identity.initiator_iqn);
        pairs.push("TargetName", identity.target_iqn);
        pairs.push("SessionType", "Normal");
        let transit = if identity.chap.is_some() {
            pairs.push("AuthMethod", "CHAP");
            None
        } else {
            pairs.push("AuthMethod", "None");
            Some(Stage::Operational)
        };
        let pdu = login.request(transit, pairs)?;
        Ok((login, pdu))
    }

    /// Processes one answer.
    pub(super) fn receive(
        &mut self,
        response: &ResponsePdu,
        text: &[u8],
    ) -> Result<LoginAction, IscsiErrorKind> {
        let ResponseBody::Login(answer) = &response.body else {
            return Err(violation("something other than a login response during login"));
        };
        self.rounds += 1;
        if self.rounds > ROUNDS_MAX {
            return Err(violation("the login takes more than 16 rounds"));
        }
        self.partial.extend_from_slice(text);
        if self.partial.len() > ANSWER_BYTES_MAX {
            return Err(violation("a login answer of more than 64 KiB"));
        }
        self.check(response.stat_sn, answer)?;
        if answer.more {
            return self.request(self.requested, Pairs::default()).map(LoginAction::Send);
        }
        let text = std::mem::take(&mut self.partial);
        let pairs = text::parse(&text)?;
        match self.step {
            LoginStep::Operational => self.operational(response, answer, &pairs),
            LoginStep::Method | LoginStep::Algorithm | LoginStep::Proof { .. } => {
                self.security(answer, &pairs).map(LoginAction::Send)
            }
        }
    }

    /// Checks common to the responses of every step.
    fn check(&mut self, stat_sn: u32, answer: &LoginResponse) -> Result<(), IscsiErrorKind> {
        if answer.class != 0 {
            let refusal = self.refusal(answer.class, answer.detail);
            return Err(IscsiErrorKind::LoginRefused(refusal));
        }
        if answer.itt != LOGIN_TAG || answer.version != 0 {
            return Err(violation("a login response with another tag or version"));
        }
        if self.exp_stat_sn.is_some_and(|expected| expected != stat_sn) {
            return Err(violation("a login response out of sequence"));
        }
        self.exp_stat_sn = Some(stat_sn.wrapping_add(1));
        self.tsih = answer.tsih;
        let stage =
            if self.step == LoginStep::Operational { Stage::Operational } else { Stage::Security };
        if answer.stage != Some(stage) {
            return Err(violation("a login response of another stage"));
        }
        let may_transit =
            !answer.more && self.requested.is_some() && answer.next_stage == self.requested;
        if answer.transit && !may_transit {
            // Leaving the security stage early would help an attacker without the secret.
            return Err(match self.step {
                LoginStep::Method | LoginStep::Algorithm => {
                    IscsiErrorKind::LoginRefused(LoginRefusal::ChapNotDemanded)
                }
                LoginStep::Proof { .. } | LoginStep::Operational => {
                    violation("a login stage change nobody asked for")
                }
            });
        }
        Ok(())
    }

    /// The refusal for a status other than success at this step.
    fn refusal(&self, class: u8, detail: u8) -> LoginRefusal {
        match (class, detail, self.step, self.identity.chap) {
            (1, ..) => LoginRefusal::Moved(moved_to(&self.partial)),
            (2, 1, _, None) => LoginRefusal::CredentialsNeeded,
            // The initiator has proved nothing yet, so that its secret cannot be the cause.
            (2, 1, LoginStep::Method, Some(_)) => LoginRefusal::ChapNotDemanded,
            (2, 1, LoginStep::Proof { .. }, Some(_)) => LoginRefusal::WrongSecret,
            _ => LoginRefusal::Status { class, detail },
        }
    }

    fn security(
        &mut self,
        answer: &LoginResponse,
        pairs: &[(&str, &str)],
    ) -> Result<Pdu, IscsiErrorKind> {
        let value = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        match (self.step, self.identity.chap) {
            (LoginStep::Method, None) => match value("AuthMethod") {
                None | Some("None") if answer.transit => self.enter_operational(),
                None | Some("None") => self.request(Some(Stage::Operational), Pairs::default()),
                Some(_) => Err(IscsiErrorKind::LoginRefused(LoginRefusal::CredentialsNeeded)),
            },
            (LoginStep::Method, Some(_)) => {
                if value("AuthMethod") != Some("CHAP") {
                    return Err(IscsiErrorKind::LoginRefused(LoginRefusal::ChapNotDemanded));
                }
                self.step = LoginStep::Algorithm;
                let mut pairs = Pairs::default();
                pairs.push("CHAP_A", chap::MD5);
                self.request(None, pairs)
            }
            (LoginStep::Algorithm, Some(chap)) => {
                if value("CHAP_A") != Some(chap::MD5) {
                    return Err(violation("a CHAP algorithm other than MD5, the one offered"));
                }
                let pairs = self.proof(chap, value("CHAP_I"), value("CHAP_C"))?;
                self.step = LoginStep::Proof { verified: chap.mutual.is_none() };
                self.request(Some(Stage::Operational), pairs)
            }
            (LoginStep::Proof { verified }, Some(chap)) => {
                if !verified {
                    self.verify(chap, value("CHAP_N"), value("CHAP_R"))?;
                    self.step = LoginStep::Proof { verified: true };
                }
                if answer.transit {
                    self.enter_operational()
                } else {
                    self.request(Some(Stage::Operational), Pairs::default())
                }
            }
            (LoginStep::Algorithm | LoginStep::Proof { .. } | LoginStep::Operational, _) => {
                Err(violation("an answer to a question not asked"))
            }
        }
    }

    /// The initiator's name and response, and its challenge for mutual CHAP.
    fn proof(
        &self,
        chap: &Chap,
        identifier: Option<&str>,
        challenge: Option<&str>,
    ) -> Result<Pairs, IscsiErrorKind> {
        let identifier =
            identifier.and_then(text::number).and_then(|number| u8::try_from(number).ok());
        let challenge = challenge.and_then(text::binary);
        let (Some(identifier), Some(challenge)) = (identifier, challenge) else {
            return Err(violation("a CHAP challenge without a usable CHAP_I and CHAP_C"));
        };
        if challenge.len() > chap::CHALLENGE_BYTES_MAX {
            return Err(violation("a CHAP challenge of more than 1024 bytes"));
        }
        let response = chap::response(identifier, &chap.secret, &challenge);
        let mut pairs = Pairs::default();
        pairs.push("CHAP_N", &chap.username);
        pairs.push("CHAP_R", &format!("0x{}", crate::model::ids::hex(&response)));
        if chap.mutual.is_some() {
            let random = &self.identity.random;
            pairs.push("CHAP_I", &random.identifier[0].to_string());
            pairs.push("CHAP_C", &format!("0x{}", crate::model::ids::hex(&random.challenge)));
        }
        Ok(pairs)
    }

    /// Checks the target's name and its proof of the mutual secret.
    fn verify(
        &self,
        chap: &Chap,
        name: Option<&str>,
        response: Option<&str>,
    ) -> Result<(), IscsiErrorKind> {
        let Some((their_name, their_secret)) = &chap.mutual else { return Ok(()) };
        let random = &self.identity.random;
        let right = chap::response(random.identifier[0], their_secret, &random.challenge);
        let given = response.and_then(text::binary).unwrap_or_default();
        if name == Some(their_name) && bool::from(right.as_slice().ct_eq(&given)) {
            Ok(())
        } else {
            Err(IscsiErrorKind::LoginRefused(LoginRefusal::TargetUnproven))
        }
    }

    fn enter_operational(&mut self) -> Result<Pdu, IscsiErrorKind> {
        self.step = LoginStep::Operational;
        self.request(Some(Stage::FullFeature), negotiate::offer(self.identity.digests))
    }

    fn operational(
        &mut self,
        response: &ResponsePdu,
        answer: &LoginResponse,
        pairs: &[(&str, &str)],
    ) -> Result<LoginAction, IscsiErrorKind> {
        let mut replies = Pairs::default();
        for (key, value) in pairs {
            self.negotiated.take(key, value, &mut replies)?;
        }
        if !answer.transit {
            return self.request(Some(Stage::FullFeature), replies).map(LoginAction::Send);
        }
        Ok(LoginAction::Done(LoggedIn {
            negotiated: self.negotiated.finish(self.identity.digests)?,
            exp_stat_sn: response.stat_sn.wrapping_add(1),
            max_cmd_sn: response.max_cmd_sn,
        }))
    }

    fn request(&mut self, transit: Option<Stage>, pairs: Pairs) -> Result<Pdu, IscsiErrorKind> {
        let data = pairs.into_bytes();
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if data.len() > REQUEST_BYTES_MAX {
            return Err(IscsiErrorKind::Request(format!(
                "login keys of {bytes} bytes, at most {REQUEST_BYTES_MAX} fit"
            )));
        }
        self.requested = transit;
        let stage =
            if self.step == LoginStep::Operational { Stage::Operational } else { Stage::Security };
        let request = RequestPdu::Login {
            transit,
            stage,
            isid: self.identity.random.isid,
            tsih: self.tsih,
            itt: LOGIN_TAG,
        };
        let sequence =
            Sequence { cmd_sn: FIRST_CMD_SN, exp_stat_sn: self.exp_stat_sn.unwrap_or(0) };
        Ok(Pdu { bhs: request.encode(sequence, bytes), data: Bytes::from(data) })
    }
}

fn violation(what: &str) -> IscsiErrorKind {
    IscsiErrorKind::Protocol(what.to_owned())
}

/// The address in a redirection, for the message only.
fn moved_to(text: &[u8]) -> String {
    text::parse(text)
        .ok()
        .and_then(|pairs| pairs.into_iter().find(|(key, _)| *key == "TargetAddress"))
        .map_or_else(
            || "an address it does not give".to_owned(),
            |(_, value)| format!("\"{}\"", excerpt(value, QUOTED_CHARS_MAX)),
        )
}

#[cfg(test)]
mod tests;
