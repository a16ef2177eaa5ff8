//! A config drive: what cloud-init reads when a machine boots for the first time.
//!
//! Called by the agent when it lays out a disk. The files are those of `OpenStack`'s config drive
//! or of cloud-init's `NoCloud`; what the administrator attached is in them byte by byte. Contents
//! may be secret, so no error holds any.

use std::{borrow::Cow, io, num::TryFromIntError};

use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{DriveError, DriveFile, boot_call, fat, hyphenated, iso};
use crate::model::{
    attached::MetaData,
    ids::{Digest, NodeName},
    spec::{Attachment, ConfigDrive, DriveFilesystem, DriveLabel},
};

/// The least room for files, in bytes: nothing is won by less.
const BYTES_MIN: u32 = 64 * 1024;

/// The metadata that are SSH keys, as `NoCloud` calls them; in `OpenStack`'s layout they have a
/// place of their own.
const PUBLIC_KEYS: &str = "public-keys";

/// The whole file system, for a disk with blocks of `block_bytes` bytes. The same arguments make
/// the same bytes; `instance`, the identity of what is installed, is what cloud-init knows a new
/// installation by.
///
/// It has a few hundred KiB, and at most about 2 MiB with the largest files a spec may attach.
/// Fails if the disk's blocks are larger than the file system can have.
pub fn config_drive(
    drive: &ConfigDrive,
    node: &NodeName,
    instance: &Digest,
    block_bytes: u32,
) -> Result<Bytes, DriveError> {
    config_drive_calling(drive, node, instance, block_bytes, None)
}

/// The same, by which the system calls `url` once it is up. The URL is secret.
pub fn config_drive_calling(
    drive: &ConfigDrive,
    node: &NodeName,
    instance: &Digest,
    block_bytes: u32,
    url: Option<&str>,
) -> Result<Bytes, DriveError> {
    let seed = seed(node, instance);
    let mut files = match drive.label {
        DriveLabel::Config2 => openstack(drive, node, seed),
        DriveLabel::Cidata => nocloud(drive, node, seed),
    };
    if let Some(url) = url {
        let vendor = vendor_path(drive.label);
        files.retain(|(path, _)| *path != vendor);
        let given = drive.vendor_data.as_ref();
        files.push((vendor, boot_call::vendor_data(drive.label, given, url)));
        files.extend(boot_call::files(url));
    }
    let label = match drive.label {
        DriveLabel::Config2 => "config-2",
        DriveLabel::Cidata => "cidata",
    };
    match drive.filesystem {
        DriveFilesystem::Vfat => vfat(label, seed, fat::sector_bytes(block_bytes)?, &files)
            .map_err(|source| DriveError::Make { what: "the config drive", source }),
        DriveFilesystem::Iso9660 if block_bytes > iso::SECTOR_BYTES => Err(DriveError::Blocks {
            filesystem: "iso9660",
            block_bytes,
            bytes_max: iso::SECTOR_BYTES,
            hint: "; use config_drive.filesystem = \"vfat\"",
        }),
        DriveFilesystem::Iso9660 => Ok(iso::make(label, seed, &files)),
    }
}

/// The file of the vendor data.
const fn vendor_path(label: DriveLabel) -> &'static str {
    match label {
        DriveLabel::Config2 => "openstack/latest/vendor_data.json",
        DriveLabel::Cidata => "vendor-data",
    }
}

/// The seed of all identifiers. Machines with the same specs have the same identity, so the node's
/// name is in it.
fn seed(node: &NodeName, instance: &Digest) -> u128 {
    let hash = Sha256::digest(format!("hostler config drive\n{node}\n{instance}"));
    hash.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
}

