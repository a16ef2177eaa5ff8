//! The ipmitool driver: IPMI by the program of that name, for a BMC that only it can talk to
//! (`bmc.driver = "ipmitool"`).
//!
//! A transport beneath the IPMI client: the program is run once for each command, with its `raw`
//! words, so that the bytes that come back are the BMC's own. It must never show the password to
//! other users or leave a program running.
//!
//! A program that is killed closes no session: the BMC's own session timeout has to do.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    os::unix::ffi::OsStrExt as _,
    process::Output,
    time::Duration,
};

use tokio::{
    process::Command as Program,
    time::{Instant, timeout},
};

use super::{
    ipmi::{
        IpmiConfig, IpmiErrorKind,
        transport::{
            Channel, CommandAnswer, Exchange, Habits, IpmiCommand, Link, LoginFailure, NotOpened,
            Transport, Tries, Try, probe,
        },
    },
    process,
};
use crate::model::spec::{CipherSuite, Privilege};

/// How long one run may take. A BMC that answers takes a second; with the waits below, one that is
/// dead takes six.
const RUN_TIME_MAX: Duration = Duration::from_secs(20);
/// Seconds before the program sends a datagram again for the first time, and how often: whatever
/// fails is tried again here.
const RESENDS: [&str; 4] = ["-N", "1", "-R", "2"];
/// Most of what it says that gets into a message, in characters.
const SAID_MAX: usize = 200;

/// Runs of the program, one for each command.
#[derive(Debug)]
pub(super) struct Ipmitool {
    /// The program of that name, which `PATH` finds.
    pub(super) program: OsString,
}

impl Default for Ipmitool {
    fn default() -> Self {
        Self { program: "ipmitool".into() }
    }
}

impl Transport for Ipmitool {
    fn open<'a>(
        &'a self,
        config: &'a IpmiConfig,
        _tries: Tries,
        address: SocketAddr,
        suite: CipherSuite,
    ) -> Try<'a, Result<Box<dyn Channel>, NotOpened>> {
        let (program, config) = (self.program.clone(), config.clone());
        let channel = Run { program, config, address, suite };
        Box::pin(async move { Ok(Box::new(channel) as Box<dyn Channel>) })
    }

    fn habits(&self) -> Habits {
        // It tells the BMC of each mismatch, which may count it as a failed login and lock the user
        // out.
        Habits { keeps_session: false, mismatches_max: 2 }
    }
}

/// One run to be.
struct Run {
    program: OsString,
    config: IpmiConfig,
    address: SocketAddr,
    suite: CipherSuite,
}

impl Channel for Run {
    fn exchange(&mut self, command: IpmiCommand) -> Try<'_, Exchange> {
        Box::pin(self.send(command))
    }

    fn close<'a>(self: Box<Self>, _deadline: Instant) -> Try<'a, ()> {
        Box::pin(async {})
    }

    fn into_link(self: Box<Self>) -> Option<Link> {
        None
    }
}

impl Run {
    /// Has the program send one command, from its own session.
    async fn send(&self, command: IpmiCommand) -> Exchange {
        let Self { program, config, address, suite } = self;
        let mut program = Program::new(program);
        program
            .args(arguments(config, *address, *suite, command))
            .env_clear()
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            // Other users see the arguments of a command, and not its environment.
            .env("IPMITOOL_PASSWORD", config.password.expose())
            .env("LC_ALL", "C");
        if let Some(kg) = &config.kg {
            let Some(text) = kg.expose_without_zeros() else {
                return Exchange::Unusable(IpmiErrorKind::KeyNotCarried);
            };
            program.env("IPMI_KGKEY", OsStr::from_bytes(text));
        }
        let said = match timeout(RUN_TIME_MAX, process::output(program)).await {
            Ok(Ok(output)) => Said::of(&output),
            Ok(Err(error)) => {
                let reason = error.to_string();
                return Exchange::Unusable(IpmiErrorKind::ProgramNotRun { reason });
            }
            Err(_elapsed) => return Exchange::NotOpened(not_opened(LoginFailure::Silent, None)),
        };
        match said {
            Said::Answer(answer) => Exchange::Answer(answer),
            // The program does not say what the network said.
            Said::NoSession(LoginFailure::Silent) => {
                let network = probe(*address).await;
                Exchange::NotOpened(not_opened(LoginFailure::Silent, network))
            }
            Said::NoSession(failure) => Exchange::NotOpened(not_opened(failure, None)),
            Said::Unclear(words) => Exchange::Unclear(words),
        }
    }
}

/// The arguments after the program's name.
fn arguments(
    config: &IpmiConfig,
    address: SocketAddr,
    suite: CipherSuite,
    command: IpmiCommand,
) -> Vec<String> {
    let level = match config.privilege {
        Privilege::Operator => "OPERATOR",
        Privilege::Administrator => "ADMINISTRATOR",
    };
    let (host, port, suite) =
        (host(address), address.port().to_string(), u8::from(suite).to_string());
    // -v: it says why there is no session. Twice would be its keys.
    let mut arguments: Vec<String> =
        ["-v", "-I", "lanplus", "-H", &host, "-p", &port, "-U", &config.username]
            .into_iter()
            .chain(["-L", level, "-C", &suite])
            .chain(RESENDS)
            .chain(config.kg.as_ref().map(|_| "-K"))
            .chain(["-E", "raw"])
            .map(str::to_owned)
            .collect();
    let (network_function, code, data) = command.encode();
    arguments
        .extend([network_function, code].iter().chain(&data).map(|byte| format!("{byte:#04x}")));
    arguments
}

