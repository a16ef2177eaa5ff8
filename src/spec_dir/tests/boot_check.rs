//! `[boot_check]`: its defaults, and the one spelling of its address.

use super::*;
use crate::model::spec::BootCheck;

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
