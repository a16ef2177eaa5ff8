//! The ipmitool driver: IPMI by the program `ipmitool`, for a BMC that only this program can talk
//! to (`bmc.driver = "ipmitool"`).
//!
//! The driver is a transport of the IPMI client: it runs the program once for each command, with
//! its subcommand `raw`, so that the returned bytes are the BMC's own. It must never show the
//! password to other users or leave a program running.
//!
//! A killed program closes no session: the BMC's own session timeout applies.

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

/// Longest run. With an answering BMC a run takes a second; with the waits below and a dead BMC,
/// six.
const RUN_TIME_MAX: Duration = Duration::from_secs(20);
/// The program's wait in seconds before it first repeats a datagram, and its number of repetitions.
/// Low, because the call retries.
const RESENDS: [&str; 4] = ["-N", "1", "-R", "2"];
/// Most characters of the program's output in a message.
const SAID_MAX: usize = 200;

/// The transport that runs the program.
#[derive(Debug)]
pub(super) struct Ipmitool {
    /// The program's name, which `PATH` resolves, or its path.
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
        // Low, because the program reports each mismatch to the BMC, which may count it as a failed
        // login and lock the user out.
        Habits { keeps_session: false, mismatches_max: 2 }
    }
}

/// The parameters of the program's runs.
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
    /// Runs the program for one command, in a session of its own.
    async fn send(&self, command: IpmiCommand) -> Exchange {
        let Self { program, config, address, suite } = self;
        let mut program = Program::new(program);
        program
            .args(arguments(config, *address, *suite, command))
            .env_clear()
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            // Other users can read a process's arguments, but not its environment.
            .env("IPMITOOL_PASSWORD", config.password.expose())
            .env("LC_ALL", "C");
        if let Some(kg) = &config.kg {
            let Some(text) = kg.expose_without_zeros() else {
                return Exchange::Unusable(IpmiErrorKind::KeyNotCarried);
            };
            program.env("IPMI_KGKEY", OsStr::from_bytes(text));
        }
        let said = match timeout(RUN_TIME_MAX, process::output(program)).await {
            Ok(Ok(output)) => RunResult::of(&output),
            Ok(Err(error)) => {
                let reason = error.to_string();
                return Exchange::Unusable(IpmiErrorKind::ProgramNotRun { reason });
            }
            Err(_elapsed) => return Exchange::NotOpened(not_opened(LoginFailure::Silent, None)),
        };
        match said {
            RunResult::Answer(answer) => Exchange::Answer(answer),
            // The program's output lacks the network's error.
            RunResult::NoSession(LoginFailure::Silent) => {
                let network = probe(*address).await;
                Exchange::NotOpened(not_opened(LoginFailure::Silent, network))
            }
            RunResult::NoSession(failure) => Exchange::NotOpened(not_opened(failure, None)),
            RunResult::Unclear(words) => Exchange::Unclear(words),
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
    // With -v, the program prints why it has no session. A second -v would print its keys.
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

/// Formats an address for the program: without brackets, and with the interface of a link-local
/// one.
fn host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => IpAddr::to_string(&address.ip()),
    }
}

/// The result of a run, decoded from ipmitool's output.
#[derive(Debug, PartialEq, Eq)]
enum RunResult {
    /// The BMC answered.
    Answer(CommandAnswer),
    /// The program opened no session.
    NoSession(LoginFailure),
    /// The output has no known meaning.
    Unclear(String),
}

impl RunResult {
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

/// Decodes the bytes of an answer: two hexadecimal digits each, sixteen on a line.
fn bytes(stdout: &[u8]) -> Option<Vec<u8>> {
    let byte = |digits| u8::from_str_radix(digits, 16).ok();
    str::from_utf8(stdout).ok()?.split_ascii_whitespace().map(byte).collect()
}

/// Finds the completion code of a refused command: `… (channel=0x0 netfn=0x0 lun=0x0 cmd=0x2
/// rsp=0xd5): …`.
fn completion(said: &str) -> Option<u8> {
    let (_, rest) = said.split_once("Unable to send RAW command (")?;
    let (_, rest) = rest.split_once("rsp=0x")?;
    let (digits, _) = rest.split_once(')')?;
    u8::from_str_radix(digits, 16).ok()
}

/// Finds the reason for a missing session; `None` if the output names none.
fn failure(said: &str) -> Option<LoginFailure> {
    type OfStatus = fn(u8) -> LoginFailure;
    const REFUSALS: [(&str, OfStatus); 3] = [
        ("Error in open session response message : ", LoginFailure::of_open_response),
        ("RAKP 2 message indicates an error : ", LoginFailure::of_rakp),
        ("RAKP 4 message indicates an error : ", LoginFailure::of_rakp),
    ];
    const MEANINGS: [(&str, LoginFailure); 11] = [
        // The program checks the BMC's choice of algorithms, as hostler does.
        ("is not what we requested 0x", LoginFailure::SuiteRefused),
        ("RAKP 2 HMAC is invalid", LoginFailure::Mismatch),
        ("RAKP 4 message has invalid integrity check value", LoginFailure::KeyMismatch),
        ("privilege level failed: Insufficient privilege", LoginFailure::PrivilegeRefused),
        ("failed: Unknown (0x80)", LoginFailure::PrivilegeRefused),
        ("failed: Unknown (0x81)", LoginFailure::PrivilegeRefused),
        ("Timeout in open session response message", LoginFailure::Silent),
        // The address is unreachable; the caller then asks for the network's error.
        ("Could not open socket", LoginFailure::Silent),
        ("no response from RAKP", LoginFailure::Silent),
        ("Get Auth Capabilities error", LoginFailure::Silent),
        // This line comes without a completion code: `completion` has read the others.
        ("Unable to send RAW command", LoginFailure::Silent),
    ];
    let refused = REFUSALS.iter().find_map(|(intro, meaning)| {
        let (_, reason) = said.split_once(intro)?;
        Some(meaning(status(reason.lines().next()?.trim())?))
    });
    let meaning = || MEANINGS.iter().find(|(text, _)| said.contains(text));
    refused.or_else(|| meaning().map(|(_, failure)| *failure))
}

/// The RMCP+ status code for the program's name of it (IPMI 2.0 table 13-15).
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

/// The end of the program's output, fit for a message.
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