/// `OpenStack`'s layout, version `latest`. Of the administrator's metadata, the names of the
/// machine and its UUID are where the others of their kind are; everything is in `meta`, as if it
/// had been given to `openstack server create --property`.
fn openstack<'a>(drive: &'a ConfigDrive, node: &NodeName, seed: u128) -> Vec<DriveFile<'a>> {
    let said = |key: &str, own: &str| {
        let given = drive.meta_data.get(key).and_then(MetaData::as_text);
        (key.to_owned(), given.unwrap_or(own).into())
    };
    let mut top: Map<String, Value> =
        [said("uuid", &uuid(seed)), said("hostname", node.as_str()), said("name", node.as_str())]
            .into_iter()
            .collect();
    top.insert("meta".to_owned(), Value::Object(given(drive)));
    // By number, as if they had no names.
    if let Some(MetaData::List(keys)) = drive.meta_data.get(PUBLIC_KEYS) {
        let keys = (0..).zip(keys).map(|(n, key)| (format!("key-{n}"), key.as_str().into()));
        top.insert("public_keys".to_owned(), Value::Object(keys.collect()));
    }
    let mut files = vec![("openstack/latest/meta_data.json", json(top))];
    let attached = [
        ("openstack/latest/user_data", &drive.user_data),
        ("openstack/latest/network_data.json", &drive.network_config),
    ];
    for (path, attachment) in attached {
        files.extend(attachment.iter().map(|file| (path, file.content.as_bytes().into())));
    }
    let vendor = drive.vendor_data.iter();
    files.extend(vendor.map(|file| (vendor_path(drive.label), vendor_json(file))));
    files
}

/// `OpenStack`'s vendor data is JSON, in which what cloud-init is to have has a key of its own.
fn vendor_json(file: &Attachment) -> Cow<'_, [u8]> {
    let bytes = file.content.as_bytes();
    if serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() {
        return bytes.into();
    }
    let text = String::from_utf8_lossy(bytes).into_owned();
    json([("cloud-init".to_owned(), text.into())].into_iter().collect())
}

/// The administrator's metadata.
fn given(drive: &ConfigDrive) -> Map<String, Value> {
    drive.meta_data.iter().map(|(key, value)| (key.clone(), value.into())).collect()
}

/// `NoCloud`'s layout. It takes a drive only if there is user data, so that is empty where nobody
/// gave any.
fn nocloud<'a>(drive: &'a ConfigDrive, node: &NodeName, seed: u128) -> Vec<DriveFile<'a>> {
    let hostname = drive.meta_data.get("hostname").and_then(MetaData::as_text);
    let hostname = hostname.unwrap_or(node.as_str());
    let own = [("instance-id", uuid(seed)), ("local-hostname", hostname.to_owned())];
    let mut top: Map<String, Value> =
        own.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    top.extend(given(drive));
    let user_data = drive.user_data.as_ref().map_or(&[][..], |file| file.content.as_bytes());
    let mut files = vec![("meta-data", json(top)), ("user-data", user_data.into())];
    let attached =
        [("network-config", &drive.network_config), (vendor_path(drive.label), &drive.vendor_data)];
    for (path, attachment) in attached {
        files.extend(attachment.iter().map(|file| (path, file.content.as_bytes().into())));
    }
    files
}

/// JSON, which is YAML as well.
fn json(top: Map<String, Value>) -> Cow<'static, [u8]> {
    format!("{:#}\n", Value::Object(top)).into_bytes().into()
}

/// A UUID of version 8 (RFC 9562 §5.8).
fn uuid(seed: u128) -> String {
    let bits = seed & !(0xf << 76) & !(0x3 << 62) | (0x8 << 76) | (0x2 << 62);
    hyphenated(bits.to_be_bytes())
}

fn vfat(
    label: &'static str,
    seed: u128,
    sector_bytes: u16,
    files: &[DriveFile<'_>],
) -> io::Result<Bytes> {
    let format = fat::FatFormat {
        label,
        id: (seed >> 96) as u32,
        kind: fat::FatKind::Fat12,
        bytes_min: BYTES_MIN,
        sector_bytes,
    };
    let too_large = |_: TryFromIntError| io::Error::other("a file is too large");
    let lengths = files.iter().map(|(path, content)| Ok((*path, u32::try_from(content.len())?)));
    let lengths: Result<Vec<_>, _> = lengths.collect();
    fat::make(&format, &lengths.map_err(too_large)?, |number, place| {
        let content = files.get(number).map_or(&[][..], |(_, content)| content);
        place.copy_from_slice(content);
        Ok(())
    })
}
