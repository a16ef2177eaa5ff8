//! Errors of IPMI calls, in an administrator's words.
//!
//! The client returns them; the administrator reads the message, and the agent acts on the advice.
//! No message holds a secret.

use std::{io, time::Duration};

use thiserror::Error;

use crate::model::{
    fault::{Advice, Advise},
    power::{BootDevice, PowerState},
    spec::{CipherSuite, HostPort, Privilege},
};

/// A call to a BMC failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("bmc {bmc}: {kind}")]
pub struct IpmiError {
    /// The BMC.
    pub bmc: HostPort,
    /// The failure.
    pub kind: IpmiErrorKind,
}

/// The kinds of IPMI errors. The call retried passing failures until the deadline before it
/// returned one of these.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IpmiErrorKind {
    /// The host name has no address.
    #[error("host name has no address: {reason}")]
    Unresolved {
        /// The resolver's error.
        reason: String,
    },
    /// The BMC sent nothing until the deadline.
    #[error("{}", silence(*.network, *.waited))]
    NoAnswer {
        /// The duration of the tries.
        waited: Duration,
        /// The network's error, if it reported one.
        network: Option<io::ErrorKind>,
    },
    /// The user does not exist, or the password does not fit.
    #[error("wrong user name or password")]
    WrongPassword,
    /// IPMI 2.0 passwords have at most 20 bytes.
    #[error("the password has {bytes} bytes, IPMI 2.0 allows 20")]
    PasswordTooLong {
        /// The password's length.
        bytes: usize,
    },
    /// The password is right, and the BMC uses another BMC key (`K_g`).
    #[error("{}", wrong_key(*.given))]
    WrongKey {
        /// Whether the spec names a key.
        given: bool,
    },
    /// The BMC key has a zero byte, and `ipmitool` reads such a key from its command line only.
    #[error(
        "the BMC key (K_g) has a zero byte in it, which ipmitool takes on its command line only"
    )]
    KeyNotCarried,
    /// The BMC refuses a command or credentials that it accepted before, for less than a minute so
    /// far.
    #[error("{refusal}, for {}; it accepted the same before", seconds(*.doubted))]
    Doubted {
        /// The refusal, which becomes the error if it lasts.
        refusal: Box<IpmiErrorKind>,
        /// The time since the first refusal in a row.
        doubted: Duration,
    },
    /// The user is not allowed the privilege level of the spec.
    #[error("user {username} may not use privilege {}", level(*.privilege))]
    PrivilegeRefused {
        /// The user.
        username: String,
        /// The level asked for.
        privilege: Privilege,
    },
    /// The BMC refuses all of the proposed cipher suites.
    #[error("refuses cipher {}", suite_list(.suites))]
    SuitesRefused {
        /// The proposed suites.
        suites: Vec<CipherSuite>,
    },
    /// The BMC answered, but opened no session until the deadline.
    #[error(
        "gave no session in {}: {} (status {status:#04x})",
        seconds(*.waited),
        status_text(*.status)
    )]
    NoSession {
        /// The last RMCP+ status code (IPMI 2.0 table 13-15).
        status: u8,
        /// The duration of the tries.
        waited: Duration,
    },
    /// The BMC was too busy until the deadline.
    #[error(
        "too busy to {command} for {}: {} (completion code {completion:#04x})",
        seconds(*.waited),
        completion_text(*.completion)
    )]
    Busy {
        /// The command.
        command: &'static str,
        /// The last completion code (IPMI 2.0 table 5-2).
        completion: u8,
        /// The duration of the tries.
        waited: Duration,
    },
    /// `ipmitool` failed until the deadline for a reason that hostler does not know.
    #[error("ipmitool failed for {}: {said}", seconds(*.waited))]
    Unclear {
        /// The program's exit status and the end of its output, at most 200 characters.
        said: String,
        /// The duration of the tries.
        waited: Duration,
    },
    /// `ipmitool` is not installed, or cannot be run.
    #[error("ipmitool cannot be run: {reason}")]
    ProgramNotRun {
        /// The system's error.
        reason: String,
    },
    /// Another call held the BMC until the deadline.
    #[error("another call to it was not over in {}", seconds(*.waited))]
    InUse {
        /// The time waited.
        waited: Duration,
    },
    /// The BMC refused a command, and a retry cannot help.
    #[error(
        "refused to {command}: {} (completion code {completion:#04x})",
        completion_text(*.completion)
    )]
    CommandRefused {
        /// The command.
        command: &'static str,
        /// The completion code (IPMI 2.0 table 5-2).
        completion: u8,
    },
    /// An answer does not have the layout of the specification.
    #[error("the answer to {command} is too short or about something else")]
    BadAnswer {
        /// The command.
        command: &'static str,
    },
    /// The BMC refuses Get System GUID, or its answer holds no UUID.
    #[error("does not say its system's UUID")]
    NoSystemGuid,
    /// The BMC has no serial console, or refuses to open it.
    #[error(
        "no serial console: {} (completion code {completion:#04x})",
        console_text(*.completion)
    )]
    NoConsole {
        /// The completion code (IPMI 2.0 §24.1).
        completion: u8,
    },
    /// The BMC accepted the power command, but the power state did not follow.
    #[error(
        "accepted power {} but stayed {} for {}",
        .wanted.as_str(),
        .wanted.opposite().as_str(),
        seconds(*.waited)
    )]
    StateNotReached {
        /// The state asked for.
        wanted: PowerState,
        /// The time since the BMC first accepted the command.
        waited: Duration,
    },
    /// The BMC accepted the boot device, but reports another one.
    #[error("accepted boot device {} but reports selector {reported:#04x}", device(*.wanted))]
    BootDeviceNotKept {
        /// The device asked for.
        wanted: BootDevice,
        /// The reported boot device selector, as on the wire (IPMI 2.0 table 28-14).
        reported: u8,
    },
}

