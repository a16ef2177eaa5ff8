//! The driver against programs of every behaviour.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Duration, Instant as Clock},
};

use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::{
    bmc::{BmcError, BootChoice, Chassis, Driver, Timing},
    model::{
        boot::Firmware,
        fault::{Advise as _, RetryAdvice},
        power::{BootDevice, BootPersistence, PowerState},
        spec::BmcAddress,
    },
};

/// Short waits: the programs start in milliseconds.
const TIMING: Timing = Timing {
    resend_first: Duration::from_millis(20),
    resend_max: Duration::from_millis(50),
    poll: Duration::from_millis(10),
    reissue: Duration::from_millis(200),
    doubt: Duration::from_secs(3),
    flags_settle: Duration::from_millis(300),
    console_alive: Duration::from_secs(1),
    console_retry: Duration::from_secs(1),
    program_run: Duration::from_secs(10),
};

/// A program and its directory `$DIR`, where the program reads and writes its files.
struct Device {
    dir: TempDir,
}

impl Device {
    fn new(script: &str) -> Self {
        let device = Self { dir: tempfile::tempdir().unwrap() };
        device.write(script);
        device
    }

    fn write(&self, script: &str) {
        let text = format!("#!/bin/sh\nDIR={}\n{script}\n", self.dir.path().display());
        // Renamed into place, because the kernel does not run a file that is open for writing.
        let new = self.file("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, self.program()).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self) -> PathBuf {
        self.file("device")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    fn config(&self) -> ProgramConfig {
        ProgramConfig {
            node: "edge-07".parse().unwrap(),
            address: BmcAddress::by_program(self.program().to_str().unwrap(), "outlet 7"),
            username: String::new(),
            password_file: None,
            spacing: Duration::ZERO,
        }
    }

    fn client(&self) -> ProgramClient {
        ProgramClient::new(self.config(), TIMING)
    }
}

/// A program that obeys every word.
const OBEYS: &str = r#"
echo "$1" >> "$DIR/calls"
case $1 in
on|off) echo "$1" > "$DIR/power" ;;
status) cat "$DIR/power" 2> /dev/null || echo off ;;
boot-*) echo "$1 $HOSTLER_BOOT $HOSTLER_FIRMWARE" >> "$DIR/boot" ;;
esac
"#;

fn within(seconds: f64) -> Instant {
    Instant::now() + Duration::from_secs_f64(seconds)
}

fn soon() -> Instant {
    within(10.0)
}

async fn fails(script: &str) -> ProgramErrorKind {
    let device = Device::new(script);
    kind(device.client().power_state(within(3.0)).await.unwrap_err())
}

fn kind(error: BmcError) -> ProgramErrorKind {
    let BmcError::Program(error) = error else { panic!("{error}") };
    error.kind
}

#[tokio::test]
async fn a_program_switches_on_and_off_and_chooses_what_is_booted() {
    let device = Device::new(OBEYS);
    let client = device.client();
    let (pxe, disk) = (BootDevice::Pxe, BootDevice::Disk);
    let (once, always) = (BootPersistence::NextBoot, BootPersistence::Persistent);
    assert_eq!(client.power_state(soon()).await, Ok(PowerState::Off));
    client.reach_power(PowerState::Off, soon()).await.unwrap();
    client.set_boot_device(pxe, once, Firmware::Uefi, soon()).await.unwrap();
    client.reach_power(PowerState::On, soon()).await.unwrap();
    client.set_boot_device(disk, always, Firmware::Bios, soon()).await.unwrap();
    assert_eq!(
        client.chassis(soon()).await,
        Ok(Chassis { power: PowerState::On, boot: None }),
        "it does not say"
    );
    client.soft_off(Duration::from_secs(5), soon()).await.unwrap();
    let calls = device.read("calls").replace("status\n", "");
    assert_eq!(calls, "boot-network\non\nboot-disk\noff\n");
    assert_eq!(device.read("boot"), "boot-network next uefi\nboot-disk always bios\n");
    let facts = client.facts(soon()).await.unwrap();
    assert_eq!(facts[0].value, device.program().to_str().unwrap());
}

/// Invariant (bmc): A BMC program is given no secret, and nothing of the agent's environment but
/// `PATH`.
#[tokio::test]
async fn a_program_learns_the_node_and_the_address_and_no_more_of_the_agents_environment() {
    let device = Device::new("env > \"$DIR/env\"; echo \"$#\" > \"$DIR/arguments\"; echo on");
    let names = |text: &str| {
        // The shell sets these variables itself.
        let own = |name: &&str| !["PWD", "_", "OLDPWD", "SHLVL"].contains(name);
        let mut names: Vec<String> = text
            .lines()
            .filter_map(|line| line.split('=').next())
            .filter(own)
            .map(str::to_owned)
            .collect();
        names.sort();
        names.join(" ")
    };
    device.client().power_state(soon()).await.unwrap();
    let env = device.read("env");
    assert_eq!(names(&env), "HOSTLER_BMC_ADDRESS HOSTLER_NODE LC_ALL PATH");
    assert!(env.contains("HOSTLER_BMC_ADDRESS=outlet 7\n"), "{env}");
    assert!(env.contains("HOSTLER_NODE=edge-07\n"), "{env}");
    assert_eq!(device.read("arguments"), "1\n");

    let password_file = Some(PathBuf::from("/secrets/edge-07.bmc"));
    let config = ProgramConfig { username: "admin".into(), password_file, ..device.config() };
    ProgramClient::new(config, TIMING).power_state(soon()).await.unwrap();
    let env = device.read("env");
    assert!(env.contains("HOSTLER_BMC_USERNAME=admin\n"), "{env}");
    assert!(env.contains("HOSTLER_BMC_PASSWORD_FILE=/secrets/edge-07.bmc\n"), "{env}");
}

