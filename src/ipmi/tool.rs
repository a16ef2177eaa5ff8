//! The program `ipmitool` as the way to a BMC, for one that only it can talk to: `bmc.driver = "ipmitool"`.
//!
//! Called by the call, in place of a session of its own: the program is run once for each command, with its `raw` words, so that what comes
//! back is the same bytes. It must never show the password to other users, leave a program running, or read more of what it says than is of use.
//!
//! A program that is killed closes no session: the BMC's own session timeout has to do.

use std::{
    env,
    ffi::OsStr,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    os::unix::ffi::OsStrExt as _,
    process::{Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command as Program},
    time::timeout,
};

use super::{
    client::BmcConfig,
    commands::Command,
    handshake::{Failure, refusal},
    link::{self, NotOpened},
    packet::PayloadType,
    session::Answer,
};
use crate::model::spec::{CipherSuite, Privilege};

/// How long one run may take. A BMC that answers takes a second; with the waits below, one that is dead takes six.
const RUN_TIME_MAX: Duration = Duration::from_secs(20);
/// Seconds before the program sends a datagram again for the first time, and how often: whatever fails is tried again here.
const RESENDS: [&str; 4] = ["-N", "1", "-R", "2"];
/// Most of either output that is read, in bytes. A run's own says have some hundred.
const OUTPUT_BYTES_MAX: u64 = 16 << 10;
/// Most of what it says that gets into a message, in characters.
const SAID_MAX: usize = 200;

/// Why a run brought no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// There was no session, in the words of our own handshake.
    NotOpened(NotOpened),
    /// The program cannot be run.
    NotRun(io::Error),
    /// The BMC key has a zero byte in it, which only the program's command line could carry.
    KeyNotCarried,
    /// It said something else.
    Unclear(String),
}

/// Has the program send one command, from its own session, and returns the answer.
pub(super) async fn run(
    program: &OsStr,
    config: &BmcConfig,
    address: SocketAddr,
    suite: CipherSuite,
    command: Command,
) -> Result<Answer, Failed> {
    let mut program = Program::new(program);
    program
        .args(words(config, address, suite, command))
        .env_clear()
        .envs(env::var_os("PATH").map(|path| ("PATH", path)))
        // Other users see the words of a command, and not its environment.
        .env("IPMITOOL_PASSWORD", config.password.expose())
        .env("LC_ALL", "C");
    if let Some(kg) = &config.kg {
        let Some(text) = kg.expose_without_zeros() else {
            return Err(Failed::KeyNotCarried);
        };
        program.env("IPMI_KGKEY", OsStr::from_bytes(text));
    }
    match timeout(RUN_TIME_MAX, output(program)).await {
        Ok(Ok(output)) => match understand(&output) {
            Err(Failed::NotOpened(NotOpened {
                failure: Failure::Silent, suite_accepted, ..
            })) => {
                // The program does not say what the network said.
                let network = link::probe(address).await;
                Err(Failed::NotOpened(NotOpened {
                    failure: Failure::Silent,
                    suite_accepted,
                    network,
                }))
            }
            understood => understood,
        },
        Ok(Err(error)) => Err(Failed::NotRun(error)),
        Err(_elapsed) => Err(silent()),
    }
}

/// The words after the program's name.
fn words(
    config: &BmcConfig,
    address: SocketAddr,
    suite: CipherSuite,
    command: Command,
) -> Vec<String> {
    let level = match config.privilege {
        Privilege::Operator => "OPERATOR",
        Privilege::Administrator => "ADMINISTRATOR",
    };
    let (host, port, suite) =
        (host(address), address.port().to_string(), u8::from(suite).to_string());
    // -v: it says why there is no session. Twice would be its keys.
    let mut words: Vec<String> =
        ["-v", "-I", "lanplus", "-H", &host, "-p", &port, "-U", &config.username]
            .into_iter()
            .chain(["-L", level, "-C", &suite])
            .chain(RESENDS)
            .chain(config.kg.as_ref().map(|_| "-K"))
            .chain(["-E", "raw"])
            .map(str::to_owned)
            .collect();
    let (network_function, code, data) = command.encode();
    words.extend([network_function, code].iter().chain(&data).map(|byte| format!("{byte:#04x}")));
    words
}

