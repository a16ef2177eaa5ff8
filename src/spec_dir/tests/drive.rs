//! Tests of `[config_drive]`: its keys, attached files, and contradictory keys.

use super::*;
use crate::model::{
    attached::MetaData,
    spec::{Attachment, BootCheck, DriveFilesystem, DriveLabel},
};

const NETWORK: &str = r#"{"links": [], "networks": [], "services": []}"#;

/// Parses a spec with the attached files `user` and `network.json`.
fn attached(text: &str) -> Result<NodeSpec, String> {
    let attachment = |path: &str| match path {
        "user" => Ok("#cloud-config\n".into()),
        "gzip" => Ok(b"\x1f\x8b".to_vec().into()),
        "sites/network.json" => Ok(NETWORK.into()),
        _ => absent(path),
    };
    super::super::parse(FILE, text.as_bytes(), &Defaults::default(), &attachment)
        .map_err(|problems| lines(&problems))
}

fn check_attached(text: &str, expected: &Expect) {
    expected.assert_eq(&attached(text).err().unwrap_or_default());
}

#[test]
fn a_config_drive_has_what_was_said_and_what_is_in_its_files() {
    let text = "[config_drive]\nuser_data_file = \"user\"\n\
                network_config_file = \"sites/network.json\"\n\
                meta_data = { hostname = \"seven\", rack = \"3\" }\n";
    let drive = attached(&format!("{MINIMAL}{text}")).unwrap().config_drive.unwrap();
    assert_eq!((drive.label, drive.filesystem), (DriveLabel::Config2, DriveFilesystem::Vfat));
    let user_data = Attachment { path: "user".into(), content: "#cloud-config\n".into() };
    assert_eq!(drive.user_data, Some(user_data));
    let network = Attachment { path: "sites/network.json".into(), content: NETWORK.into() };
    assert_eq!(drive.network_config, Some(network));
    let meta_data: Vec<_> =
        drive.meta_data.iter().map(|(k, v)| (&**k, v.as_text().unwrap())).collect();
    assert_eq!(meta_data, [("hostname", "seven"), ("rack", "3")]);
}

#[test]
fn no_table_is_no_drive_and_an_empty_one_is_a_drive_that_says_who_the_machine_is() {
    assert_eq!(good(MINIMAL).config_drive, None);
    let drive = good(&format!("{MINIMAL}[config_drive]\n")).config_drive.unwrap();
    assert_eq!((drive.user_data, drive.network_config, drive.meta_data.len()), (None, None, 0));
}

#[test]
fn what_is_in_an_attached_file_is_a_part_of_the_identity_and_where_it_lies_is_not() {
    let digest = |path: &str, content: &str| {
        let text = format!("{MINIMAL}[config_drive]\nuser_data_file = \"{path}\"\n");
        let attachment = |_: &str| Ok(content.into());
        let defaults = Defaults::default();
        super::super::parse(FILE, text.as_bytes(), &defaults, &attachment).unwrap().digest()
    };
    assert_eq!(digest("a", "x"), digest("b", "x"));
    assert_ne!(digest("a", "x"), digest("a", "y"));
}

#[test]
fn metadata_of_a_spec_goes_over_that_of_the_defaults_key_by_key() {
    let below = "[config_drive]\nlabel = \"cidata\"\nmeta_data = { a = \"1\", b = \"2\" }\n";
    let below = Defaults::new(Some(("_defaults.toml", below.as_bytes())), None);
    let text = with("config_drive", "meta_data = { b = \"3\" }");
    let drive = parse(FILE, text.as_bytes(), &below).unwrap().config_drive.unwrap();
    let meta_data: Vec<_> =
        drive.meta_data.iter().map(|(k, v)| (&**k, v.as_text().unwrap())).collect();
    assert_eq!((drive.label, &*meta_data), (DriveLabel::Cidata, &[("a", "1"), ("b", "3")][..]));
}

