//! Explanations of nodes with all kinds of problems.

use expect_test::{Expect, expect};

use super::*;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const NOW: &str = "2026-11-22T12:10:00Z";

/// A status with these TOML lines, flat keys first.
fn status(lines: &str) -> Status {
    let text =
        format!("version = 1\nnode = \"edge-07\"\nupdated = \"2026-11-22T12:00:00Z\"\n{lines}");
    toml::from_str(&text.replace("DIGEST", DIGEST))
        .unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

/// A timeline of a status without console or ramdisk log.
fn timeline(status: &Status, spec: SpecNow) -> Timeline<'_> {
    let now = NOW.parse().unwrap();
    Timeline { status, agent: None, spec, console: None, ramdisk_log: None, now }
}

fn check(status: &Status, spec: SpecNow, expected: &Expect) {
    let mut reported = Vec::new();
    timeline(status, spec).print(&mut reported).unwrap();
    expected.assert_eq(&String::from_utf8(reported).unwrap());
}

#[test]
fn a_machine_that_was_switched_on_and_fetched_nothing() {
    let status = status(
        r#"
phase = "waiting-ramdisk"
ready = false
message = "the machine is on; waiting for it to netboot"
spec_valid = true
spec_digest = "DIGEST"
since = "2026-11-22T12:00:30Z"
deadline = "2026-11-22T12:20:30Z"
deadline_reason = "the deploy ramdisk to export its disk"
attempt = 1
[power]
observed = "on"
observed_at = "2026-11-22T12:00:30Z"
[[history]]
at = "2026-11-22T12:00:00Z"
entered = "pending"
message = "asking the BMC for the power state"
[[history]]
at = "2026-11-22T12:00:01Z"
entered = "preparing"
message = "fetching, verifying and unpacking the image"
[[history]]
at = "2026-11-22T12:00:30Z"
entered = "waiting-ramdisk"
message = "the machine is on; waiting for it to netboot"
"#,
    );
    check(
        &status,
        None,
        &expect![[r#"
            edge-07 is waiting-ramdisk for 9m30s, attempt 1
              the machine is on; waiting for it to netboot

            Spec
              effective  sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
              installed  nothing by hostler

            History
              2026-11-22T12:00:00Z  pending             1s  asking the BMC for the power state
              2026-11-22T12:00:01Z  preparing          29s  fetching, verifying and unpacking the image
              2026-11-22T12:00:30Z  waiting-ramdisk  9m30s  the machine is on; waiting for it to netboot

            Evidence
              power    on, 2026-11-22T12:00:30Z, 9m30s ago
              fetched  nothing: it has not netbooted in this attempt
              called   nothing: its deploy ramdisk has not called back

            Next
              waiting for the deploy ramdisk to export its disk, until 2026-11-22T12:20:30Z, in 10m30s
              you can: set `paused = true` in its spec, to stop this, and have the machine switched off
        "#]],
    );
    // Long after the agent died.
    let overdue = Status { deadline: Some("2026-11-22T12:05:00Z".parse().unwrap()), ..status };
    let mut reported = Vec::new();
    timeline(&overdue, None).next(&mut reported).unwrap();
    expect![[r#"

        Next
          waiting for the deploy ramdisk to export its disk, until 2026-11-22T12:05:00Z, 5m0s overdue: does the agent run?
          you can: set `paused = true` in its spec, to stop this, and have the machine switched off
    "#]].assert_eq(&String::from_utf8(reported).unwrap());
}

#[test]
fn a_machine_without_a_bmc_that_waits_for_somebody() {
    let status = status(
        r#"
phase = "powering-on"
ready = false
message = "switch the machine on, so that it boots from the network"
spec_valid = true
spec_digest = "DIGEST"
since = "2026-11-22T12:00:30Z"
deadline = "2026-11-29T12:00:30Z"
deadline_reason = "somebody to have the machine boot from the network"
attempt = 1
[[conditions]]
type = "WaitingForPerson"
status = "True"
reason = "NetworkBoot"
message = "switch the machine on, so that it boots from the network"
"#,
    );
    let text = "[boot]\nmac = '52:54:00:00:00:01'\n[bmc]\ndriver = 'none'\n[image]\nsource = 'a'\n";
    let spec = format!("{text}checksum = 'sha256:{}'\n", "a".repeat(64));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge-07.toml");
    std::fs::write(&file, spec).unwrap();
    let spec = spec_dir::read_file(&file, None).unwrap();
    let status = Status { spec_digest: Some(spec.digest()), ..status };
    check(
        &status,
        Some(Ok(spec)),
        &expect![[r#"
        edge-07 is powering-on for 9m30s, attempt 1
          switch the machine on, so that it boots from the network

        Spec
          effective  sha256:61d88240d5a4c7156d07977b32a90636cc493e40ee8b4f6cb88f232946e000bc
          installed  nothing by hostler

        Evidence
          power    not known: there is no BMC (bmc.driver = "none")
          fetched  nothing: it has not netbooted in this attempt
          called   nothing: its deploy ramdisk has not called back

        Conditions
          WaitingForPerson  True   NetworkBoot: switch the machine on, so that it boots from the network

        Next
          waiting for somebody to have the machine boot from the network, until 2026-11-29T12:00:30Z, in 6d23h
          you can: switch the machine on, so that it boots from the network
          you can: set `paused = true` in its spec, to stop this
    "#]],
    );
}

#[test]
fn a_machine_whose_attempts_failed() {
    let status = status(
        r#"
phase = "failed"
ready = false
message = "gave up after attempt 3: the machine fetched its boot menu but not the whole deploy kernel"
spec_valid = true
spec_digest = "DIGEST"
since = "2026-11-22T12:09:00Z"
attempt = 3
[last_error]
at = "2026-11-22T12:08:30Z"
attempt = 3
step = "ramdisk"
code = "RamdiskTimeout"
retry = "backoff"
message = "the machine fetched its boot menu but not the whole deploy kernel"
hint = "a network that loses packets, or a boot loader that cannot read the kernel"
[last_seen]
fetched = "menu"
fetched_path = "pxelinux.cfg/01-52-54-00-00-00-01"
fetched_at = "2026-11-22T12:02:00Z"
address = "192.0.2.107"
refused = 2
refused_reason = "the key is not of this attempt"
[[conditions]]
type = "BmcReachable"
status = "False"
reason = "Silent"
message = "192.0.2.20:623 does not answer"
[[history]]
at = "2026-11-22T12:09:00Z"
entered = "failed"
message = "gave up after attempt 3"
"#,
    );
    check(
        &status,
        None,
        &expect![[r#"
            edge-07 is failed for 1m0s, attempt 3
              gave up after attempt 3: the machine fetched its boot menu but not the whole deploy kernel

            Spec
              effective  sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
              installed  nothing by hostler

            History
              2026-11-22T12:09:00Z  failed  1m0s  gave up after attempt 3

            Evidence
              power    not seen since the agent started
              fetched  its boot menu, pxelinux.cfg/01-52-54-00-00-00-01 from 192.0.2.107, 2026-11-22T12:02:00Z, 8m0s ago
              called   nothing: its deploy ramdisk has not called back
              refused  2 calls, the last because: the key is not of this attempt

            Last error: RamdiskTimeout in attempt 3, 2026-11-22T12:08:30Z, 1m30s ago
              the machine fetched its boot menu but not the whole deploy kernel
              hint: a network that loses packets, or a boot loader that cannot read the kernel

            Conditions
              BmcReachable  False  Silent: 192.0.2.20:623 does not answer

            Next
              you can: repair what the last error names, then run `hostler retry edge-07`, to WIPE and install it
              you can: change its spec, to WIPE and install it anew
        "#]],
    );
}

#[test]
fn a_machine_that_is_on_and_unclaimed() {
    let status = status(
        r#"
phase = "held"
ready = false
message = "the machine is on and nobody has consented to wipe it"
spec_valid = true
spec_digest = "DIGEST"
since = "2026-11-22T12:00:00Z"
attempt = 0
[power]
observed = "on"
observed_at = "2026-11-22T12:09:30Z"
[[conditions]]
type = "Held"
status = "True"
reason = "PoweredOn"
"#,
    );
    check(
        &status,
        None,
        &expect![[r#"
            edge-07 is held for 10m0s
              the machine is on and nobody has consented to wipe it

            Spec
              effective  sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
              installed  nothing by hostler

            Evidence
              power    on, 2026-11-22T12:09:30Z, 30s ago

            Conditions
              Held  True   PoweredOn

            Next
              you can: set state = "unmanaged" in its spec, to keep its disk as it is
              you can: run `hostler approve edge-07`, to WIPE and install it
              you can: change `redeploy` in its spec, to WIPE and install it
              you can: switch it off, which is consent to WIPE and install it, too
        "#]],
    );
}

#[test]
fn only_where_the_agent_says_so_is_switching_a_held_machine_off_no_consent_to_wipe_it() {
    let held = |message: &str| {
        let lines = format!(
            "phase = \"held\"\nready = false\nmessage = {message:?}\nspec_valid = true\n\
             since = \"2026-11-22T12:00:00Z\"\n\
             attempt = 0\n[[conditions]]\ntype = \"Held\"\nstatus = \"True\"\n\
             reason = \"PoweredOn\"\n"
        );
        let status = status(&lines);
        timeline(&status, None).ways()
    };
    let node = "edge-07".parse().unwrap();
    let kept_off = consent::keep_off(&node);
    assert_eq!(held(&format!("the machine is on: {kept_off}")), [kept_off]);
    let ways = held("the machine is on");
    for way in [consent::approve(&node), consent::SWITCH_OFF.to_owned()] {
        assert!(ways.contains(&way), "{ways:?}");
    }
}

#[test]
fn an_installed_machine_whose_spec_wants_another_image() {
    let status = status(
        r#"
phase = "deployed"
ready = false
message = "installed, but the spec now wants something else"
spec_valid = true
spec_digest = "DIGEST"
installed_digest = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
since = "2026-11-22T11:00:00Z"
attempt = 1
[installed]
digest = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
image = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
at = "2026-11-22T11:00:00Z"
redeploy = "a"
[installed.disk]
name = "vda"
size = 480103981056
serial = "S6PUNX0T"
[last_seen]
fetched = "ramdisk"
fetched_path = "deploy/initramfs"
fetched_at = "2026-11-22T10:58:00Z"
callback = "completed"
callback_at = "2026-11-22T10:59:50Z"
address = "192.0.2.107"
[[conditions]]
type = "Drifted"
status = "True"
reason = "SpecChanged"
"#,
    );
    check(
        &status,
        None,
        &expect![[r#"
            edge-07 is deployed for 1h10m, attempt 1
              installed, but the spec now wants something else

            Spec
              effective  sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
              installed  sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
                         on vda (447.1 GiB, serial S6PUNX0T), 2026-11-22T11:00:00Z
              first boot not checked ([boot_check])

            Evidence
              power    not seen since the agent started
              fetched  its deploy ramdisk, deploy/initramfs from 192.0.2.107, 2026-11-22T10:58:00Z, 1h12m ago
              called   completed from 192.0.2.107, 2026-11-22T10:59:50Z, 1h10m ago

            Conditions
              Drifted  True   SpecChanged

            Next
              you can: leave it: nothing is touched
              you can: change `redeploy` in its spec, to WIPE and install it
        "#]],
    );
}

#[test]
fn a_spec_that_broke_after_the_agent_had_taken_it_up() {
    let status = status(
        r#"
phase = "pending"
ready = false
message = "nodes/edge-07.toml:1:9: state: `gone` is not one of deployed, unmanaged; the last good spec stays effective and nothing starts"
spec_valid = false
spec_digest = "DIGEST"
since = "2026-11-22T12:00:00Z"
attempt = 0
[[problems]]
file = "nodes/edge-07.toml"
at = [1, 9]
key = "state"
message = "`gone` is not one of deployed, unmanaged"
"#,
    );
    check(
        &status,
        None,
        &expect![[r#"
        edge-07 is pending for 10m0s
          nodes/edge-07.toml:1:9: state: `gone` is not one of deployed, unmanaged; the last good spec stays effective and nothing starts

        Spec
          effective  sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
          installed  nothing by hostler
          problem    nodes/edge-07.toml:1:9: state: `gone` is not one of deployed, unmanaged

        Evidence
          power    not seen since the agent started

        Next
          you can: correct its spec: until then nothing starts
    "#]],
    );
    // The agent has not read the spec yet.
    let status = Status { spec_valid: true, problems: Vec::new(), ..status };
    let broken = vec![Problem::of_file("nodes/edge-07.toml", "empty")];
    let mut reported = Vec::new();
    timeline(&status, Some(Err(broken))).head(&mut reported).unwrap();
    expect![[r#"
        edge-07 is pending for 10m0s
          nodes/edge-07.toml:1:9: state: `gone` is not one of deployed, unmanaged; the last good spec stays effective and nothing starts

        Spec
          effective  sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
          installed  nothing by hostler
          problem    nodes/edge-07.toml: empty
    "#]].assert_eq(&String::from_utf8(reported).unwrap());
}

#[test]
fn the_files_with_what_the_machine_printed_and_logged_are_named() {
    let status = status(
        r#"
phase = "failed"
ready = false
message = "given up"
spec_valid = true
since = "2026-11-22T12:00:00Z"
attempt = 0
[last_error]
at = "2026-11-22T12:00:00Z"
attempt = 1
step = "ramdisk"
code = "NoRootDevice"
message = "no disk"
hint = "give hints"
retry = "never"
"#,
    );
    let (console, log) = ("nodes/edge-07.console.log", "nodes/edge-07.ramdisk.log");
    let mut reported = Vec::new();
    let kept = Timeline {
        console: Some(console.into()),
        ramdisk_log: Some(log.into()),
        ..timeline(&status, None)
    };
    kept.print(&mut reported).unwrap();
    let reported = String::from_utf8(reported).unwrap();
    for line in [
        "  logged   what its deploy ramdisk logged is in nodes/edge-07.ramdisk.log\n",
        "  what the machine printed is in nodes/edge-07.console.log\n",
    ] {
        assert!(reported.contains(line), "{reported}");
    }
}

#[test]
fn a_machine_that_netboots_instead_of_booting_its_disk_is_named_with_what_helps() {
    let status = status(
        r#"
phase = "deployed"
ready = true
message = "installed"
spec_valid = true
spec_digest = "DIGEST"
installed_digest = "DIGEST"
since = "2026-11-22T11:00:00Z"
attempt = 0
[installed]
digest = "DIGEST"
image = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
at = "2026-11-22T11:00:00Z"
unexpected_netboots = 3
unexpected_netboot_at = "2026-11-22T12:00:00Z"
[installed.disk]
name = "vda"
size = 480103981056
"#,
    );
    let mut reported = Vec::new();
    timeline(&status, None).print(&mut reported).unwrap();
    let reported = String::from_utf8(reported).unwrap();
    for line in [
        "  netboot  3x instead of booting its disk, the last one 2026-11-22T12:00:00Z, 10m0s ago\n",
        "  you can: run `hostler bmc edge-07 bootdev disk --persistent`, to have it boot ",
    ] {
        assert!(reported.contains(line), "{reported}");
    }
}
