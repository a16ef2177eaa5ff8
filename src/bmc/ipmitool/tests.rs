//! ipmitool's recorded output, and programs that misbehave in its place.

use std::process::ExitStatus;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::{
    bmc::{Timing, ipmi::IpmiClient},
    model::{power::ChassisControl, secret::Secret, spec::HostPort},
};

fn config() -> IpmiConfig {
    IpmiConfig {
        address: HostPort { host: "127.0.0.1".to_owned(), port: 9 },
        username: "admin".to_owned(),
        password: Secret::new("correct-horse".to_owned()),
        kg: None,
        privilege: Privilege::Operator,
        cipher_suite: None,
        spacing: Duration::ZERO,
    }
}

fn client(program: &str, config: IpmiConfig) -> IpmiClient {
    let transport = Ipmitool { program: program.into() };
    IpmiClient::over(Box::new(transport), config, Timing::default())
}

fn said(success: bool, stdout: &str, stderr: &str) -> Result<CommandAnswer, String> {
    use std::os::unix::process::ExitStatusExt as _;
    let status = ExitStatus::from_raw(if success { 0 } else { 1 << 8 });
    let output = Output { status, stdout: stdout.into(), stderr: stderr.into() };
    match RunResult::of(&output) {
        RunResult::Answer(answer) => Ok(answer),
        RunResult::NoSession(failure) => Err(format!("{failure:?}")),
        RunResult::Unclear(words) => Err(words),
    }
}

#[test]
fn the_words_are_ipmitools_and_the_password_is_not_among_them() {
    let address = "[fe80::1%7]:6230".parse().unwrap();
    let command = IpmiCommand::ChassisControl(ChassisControl::PowerUp);
    assert_eq!(
        arguments(&config(), address, CipherSuite::Sha256, command).join(" "),
        "-v -I lanplus -H fe80::1%7 -p 6230 -U admin -L OPERATOR -C 17 -N 1 -R 2 -E raw 0x00 0x02 \
         0x01"
    );
    let kg = Some("site-bmc-key".parse().unwrap());
    let words = arguments(&IpmiConfig { kg, ..config() }, address, CipherSuite::Sha256, command);
    let words = words.join(" ");
    assert!(words.contains(" -K -E raw ") && !words.contains("site-bmc-key"), "{words}");
}

#[test]
fn what_ipmitool_says_is_read_as_it_says_it() {
    let answer = |completion, data: &[u8]| Ok(CommandAnswer { completion, data: data.to_vec() });
    assert_eq!(said(true, " 21 00 00\n", "RAW RSP (3 bytes)\n"), answer(0, &[0x21, 0, 0]));
    assert_eq!(said(true, "\n", ""), answer(0, &[]));
    let sixteen_in_a_line =
        said(true, " 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f\n 10\n", "");
    assert_eq!(sixteen_in_a_line, answer(0, &(0..=16).collect::<Vec<u8>>()));
    let refused = "Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x2 rsp=0xd5): \
        Command not supported in present state\n";
    assert_eq!(said(false, "", refused), answer(0xd5, &[]));
    let no_session = |line: &str| {
        said(false, "", &format!("{line}\nError: Unable to establish IPMI v2 / RMCP+ session\n"))
    };
    for (line, failure) in [
        ("Error in open session response message : no matching cipher suite\n", "SuiteRefused"),
        ("Error in open session response message : invalid role\n", "SuiteRefused"),
        ("Authentication algorithm 0x01 is not what we requested 0x03\n", "SuiteRefused"),
        (
            "Error in open session response message : insufficient resources for session\n",
            "Status(1)",
        ),
        ("RAKP 2 message indicates an error : unauthorized name", "UnknownUser"),
        ("RAKP 2 message indicates an error : unauthorized role requested", "PrivilegeRefused"),
        ("Set Session Privilege Level to ADMINISTRATOR failed: Unknown (0x81)", "PrivilegeRefused"),
        ("> RAKP 2 HMAC is invalid", "Mismatch"),
        ("> RAKP 4 message has invalid integrity check value", "KeyMismatch"),
        ("RAKP 4 message indicates an error : invalid integrity check value", "Status(15)"),
        ("> Error: no response from RAKP 1 message", "Silent"),
        (
            "Get Auth Capabilities error\n\
             Error issuing Get Channel Authentication Capabilities request",
            "Silent",
        ),
    ] {
        assert_eq!(no_session(line), Err(failure.to_owned()), "{line}");
    }
    assert_eq!(
        no_session("Loading IANA PEN Registry...\nsomething new\u{1b}[2J"),
        Err("exit status: 1: something new\\u{1b}[2J; Error: Unable to establish IPMI v2 / RMCP+ \
            session"
            .to_owned())
    );
    assert_eq!(said(true, "Chassis Power is on\n", ""), Err("exit status: 0: ".to_owned()));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_at_once() {
    let bmc = client("/nowhere/ipmitool", config());
    let error = bmc.power_state(Instant::now() + Duration::from_secs(60)).await.unwrap_err();
    let reason = "No such file or directory (os error 2)".to_owned();
    assert_eq!(error.kind, IpmiErrorKind::ProgramNotRun { reason });
}

#[tokio::test]
async fn a_bmc_key_that_only_a_command_line_could_carry_is_refused_and_not_shown() {
    let kg = Some("0x410042".parse().unwrap());
    let bmc = client("false", IpmiConfig { kg, ..config() });
    let error = bmc.power_state(Instant::now() + Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(error.kind, IpmiErrorKind::KeyNotCarried);
    assert!(!error.to_string().contains("410042"), "{error}");
}

#[tokio::test]
async fn a_program_that_fails_in_its_own_way_is_tried_until_the_deadline_and_quoted() {
    let bmc = client("false", config());
    let error = bmc.power_state(Instant::now() + Duration::from_millis(300)).await.unwrap_err();
    assert!(error.to_string().contains("exit status: 1"), "{error}");
}

proptest! {
    #[test]
    fn reading_what_it_says_never_panics_on_any_bytes(
        success: bool,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    ) {
        use std::os::unix::process::ExitStatusExt as _;
        let status = ExitStatus::from_raw(if success { 0 } else { 1 << 8 });
        let _ignored = RunResult::of(&Output { status, stdout, stderr });
    }

    #[test]
    fn reading_what_it_nearly_says_never_panics(middle in ".{0,40}", end in "(rsp=0x)?.{0,10}") {
        let _ignored = said(false, "", &format!("Unable to send RAW command ({middle}{end}"));
        let _ignored = said(false, "", &format!("RAKP 2 message indicates an error : {end}"));
    }
}