/// An address as the program takes it: without brackets, and with the interface that a link-local
/// one needs.
fn host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => IpAddr::to_string(&address.ip()),
    }
}

/// The meaning of a run, in ipmitool's own words.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The BMC answered.
    Answer(CommandAnswer),
    /// There was no session.
    NoSession(LoginFailure),
    /// Something else.
    Unclear(String),
}

impl Said {
    fn of(output: &Output) -> Self {
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success()
            && let Some(data) = bytes(&output.stdout)
        {
            return Self::Answer(CommandAnswer { completion: 0, data });
        }
        if let Some(completion) = completion(&said) {
            return Self::Answer(CommandAnswer { completion, data: Vec::new() });
        }
        failure(&said).map_or_else(
            || Self::Unclear(format!("{}: {}", output.status, last_lines(&said))),
            Self::NoSession,
        )
    }
}

/// The bytes of an answer: two hexadecimal digits each, sixteen in a line.
fn bytes(stdout: &[u8]) -> Option<Vec<u8>> {
    let byte = |digits| u8::from_str_radix(digits, 16).ok();
    str::from_utf8(stdout).ok()?.split_ascii_whitespace().map(byte).collect()
}

/// The completion code of a command that was answered but refused: `… (channel=0x0 netfn=0x0
/// lun=0x0 cmd=0x2 rsp=0xd5): …`.
fn completion(said: &str) -> Option<u8> {
    let (_, rest) = said.split_once("Unable to send RAW command (")?;
    let (_, rest) = rest.split_once("rsp=0x")?;
    let (digits, _) = rest.split_once(')')?;
    u8::from_str_radix(digits, 16).ok()
}

/// The reason that there was no session, if it is clear.
fn failure(said: &str) -> Option<LoginFailure> {
    type OfStatus = fn(u8) -> LoginFailure;
    const REFUSALS: [(&str, OfStatus); 3] = [
        ("Error in open session response message : ", LoginFailure::of_open_response),
        ("RAKP 2 message indicates an error : ", LoginFailure::of_rakp),
        ("RAKP 4 message indicates an error : ", LoginFailure::of_rakp),
    ];
    const MEANINGS: [(&str, LoginFailure); 11] = [
        // It checks what the BMC chose, as we do.
        ("is not what we requested 0x", LoginFailure::SuiteRefused),
        ("RAKP 2 HMAC is invalid", LoginFailure::Mismatch),
        ("RAKP 4 message has invalid integrity check value", LoginFailure::KeyMismatch),
        ("privilege level failed: Insufficient privilege", LoginFailure::PrivilegeRefused),
        ("failed: Unknown (0x80)", LoginFailure::PrivilegeRefused),
        ("failed: Unknown (0x81)", LoginFailure::PrivilegeRefused),
        ("Timeout in open session response message", LoginFailure::Silent),
        // There is no way to the address; the network's own word is asked for next.
        ("Could not open socket", LoginFailure::Silent),
        ("no response from RAKP", LoginFailure::Silent),
        ("Get Auth Capabilities error", LoginFailure::Silent),
        // Without a completion code, which was looked for before.
        ("Unable to send RAW command", LoginFailure::Silent),
    ];
    let refused = REFUSALS.iter().find_map(|(intro, meaning)| {
        let (_, reason) = said.split_once(intro)?;
        Some(meaning(status(reason.lines().next()?.trim())?))
    });
    let meaning = || MEANINGS.iter().find(|(text, _)| said.contains(text));
    refused.or_else(|| meaning().map(|(_, failure)| *failure))
}

/// The status code that the program names so (IPMI 2.0 table 13-15).
fn status(name: &str) -> Option<u8> {
    const NAMES: [&str; 18] = [
        "insufficient resources for session",
        "invalid session ID",
        "invalid payload type",
        "invalid authentication algorithm",
        "invalid integrity algorithm",
        "no matching authentication payload",
        "no matching integrity payload",
        "inactive session ID",
        "invalid role",
        "unauthorized role requested",
        "insufficient resources for role",
        "invalid name length",
        "unauthorized name",
        "unauthorized GUID",
        "invalid integrity check value",
        "invalid confidentiality algorithm",
        "no matching cipher suite",
        "illegal parameter",
    ];
    (1..).zip(NAMES).find_map(|(status, known)| (known == name).then_some(status))
}

/// The end of what it said, fit for a message.
fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(2)..).unwrap_or_default();
    last.join("; ").escape_debug().take(SAID_MAX).collect()
}

fn not_opened(failure: LoginFailure, network: Option<ErrorKind>) -> NotOpened {
    NotOpened { failure, suite_accepted: false, network }
}

#[cfg(test)]
mod tests;
