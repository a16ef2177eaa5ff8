//! `bmc.driver = "program"`: a script that switches a machine, and scripts that misbehave.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use hostler::model::{
    power::PowerState,
    status::{Phase, Status},
};

use super::{
    DEPLOYED, NODE, ends_deployed,
    machine::Machine,
    site::{Site, Spec, answer},
};
use crate::ipmi::simulators::PASSWORD;

/// Switches a machine by ipmitool, as an administrator's script would. The BMC's address is its
/// port.
const SCRIPT: &str = r#"
ask() {
    ipmitool -I lanplus -C 3 -H 127.0.0.1 -p "$HOSTLER_BMC_ADDRESS" -U "$HOSTLER_BMC_USERNAME" \
        -f "$HOSTLER_BMC_PASSWORD_FILE" "$@" 2>&1
}
options=
[ "$HOSTLER_FIRMWARE" = uefi ] && options=efiboot
[ "$HOSTLER_BOOT" = always ] && options=persistent,$options
case $1 in
status)
    case $(ask chassis power status) in
    *'is on') echo on ;;
    *'is off') echo off ;;
    *) echo 'the BMC does not answer' >&2; exit 75 ;;
    esac ;;
on) ask chassis power on > /dev/null || exit 75 ;;
off) ask chassis power off > /dev/null || exit 75 ;;
boot-network) ask chassis bootdev pxe options=$options > /dev/null || exit 75 ;;
boot-disk) ask chassis bootdev disk options=$options > /dev/null || exit 75 ;;
*) echo "no such word: $1" >&2; exit 1 ;;
esac
"#;

/// Puts a program into the site.
fn install(site: &Site, name: &str, script: &str) -> PathBuf {
    let (new, path) = (site.path(&format!("{name}.new")), site.path(name));
    fs::write(&new, format!("#!/bin/sh\n{script}")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, &path).unwrap();
    path
}

/// The machine's spec, with its BMC behind this program.
fn spec(site: &Site, machine: &Machine, program: &str) -> Spec {
    machine
        .spec(site)
        .with("bmc.driver", "program")
        .with("bmc.program", site.path(program).to_str().unwrap())
        .with("bmc.address", &machine.bmc.port.to_string())
}

fn bmc(site: &Site, words: &[&str]) -> (i32, String, String) {
    answer(&mut site.hostler(&[&["bmc", NODE], words].concat()))
}

fn error_of(status: &Status) -> &str {
    status.last_error.as_ref().map_or("", |error| error.fault.message.as_str())
}

#[test]
fn a_script_takes_a_machine_from_its_spec_to_its_installed_system() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let program = install(&site, "switch", SCRIPT);
    let _agent = site.start();
    site.write(NODE, &spec(&site, &machine, "switch"));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);

    let done = |words: &[&str]| {
        let (code, out, errors) = bmc(&site, words);
        assert_eq!((code, errors.as_str()), (0, ""), "{words:?}\n{}", site.log());
        out
    };
    assert_eq!(done(&["status"]), "power  on\n");
    let info = done(&["info"]);
    let address = format!("program:{}#{}", program.display(), machine.bmc.port);
    assert!(info.contains(&address), "{info}");
    assert_eq!(done(&["bootdev", "pxe"]), "boot  network, next boot only\n");
    assert_eq!(done(&["cycle"]), "power  on\n");
    assert_eq!(done(&["off"]), "power  off\n");
    let after = ["network once", "off", "on from network", "off"];
    assert_eq!(machine.story()[DEPLOYED.len()..], after);
    let drifted = site.until(NODE, "seen off", |status| {
        status.power.as_ref().is_some_and(|power| power.observed == PowerState::Off)
    });
    assert_eq!(drifted.phase, Phase::Deployed);
    // The status names the machine, and a password is nowhere.
    let machine = drifted.machine.unwrap();
    assert_eq!(machine.bmc.unwrap().to_string(), address);
    assert!(!site.log().contains(PASSWORD), "{}", site.log());
    let shown = Command::new("grep").args(["-r", PASSWORD]).arg(site.path("nodes")).output();
    assert_eq!(String::from_utf8(shown.unwrap().stdout).unwrap(), "");
    let (_, explained, _) = answer(&mut site.hostler(&["explain", NODE]));
    assert!(explained.contains(NODE) && !explained.contains(PASSWORD), "{explained}");
}

#[test]
fn a_program_that_is_missing_unsafe_hangs_or_talks_nonsense_is_named_and_disturbs_nobody() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let other = Machine::new(&site, "edge-08");
    let _agent = site.start();
    let available = |spec: Spec| spec.with("state", "available").with("timeouts.power", "3s");
    site.write("edge-08", &available(other.spec(&site)));
    site.write(NODE, &available(spec(&site, &machine, "switch")));
    let trouble = |part: &str| {
        let status = site.until(NODE, part, |status| {
            error_of(status).contains(part) || status.message.contains(part)
        });
        assert!(!status.ready);
        let retried = answer(&mut site.hostler(&["retry", NODE]));
        assert_eq!(retried.0, 0, "{retried:?}");
    };
    trouble("the program cannot be run: No such file");
    let program = install(&site, "switch", "echo on");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
    trouble("others must not be able to write it; its mode is 777");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o600)).unwrap();
    trouble("it must be executable");
    install(&site, "switch", "echo maybe");
    trouble("`status` printed \"maybe\"; its first line must be on or off");
    install(&site, "switch", "sleep 1000 & wait");
    trouble("`status` did not end in 3 s; the program was killed");
    install(&site, "switch", "echo 'no outlet 7 here' >&2; exit 4");
    trouble("refused `status`: no outlet 7 here");
    // A repair needs no further act.
    install(&site, "switch", SCRIPT);
    let retried = answer(&mut site.hostler(&["retry", NODE]));
    assert_eq!(retried.0, 0, "{retried:?}");
    site.until(NODE, "ready", |status| status.ready);
    site.until("edge-08", "ready", |status| status.ready);
    assert!(machine.story().is_empty() && other.story().is_empty());
}

#[test]
fn two_nodes_with_one_program_and_one_address_clash_and_without_an_address_they_do_not() {
    let site = Site::new();
    let machines = ["edge-07", "edge-08"].map(|node| Machine::new(&site, node));
    install(&site, "switch", "echo off");
    let _agent = site.start();
    let spec = |machine: &Machine| {
        spec(&site, machine, "switch").with("state", "available").without("bmc.password")
    };
    for machine in &machines {
        site.write(&machine.node, &spec(machine).with("bmc.address", "outlet 7"));
    }
    for machine in &machines {
        let status = site.until(&machine.node, "clash", |status| status.phase == Phase::Invalid);
        let switch = site.path("switch");
        let address = format!("program:{}#outlet 7 is also in", switch.display());
        assert!(status.message.contains(&address), "{}", status.message);
    }
    for machine in &machines {
        site.write(&machine.node, &spec(machine).without("bmc.address"));
    }
    for machine in &machines {
        let status = site.until(&machine.node, "ready", |status| status.ready);
        let address = status.machine.unwrap().bmc.unwrap();
        assert_eq!(address.program().unwrap().1, machine.node);
    }
}