impl Advise for IpmiError {
    fn advice(&self) -> Advice {
        self.kind.advice()
    }
}

impl IpmiErrorKind {
    fn advice(&self) -> Advice {
        match self {
            Self::Unresolved { .. } => Advice::passing(
                "BmcUnresolved",
                "look at bmc.address and at this machine's name service",
            ),
            Self::NoAnswer { network, .. } => silence_advice(*network),
            Self::WrongPassword
            | Self::PasswordTooLong { .. }
            | Self::Doubted { .. }
            | Self::WrongKey { .. }
            | Self::KeyNotCarried
            | Self::PrivilegeRefused { .. }
            | Self::SuitesRefused { .. } => self.login_advice(),
            Self::ProgramNotRun { .. } => Advice::missing(
                "IpmitoolMissing",
                "install ipmitool on hostler's machine, or set bmc.driver = \"ipmi\"",
            ),
            Self::Unclear { .. } => Advice::passing(
                "IpmitoolFailed",
                "run ipmitool by hand as hostler's user, and look at what it says",
            ),
            Self::NoSession { status, .. } if !is_short_of_sessions(*status) => Advice::passing(
                "BmcRefusesSession",
                "look at the BMC's user and LAN channel settings, and at what `ipmitool -v` says \
             of it; if it stays so, reset the BMC",
            ),
            Self::NoSession { .. } | Self::Busy { .. } | Self::InUse { .. } => Advice::passing(
                "BmcBusy",
                "other programs may hold the BMC's sessions; if it stays so, reset the BMC",
            ),
            Self::CommandRefused { .. } | Self::BadAnswer { .. } | Self::NoConsole { .. } => {
                Advice::passing(
                    "BmcRefused",
                    "look at the BMC's event log and firmware; if it stays so, reset the BMC",
                )
            }
            Self::NoSystemGuid => Advice::lasting(
                "NoSystemUuid",
                "set bmc.match_system_uuid = false: this BMC cannot tell which machine it belongs \
                 to",
            ),
            Self::StateNotReached { .. } => Advice::passing(
                "PowerNotReached",
                "the BMC accepts power commands and nothing happens: look at the machine, or raise \
                 timeouts.power",
            ),
            Self::BootDeviceNotKept { .. } => Advice::passing(
                "BootDeviceNotKept",
                "the BMC does not keep the boot device: look at its firmware and at the machine's \
                 boot order",
            ),
        }
    }

