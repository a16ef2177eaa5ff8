//! Tests of effective values: each has its origin, and together they are an equal spec.

use super::*;

/// Formats the settings as TOML with dotted keys.
fn toml(settings: &[Setting]) -> String {
    settings.iter().fold(String::new(), |mut text, Setting { key, value, origin }| {
        writeln!(text, "{key} = {value} # {origin}").unwrap();
        text
    })
}

#[test]
fn every_effective_value_has_its_origin() {
    let agent = "[limits]\nimaging = 1\n[defaults.retry]\nattempts = 5\nbackoff = '3m'\n";
    let beside = "[retry]\n\nattempts = 7\n[bmc]\nusername = \"site\"\n";
    let text = toml(
        &parse_settings(
            FILE,
            with("bmc", "username = \"root\"").as_bytes(),
            &defaults(beside, agent),
        )
        .unwrap(),
    );
    expect![[r#"
        state = "deployed" # default
        power = "on" # default
        paused = false # default
        boot.mac = "52:54:00:00:00:01" # edge-07.toml:2
        boot.firmware = "uefi" # default
        boot.arch = "x86_64" # default
        boot.loader = "auto" # default
        boot.after = "disk" # default
        boot.ramdisk = "hostler" # default
        boot.require_chap = true # default
        bmc.driver = "ipmi" # default
        bmc.address = "192.0.2.20" # edge-07.toml:5
        bmc.username = "root" # edge-07.toml:4
        bmc.password_file = "edge-07.bmc" # edge-07.toml:6
        bmc.privilege = "administrator" # default
        bmc.match_system_uuid = false # default
        bmc.console = false # default
        image.source = "debian-13.raw" # edge-07.toml:8
        image.checksum = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" # edge-07.toml:9
        image.format = "auto" # default
        image.kind = "disk" # default
        image.verify = "node" # default
        boot_check.by = "none" # default
        timeouts.ramdisk = "20m" # default
        timeouts.root_device = "60s" # default
        timeouts.imaging_stall = "2m" # default
        timeouts.imaging = "2h" # default
        timeouts.completed = "5m" # default
        timeouts.power = "2m" # default
        timeouts.first_boot = "20m" # default
        retry.attempts = 7 # _defaults.toml:3
        retry.backoff = "3m" # hostler.toml:6 [defaults]
    "#]].assert_eq(&text);
}

#[test]
fn an_invalid_spec_has_no_effective_values() {
    let problems = parse_settings(FILE, b"state = \"gone\"\n", &Defaults::default()).unwrap_err();
    assert_eq!(problems, parse(FILE, b"state = \"gone\"\n", &Defaults::default()).unwrap_err());
}

#[test]
fn every_kind_of_value_reads_back_the_same() {
    let lines = [
        ("", "redeploy = \"quotes \\\" and ' \\u00e9 # no comment\""),
        ("boot", "mac = ['52-54-00-AB-00-01', \"52:54:00:00:00:02\"]"),
        ("boot", "kernel_args = []"),
        ("boot", "kernel_args = [\"a=[b],c\", \"d\"]"),
        ("root_device", "rotational = true"),
        ("root_device", "size = \"480GB\\n\""),
        ("root_device", "model = \"tab less \\\\ backslash\""),
        ("bmc", "cipher_suite = 0x11"),
        ("retry", "attempts = 1_0"),
        ("timeouts", "ramdisk = \"1h 30m\""),
        ("config_drive", "meta_data = { hostname = \"a\\nb\", \"1-x_Y\" = \"\" }"),
        ("config_drive", "label = \"cidata\"\nfilesystem = \"iso9660\""),
    ];
    for (table, line) in lines {
        let text = with(table, line);
        let shown = toml(&parse_settings(FILE, text.as_bytes(), &Defaults::default()).unwrap());
        assert_eq!(good(&shown), good(&text), "{shown}");
    }
}

#[test]
fn the_examples_read_back_the_same() {
    let nodes = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nodes"));
    for file in ["edge-01.toml", "edge-03.toml", "edge-07.toml"] {
        let file = nodes.join(file);
        let shown = toml(&crate::spec_dir::read_file_settings(&file, None).unwrap());
        let again = parse(&file.to_string_lossy(), shown.as_bytes(), &Defaults::default());
        assert_eq!(again, crate::spec_dir::read_file(&file, None), "{shown}");
    }
}

proptest! {
    /// Invariant (status): The output of `hostler show` reads back the same.
    #[test]
    fn any_text_in_a_spec_reads_back_the_same(text in "[^\\pC]{0,40}", attempts in 1..=100_i64) {
        let line = format!("redeploy = {}", ::toml::Value::from(text));
        let text = with("", &line) + &format!("[retry]\nattempts = {attempts}\n");
        let settings = parse_settings(FILE, text.as_bytes(), &Defaults::default()).unwrap();
        prop_assert_eq!(good(&toml(&settings)), good(&text));
    }
}
