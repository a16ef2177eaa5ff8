//! Tests of each key's invalid values and their messages.

use std::fmt::Write as _;

use expect_test::{Expect, expect};

use super::{Defaults, FILE, MINIMAL, check, good, parse, with};
use crate::model::spec::{
    BmcAddress, BmcDriver, DeployRamdisk, MachineId, NodeSpec, Password, Verify,
};

/// Formats the problems of each line, alone in its table of an otherwise valid spec.
pub(super) fn check_each(table: &str, bad_lines: &[&str], expected: &Expect) {
    let mut said = String::new();
    for line in bad_lines {
        let text = with(table, line);
        let problems = parse(FILE, text.as_bytes(), &Defaults::default()).err().unwrap_or_default();
        writeln!(said, "{line}").unwrap();
        for problem in problems {
            writeln!(said, "  {problem}").unwrap();
        }
    }
    expected.assert_eq(&said);
}

#[test]
fn bad_top_level_values_are_named() {
    check_each(
        "",
        &[
            r#"state = "gone""#,
            "power = true",
            "paused = 1",
            "redeploy = 2026-11-22",
            "redeploy = 7",
            r#"redeploy = "a\nb""#,
            "boot = 3",
            r#""a.b\nc" = 1"#,
        ],
        &expect![[r#"
            state = "gone"
              nodes/edge-07.toml:1:9: state: `gone` is not one of deployed, available, unmanaged
            power = true
              nodes/edge-07.toml:1:9: power: a boolean, must be a string: `true` is not one of on, off, ignore; did you mean "on"?
            paused = 1
              nodes/edge-07.toml:1:10: paused: an integer, must be true or false
            redeploy = 2026-11-22
              nodes/edge-07.toml:1:12: redeploy: a datetime, must be a string; put it in quotes: "2026-11-22"
            redeploy = 7
              nodes/edge-07.toml:1:12: redeploy: an integer, must be a string; put it in quotes: "7"
            redeploy = "a\nb"
              nodes/edge-07.toml:1:12: redeploy: '\n' is not allowed
            boot = 3
              nodes/edge-07.toml:2:2: duplicate key
            "a.b\nc" = 1
              nodes/edge-07.toml:1:1: a.b\nc: unknown key
        "#]],
    );
}

#[test]
fn bad_boot_values_are_named() {
    check_each(
        "boot",
        &[
            r#"mac = "52:54:00:00:00""#,
            "mac = []",
            "mac = 5",
            r#"mac = ["52:54:00:00:00:01", "52-54-00-00-00-01", 7]"#,
            r#"mac = "01:00:5e:00:00:01""#,
            r#"firmware = "UEFI""#,
            "firmware = \"bios\"\narch = \"aarch64\"",
            r#"arch = "arm""#,
            r#"after = "network""#,
            r#"kernel_args = "quiet""#,
            r#"kernel_args = ["", "a b", "a'", "a\\", "$x", "a;b", "a\u0007", "hostler.k=1", "ä"]"#,
        ],
        &expect![[r#"
            mac = "52:54:00:00:00"
              nodes/edge-07.toml:2:7: boot.mac: `52:54:00:00:00` is not a MAC address, which looks like 52:54:00:12:34:56
            mac = []
              nodes/edge-07.toml:2:7: boot.mac: an empty list, must name at least one
            mac = 5
              nodes/edge-07.toml:2:7: boot.mac: an integer, must be a string: `5` is not a MAC address, which looks like 52:54:00:12:34:56
            mac = ["52:54:00:00:00:01", "52-54-00-00-00-01", 7]
              nodes/edge-07.toml:2:29: boot.mac: 52:54:00:00:00:01 is there twice
              nodes/edge-07.toml:2:50: boot.mac: an integer, must be a string: `7` is not a MAC address, which looks like 52:54:00:12:34:56
            mac = "01:00:5e:00:00:01"
              nodes/edge-07.toml:2:7: boot.mac: `01:00:5e:00:00:01` is a multicast or empty address, not one network interface's
            firmware = "UEFI"
              nodes/edge-07.toml:2:12: boot.firmware: `UEFI` is not one of uefi, bios; did you mean "uefi"?
            firmware = "bios"
            arch = "aarch64"
              nodes/edge-07.toml:2:12: boot.firmware: an aarch64 machine has no BIOS; use firmware = "uefi"
            arch = "arm"
              nodes/edge-07.toml:2:8: boot.arch: `arm` is not one of x86_64, aarch64
            after = "network"
              nodes/edge-07.toml:7:1: image.kernel: missing, needed because of boot.after = "network"; add to [image] for example kernel = "debian-13/vmlinuz"
              nodes/edge-07.toml:7:1: image.ramdisk: missing, needed because of boot.after = "network"; add to [image] for example ramdisk = "debian-13/initrd.img"
            kernel_args = "quiet"
              nodes/edge-07.toml:2:15: boot.kernel_args: a string, must be a list of strings; write ["quiet"]
            kernel_args = ["", "a b", "a'", "a\\", "$x", "a;b", "a\u0007", "hostler.k=1", "ä"]
              nodes/edge-07.toml:2:16: boot.kernel_args: empty
              nodes/edge-07.toml:2:20: boot.kernel_args: ' ' in a kernel argument; each must be one word of printable ASCII without any of "'\`$;|&<>{}#
              nodes/edge-07.toml:2:27: boot.kernel_args: '\'' in a kernel argument; each must be one word of printable ASCII without any of "'\`$;|&<>{}#
              nodes/edge-07.toml:2:33: boot.kernel_args: '\\' in a kernel argument; each must be one word of printable ASCII without any of "'\`$;|&<>{}#
              nodes/edge-07.toml:2:40: boot.kernel_args: '$' in a kernel argument; each must be one word of printable ASCII without any of "'\`$;|&<>{}#
              nodes/edge-07.toml:2:46: boot.kernel_args: ';' in a kernel argument; each must be one word of printable ASCII without any of "'\`$;|&<>{}#
              nodes/edge-07.toml:2:53: boot.kernel_args: '\u{7}' in a kernel argument; each must be one word of printable ASCII without any of "'\`$;|&<>{}#
              nodes/edge-07.toml:2:64: boot.kernel_args: `hostler.k=1`: arguments that start with hostler. are hostler's own
              nodes/edge-07.toml:2:79: boot.kernel_args: 'ä' in a kernel argument; each must be one word of printable ASCII without any of "'\`$;|&<>{}#
        "#]],
    );
    let long = format!("kernel_args = [\"{}\", \"y\"]", "x".repeat(1023));
    assert!(
        parse(FILE, with("boot", &long).as_bytes(), &Defaults::default()).unwrap_err()[0]
            .to_string()
            .ends_with("more than 1024 bytes of kernel arguments")
    );
}

#[test]
fn bad_loaders_and_ramdisks_are_named() {
    check_each(
        "boot",
        &[
            r#"loader = "pxelinux""#,
            r#"loader = "lilo""#,
            r#"ramdisk = "ironic""#,
            "ramdisk = \"own\"\nrequire_chap = 1",
        ],
        &expect![[r#"
            loader = "pxelinux"
              nodes/edge-07.toml:2:10: boot.loader: pxelinux is for firmware = "bios"; use "grub" or "ipxe"
            loader = "lilo"
              nodes/edge-07.toml:2:10: boot.loader: `lilo` is not one of auto, pxelinux, grub, ipxe
            ramdisk = "ironic"
              nodes/edge-07.toml: root_device: Ironic's ramdisk takes the first disk that fits, without saying which there are; give a hint, such as name = "sda"
              nodes/edge-07.toml:2:11: boot.ramdisk: Ironic's ramdisk exports its disk to everybody who can reach it; if that is meant, say require_chap = false
            ramdisk = "own"
            require_chap = 1
              nodes/edge-07.toml:2:11: boot.ramdisk: `own` is not one of hostler, ironic
              nodes/edge-07.toml:3:16: boot.require_chap: an integer, must be true or false
        "#]],
    );
}

/// Invariant (disk): A disk that drops writes is caught by default.
#[test]
fn a_disk_is_verified_by_its_machine_or_by_hostler_unless_the_spec_says_otherwise() {
    let ironic = with("boot", "ramdisk = \"ironic\"\nrequire_chap = false");
    let ironic = format!("{ironic}[root_device]\nserial = \"root-1\"\n");
    assert_eq!(good(MINIMAL).image.verify, Verify::Node);
    assert_eq!(good(&ironic).image.verify, Verify::Full);
    for text in [MINIMAL.to_owned(), ironic] {
        let text = text.replace("[image]", "[image]\nverify = \"none\"");
        assert_eq!(good(&text).image.verify, Verify::None);
    }
}

#[test]
fn what_ironics_ramdisk_cannot_do_is_refused() {
    let ironic = with("boot", "ramdisk = \"ironic\"\nrequire_chap = false");
    let text = format!("{ironic}[root_device]\nserial = \"root-1\"\n");
    let with_a_hint = good(&text);
    assert_eq!(with_a_hint.boot.ramdisk, DeployRamdisk::Ironic);
    let text = text
        .replace("[bmc]", "[bmc]\nmatch_system_uuid = true")
        .replace("[image]", "[image]\nverify = \"node\"")
        .replace("serial =", "hctl = \"0:0:1:0\"\nserial =");
    check(
        &text,
        &expect![[r#"
        nodes/edge-07.toml:5:1: bmc: Ironic's ramdisk does not say what machine it runs on; leave match_system_uuid out
        nodes/edge-07.toml:9:1: image: Ironic's ramdisk cannot verify its disk; leave verify = "node" out
        nodes/edge-07.toml:13:1: root_device: Ironic's ramdisk does not know the hint hctl
    "#]],
    );
}

#[test]
fn bad_bmc_addresses_are_named() {
    check_each(
        "bmc",
        &[
            r#"address = """#,
            r#"address = "192.0.2.300""#,
            r#"address = "0.0.0.0""#,
            r#"address = "a b""#,
            r#"address = "host:0""#,
            r#"address = "host:65536""#,
            r#"address = "[::1]623""#,
            r#"address = "[host]:623""#,
            r#"address = "fe80::1%eth0""#,
            r#"address = "-bmc""#,
        ],
        &expect![[r#"
            address = ""
              nodes/edge-07.toml:4:11: bmc.address: `` is not an address; write for example 192.0.2.20, bmc.example:623 or [2001:db8::1]:623
            address = "192.0.2.300"
              nodes/edge-07.toml:4:11: bmc.address: `192.0.2.300` is not an address; write for example 192.0.2.20, bmc.example:623 or [2001:db8::1]:623
            address = "0.0.0.0"
              nodes/edge-07.toml:4:11: bmc.address: 0.0.0.0 is not one machine's address
            address = "a b"
              nodes/edge-07.toml:4:11: bmc.address: `a b` is not an address; write for example 192.0.2.20, bmc.example:623 or [2001:db8::1]:623
            address = "host:0"
              nodes/edge-07.toml:4:11: bmc.address: `0` is not a port, 1 to 65535
            address = "host:65536"
              nodes/edge-07.toml:4:11: bmc.address: `65536` is not a port, 1 to 65535
            address = "[::1]623"
              nodes/edge-07.toml:4:11: bmc.address: `[::1]623` is not an address; write for example 192.0.2.20, bmc.example:623 or [2001:db8::1]:623
            address = "[host]:623"
              nodes/edge-07.toml:4:11: bmc.address: `[host]:623` is not an address; write for example 192.0.2.20, bmc.example:623 or [2001:db8::1]:623
            address = "fe80::1%eth0"
              nodes/edge-07.toml:4:11: bmc.address: `fe80::1%eth0` is not an address; write for example 192.0.2.20, bmc.example:623 or [2001:db8::1]:623
            address = "-bmc"
              nodes/edge-07.toml:4:11: bmc.address: `-bmc` is not an address; write for example 192.0.2.20, bmc.example:623 or [2001:db8::1]:623
        "#]],
    );
}

#[test]
fn bad_bmc_values_are_named() {
    check_each(
        "bmc",
        &[
            r#"driver = "none""#,
            r#"driver = "redfish""#,
            "match_system_uuid = 1",
            "console = \"yes\"",
            "driver = \"ipmitool\"\nconsole = true",
            r#"username = "seventeen bytes !""#,
            r#"password_file = "/etc/shadow""#,
            r#"password_file = "../x""#,
            r#"password_file = "a/./b""#,
            r#"password_file = """#,
            r#"privilege = "user""#,
            "cipher_suite = 0",
            "cipher_suite = -1",
            r#"cipher_suite = "17""#,
            r#"password = "hunter2""#,
        ],
        &expect![[r#"
            driver = "none"
              nodes/edge-07.toml:5:11: bmc.address: is of no use with bmc.driver = "none"
              nodes/edge-07.toml:6:17: bmc.password_file: is of no use with bmc.driver = "none"
            driver = "redfish"
              nodes/edge-07.toml:4:10: bmc.driver: `redfish` is not one of ipmi, ipmitool, program, none
            match_system_uuid = 1
              nodes/edge-07.toml:4:21: bmc.match_system_uuid: an integer, must be true or false
            console = "yes"
              nodes/edge-07.toml:4:11: bmc.console: a string, must be true or false; write true without quotes
            driver = "ipmitool"
            console = true
              nodes/edge-07.toml:5:11: bmc.console: is of no use with bmc.driver = "ipmitool"
            username = "seventeen bytes !"
              nodes/edge-07.toml:4:12: bmc.username: 17 bytes, at most 16 are allowed
            password_file = "/etc/shadow"
              nodes/edge-07.toml:4:17: bmc.password_file: `/etc/shadow` is absolute, must be relative to the secrets directory
            password_file = "../x"
              nodes/edge-07.toml:4:17: bmc.password_file: `../x` is not a plain path: no `..`, `.`, `//` or `/` at the end
            password_file = "a/./b"
              nodes/edge-07.toml:4:17: bmc.password_file: `a/./b` is not a plain path: no `..`, `.`, `//` or `/` at the end
            password_file = ""
              nodes/edge-07.toml:4:17: bmc.password_file: empty
            privilege = "user"
              nodes/edge-07.toml:4:13: bmc.privilege: `user` is not one of administrator, operator
            cipher_suite = 0
              nodes/edge-07.toml:4:16: bmc.cipher_suite: cipher suite 0 is not supported; 17 and 3 are
            cipher_suite = -1
              nodes/edge-07.toml:4:16: bmc.cipher_suite: cipher suite -1 does not exist
            cipher_suite = "17"
              nodes/edge-07.toml:4:16: bmc.cipher_suite: a string, must be an integer; write 17 without quotes
            password = "hunter2"
              nodes/edge-07.toml:4:1: bmc.password: a password is never in a spec; write it into a file of the agent's secrets directory, and here password_file = "NAME"
        "#]],
    );
}

#[test]
fn keys_that_are_of_no_use_to_a_program_and_bad_programs_are_named() {
    check_each(
        "bmc",
        &[
            "driver = \"program\"\nconsole = true\nmatch_system_uuid = true\n\
             privilege = \"operator\"",
            "driver = \"program\"\nkg_file = \"k\"\ncipher_suite = 3\nprogram = \"pdu\"",
            r#"program = "/etc/hostler/pdu""#,
            "driver = \"program\"\nprogram = \"/etc/hostler/pdu#7\"",
            "driver = \"program\"\nprogram = \"/etc/../pdu\"",
        ],
        &expect![[r#"
            driver = "program"
            console = true
            match_system_uuid = true
            privilege = "operator"
              nodes/edge-07.toml:3:1: bmc.program: missing, needed because of bmc.driver = "program"; add to [bmc] for example program = "/etc/hostler/pdu"
              nodes/edge-07.toml:5:11: bmc.console: is of no use with bmc.driver = "program"
              nodes/edge-07.toml:6:21: bmc.match_system_uuid: is of no use with bmc.driver = "program"
              nodes/edge-07.toml:7:13: bmc.privilege: is of no use with bmc.driver = "program"
            driver = "program"
            kg_file = "k"
            cipher_suite = 3
            program = "pdu"
              nodes/edge-07.toml:5:11: bmc.kg_file: is of no use with bmc.driver = "program"
              nodes/edge-07.toml:6:16: bmc.cipher_suite: is of no use with bmc.driver = "program"
              nodes/edge-07.toml:7:11: bmc.program: `pdu` is not absolute; write for example /etc/hostler/pdu
            program = "/etc/hostler/pdu"
              nodes/edge-07.toml:4:11: bmc.program: is of no use unless bmc.driver = "program"
            driver = "program"
            program = "/etc/hostler/pdu#7"
              nodes/edge-07.toml:5:11: bmc.program: '#' is not allowed
            driver = "program"
            program = "/etc/../pdu"
              nodes/edge-07.toml:5:11: bmc.program: `/etc/../pdu` is not a plain path: no `..`, `.`, `//` or `/` at the end
        "#]],
    );
}

#[test]
fn a_bmc_address_is_read_in_every_notation() {
    for (text, host, port) in [
        ("192.0.2.20", "192.0.2.20", 623),
        ("192.0.2.20:1623", "192.0.2.20", 1623),
        ("Bmc-07.Example", "bmc-07.example", 623),
        ("bmc:7", "bmc", 7),
        ("::1", "::1", 623),
        ("2001:DB8:0::1", "2001:db8::1", 623),
        ("[::1]", "::1", 623),
        ("[::1]:624", "::1", 624),
        ("::ffff:192.0.2.20", "192.0.2.20", 623),
        ("[::FFFF:c000:214]:624", "192.0.2.20", 624),
    ] {
        let spec = good(&with("bmc", &format!("address = \"{text}\"")));
        assert_eq!(spec.bmc.unwrap().address, BmcAddress::at(host, port), "{text}");
    }
}

#[test]
fn a_program_is_given_an_address_or_the_nodes_name_and_needs_no_password() {
    let given = with("bmc", "driver = \"program\"\nprogram = \"/etc/hostler/pdu\"");
    let spec = good(&given.replace("192.0.2.20", "rack 3, outlet #7"));
    let address = spec.bmc_address().unwrap();
    assert_eq!(address.program(), Some(("/etc/hostler/pdu", "rack 3, outlet #7")));
    assert_eq!(address.to_string(), "program:/etc/hostler/pdu#rack 3, outlet #7");
    assert_eq!(address.to_string().parse().as_ref(), Ok(address));
    assert_eq!(spec.machine(), MachineId::Bmc(address.clone()));
    let kept = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<NodeSpec>(&kept).unwrap(), spec, "{kept}");

    let keys = ["address", "password_file"];
    let bare = given.lines().filter(|line| !keys.iter().any(|key| line.starts_with(key)));
    let bare: Vec<&str> = bare.collect();
    let spec = good(&bare.join("\n"));
    let bmc = spec.bmc.as_ref().unwrap();
    assert_eq!((bmc.driver, &bmc.password), (BmcDriver::Program, &None));
    assert_eq!(bmc.address.program(), Some(("/etc/hostler/pdu", "edge-07")));
    let kept = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<NodeSpec>(&kept).unwrap(), spec, "{kept}");
}

#[test]
fn a_credential_stands_in_for_the_password_file() {
    let text = MINIMAL.replace("password_file = ", "password_credential = ");
    let password = Some(Password::PasswordCredential("edge-07.bmc".to_owned()));
    assert_eq!(good(&text).bmc.unwrap().password, password);
    check(
        with("bmc", "password_credential = \"a/b\""),
        &expect![[r#"
            nodes/edge-07.toml:4:23: bmc.password_credential: `a/b` is not a credential's name
            nodes/edge-07.toml:6:17: bmc.password_file: is of no use with bmc.password_credential
        "#]],
    );
}

#[test]
fn a_bmc_key_is_in_a_file_of_the_secrets_directory_and_needs_none_of_its_own_in_the_spec() {
    let with_key = MINIMAL.replace("password_file = ", "kg_file = \"kg\"\npassword_file = ");
    assert_eq!(good(&with_key).bmc.unwrap().kg_file.as_deref(), Some("kg"));
    assert_eq!(good(MINIMAL).bmc.unwrap().kg_file, None);
    check(
        with("bmc", "kg_file = \"/etc/kg\""),
        &expect![[r#"
            nodes/edge-07.toml:4:11: bmc.kg_file: `/etc/kg` is absolute, must be relative to the secrets directory
        "#]],
    );
}

#[test]
fn a_machine_without_a_bmc_needs_nothing_else_said_of_it() {
    let bmc = "address = \"192.0.2.20\"\npassword_file = \"edge-07.bmc\"";
    let text = MINIMAL.replace(bmc, "driver = \"none\"");
    let spec = good(&text);
    assert_eq!((&spec.bmc, spec.machine()), (&None, MachineId::Nics(spec.boot.macs.clone())));

    let minutes = |text: &str| good(text).timeouts.power.as_secs() / 60;
    assert_eq!((minutes(MINIMAL), minutes(&text)), (2, 168 * 60), "an operator may have to travel");
    assert_eq!(minutes(&format!("{text}\n[timeouts]\npower = '3h'\n")), 3 * 60);
}

#[test]
fn a_character_that_nobody_sees_is_shown() {
    check(
        MINIMAL.replace("192.0.2.20", "192.0.2.\u{200b}20"),
        &expect![[r#"
            nodes/edge-07.toml:4:11: bmc.address: `192.0.2.\u{200b}20` is not an address; write for example 192.0.2.20, bmc.example:623 or [2001:db8::1]:623
        "#]],
    );
}

#[test]
fn bad_root_device_values_are_named() {
    check_each(
        "root_device",
        &[
            r#"name = "/dev/disk/by-id/x""#,
            r#"name = "/dev/disk/by-path/pci-0000:00:04.0""#,
            r#"by_path = "sda""#,
            r#"by_path = "/dev/disk/by-path/pci-0000:00:17.0-ata-1-part2""#,
            r#"multipath = "all""#,
            r#"serial = "  ""#,
            r#"hctl = "0:0:1""#,
            r#"size = "big""#,
            "size = 480",
            r#"rotational = "no""#,
            r#"modle = "x""#,
        ],
        &expect![[r#"
            name = "/dev/disk/by-id/x"
              nodes/edge-07.toml:10:8: root_device.name: `/dev/disk/by-id/x` is not a kernel name such as sda or /dev/nvme0n1; write it as wwn if it begins with wwn- or nvme-eui., else as serial
            name = "/dev/disk/by-path/pci-0000:00:04.0"
              nodes/edge-07.toml:10:8: root_device.name: `/dev/disk/by-path/pci-0000:00:04.0` is not a kernel name such as sda or /dev/nvme0n1; write it as by_path
            by_path = "sda"
              nodes/edge-07.toml:10:11: root_device.by_path: `sda` is not a path such as pci-0000:00:17.0-ata-1
            by_path = "/dev/disk/by-path/pci-0000:00:17.0-ata-1-part2"
              nodes/edge-07.toml:10:11: root_device.by_path: `/dev/disk/by-path/pci-0000:00:17.0-ata-1-part2` is a partition; leave -part and its number out
            multipath = "all"
              nodes/edge-07.toml:10:13: root_device.multipath: `all` is not one of first
            serial = "  "
              nodes/edge-07.toml:10:10: root_device.serial: empty
            hctl = "0:0:1"
              nodes/edge-07.toml:10:8: root_device.hctl: `0:0:1` is not host:channel:target:lun, such as 0:0:1:0
            size = "big"
              nodes/edge-07.toml:10:8: root_device.size: `big` is not a size; write for example 480GB or 64MiB
            size = 480
              nodes/edge-07.toml:10:8: root_device.size: an integer, must be a string with a unit; write for example "480GB" or "480GiB"
            rotational = "no"
              nodes/edge-07.toml:10:14: root_device.rotational: a string, must be true or false; write false without quotes
            modle = "x"
              nodes/edge-07.toml:10:1: root_device.modle: unknown key; did you mean `model`?
        "#]],
    );
}

#[test]
fn bad_image_values_are_named() {
    check_each(
        "image",
        &[
            r#"source = """#,
            r#"source = "a/../b""#,
            r#"source = "a\u0000b""#,
            r#"source = "https://images.example/debian.raw""#,
            r#"source = "https:///debian.raw""#,
            r#"source = "ftp://images.example/debian.raw""#,
            r#"checksum = "sha256:xyz""#,
            r#"checksum = "md5:aa""#,
            r#"checksum = "aaaa""#,
            r#"checksum = "SHA256SUMS""#,
            r#"checksum = "https://images.example/SHA256SUMS""#,
            r#"format = "qcow2""#,
            r#"format = "vmdk""#,
            r#"kind = "partition""#,
            r#"kernel = "vmlinuz""#,
            r#"ramdisk = "../initrd""#,
            r#"kernel_args = ["quiet"]"#,
        ],
        &expect![[r#"
            source = ""
              nodes/edge-07.toml:7:10: image.source: empty
            source = "a/../b"
              nodes/edge-07.toml:7:10: image.source: `a/../b` is not a plain path: no `..`, `.`, `//` or `/` at the end
            source = "a\u0000b"
              nodes/edge-07.toml:7:10: image.source: '\0' is not allowed
            source = "https://images.example/debian.raw"
            source = "https:///debian.raw"
              nodes/edge-07.toml:7:10: image.source: `https:///debian.raw` is not a URL
            source = "ftp://images.example/debian.raw"
              nodes/edge-07.toml:7:10: image.source: `ftp` is not a known scheme; use a path, http or https
            checksum = "sha256:xyz"
              nodes/edge-07.toml:7:12: image.checksum: `x` is not a hex digit
            checksum = "md5:aa"
              nodes/edge-07.toml:7:12: image.checksum: unknown algorithm `md5`; use sha256 or sha512
            checksum = "aaaa"
              nodes/edge-07.toml:7:12: image.checksum: no algorithm; write sha256:<64 hex digits> or sha512:<128 hex digits>
            checksum = "SHA256SUMS"
            checksum = "https://images.example/SHA256SUMS"
            format = "qcow2"
            format = "vmdk"
              nodes/edge-07.toml:7:10: image.format: `vmdk` is not one of auto, raw, qcow2
            kind = "partition"
            kernel = "vmlinuz"
              nodes/edge-07.toml:7:10: image.kernel: is of no use unless boot.after = "network"
            ramdisk = "../initrd"
              nodes/edge-07.toml:7:11: image.ramdisk: is of no use unless boot.after = "network"
              nodes/edge-07.toml:7:11: image.ramdisk: `../initrd` is not a plain path: no `..`, `.`, `//` or `/` at the end
            kernel_args = ["quiet"]
              nodes/edge-07.toml:7:15: image.kernel_args: is of no use unless boot.after = "network"
        "#]],
    );
}

#[test]
fn bad_partitions_are_named() {
    check(
        format!(
            "{MINIMAL}kind = \"partition\"\n[partitions]\ntable = \"bsd\"\nswap = \"0\"\n\
             root = \"most\"\n"
        ),
        &expect![[r#"
            nodes/edge-07.toml:11:9: partitions.table: `bsd` is not one of gpt, msdos
            nodes/edge-07.toml:12:8: partitions.swap: must be more than 0
            nodes/edge-07.toml:13:8: partitions.root: `most` is not a size; write for example 480GB or 64MiB
        "#]],
    );
}

#[test]
fn bad_timeouts_and_retries_are_named() {
    check_each(
        "timeouts",
        &[
            r#"ramdisk = "20""#,
            "ramdisk = 20",
            r#"imaging = "0s""#,
            r#"imaging = "-1m""#,
            r#"imaging = "1m ago""#,
            r#"imaging = "999ms""#,
            r#"imaging = "168h 1s""#,
            r#"imaging = "9999999999999999h""#,
            r#"boot = "1m""#,
        ],
        &expect![[r#"
            ramdisk = "20"
              nodes/edge-07.toml:10:11: timeouts.ramdisk: `20` has no unit; for seconds write "20s"
            ramdisk = 20
              nodes/edge-07.toml:10:11: timeouts.ramdisk: an integer, must be a string: `20` has no unit; for seconds write "20s"
            imaging = "0s"
              nodes/edge-07.toml:10:11: timeouts.imaging: `0s` is out of range, 1s to 168h is allowed
            imaging = "-1m"
              nodes/edge-07.toml:10:11: timeouts.imaging: `-1m` is out of range, 1s to 168h is allowed
            imaging = "1m ago"
              nodes/edge-07.toml:10:11: timeouts.imaging: `1m ago` is out of range, 1s to 168h is allowed
            imaging = "999ms"
              nodes/edge-07.toml:10:11: timeouts.imaging: `999ms` is out of range, 1s to 168h is allowed
            imaging = "168h 1s"
              nodes/edge-07.toml:10:11: timeouts.imaging: `168h 1s` is out of range, 1s to 168h is allowed
            imaging = "9999999999999999h"
              nodes/edge-07.toml:10:11: timeouts.imaging: `9999999999999999h` is not a duration; write for example 20m or 1h 30m
            boot = "1m"
              nodes/edge-07.toml:10:1: timeouts.boot: unknown key; it belongs at the top of the file
        "#]],
    );
    check_each(
        "retry",
        &["attempts = 0", "attempts = 101", "attempts = 99999999999999999999", "attempts = 1.5"],
        &expect![[r"
            attempts = 0
              nodes/edge-07.toml:10:12: retry.attempts: 0 is out of range, 1 to 100 is allowed
            attempts = 101
              nodes/edge-07.toml:10:12: retry.attempts: 101 is out of range, 1 to 100 is allowed
            attempts = 99999999999999999999
              nodes/edge-07.toml:10:12: retry.attempts: 99999999999999999999 is out of range, 1 to 100 is allowed
            attempts = 1.5
              nodes/edge-07.toml:10:12: retry.attempts: a float, must be an integer
        "]],
    );
}