/// An address as the program takes it: without brackets, and with the interface that a link-local one needs.
fn host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => IpAddr::to_string(&address.ip()),
    }
}

/// Runs a program in a process group of its own, which is killed if this is dropped, and collects what it says.
async fn output(mut program: Program) -> io::Result<Output> {
    program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut running = Running(program.spawn()?);
    let (stdout, stderr) = (running.0.stdout.take(), running.0.stderr.take());
    let (stdout, stderr) = tokio::try_join!(beginning(stdout), beginning(stderr))?;
    let status = running.0.wait().await?;
    Ok(Output { status, stdout, stderr })
}

/// What is said on a pipe, as far as it is of use. Whoever says more finds the pipe closed.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut said).await?;
    }
    Ok(said)
}

/// A program under way. Dropped, it is killed with all that it started: `ipmitool` may be a script around the program.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // There is no number any more once it was waited for.
        let number = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(group) = number
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, "ipmitool was not killed");
        }
    }
}

/// What a run means.
fn understand(output: &Output) -> Result<Answer, Failed> {
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success()
        && let Some(data) = bytes(&output.stdout)
    {
        return Ok(Answer { completion: 0, data });
    }
    if let Some(completion) = completion(&said) {
        return Ok(Answer { completion, data: Vec::new() });
    }
    let failure = failure(&said)
        .ok_or_else(|| Failed::Unclear(format!("{}: {}", output.status, last_lines(&said))))?;
    Err(not_opened(failure))
}

/// The bytes of an answer: two hexadecimal digits each, sixteen in a line.
fn bytes(stdout: &[u8]) -> Option<Vec<u8>> {
    let byte = |digits| u8::from_str_radix(digits, 16).ok();
    str::from_utf8(stdout).ok()?.split_ascii_whitespace().map(byte).collect()
}

/// The completion code of a command that was answered but refused: `… (channel=0x0 netfn=0x0 lun=0x0 cmd=0x2 rsp=0xd5): …`.
fn completion(said: &str) -> Option<u8> {
    let (_, rest) = said.split_once("Unable to send RAW command (")?;
    let (_, rest) = rest.split_once("rsp=0x")?;
    let (digits, _) = rest.split_once(')')?;
    u8::from_str_radix(digits, 16).ok()
}

/// Why there was no session, if that is clear.
fn failure(said: &str) -> Option<Failure> {
    const REFUSALS: [(&str, PayloadType); 3] = [
        ("Error in open session response message : ", PayloadType::OpenResponse),
        ("RAKP 2 message indicates an error : ", PayloadType::Rakp2),
        ("RAKP 4 message indicates an error : ", PayloadType::Rakp4),
    ];
    const MEANINGS: [(&str, Failure); 11] = [
        // It checks what the BMC chose, as we do.
        ("is not what we requested 0x", Failure::SuiteRefused),
        ("RAKP 2 HMAC is invalid", Failure::Mismatch),
        ("RAKP 4 message has invalid integrity check value", Failure::KeyMismatch),
        ("privilege level failed: Insufficient privilege", Failure::PrivilegeRefused),
        ("failed: Unknown (0x80)", Failure::PrivilegeRefused),
        ("failed: Unknown (0x81)", Failure::PrivilegeRefused),
        ("Timeout in open session response message", Failure::Silent),
        // There is no way to the address; the network's own word is asked for next.
        ("Could not open socket", Failure::Silent),
        ("no response from RAKP", Failure::Silent),
        ("Get Auth Capabilities error", Failure::Silent),
        // Without a completion code, which was looked for before.
        ("Unable to send RAW command", Failure::Silent),
    ];
    let refused = REFUSALS.iter().find_map(|(intro, message)| {
        let (_, reason) = said.split_once(intro)?;
        Some(refusal(*message, status(reason.lines().next()?.trim())?))
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

fn silent() -> Failed {
    not_opened(Failure::Silent)
}

fn not_opened(failure: Failure) -> Failed {
    Failed::NotOpened(NotOpened { failure, suite_accepted: false, network: None::<ErrorKind> })
}

#[cfg(test)]
mod tests;
