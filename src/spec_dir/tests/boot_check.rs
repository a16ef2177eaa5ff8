//! Tests of boot checks: their values, and the errors in them.

use expect_test::expect;

use super::{MINIMAL, good, values::check_each, with};
use crate::model::spec::BootCheck;

#[test]
fn bad_boot_checks_are_named() {
    check_each(
        "boot_check",
        &[
            r#"by = "magic""#,
            "port = 22",
            r#"by = "call""#,
            "by = \"tcp\"\nport = 0",
            "by = \"tcp\"\nport = 65536",
            "by = \"tcp\"\naddress = \"192.0.2.7:22\"",
            "by = \"tcp\"\naddress = \"0.0.0.0\"",
            "by = \"tcp\"\nafter = \"5m\"",
        ],
        &expect![[r#"
            by = "magic"
              nodes/edge-07.toml:10:6: boot_check.by: `magic` is not one of none, call, tcp
            port = 22
              nodes/edge-07.toml:10:8: boot_check.port: is of no use unless boot_check.by = "tcp"
            by = "call"
              nodes/edge-07.toml:10:6: boot_check.by: a system finds what it calls with on its config drive: write [config_drive], which may be empty, or by = "tcp"
            by = "tcp"
            port = 0
              nodes/edge-07.toml:11:8: boot_check.port: 0 is not a port, 1 to 65535
            by = "tcp"
            port = 65536
              nodes/edge-07.toml:11:8: boot_check.port: 65536 is not a port, 1 to 65535
            by = "tcp"
            address = "192.0.2.7:22"
              nodes/edge-07.toml:11:11: boot_check.address: `192.0.2.7:22` is no host name and no IP address; the port is boot_check.port
            by = "tcp"
            address = "0.0.0.0"
              nodes/edge-07.toml:11:11: boot_check.address: 0.0.0.0 is not one machine's address
            by = "tcp"
            after = "5m"
              nodes/edge-07.toml:11:1: boot_check.after: unknown key; it belongs in [boot]
        "#]],
    );
}

#[test]
fn a_boot_check_has_the_defaults_of_ssh_and_one_spelling_of_its_address() {
    let check = |line: &str| good(&with("boot_check", line)).boot_check;
    let at = |port, address: Option<&str>| BootCheck::Tcp {
        port,
        address: address.map(ToOwned::to_owned),
    };
    assert_eq!(good(MINIMAL).boot_check, BootCheck::None);
    assert_eq!(check("by = \"tcp\""), at(22, None));
    assert_eq!(
        check("by = \"tcp\"\nport = 443\naddress = \"Edge-07.Example\""),
        at(443, Some("edge-07.example"))
    );
    assert_eq!(check("by = \"tcp\"\naddress = \"::ffff:192.0.2.7\""), at(22, Some("192.0.2.7")));
}