    /// The advice on a BMC that answers, and refuses the spec's credentials.
    const fn login_advice(&self) -> Advice {
        match self {
            Self::WrongPassword | Self::PasswordTooLong { .. } => Advice::lasting(
                "BmcPasswordWrong",
                "correct bmc.username or the password file, then run `hostler retry` for this \
             node; hostler does not go on trying, because BMCs lock users out",
            ),
            Self::Doubted { .. } => Advice::passing(
                "BmcRefusesForNow",
                "BMCs do so for seconds after a power change; hostler asks again, and takes the \
             refusal for final after a minute",
            ),
            Self::WrongKey { given: true } => Advice::lasting(
                "BmcKeyWrong",
                "correct the file that bmc.kg_file names, or leave it out if the BMC has no BMC \
             key; then run `hostler retry` for this node",
            ),
            Self::WrongKey { given: false } => Advice::lasting(
                "BmcKeyWrong",
                "set bmc.kg_file to a file with the BMC key (K_g), or clear the key in the BMC's \
             settings; then run `hostler retry` for this node",
            ),
            Self::KeyNotCarried => Advice::lasting(
                "BmcKeyWrong",
                "set bmc.driver = \"ipmi\", or give the BMC a key without zero bytes",
            ),
            Self::PrivilegeRefused { .. } => Advice::lasting(
                "BmcPrivilegeRefused",
                "give the BMC user that privilege, or set bmc.privilege = \"operator\"",
            ),
            _ => Advice::lasting(
                "BmcCipherRefused",
                "allow cipher suite 17 or 3 in the BMC's settings, or set bmc.cipher_suite",
            ),
        }
    }
}

/// The advice on a silent BMC, by the network's error.
const fn silence_advice(network: Option<io::ErrorKind>) -> Advice {
    match network {
        Some(io::ErrorKind::ConnectionRefused) => Advice::passing(
            "BmcPortClosed",
            "a host answers at bmc.address, and nothing listens at its port: switch on IPMI \
             over LAN in the BMC's settings, and look whether bmc.address and its port are the \
             BMC's",
        ),
        Some(io::ErrorKind::NetworkUnreachable) => Advice::passing(
            "BmcNoRoute",
            "this machine, or a router, has no route to the BMC's network: look at \
             `ip route get` with bmc.address",
        ),
        Some(io::ErrorKind::HostUnreachable) => Advice::passing(
            "BmcHostUnreachable",
            "nothing has bmc.address in the BMC's network, or a firewall rejects it: look at \
             the BMC's cable, power and address, and at `ip neigh`",
        ),
        _ => Advice::passing(
            "BmcSilent",
            "look at bmc.address, the BMC's cable and power, its IPMI-over-LAN setting, and \
             firewalls for UDP port 623",
        ),
    }
}

/// Formats a duration: `30 s`, and `300 ms` below one second.
fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.0} s", duration.as_secs_f64())
    }
}

/// Describes the lack of an answer. "Connection refused" is a port without a listener, "network
/// unreachable" a missing route of this machine, "host unreachable" the error of a router or of the
/// neighbor discovery; silence is none of them.
fn silence(network: Option<io::ErrorKind>, waited: Duration) -> String {
    let tried = seconds(waited);
    match network {
        None => format!("no answer in {tried}"),
        Some(io::ErrorKind::ConnectionRefused) => {
            format!("connection refused (tried for {tried})")
        }
        Some(io::ErrorKind::NetworkUnreachable) => {
            format!("no route to its network (tried for {tried})")
        }
        Some(io::ErrorKind::HostUnreachable) => format!("host unreachable (tried for {tried})"),
        Some(kind) => format!("no answer in {tried} ({kind})"),
    }
}

const fn wrong_key(given: bool) -> &'static str {
    if given {
        "the password fits, and its BMC key (K_g) is not the one in bmc.kg_file"
    } else {
        "the password fits, and it asks for a BMC key (K_g)"
    }
}

/// Whether a status reports a shortage of sessions or a lost session, and so nothing about the
/// login.
pub(super) const fn is_short_of_sessions(status: u8) -> bool {
    matches!(status, 0x01 | 0x02 | 0x08 | 0x0b)
}

const fn level(privilege: Privilege) -> &'static str {
    match privilege {
        Privilege::Operator => "operator",
        Privilege::Administrator => "administrator",
    }
}