#[tokio::test]
async fn a_refusal_is_told_by_its_first_line_and_what_is_put_off_is_tried_again() {
    let word = "status";
    let refused = fails("echo; echo >&2; echo 'no such outlet' >&2; echo more >&2; exit 1").await;
    let reason = "no such outlet".to_owned();
    assert_eq!(refused, ProgramErrorKind::Refused { word, reason });
    let reason = "exit status: 3".to_owned();
    assert_eq!(fails("exit 3").await, ProgramErrorKind::Refused { word, reason });
    let reason = "signal: 9 (SIGKILL)".to_owned();
    assert_eq!(fails("kill -9 $$").await, ProgramErrorKind::Refused { word, reason });

    let device = Device::new("echo 'wrong password' >&2; exit 77");
    let error = device.client().power_state(soon()).await.unwrap_err();
    let advice = error.advice();
    assert_eq!((advice.code, advice.retry), ("BmcPasswordWrong", RetryAdvice::Never));
    assert!(error.to_string().ends_with("refused `status` for good: wrong password"), "{error}");

    let device = Device::new("echo 'in use' >&2; exit 75");
    let put_off = kind(device.client().power_state(within(1.0)).await.unwrap_err());
    assert!(
        matches!(&put_off, ProgramErrorKind::PutOff { reason, .. } if reason == "in use"),
        "{put_off:?}"
    );
    let device = Device::new(
        "echo x >> \"$DIR/calls\"; [ \"$(wc -l < \"$DIR/calls\")\" -ge 3 ] || exit 75; echo on",
    );
    assert_eq!(device.client().power_state(soon()).await, Ok(PowerState::On));
}

#[tokio::test]
async fn garbage_for_a_power_state_is_none() {
    for (script, quoted) in [
        ("true", ""),
        ("echo ON", "ON"),
        ("echo 'on fire'", "on fire"),
        ("printf '\\033[2Jon'", "\\u{1b}[2Jon"),
        ("echo; echo on", ""),
        ("printf '\\377\\376'", "\u{fffd}\u{fffd}"),
    ] {
        let printed = quoted.to_owned();
        assert_eq!(fails(script).await, ProgramErrorKind::BadAnswer { printed }, "{script}");
    }
    let long = fails("head -c 5000 /dev/zero | tr '\\0' x").await;
    assert!(long.to_string().len() < 300, "{long}");
    // The program prints more than a pipe holds, and finds the pipe closed.
    let flood = fails("yes").await;
    assert!(matches!(flood, ProgramErrorKind::Refused { .. }), "{flood:?}");
}