/// Invariant (disk): A config drive holds its files byte by byte, and so does every record.
#[test]
fn lists_and_vendor_data_are_a_part_of_a_drive_and_of_its_identity() {
    let read = |more: &str| attached(&format!("{MINIMAL}[config_drive]\n{more}"));
    let with_keys =
        read("meta_data = { public-keys = [\"ssh-ed25519 A\", \"ssh-rsa B\"] }").unwrap();
    let keys = MetaData::List(vec!["ssh-ed25519 A".into(), "ssh-rsa B".into()]);
    assert_eq!(with_keys.config_drive.as_ref().unwrap().meta_data["public-keys"], keys);
    let with_vendor = read("vendor_data_file = \"user\"").unwrap();
    let vendor = &with_vendor.config_drive.as_ref().unwrap().vendor_data;
    assert_eq!(vendor.as_ref().unwrap().content, "#cloud-config\n".into());
    let one = read("meta_data = { public-keys = \"ssh-ed25519 A\" }").unwrap();
    let one_in_list = read("meta_data = { public-keys = [\"ssh-ed25519 A\"] }").unwrap();
    let user = read("user_data_file = \"user\"").unwrap();
    let specs = [&with_keys, &with_vendor, &one, &one_in_list, &user];
    let mut digests: Vec<_> = specs.iter().map(|spec| spec.digest().to_string()).collect();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), specs.len(), "each is another installation");
    check_attached(
        &format!(
            "{MINIMAL}[config_drive]\nvendor_data_file = \"gzip\"\n\
             network_config_file = \"gzip\"\n\
             meta_data = {{ hostname = [\"a\"], public-keys = [1], roles = {{}} }}\n"
        ),
        &expect![[r#"
            nodes/edge-07.toml:10:20: config_drive.vendor_data_file: `gzip` is not UTF-8 from byte 1 on
            nodes/edge-07.toml:11:23: config_drive.network_config_file: `gzip` is not UTF-8 from byte 1 on
            nodes/edge-07.toml:12:26: config_drive.meta_data.hostname: a list, must be a string
            nodes/edge-07.toml:12:48: config_drive.meta_data.public-keys: an integer, must be a string; put it in quotes: "1"
            nodes/edge-07.toml:12:60: config_drive.meta_data.roles: a table, must be a string
        "#]],
    );
}

#[test]
fn bad_config_drives_are_named() {
    check_attached(
        &format!(
            "{MINIMAL}[config_drive]\nlabel = \"x\"\nfilesystem = \"ntfs\"\n\
             user_data_file = \"gone\"\n\
             network_config_file = \"../network\"\n\
             meta_data = {{ a = 1, \"b c\" = \"\", d = \"\\u0007\" }}\nuser_data = \"\"\n"
        ),
        &expect![[r#"
            nodes/edge-07.toml:10:9: config_drive.label: `x` is not one of config-2, cidata
            nodes/edge-07.toml:11:14: config_drive.filesystem: `ntfs` is not one of vfat, iso9660
            nodes/edge-07.toml:12:18: config_drive.user_data_file: `gone` is not there
            nodes/edge-07.toml:13:23: config_drive.network_config_file: `../network` is not a plain path: no `..`, `.`, `//` or `/` at the end
            nodes/edge-07.toml:14:19: config_drive.meta_data.a: an integer, must be a string; put it in quotes: "1"
            nodes/edge-07.toml:14:22: config_drive.meta_data.b c: must be 1 to 64 letters, digits, `_` or `-`
            nodes/edge-07.toml:14:38: config_drive.meta_data.d: '\u{7}' is not allowed
            nodes/edge-07.toml:15:1: config_drive.user_data: unknown key; did you mean `user_data_file`?
        "#]],
    );
    check_attached(
        &format!(
            "{MINIMAL}[config_drive]\nuser_data_file = \"/etc/shadow\"\n\
             network_config_file = \"edge-01.toml\"\n"
        ),
        &expect![[r#"
            nodes/edge-07.toml:10:18: config_drive.user_data_file: `/etc/shadow` is absolute, must be relative to the spec directory
            nodes/edge-07.toml:11:23: config_drive.network_config_file: `edge-01.toml` has the name of a spec; give it another ending than .toml
        "#]],
    );
}

#[test]
fn only_openstacks_network_data_is_taken_for_a_config_2_drive() {
    let problems = |label: &str, network: &'static str| {
        let text =
            format!("{MINIMAL}[config_drive]\nlabel = \"{label}\"\nnetwork_config_file = \"n\"\n");
        let attachment = |_: &str| Ok(network.into());
        super::super::parse(FILE, text.as_bytes(), &Defaults::default(), &attachment)
            .map_or_else(|problems| lines(&problems), |_| String::new())
    };
    assert_eq!(problems("config-2", NETWORK), "");
    assert_eq!(problems("cidata", "version: 2\n"), "");
    expect![[r#"
        nodes/edge-07.toml:11:23: config_drive.network_config_file: `n` is not JSON (expected value at line 1 column 1): label = "config-2" takes OpenStack's network_data.json; cloud-init's own format needs label = "cidata"
    "#]].assert_eq(&problems("config-2", "version: 2\nsecret: 5\n"));
    expect![[r#"
        nodes/edge-07.toml:11:23: config_drive.network_config_file: `n` has no list `links`: label = "config-2" takes OpenStack's network_data.json; cloud-init's own format needs label = "cidata"
    "#]].assert_eq(&problems("config-2", r#"{"version": 2, "ethernets": {}}"#));
}

#[test]
fn keys_that_would_mean_nothing_are_refused_where_they_stand() {
    check_attached(
        &format!(
            "{MINIMAL}kernel = \"k\"\nramdisk = \"r\"\nkernel_args = []\n[partitions]\n\
             swap = \"1GiB\"\n"
        ),
        &expect![[r#"
            nodes/edge-07.toml:9:10: image.kernel: is of no use unless boot.after = "network"
            nodes/edge-07.toml:10:11: image.ramdisk: is of no use unless boot.after = "network"
            nodes/edge-07.toml:11:15: image.kernel_args: is of no use unless boot.after = "network"
            nodes/edge-07.toml:12:1: partitions: is of no use unless image.kind = "partition"
        "#]],
    );
    let below = "[image]\nkernel = \"k\"\n[partitions]\nswap = \"1GiB\"\n";
    let below = Defaults::new(Some(("_defaults.toml", below.as_bytes())), None);
    check_over(MINIMAL, &below, &expect![[r""]]);
}

#[test]
fn one_file_system_alone_does_not_boot_by_bios_from_a_disk() {
    let text = with("boot", "firmware = \"bios\"") + "kind = \"partition\"\n";
    check_attached(
        &text,
        &expect![[r#"
        nodes/edge-07.toml:10:8: image.kind: a BIOS needs boot code that one file system does not bring; use a whole-disk image, or boot.after = "network"
    "#]],
    );
    let text =
        text.replace("[boot]", "[boot]\nafter = \"network\"") + "kernel = \"k\"\nramdisk = \"r\"\n";
    check_attached(&text, &expect![[r""]]);
}

#[test]
fn an_msdos_table_takes_four_partitions() {
    let text = format!(
        "{MINIMAL}kind = \"partition\"\n[partitions]\ntable = \"msdos\"\nswap = \"1GiB\"\n\
         ephemeral = \"1GiB\"\n"
    );
    check_attached(&text, &expect![[r""]]);
    check_attached(
        &format!("{text}[config_drive]\n"),
        &expect![[r#"
        nodes/edge-07.toml:10:1: partitions: an msdos table has 4 partitions at most, these are 5: ESP, swap, ephemeral, config drive, root; use table = "gpt"
    "#]],
    );
}

#[test]
fn a_boot_check_takes_its_address_from_network_data_and_never_from_what_it_cannot_read() {
    let check = |label: &str, networks: &str| {
        let network = format!(r#"{{"links": [], "networks": [{networks}]}}"#);
        let text = format!(
            "{MINIMAL}[config_drive]\nlabel = \"{label}\"\nnetwork_config_file = \"n\"\n\
             [boot_check]\nby = \"tcp\"\n"
        );
        let attachment = |_: &str| Ok(network.as_str().into());
        let spec = super::super::parse(FILE, text.as_bytes(), &Defaults::default(), &attachment);
        spec.map(|spec| spec.boot_check).map_err(|problems| lines(&problems))
    };
    let at = |address: Option<&str>| {
        Ok(BootCheck::Tcp { port: 22, address: address.map(ToOwned::to_owned) })
    };
    let v6 = r#"{"type": "ipv6", "ip_address": "2001:db8::7"}"#;
    let v4 = r#"{"type": "ipv4", "ip_address": "192.0.2.7", "netmask": "255.255.255.0"}"#;
    assert_eq!(check("config-2", &format!("{v6}, {v4}")), at(Some("192.0.2.7")));
    assert_eq!(check("config-2", v6), at(Some("2001:db8::7")));
    assert_eq!(check("config-2", r#"{"type": "ipv4_dhcp"}"#), at(None));
    expect![[r#"
        nodes/edge-07.toml:13:6: boot_check.by: hostler does not read cloud-init's network configuration: write boot_check.address, where the installed system answers
    "#]].assert_eq(&check("cidata", v4).unwrap_err());
}
