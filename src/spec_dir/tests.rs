//! Tests of every key of the schema: valid values, invalid ones, and the problems with their
//! places.

use std::{fmt::Write as _, time::Duration};

use expect_test::{Expect, expect};
use proptest::prelude::*;

use crate::model::{
    attached::AttachedContent,
    boot::{Arch, Firmware},
    disk::{Comparison, SizeHint},
    problem::Problem,
    spec::{
        BmcAddress, BmcDriver, CipherSuite, DeployRamdisk, Goal, ImageFormat, Loader, NodeSpec,
        Password, Privilege, WantedPower,
    },
    toml_reader::{Document, Extent, FILE_BYTES_MAX, Setting, read},
};

use super::{Defaults, clashes};

mod boot_check;
mod drive;
mod identity;
mod keys;
mod settings;
mod values;

const FILE: &str = "nodes/edge-07.toml";

const MINIMAL: &str = r#"[boot]
mac = "52:54:00:00:00:01"
[bmc]
address = "192.0.2.20"
password_file = "edge-07.bmc"
[image]
source = "debian-13.raw"
checksum = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
"#;

/// Parses a spec without attached files.
fn parse(file: &str, bytes: &[u8], defaults: &Defaults) -> Result<NodeSpec, Vec<Problem>> {
    super::parse(file, bytes, defaults, &absent)
}

fn parse_settings(
    file: &str,
    bytes: &[u8],
    defaults: &Defaults,
) -> Result<Vec<Setting>, Vec<Problem>> {
    super::parse_settings(file, bytes, defaults, &absent)
}

fn absent(path: &str) -> Result<AttachedContent, String> {
    Err(format!("`{path}` is not there"))
}

fn good(text: &str) -> NodeSpec {
    parse(FILE, text.as_bytes(), &Defaults::default()).unwrap_or_else(|p| panic!("{}", lines(&p)))
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |mut text, problem| {
        writeln!(text, "{problem}").unwrap();
        text
    })
}

fn check(text: impl AsRef<[u8]>, expected: &Expect) {
    check_over(text, &Defaults::default(), expected);
}

fn check_over(text: impl AsRef<[u8]>, defaults: &Defaults, expected: &Expect) {
    let problems = parse(FILE, text.as_ref(), defaults).err().unwrap_or_default();
    expected.assert_eq(&lines(&problems));
}

/// The minimal spec with more `lines` in the table `[table]`.
fn with(table: &str, line: &str) -> String {
    let header = format!("[{table}]\n");
    if table.is_empty() {
        format!("{line}\n{MINIMAL}")
    } else if MINIMAL.contains(&header) {
        let key = line.split(' ').next().unwrap();
        let others = MINIMAL.split_inclusive('\n').filter(|l| !l.starts_with(&format!("{key} =")));
        others.collect::<String>().replace(&header, &format!("{header}{line}\n"))
    } else {
        format!("{MINIMAL}{header}{line}\n")
    }
}