/// Invariant (bmc): A BMC program outlives no call that was given up, and neither do its children.
#[tokio::test]
async fn a_program_that_hangs_is_killed_with_all_it_started_and_tried_again() {
    let script = "echo $$ >> \"$DIR/numbers\"; sleep 1000 & echo $! >> \"$DIR/numbers\"; wait";
    let device = Device::new(script);
    let waited = Duration::from_millis(200);
    let timing = Timing { program_run: waited, ..TIMING };
    let client = ProgramClient::new(device.config(), timing);
    let error = kind(client.power_state(within(1.5)).await.unwrap_err());
    let word = "status";
    assert_eq!(error, ProgramErrorKind::NotEnded { word, waited });
    let numbers = device.read("numbers");
    assert!(numbers.lines().count() > 2, "tried again: {numbers}");
    for number in numbers.lines() {
        is_gone(number).await;
    }

    // A dropped call kills its program too.
    let device = Device::new(script);
    let started = async {
        while device.read("numbers").lines().count() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let client = device.client();
    tokio::select! {
        ended = client.power_state(soon()) => panic!("{ended:?}"),
        () = started => {}
    }
    for number in device.read("numbers").lines() {
        is_gone(number).await;
    }
}

/// Waits until no process with this id exists, or it is a zombie.
async fn is_gone(number: &str) {
    let limit = Clock::now() + Duration::from_secs(5);
    loop {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        let dead = |(_, state): (&str, &str)| state.starts_with('Z');
        if stat.rsplit_once(") ").is_none_or(dead) {
            return;
        }
        assert!(Clock::now() < limit, "{number} runs on: {stat}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_child_that_keeps_the_pipe_open_holds_nobody_up() {
    let device = Device::new("sleep 30 & echo $! > \"$DIR/child\"; echo on");
    assert_eq!(device.client().power_state(soon()).await, Ok(PowerState::On));
    let child = device.read("child");
    assert!(fs::exists(format!("/proc/{}", child.trim())).unwrap(), "it was run for that");
    std::process::Command::new("kill").arg(child.trim()).status().unwrap();
}

/// Invariant (bmc): A BMC program that others can write is not run.
#[tokio::test]
async fn only_an_executable_that_nobody_else_can_write_is_run() {
    let device = Device::new("echo on");
    let error = async || {
        let error = device.client().power_state(within(1.0)).await.unwrap_err();
        let advice = error.advice();
        assert_eq!((advice.code, advice.retry), ("BmcProgramUnusable", RetryAdvice::Wait));
        error.to_string()
    };
    let mode = |mode| {
        fs::set_permissions(device.program(), fs::Permissions::from_mode(mode)).unwrap();
    };
    for (bits, expected) in [
        (0o644, "it must be executable"),
        (0o757, "others must not be able to write it; its mode is 757"),
        (0o775, "others must not be able to write it; its mode is 775"),
    ] {
        mode(bits);
        let error = error().await;
        assert!(error.contains(expected), "{error}");
    }
    mode(0o700);
    assert_eq!(device.client().power_state(soon()).await, Ok(PowerState::On));
    fs::remove_file(device.program()).unwrap();
    assert!(error().await.contains("No such file"));
    fs::create_dir(device.program()).unwrap();
    assert!(error().await.contains("it must be a regular file"));
    fs::remove_dir(device.program()).unwrap();
    fs::write(device.program(), "no program").unwrap();
    mode(0o755);
    assert!(error().await.contains("cannot be run"));
}

/// Invariant (bmc): A power command counts when its effect was seen.
#[tokio::test]
async fn a_program_that_says_yes_and_does_nothing_is_told() {
    let device = Device::new("echo \"$1\" >> \"$DIR/calls\"; [ $1 != status ] || echo off");
    let error = device.client().reach_power(PowerState::On, within(1.5)).await.unwrap_err();
    assert!(matches!(kind(error.clone()), ProgramErrorKind::StateNotReached { .. }), "{error}");
    let given = device.read("calls").lines().filter(|line| *line == "on").count();
    assert!(given > 1, "given again now and then");

    let device = Device::new("[ $1 = status ] || exit 0; echo on; echo boot-disk");
    let client = device.client();
    let (pxe, once) = (BootDevice::Pxe, BootPersistence::NextBoot);
    let error = client.set_boot_device(pxe, once, Firmware::Uefi, soon()).await.unwrap_err();
    let (wanted, reported) = (BootDevice::Pxe, BootDevice::Disk);
    assert_eq!(kind(error), ProgramErrorKind::BootDeviceNotKept { wanted, reported });
    let boot = Some(BootChoice::Device(BootDevice::Disk));
    assert_eq!(client.chassis(soon()).await, Ok(Chassis { power: PowerState::On, boot }));
}

#[tokio::test]
async fn a_program_that_is_being_written_is_run_once_it_is_whole() {
    let device = Device::new("echo on");
    let writer = fs::File::options().append(true).open(device.program()).unwrap();
    let client = device.client();
    let error = client.power_state(within(0.3)).await.unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    let written = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(writer);
    };
    let (state, ()) = tokio::join!(client.power_state(soon()), written);
    assert_eq!(state, Ok(PowerState::On));
}

/// Invariant (bmc): Calls to one BMC never overlap, and the pause lies between two of them.
#[tokio::test]
async fn runs_take_turns_with_a_pause_between_them() {
    let device = Device::new(&format!(
        "mkdir \"$DIR/turn\" || exit 1\ndate +%s%N >> \"$DIR/times\"\n{OBEYS}\nrmdir \"$DIR/turn\""
    ));
    let spacing = Duration::from_millis(100);
    let client = ProgramClient::new(ProgramConfig { spacing, ..device.config() }, TIMING);
    let (pxe, once) = (BootDevice::Pxe, BootPersistence::NextBoot);
    let set = client.set_boot_device(pxe, once, Firmware::Uefi, soon());
    let (set, on) = tokio::join!(set, client.reach_power(PowerState::On, soon()));
    set.unwrap();
    on.unwrap();
    let times: Vec<u128> = device.read("times").lines().map(|at| at.parse().unwrap()).collect();
    assert!(times.len() >= 4, "{times:?}");
    assert!(times.windows(2).all(|two| two[1] - two[0] >= spacing.as_nanos()), "{times:?}");
    let kind_of = |error| matches!(kind(error), ProgramErrorKind::InUse { .. });
    let (_first, second) =
        tokio::join!(client.power_state(soon()), client.power_state(within(0.0)));
    assert!(kind_of(second.unwrap_err()));
}
