//! Config drives against cloud-init's own code and checkers of file systems.

use std::fs;

use hostler::{
    drive::{config_drive, config_drive_calling},
    model::{
        attached::MetaData,
        ids::{Digest, NodeName},
        spec::{Attachment, ConfigDrive, DriveFilesystem, DriveLabel},
    },
};
use serde_json::{Value, json};

use super::{Place, assert_clean_fat, blkid, run, tag};

const USER_DATA: &str = "#cloud-config\n# \u{fc}ber\nruncmd: [true]\r\n";
const MAC: &str = "52:54:00:00:00:01";
const EVERY: [(DriveLabel, DriveFilesystem); 4] = [
    (DriveLabel::Config2, DriveFilesystem::Vfat),
    (DriveLabel::Config2, DriveFilesystem::Iso9660),
    (DriveLabel::Cidata, DriveFilesystem::Vfat),
    (DriveLabel::Cidata, DriveFilesystem::Iso9660),
];

/// Invariant (disk): cloud-init reads exactly the administrator's files from the config drive.
#[test]
fn cloud_init_reads_what_the_administrator_wrote() {
    for (label, filesystem) in EVERY {
        let drive = drive(label, filesystem, USER_DATA);
        let place = Place::with(&config_drive(&drive, &node(), &identity('a'), 512).unwrap());
        let found = cloud_init(&place);
        let source = if label == DriveLabel::Config2 { "ConfigDrive" } else { "NoCloud" };
        assert_eq!(found["source"], source);
        assert_eq!(found["user_data"], USER_DATA);
        assert_eq!(found["hostname"], "edge-07");
        assert_eq!(found["meta"]["rack"], "3");
        assert_eq!(found["network"], expected_network(label), "{label:?}");
        let network = match label {
            DriveLabel::Config2 => "openstack/latest/network_data.json",
            DriveLabel::Cidata => "network-config",
        };
        let read = fs::read(place.path("mounted").join(network)).unwrap();
        assert_eq!(read, drive.network_config.unwrap().content.as_bytes());
    }
}