#[test]
fn the_smallest_spec_has_every_default() {
    let spec = good(MINIMAL);
    assert_eq!(spec.name.as_str(), "edge-07");
    assert_eq!((spec.goal, spec.power, spec.paused), (Goal::Deployed, WantedPower::On, false));
    assert_eq!((spec.redeploy, spec.boot.firmware), (None, Firmware::Uefi));
    assert_eq!(spec.bmc.as_ref().unwrap().address, BmcAddress::at("192.0.2.20", 623));
    assert_eq!(
        (spec.bmc.as_ref().unwrap().username.as_str(), spec.bmc.as_ref().unwrap().privilege),
        ("", Privilege::Administrator)
    );
    assert_eq!(
        (spec.bmc.as_ref().unwrap().cipher_suite, spec.image.format),
        (None, ImageFormat::Auto)
    );
    assert!(spec.root_device.is_empty() && spec.boot.kernel_args.is_empty());
    let minutes = |count: u64| Duration::from_secs(60 * count);
    assert_eq!(
        [
            spec.timeouts.ramdisk,
            spec.timeouts.root_device,
            spec.timeouts.imaging_stall,
            spec.timeouts.imaging,
            spec.timeouts.completed,
            spec.timeouts.power,
            spec.retry.backoff,
        ],
        [minutes(20), minutes(1), minutes(2), minutes(120), minutes(5), minutes(2), minutes(1)]
    );
    assert_eq!(spec.retry.attempts, 3);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a spec with every key")]
fn every_supported_key_arrives() {
    let spec = good(
        r#"
state = "unmanaged"
power = "ignore"
paused = true
redeploy = "2026-11-22-a"
[boot]
mac = ["52:54:00:00:00:01", "52-54-00-00-00-02"]
firmware = "bios"
arch = "x86_64"
loader = "pxelinux"
ramdisk = "hostler"
require_chap = false
after = "disk"
kernel_args = ["console=ttyS1,115200n8", "quiet"]
[bmc]
driver = "ipmitool"
address = "BMC.example:1623"
username = "admin"
password_file = "site/edge-07.bmc"
privilege = "operator"
cipher_suite = 3
match_system_uuid = true
[root_device]
name = "/dev/vda"
serial = "s"
wwn = "0x5000"
model = "m"
vendor = "v"
hctl = "0:0:1:0"
size = "s>= 100GiB"
rotational = false
[image]
source = "/srv/images/debian-13.raw"
checksum = "sha512:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
format = "raw"
kind = "disk"
[timeouts]
ramdisk = "1h 30m"
root_device = "2m"
imaging_stall = "1s"
imaging = "168h"
completed = "90s"
power = "3m"
[retry]
attempts = 100
backoff = "5m"
"#,
    );
    assert_eq!((spec.goal, spec.power, spec.paused), (Goal::Unmanaged, WantedPower::Ignore, true));
    assert_eq!(spec.redeploy.as_deref(), Some("2026-11-22-a"));
    assert_eq!((spec.boot.macs.len(), spec.boot.firmware), (2, Firmware::Bios));
    assert_eq!(spec.boot.kernel_args, ["console=ttyS1,115200n8", "quiet"]);
    let boot = (spec.boot.arch, spec.boot.loader, spec.boot.ramdisk, spec.boot.require_chap);
    assert_eq!(boot, (Arch::X86_64, Loader::Pxelinux, DeployRamdisk::Hostler, false));
    let bmc = spec.bmc.unwrap();
    assert_eq!(bmc.address, BmcAddress::at("bmc.example", 1623));
    assert_eq!((bmc.username.as_str(), bmc.privilege), ("admin", Privilege::Operator));
    assert_eq!((bmc.driver, bmc.match_system_uuid), (BmcDriver::Ipmitool, true));
    assert_eq!(bmc.password, Some(Password::PasswordFile("site/edge-07.bmc".to_owned())));
    assert_eq!(bmc.cipher_suite, Some(CipherSuite::Sha1));
    let hints = spec.root_device;
    assert_eq!(
        [hints.name, hints.serial, hints.wwn, hints.model, hints.vendor, hints.hctl]
            .map(Option::unwrap),
        ["/dev/vda", "s", "0x5000", "m", "v", "0:0:1:0"]
    );
    let size = SizeHint { comparison: Comparison::GreaterOrEqual, bytes: 100 << 30 };
    assert_eq!((hints.size, hints.rotational), (Some(size), Some(false)));
    assert_eq!(spec.image.source, "/srv/images/debian-13.raw");
    assert_eq!(spec.image.format, ImageFormat::Raw);
    assert_eq!(spec.timeouts.ramdisk, Duration::from_secs(5400));
    assert_eq!(spec.timeouts.imaging, Duration::from_secs(7 * 24 * 3600));
    assert_eq!((spec.retry.attempts, spec.retry.backoff), (100, Duration::from_secs(300)));
}

#[test]
fn all_problems_of_a_file_are_reported_at_once_where_they_are() {
    check(
        r#"stat = "deployed"
paused = "yes"
[boot]
mac = ["52:54:00:00:00:01", "52:54:00:00:00:0"]
firmware = "efi"
[bmc]
adress = "192.0.2.20"
cipher_suite = 1
[image]
  source = "../x"
  format = "raw"
checksum = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
[retries]
"#,
        &expect![[r#"
            nodes/edge-07.toml:1:1: stat: unknown key; did you mean `state`?
            nodes/edge-07.toml:2:10: paused: a string, must be true or false; write true without quotes
            nodes/edge-07.toml:4:29: boot.mac: `52:54:00:00:00:0` is not a MAC address, which looks like 52:54:00:12:34:56
            nodes/edge-07.toml:5:12: boot.firmware: `efi` is not one of uefi, bios; did you mean "uefi"?
            nodes/edge-07.toml:6:1: bmc.password_file: missing; add to [bmc] for example password_file = "edge-07.bmc"
            nodes/edge-07.toml:7:1: bmc.adress: unknown key; did you mean `address`?
            nodes/edge-07.toml:8:16: bmc.cipher_suite: cipher suite 1 is not supported; 17 and 3 are
            nodes/edge-07.toml:10:12: image.source: `../x` is not a plain path: no `..`, `.`, `//` or `/` at the end
            nodes/edge-07.toml:12:12: image.checksum: 63 hex digits, sha256 needs 64
            nodes/edge-07.toml:13:2: retries: unknown key
        "#]],
    );
}

#[test]
fn a_file_that_is_no_toml_says_why() {
    check(
        "",
        &expect![[r"
        nodes/edge-07.toml: empty
    "]],
    );
    check(
        " \n\t\n",
        &expect![[r"
        nodes/edge-07.toml: empty
    "]],
    );
    check(
        b"a = \"\xff\"",
        &expect![[r"
        nodes/edge-07.toml:1:6: not UTF-8
    "]],
    );
    check(
        "[boot]\nmac = \n[bmc\nx = 'a\n",
        &expect![[r#"
            nodes/edge-07.toml:2:6: no value; write for example "text", 3, true or ["a", "b"]
            nodes/edge-07.toml:3:1: a table without its second bracket; write [bmc]
        "#]],
    );
    check(
        MINIMAL.replace("[bmc]", "[boot]"),
        &expect![[r#"
            nodes/edge-07.toml:3:2: duplicate table, first in line 1; merge both
            nodes/edge-07.toml:4:1: boot.address: unknown key; it belongs in [bmc] or in [boot_check]
            nodes/edge-07.toml:5:1: boot.password_file: unknown key; it belongs in [bmc]
        "#]],
    );
    check(
        format!("<<<<<<< HEAD\n{MINIMAL}=======\n{MINIMAL}>>>>>>> other\n"),
        &expect![[r"
        nodes/edge-07.toml:1:1: git conflict marker; resolve the conflict first
    "]],
    );
    check(
        MINIMAL.replace("[bmc]\n", "[bmc]\n<<<<<<< HEAD\n"),
        &expect![[r"
        nodes/edge-07.toml:4:1: git conflict marker; resolve the conflict first
    "]],
    );
    check(
        "#".repeat(FILE_BYTES_MAX + 1),
        &expect![[r"
        nodes/edge-07.toml: 262145 bytes, at most 262144 are read
    "]],
    );
    check(
        "# nothing\n",
        &expect![[r#"
            nodes/edge-07.toml: boot.mac: missing; add to [boot] for example mac = "52:54:00:12:34:56"
            nodes/edge-07.toml: bmc.address: missing; add to [bmc] for example address = "192.0.2.20"
            nodes/edge-07.toml: bmc.password_file: missing; add to [bmc] for example password_file = "edge-07.bmc"
            nodes/edge-07.toml: image.source: missing; add to [image] for example source = "debian-13.qcow2"
            nodes/edge-07.toml: image.checksum: missing; add to [image] for example checksum = "sha256:<64 hex digits>"
        "#]],
    );
}

#[test]
fn columns_count_characters() {
    check(
        format!("\u{feff}# ü\r\n{MINIMAL}[retry]\r\n\"ü\" = 1\r\n"),
        &expect![[r"
        nodes/edge-07.toml:11:1: retry.ü: unknown key
    "]],
    );
}

#[test]
fn a_file_whose_stem_is_no_node_name_is_a_problem_with_all_its_others() {
    for file in ["nodes/Edge_07.toml", "nodes/-.toml", "nodes/a.b.toml", ""] {
        let problems = parse(file, MINIMAL.as_bytes(), &Defaults::default()).unwrap_err();
        assert!(problems[0].message.starts_with("node name"), "{problems:?}");
        let problems = parse(file, b"x = 1", &Defaults::default()).unwrap_err();
        assert!(problems.len() > 2, "{problems:?}");
    }
}

fn defaults(file: &str, agent: &str) -> Defaults {
    let agent = Document::parse("hostler.toml", format!("[defaults]\n{agent}").as_bytes()).unwrap();
    let (agent, _) = read(&agent, &[], Extent::Part, |config| config.key("defaults").document());
    Defaults::new(Some(("nodes/_defaults.toml", file.as_bytes())), agent.as_ref())
}

#[test]
fn a_default_console_lies_idle_where_only_ipmitool_talks_to_the_bmc() {
    let below = defaults("[bmc]\nconsole = true\n", "");
    for (driver, console) in [("ipmi", true), ("ipmitool", false)] {
        let text = with("bmc", &format!("driver = \"{driver}\""));
        let spec = parse(FILE, text.as_bytes(), &below).unwrap();
        assert_eq!(spec.bmc.unwrap().console, console, "{driver}");
    }
}

#[test]
fn a_spec_wins_over_its_defaults_key_by_key_and_the_agents_come_last() {
    let below = defaults(
        "power = \"ignore\"\n[bmc]\nusername = \"site\"\naddress = \"192.0.2.1\"\n[retry]\n\
         attempts = 9\n",
        "paused = true\nbmc.username = \"agent\"\nretry.backoff = \"9m\"\n\
         timeouts.power = \"9m\"\n",
    );
    assert_eq!(below.problems(), []);
    let spec = parse(FILE, with("retry", "attempts = 2").as_bytes(), &below).unwrap();
    assert_eq!((spec.power, spec.paused), (WantedPower::Ignore, true));
    assert_eq!(
        (
            spec.bmc_address().unwrap().host().unwrap().host.as_str(),
            spec.bmc.as_ref().unwrap().username.as_str()
        ),
        ("192.0.2.20", "site")
    );
    assert_eq!((spec.retry.attempts, spec.retry.backoff), (2, Duration::from_secs(540)));
    assert_eq!(spec.timeouts.power, Duration::from_secs(540));
}

#[test]
fn what_is_missing_is_the_specs_fault_even_where_only_the_defaults_have_the_table() {
    let below = defaults("[bmc]\nusername = \"site\"\n[image]\nformat = \"raw\"\n", "");
    let text = "[boot]\nmac = \"52:54:00:00:00:01\"\n[bmc]\naddress = \"192.0.2.20\"\n";
    check_over(
        text,
        &below,
        &expect![[r#"
            nodes/edge-07.toml: image.source: missing; add to [image] for example source = "debian-13.qcow2"
            nodes/edge-07.toml: image.checksum: missing; add to [image] for example checksum = "sha256:<64 hex digits>"
            nodes/edge-07.toml:3:1: bmc.password_file: missing; add to [bmc] for example password_file = "edge-07.bmc"
        "#]],
    );
}

#[test]
fn broken_defaults_are_reported_in_their_own_file_and_make_no_spec_valid() {
    let below = defaults("[bmc]\nusrname = \"x\"\n[retry]\nattempts = 0\n", "bmc.port = 1\n");
    expect![[r#"
        nodes/_defaults.toml:2:1: bmc.usrname: unknown key; did you mean `username`?
        nodes/_defaults.toml:4:12: retry.attempts: 0 is out of range, 1 to 100 is allowed
        hostler.toml:2:5: defaults.bmc.port: unknown key; it belongs in [boot_check]
    "#]]
    .assert_eq(&lines(below.problems()));
    check_over(
        "[bmc]\naddress = 5\n",
        &below,
        &expect![[r#"
            nodes/edge-07.toml:2:11: bmc.address: an integer, must be a string: `5` is not an address; write for example 192.0.2.20, bmc.example:623 or [2001:db8::1]:623
            nodes/_defaults.toml:2:1: bmc.usrname: unknown key; did you mean `username`?
        "#]],
    );
    let empty = defaults("\n", "");
    check_over(
        MINIMAL,
        &empty,
        &expect![[r"
        nodes/_defaults.toml: empty
    "]],
    );
    let unfinished = defaults("a = \nb = \n", "");
    expect![[r#"
        nodes/_defaults.toml:1:4: no value; write for example "text", 3, true or ["a", "b"]
        nodes/_defaults.toml:2:4: no value; write for example "text", 3, true or ["a", "b"]
    "#]]
    .assert_eq(&lines(unfinished.problems()));
}

fn named(file: &str, mac: &str, bmc: &str) -> NodeSpec {
    let text = MINIMAL.replace("52:54:00:00:00:01", mac).replace("192.0.2.20", bmc);
    parse(file, text.as_bytes(), &Defaults::default()).unwrap()
}

#[test]
fn specs_that_share_a_nic_or_a_bmc_clash_and_name_each_other() {
    let specs = [
        named("n/a.toml", "52:54:00:00:00:01", "192.0.2.1"),
        named("n/b.toml", "52-54-00-00-00-01", "bmc"),
        named("n/c.toml", "52:54:00:00:00:03", "BMC:623"),
        named("n/d.toml", "52:54:00:00:00:04", "192.0.2.1:624"),
        named("n/e.toml", "52:54:00:00:00:01", "192.0.2.9"),
    ];
    let all: Vec<Problem> = clashes("n", &specs).into_values().flatten().collect();
    expect![[r"
        n/a.toml: boot.mac: 52:54:00:00:00:01 is also in n/b.toml, n/e.toml
        n/b.toml: boot.mac: 52:54:00:00:00:01 is also in n/a.toml, n/e.toml
        n/b.toml: bmc.address: bmc:623 is also in n/c.toml
        n/c.toml: bmc.address: bmc:623 is also in n/b.toml
        n/e.toml: boot.mac: 52:54:00:00:00:01 is also in n/a.toml, n/b.toml
    "]]
    .assert_eq(&lines(&all));
}

#[test]
fn a_clash_of_many_specs_names_a_few() {
    let specs: Vec<NodeSpec> = (1..=9)
        .map(|n| named(&format!("n/a{n}.toml"), &format!("52:54:00:00:01:0{n}"), "bmc"))
        .collect();
    let all: Vec<Problem> = clashes("n", &specs).into_values().flatten().collect();
    assert_eq!(all.len(), 9);
    let first =
        "n/a1.toml: bmc.address: bmc:623 is also in n/a2.toml, n/a3.toml, n/a4.toml and 5 more";
    assert_eq!(all[0].to_string(), first);
}

/// Invariant (spec): A spec that is refused has a problem.
#[test]
fn a_node_may_have_almost_the_name_of_the_defaults() {
    for name in ["defaults", "default", "default-7"] {
        let spec = parse(&format!("n/{name}.toml"), MINIMAL.as_bytes(), &Defaults::default());
        assert_eq!(spec.unwrap().name.as_str(), name);
    }
    for name in ["_default", "._defaults", "_Defaults"] {
        let spec = parse(&format!("n/{name}.toml"), MINIMAL.as_bytes(), &Defaults::default());
        assert!(!spec.unwrap_err().is_empty(), "{name}");
    }
}

#[test]
fn a_replacement_is_toml_that_means_what_was_meant_or_there_is_none() {
    let fix = |line: &str| {
        let text = format!("[boot]\n{line}\n");
        let problems = parse(FILE, text.as_bytes(), &Defaults::default()).unwrap_err();
        let fixed = problems.iter().find_map(|problem| problem.fix.as_ref()).map(|fix| {
            let mut text = text.clone();
            text.replace_range(fix.span.start as usize..fix.span.end as usize, &fix.text);
            text
        });
        fixed.map(|text| text.trim_start_matches("[boot]\n").trim_end().to_owned())
    };
    for (line, fixed) in [
        ("mac: 52:54:00:00:00:01 # left port", Some("mac = \"52:54:00:00:00:01\" # left port")),
        ("list: [a, b]", None),
        ("t: \"a #b\"", None),
        ("n: 010", None),
        ("path = C:\\temp\\new.raw", None),
        ("firmwaer = \"uefi\"", Some("firmware = \"uefi\"")),
        ("firmwaer = \"uefi\"\nfirmware = \"bios\"", None),
    ] {
        assert_eq!(fix(line).as_deref(), fixed, "{line}");
    }
}

#[test]
fn very_many_problems_and_very_long_values_stay_small() {
    let text = (0..5000).map(|n| format!("k{n} = 1")).collect::<Vec<_>>().join("\n");
    assert_eq!(parse(FILE, text.as_bytes(), &Defaults::default()).unwrap_err().len(), 100);
    let text = format!("state = \"{}\"", "x".repeat(200_000));
    let problems = parse(FILE, text.as_bytes(), &Defaults::default()).unwrap_err();
    assert!(problems.iter().all(|problem| problem.to_string().len() < 400));
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
    // An eighth of the longest file is far more than a stack holds.
    let half = FILE_BYTES_MAX / 16;
    for text in [
        format!("a = {}", "[".repeat(2 * half - 10)),
        format!("a{} = 1", ".a".repeat(half - 10)),
        format!("[a{}]", ".a".repeat(half - 10)),
        format!("a = {}", "{a=".repeat(half / 2)),
    ] {
        assert!(parse(FILE, text.as_bytes(), &Defaults::default()).is_err());
    }
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(bytes: Vec<u8>) {
        let defaults = Defaults::new(Some(("_defaults.toml", &bytes)), None);
        prop_assert!(parse(FILE, &bytes, &defaults).is_err());
    }

    #[test]
    fn never_panics_on_a_damaged_spec(
        at in 0..MINIMAL.len(),
        bytes in "[\\PC\n\"'\\[\\]{}=.#\u{0}]{0,8}",
    ) {
        let mut text = MINIMAL.to_owned();
        text.replace_range(at..(at + bytes.len()).min(MINIMAL.len()), &bytes);
        if let Err(problems) = parse(FILE, text.as_bytes(), &Defaults::default()) {
            prop_assert!(!problems.is_empty());
        }
    }
}
