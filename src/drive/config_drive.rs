//! Config drives: file systems that cloud-init reads on a machine's first boot.
//!
//! The agent makes one when it lays out a disk. The files follow `OpenStack`'s config drive or
//! cloud-init's `NoCloud`, and hold the administrator's attachments unchanged. Contents may be
//! secret, so that no error holds any.

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

/// Least room for files, in bytes: a smaller drive saves nothing.
const BYTES_MIN: u32 = 64 * 1024;

/// `NoCloud`'s metadata key of SSH keys; `OpenStack`'s layout has its own place for them.
const PUBLIC_KEYS: &str = "public-keys";

/// Makes a config drive for a disk with blocks of `block_bytes` bytes. The same arguments make the
/// same bytes. cloud-init recognizes a new installation by `instance`, the identity of the
/// installed content.
///
/// The file system has a few hundred KiB, and at most about 2 MiB with the largest attachments.
/// Fails if the disk's blocks are larger than the file system supports.
pub fn config_drive(
    drive: &ConfigDrive,
    node: &NodeName,
    instance: &Digest,
    block_bytes: u32,
) -> Result<Bytes, DriveError> {
    config_drive_calling(drive, node, instance, block_bytes, None)
}

/// As [`config_drive`], with a `url` that the installed system calls once it is up. The URL is
/// secret.
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

/// The seed of all identifiers. It includes the node's name, because machines with the same specs
/// have the same identity.
fn seed(node: &NodeName, instance: &Digest) -> u128 {
    let hash = Sha256::digest(format!("hostler config drive\n{node}\n{instance}"));
    hash.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
}

/// `OpenStack`'s layout, version `latest`. The machine's names and UUID have their own keys; the
/// administrator's metadata are in `meta`, as after `openstack server create --property`.
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
    // Numbered names, because the keys of a list have none.
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

/// `OpenStack`'s vendor data is JSON, with a key for the part that cloud-init reads.
fn vendor_json(file: &Attachment) -> Cow<'_, [u8]> {
    let bytes = file.content.as_bytes();
    if serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() {
        return bytes.into();
    }
    let text = String::from_utf8_lossy(bytes).into_owned();
    json([("cloud-init".to_owned(), text.into())].into_iter().collect())
}

/// The administrator's metadata as JSON.
fn given(drive: &ConfigDrive) -> Map<String, Value> {
    drive.meta_data.iter().map(|(key, value)| (key.clone(), value.into())).collect()
}

/// `NoCloud`'s layout. cloud-init accepts such a drive only with user data, so that a missing
/// attachment becomes an empty file.
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

/// Encodes JSON, which is valid YAML too.
fn json(top: Map<String, Value>) -> Cow<'static, [u8]> {
    format!("{:#}\n", Value::Object(top)).into_bytes().into()
}

/// Makes a UUID of version 8 (RFC 9562 §5.8).
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
