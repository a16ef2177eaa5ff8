//! Tests of the agent's configuration: accepted values, refused values, and the reported places.

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use crate::model::problem::Problem;

use super::*;

const MINIMAL: &str = r#"network.advertise = "192.0.2.1"
specs.dir = "/etc/hostler/nodes"
ramdisk = { kernel = "/boot/vmlinuz", initramfs = "/var/lib/hostler/ramdisk.img" }
"#;

fn lines(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |mut text, problem| {
        writeln!(text, "{problem}").unwrap();
        text
    })
}

fn check(text: &str, expected: &Expect) {
    let problems = parse("hostler.toml", text.as_bytes()).err().unwrap_or_default();
    expected.assert_eq(&lines(&problems));
}

#[test]
fn three_lines_are_enough_and_every_default_is_shown() {
    let config = parse("hostler.toml", MINIMAL.as_bytes()).unwrap();
    expect![[r#"
        [specs]
        dir = "/etc/hostler/nodes"
        rescan = "1m"

        [state]
        dir = "/var/lib/hostler"

        [images]
        dir = "/var/lib/hostler/images"
        allowed_dirs = []
        cache_dir = "/var/lib/hostler/cache"
        cache_size = "20GiB"
        published_max = "64GiB"
        raw_max = "1TiB"

        [secrets]
        dir = "/etc/hostler/secrets"

        [network]
        advertise = "192.0.2.1"

        [tftp]
        listen = "192.0.2.1:69"
        loaders = "/usr/share/hostler/loaders"
        block_max = "8KiB"

        [http]
        listen = "192.0.2.1:8069"

        [callback]
        listen = "192.0.2.1:8443"

        [admin]
        socket = "/run/hostler/admin.sock"

        [ramdisk]
        kernel = "/boot/vmlinuz"
        initramfs = "/var/lib/hostler/ramdisk.img"

        [limits]
        imaging = 4
        waiting = 50
        imaging_rate_min = "1MiB"
        bmc_spacing = "1s"

        [safety]
        breaker = true
        enforce_power = false
    "#]]
    .assert_eq(&config.to_toml());
}

#[test]
fn the_effective_configuration_reads_back_the_same() {
    let text = r#"
[specs]
dir = "/srv/nodes/"
status_dir = "/run/hostler/status"
rescan = "1h 30m"
[state]
dir = "/srv/state"
[images]
dir = "/srv/images"
allowed_dirs = ["/mnt/a", "/mnt/b"]
cache_dir = "/srv/cache"
cache_size = "1.5GB"
published_max = "10GiB"
raw_max = "480GB"
[secrets]
dir = "/srv/secrets"
[network]
advertise = "2001:db8::1"
[tftp]
listen = "[::]:1069"
loaders = "/srv/loaders"
block_max = "1388"
[http]
listen = "[::]:80"
[callback]
listen = "0.0.0.0:8443"
[ramdisk]
kernel = "/k"
initramfs = "/i"
[ramdisk.aarch64]
kernel = "/arm/k"
initramfs = "/arm/i"
[defaults]
paused = true
boot.kernel_args = ["quiet"]
retry = { attempts = 5 }
"#;
    let config = parse("hostler.toml", text.as_bytes()).unwrap();
    assert_eq!(config.specs.dir, Path::new("/srv/nodes"));
    assert_eq!(config.specs.status_dir.as_deref(), Some(Path::new("/run/hostler/status")));
    assert_eq!(config.specs.rescan, Duration::from_secs(5400));
    assert_eq!(config.images.allowed_dirs, [Path::new("/mnt/a"), Path::new("/mnt/b")]);
    assert_eq!(config.images.cache_dir, Path::new("/srv/cache"));
    assert_eq!((config.images.cache_size, config.images.published_max), (1_500_000_000, 10 << 30));
    assert_eq!(config.tftp.listen.to_string(), "[::]:1069");
    assert_eq!(config.tftp.block_max, 1388);
    assert_eq!(config.http.listen.to_string(), "[::]:80");
    assert_eq!(config.ramdisk.aarch64.as_ref().unwrap().kernel, Path::new("/arm/k"));
    let shown = config.to_toml();
    assert!(shown.ends_with("[defaults.retry]\nattempts = 5\n"), "{shown}");
    assert_eq!(parse("shown.toml", shown.as_bytes()), Ok(config));
}

#[test]
fn all_problems_are_reported_at_once_where_they_are() {
    check(
        r#"defaults = 3
[specs]
dir = "nodes"
rescan = "0s"
[images]
allowed_dirs = ["/srv/../etc", "x", 1]
cache_size = "20 gigs"
published_max = 5
raw_max = "0GiB"
[network]
advertise = "0.0.0.0"
interface = "eth0"
[tftp]
listen = "69"
loader = "/x"
[callback]
listen = 8443
[limits]
imaging = 0
bmc_spacing = "1s"
[safety]
enforce_power = 1
[admin]
socket = "admin.sock"
"#,
        &expect![[r#"
            hostler.toml: ramdisk.kernel: missing; add to [ramdisk] for example kernel = "/usr/share/hostler/vmlinuz"
            hostler.toml: ramdisk.initramfs: missing; add to [ramdisk] for example initramfs = "/usr/share/hostler/initramfs"
            hostler.toml:1:12: defaults: an integer, must be a table
            hostler.toml:3:7: specs.dir: `nodes` is not an absolute path
            hostler.toml:4:10: specs.rescan: `0s` is out of range, 1s to 168h is allowed
            hostler.toml:6:17: images.allowed_dirs: `/srv/../etc` has a `..` in it
            hostler.toml:6:32: images.allowed_dirs: `x` is not an absolute path
            hostler.toml:6:37: images.allowed_dirs: an integer, must be a string: `1` is not an absolute path
            hostler.toml:7:14: images.cache_size: `20 gigs` is not a size; write for example 480GB or 64MiB
            hostler.toml:8:17: images.published_max: an integer, must be a string with a unit; write for example "5GB" or "5GiB"
            hostler.toml:9:11: images.raw_max: `0GiB`, must be at least 1 byte
            hostler.toml:11:13: network.advertise: 0.0.0.0 is no address that a machine could call back
            hostler.toml:12:1: network.interface: unknown key
            hostler.toml:14:10: tftp.listen: `69` is not address:port; write for example 192.0.2.1:69 or [::]:69
            hostler.toml:15:1: tftp.loader: unknown key; did you mean `loaders`?
            hostler.toml:17:10: callback.listen: an integer, must be a string: `8443` is not address:port; write for example 192.0.2.1:69 or [::]:69
            hostler.toml:19:11: limits.imaging: 0, must be at least 1
            hostler.toml:22:17: safety.enforce_power: an integer, must be true or false
            hostler.toml:24:10: admin.socket: `admin.sock` is not an absolute path
        "#]],
    );
    check(
        "specs.dir = \"/x\"\n",
        &expect![[r#"
            hostler.toml: network.advertise: missing; add to [network] for example advertise = "192.0.2.1"
            hostler.toml: ramdisk.kernel: missing; add to [ramdisk] for example kernel = "/usr/share/hostler/vmlinuz"
            hostler.toml: ramdisk.initramfs: missing; add to [ramdisk] for example initramfs = "/usr/share/hostler/initramfs"
        "#]],
    );
    check(
        "[specs\ndir = \"/x\"\n",
        &expect![[r#"
            hostler.toml:1:1: a table without its second bracket; write [specs]
        "#]],
    );
    check(
        &format!("{MINIMAL}[network]\n[ramdisk.aarch64]\nkernel = \"/x\"\n"),
        &expect![[r"
            hostler.toml:4:2: duplicate key
            hostler.toml:5:2: cannot extend value of type inline table with a dotted key
        "]],
    );
}

#[test]
fn a_ramdisk_for_aarch64_is_whole_or_not_there() {
    check(
        "network.advertise = \"192.0.2.1\"\nspecs.dir = \"/x\"\n[ramdisk]\nkernel = \"/k\"\n\
         initramfs = \"/i\"\n\
         [ramdisk.aarch64]\nkernel = \"k\"\n",
        &expect![[r#"
            hostler.toml:6:1: ramdisk.aarch64.initramfs: missing; add to [ramdisk.aarch64] for example initramfs = "/usr/share/hostler/initramfs"
            hostler.toml:7:10: ramdisk.aarch64.kernel: `k` is not an absolute path
        "#]],
    );
}

#[test]
fn what_hostler_itself_writes_all_the_time_does_not_lie_beneath_the_specs() {
    let network =
        "network.advertise = \"192.0.2.1\"\nramdisk = { kernel = \"/k\", initramfs = \"/i\" }\n";
    check(
        &format!(
            "{network}specs.dir = \"/x\"\nstate.dir = \"/x/state\"\nimages.cache_dir = \"/x\"\n"
        ),
        &expect![[r#"
            hostler.toml:4:13: state.dir: `/x/state` lies in specs.dir; hostler would be woken by its own writes
            hostler.toml:5:20: images.cache_dir: `/x` lies in specs.dir; hostler would be woken by its own writes
        "#]],
    );
}

#[test]
fn a_block_no_client_may_be_sent_is_refused() {
    for size in ["511", "8193B", "1e3"] {
        let text = format!("{MINIMAL}\n[tftp]\nblock_max = \"{size}\"\n");
        let problems = parse("hostler.toml", text.as_bytes()).unwrap_err();
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert!(problem.to_string().contains("tftp.block_max: `"), "{problem}");
    }
}

#[test]
fn an_unreadable_file_is_named() {
    let error = read(Path::new("/nonexistent/hostler.toml")).unwrap_err().to_string();
    let named = "reading /nonexistent/hostler.toml: No such file or directory (os error 2); ";
    assert!(error.starts_with(named) && error.contains("examples/hostler.toml"), "{error}");
}

#[test]
fn the_example_is_good_and_so_is_every_line_commented_out_in_it() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/hostler.toml");
    let example = read(Path::new(path)).unwrap();
    assert_eq!(example.state.dir, Path::new(STATE_DIR));
    let text = std::fs::read_to_string(path).unwrap();
    let uncommented = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if rest.contains(" = ") || rest.starts_with('[') => rest,
        _ => line,
    });
    let everything = uncommented.collect::<Vec<_>>().join("\n");
    let config = parse("uncommented.toml", everything.as_bytes()).unwrap();
    assert_eq!(
        (config.state, config.secrets, config.tftp),
        (example.state, example.secrets, example.tftp)
    );
    assert_eq!((config.callback, config.specs.rescan), (example.callback, example.specs.rescan));
    let ironic = config.ironic.map(|ironic| ironic.listen.to_string());
    assert_eq!((ironic.as_deref(), example.ironic), (Some("192.0.2.1:6385"), None));
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(bytes: Vec<u8>) {
        prop_assert!(parse("hostler.toml", &bytes).is_err());
    }

    #[test]
    fn never_panics_on_a_damaged_configuration(
        at in 0..MINIMAL.len(),
        bytes in "[\\PC\n\"'\\[\\]{}=.#\u{0}]{0,8}",
    ) {
        let mut text = MINIMAL.to_owned();
        text.replace_range(at..(at + bytes.len()).min(MINIMAL.len()), &bytes);
        if let Err(problems) = parse("hostler.toml", text.as_bytes()) {
            prop_assert!(!problems.is_empty());
        }
    }
}

/// Invariant (spec): Every documented key of the configuration is one that the reader requests.
#[test]
fn every_documented_key_is_requested() {
    let requested: Vec<String> = keys().into_iter().map(|key| key.key).collect();
    for doc in keys::KEYS {
        assert!(requested.iter().any(|key| key == doc.key), "{} is read nowhere", doc.key);
    }
    assert_eq!(requested.len(), keys::KEYS.len());
}