/// Invariant (disk): A config drive holds its files byte by byte, and so does every record.
#[test]
fn cloud_init_reads_packed_user_data_vendor_data_and_keys() {
    let packed = gzip(USER_DATA.as_bytes());
    let vendor_data = "#cloud-config\ntimezone: UTC\n";
    let keys = ["ssh-ed25519 AAAA one", "ssh-rsa BBBB two"].map(str::to_owned);
    for (label, filesystem) in EVERY {
        for vendor in [vendor_data, r##"{"cloud-init": "#cloud-config\ntimezone: UTC\n"}"##] {
            if label == DriveLabel::Cidata && vendor != vendor_data {
                continue;
            }
            let attach = |content| Some(Attachment { path: "x".into(), content });
            let drive = ConfigDrive {
                user_data: attach(packed.clone().into()),
                vendor_data: attach(vendor.into()),
                meta_data: [("public-keys".to_owned(), MetaData::List(keys.to_vec()))].into(),
                ..drive(label, filesystem, "")
            };
            let place = Place::with(&config_drive(&drive, &node(), &identity('a'), 512).unwrap());
            let found = cloud_init(&place);
            assert_eq!(found["user_data"], USER_DATA, "{label:?} {filesystem:?}");
            assert_eq!(found["vendor_data"], vendor_data, "{label:?} {filesystem:?}");
            let mut read: Vec<&str> =
                found["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
            read.sort_unstable();
            assert_eq!(read, keys, "{label:?} {filesystem:?}");
            let path = match label {
                DriveLabel::Config2 => "mounted/openstack/latest/user_data",
                DriveLabel::Cidata => "mounted/user-data",
            };
            assert_eq!(fs::read(place.path(path)).unwrap(), packed, "byte by byte");
        }
    }
}

/// Vendor data of an administrator, in each form that cloud-init takes.
fn vendor_data_of(label: DriveLabel) -> Vec<Option<Vec<u8>>> {
    let config = "#cloud-config\ntimezone: UTC\n";
    let mime = format!(
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"x\"\n\n--x\n\
         Content-Type: text/cloud-config\n\n{config}\n--x--\n"
    );
    let mut forms = vec![None, Some(config.into()), Some(mime.into())];
    match label {
        DriveLabel::Config2 => {
            forms.push(Some(json!({ "cloud-init": config, "x": 1 }).to_string().into()));
            forms.push(Some(json!([config]).to_string().into()));
        }
        DriveLabel::Cidata => forms.push(Some(gzip(config.as_bytes()))),
    }
    forms
}

/// Invariant (disk): cloud-init reads exactly the administrator's files from the config drive.
#[test]
fn cloud_init_calls_once_its_system_is_up_and_keeps_the_vendor_data_that_are_there() {
    const URL: &str = "http://192.0.2.1:8069/v1/nodes/edge-07/booted/5a5a";
    for (label, filesystem) in EVERY {
        for vendor in vendor_data_of(label) {
            let has_vendor = vendor.is_some();
            let attach =
                |content: Vec<u8>| Attachment { path: "x".into(), content: content.into() };
            let drive = ConfigDrive {
                vendor_data: vendor.map(attach),
                ..drive(label, filesystem, USER_DATA)
            };
            let made =
                config_drive_calling(&drive, &node(), &identity('a'), 512, Some(URL)).unwrap();
            let place = Place::with(&made);
            let found = cloud_init(&place);
            let parts = &found["vendor_parts"];
            let call = json!({ "url": URL, "post": "all", "tries": 60 });
            assert_eq!(parts["phone_home"], call, "{label:?} {filesystem:?}: {found}");
            let timezone = if has_vendor { json!("UTC") } else { Value::Null };
            assert_eq!(parts["timezone"], timezone, "{label:?} {filesystem:?}: {found}");
            assert_eq!(found["user_data"], USER_DATA);
            let url = fs::read_to_string(place.path("mounted/hostler/booted.url")).unwrap();
            assert_eq!(url, format!("{URL}\n"));
            run("sh", &["-n", place.path("mounted/hostler/booted.sh").to_str().unwrap()]);
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let place = Place::with(bytes);
    run("gzip", &["-n", place.text("image")]);
    fs::read(place.path("image.gz")).unwrap()
}

#[test]
fn a_drive_without_anything_attached_still_says_who_the_machine_is() {
    for (label, filesystem) in EVERY {
        let drive = ConfigDrive {
            user_data: None,
            network_config: None,
            meta_data: [("hostname".to_owned(), "seven".into())].into(),
            ..drive(label, filesystem, "")
        };
        let place = Place::with(&config_drive(&drive, &node(), &identity('a'), 512).unwrap());
        let found = cloud_init(&place);
        assert_eq!((&found["hostname"], &found["user_data"]), (&json!("seven"), &json!("")));
        assert_eq!(found["network"], Value::Null);
    }
}

#[test]
fn the_largest_files_fit_and_every_block_size_that_can_be_is_found_and_clean() {
    let large = format!("#!/bin/sh\n{}", "\"".repeat(256 * 1024 - 10));
    for (label, filesystem) in EVERY {
        for block_bytes in [512, 2048, 4096, 8192] {
            let mut drive = drive(label, filesystem, &large);
            drive.network_config = drive.user_data.clone();
            drive.vendor_data = drive.user_data.clone();
            drive.meta_data = [("x".to_owned(), large.as_str().into())].into();
            let is_vfat = filesystem == DriveFilesystem::Vfat;
            let made = config_drive(&drive, &node(), &identity('a'), block_bytes);
            if block_bytes > if is_vfat { 4096 } else { 2048 } {
                assert!(made.unwrap_err().to_string().contains("blocks of"));
                continue;
            }
            let place = Place::with(&made.unwrap());
            let tags = blkid(&place);
            let name = if label == DriveLabel::Config2 { "config-2" } else { "cidata" };
            assert_eq!(tag(&tags, "LABEL"), name, "{tags}");
            let kind = if is_vfat { "vfat" } else { "iso9660" };
            assert_eq!(tag(&tags, "TYPE"), kind, "{tags}");
            if is_vfat {
                assert_clean_fat(&place);
                run("mdir", &["-/", "-i", place.text("image"), "::"]);
            } else {
                run("isoinfo", &["-l", "-i", place.text("image")]);
            }
        }
    }
}

#[test]
fn a_new_installation_and_another_machine_are_new_to_cloud_init() {
    for (label, filesystem) in EVERY {
        let drive = drive(label, filesystem, USER_DATA);
        let ids = [("edge-07", 'a'), ("edge-07", 'b'), ("edge-08", 'a')].map(|(node, instance)| {
            let made =
                |_| config_drive(&drive, &node.parse().unwrap(), &identity(instance), 512).unwrap();
            assert_eq!(made(1), made(2));
            let place = Place::with(&made(1));
            (cloud_init(&place)["instance"].to_string(), tag(&blkid(&place), "UUID").to_owned())
        });
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            assert_ne!(ids[one].0, ids[other].0);
            assert_ne!(ids[one].1, ids[other].1);
        }
    }
}

fn node() -> NodeName {
    "edge-07".parse().unwrap()
}

fn identity(digit: char) -> Digest {
    format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap()
}

fn drive(label: DriveLabel, filesystem: DriveFilesystem, user_data: &str) -> ConfigDrive {
    let network = match label {
        DriveLabel::Config2 => json!({
            "links": [{"id": "a", "type": "phy", "ethernet_mac_address": MAC}],
            "networks": [{"id": "n", "link": "a", "type": "ipv4_dhcp"}],
            "services": [],
        })
        .to_string(),
        DriveLabel::Cidata => "version: 2\nethernets: {eth0: {dhcp4: true}}\n".to_owned(),
    };
    let attach = |content: &str| Some(Attachment { path: "x".into(), content: content.into() });
    ConfigDrive {
        label,
        filesystem,
        user_data: attach(user_data),
        network_config: attach(&network),
        vendor_data: None,
        meta_data: [("rack".to_owned(), "3".into())].into(),
    }
}

fn expected_network(label: DriveLabel) -> Value {
    match label {
        DriveLabel::Config2 => json!({"version": 1, "config": [{
            "type": "physical", "name": "eth0", "mac_address": MAC,
            "subnets": [{"type": "dhcp4"}],
        }]}),
        DriveLabel::Cidata => json!({"version": 2, "ethernets": {"eth0": {"dhcp4": true}}}),
    }
}

/// Reads the drive with cloud-init's own code.
fn cloud_init(place: &Place) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/testbed/integration/drive/cloud_init.py");
    let arguments = [script, place.text("image"), place.text(""), MAC];
    serde_json::from_str(&run("/usr/bin/python3", &arguments)).unwrap()
}