fn suite_list(suites: &[CipherSuite]) -> String {
    let numbers: Vec<String> = suites.iter().map(|suite| u8::from(*suite).to_string()).collect();
    format!("{} {}", if numbers.len() == 1 { "suite" } else { "suites" }, numbers.join(" and "))
}

const fn device(device: BootDevice) -> &'static str {
    match device {
        BootDevice::Pxe => "pxe",
        BootDevice::Disk => "disk",
    }
}

/// The meaning of an RMCP+ status code (IPMI 2.0 table 13-15).
const fn status_text(status: u8) -> &'static str {
    match status {
        0x01 | 0x0b => "no free session",
        0x02 | 0x08 => "it forgot the session while it was opened",
        0x03..=0x07 | 0x10 | 0x11 => "no such algorithm or payload",
        0x09 | 0x0a => "the role is not allowed",
        0x0c | 0x0d => "no such user",
        0x0e => "the GUID is not allowed",
        0x0f => "check values differ",
        0x12 => "illegal parameter",
        _ => "refused",
    }
}

const fn console_text(completion: u8) -> &'static str {
    match completion {
        0x80 => "somebody else has it",
        0x81 => "serial over LAN is switched off in its settings, or the machine is off",
        0x82 => "it has as many consoles open as it can",
        0x83 => "it cannot encipher it",
        0xd5 => "not in this state",
        _ => "refused",
    }
}

const fn completion_text(completion: u8) -> &'static str {
    match completion {
        0xc0 => "node busy",
        0xc1 | 0xc2 => "command not supported",
        0xc3 => "timeout",
        0xc4 => "out of space",
        0xc7 | 0xc8 => "wrong length",
        0xcc => "invalid data",
        0xce => "no response could be provided",
        0xcf => "duplicated request",
        0xd1 => "its firmware is being updated",
        0xd3 => "destination unavailable",
        0xd2 => "bmc is initializing",
        0xd5 => "not in this state",
        0xff => "unspecified error",
        _ => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: IpmiErrorKind) -> String {
        let bmc = HostPort { host: "192.0.2.20".to_owned(), port: 623 };
        IpmiError { bmc, kind }.to_string()
    }

    #[test]
    fn messages_say_what_an_administrator_needs() {
        let waited = Duration::from_secs(30);
        let none = IpmiErrorKind::NoAnswer { waited, network: None };
        assert_eq!(message(none), "bmc 192.0.2.20:623: no answer in 30 s");
        let refused = Some(io::ErrorKind::ConnectionRefused);
        let waited = Duration::from_millis(300);
        let none = IpmiErrorKind::NoAnswer { waited, network: refused };
        assert_eq!(message(none), "bmc 192.0.2.20:623: connection refused (tried for 300 ms)");
        assert_eq!(
            message(IpmiErrorKind::WrongPassword),
            "bmc 192.0.2.20:623: wrong user name or password"
        );
        assert_eq!(
            message(IpmiErrorKind::PrivilegeRefused {
                username: "admin".to_owned(),
                privilege: Privilege::Administrator
            }),
            "bmc 192.0.2.20:623: user admin may not use privilege administrator"
        );
        let suites = vec![CipherSuite::Sha256, CipherSuite::Sha1];
        assert_eq!(
            message(IpmiErrorKind::SuitesRefused { suites }),
            "bmc 192.0.2.20:623: refuses cipher suites 17 and 3"
        );
        let waited = Duration::from_secs(60);
        assert_eq!(
            message(IpmiErrorKind::StateNotReached { wanted: PowerState::On, waited }),
            "bmc 192.0.2.20:623: accepted power on but stayed off for 60 s"
        );
        assert_eq!(
            message(IpmiErrorKind::CommandRefused { command: "power cycle", completion: 0xd5 }),
            "bmc 192.0.2.20:623: refused to power cycle: not in this state (completion code 0xd5)"
        );
        let said = "exit status: 1: Segmentation fault".to_owned();
        assert_eq!(
            message(IpmiErrorKind::Unclear { said, waited }),
            "bmc 192.0.2.20:623: ipmitool failed for 60 s: exit status: 1: Segmentation fault"
        );
    }
}
