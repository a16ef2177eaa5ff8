//! The identity of an installation: a digest of everything in a spec that determines its result.
//!
//! The core and `hostler digest` compute it; status files and records hold it. Names, power,
//! timeouts and BMC are not part of it, so that changing them never makes a machine out of date.
//! Two specs with different installations must never have the same identity.

use sha2::{Digest as _, Sha256};

use super::{
    attached::MetaData,
    boot::Firmware,
    disk::RootDeviceHints,
    ids::{Digest, DigestAlgorithm},
    netboot::Netboot,
    spec::{Checksum, ConfigDrive, ImageKind, NodeSpec, Partitions},
};

/// The identity of an installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The digest of the whole installation.
    pub digest: Digest,
    /// The digest of everything on the disk: without the kernel, ramdisk and kernel arguments of a
    /// network boot. Equal to `digest` for a machine that boots from its disk.
    pub written: Digest,
}

/// Hashes a list of texts, each with its length before it, so that different lists never give the
/// same bytes.
struct Parts<'a>(&'a mut Sha256);

impl Parts<'_> {
    fn put(&mut self, text: &str) {
        self.put_bytes(text.as_bytes());
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    fn put_config_drive(&mut self, drive: &ConfigDrive) {
        let ConfigDrive { label, filesystem, user_data, network_config, vendor_data, meta_data } =
            drive;
        self.put(&format!("config drive {label:?} {filesystem:?}"));
        for attachment in [user_data, network_config] {
            let content = attachment.as_ref().map(|file| file.content.as_bytes());
            self.put_bytes(content.unwrap_or_default());
        }
        // No key and no text of metadata has the character `\0`.
        if let Some(vendor_data) = vendor_data {
            self.put("\0vendor data");
            self.put_bytes(vendor_data.content.as_bytes());
        }
        for (key, value) in meta_data {
            self.put(key);
            match value {
                MetaData::Text(text) => self.put(text),
                MetaData::List(list) => {
                    self.put(&format!("\0list of {}", list.len()));
                    for text in list {
                        self.put(text);
                    }
                }
            }
        }
    }
}

impl NodeSpec {
    /// Computes the identity of the installation: image, partitions, root device, config drive,
    /// network boot files and `redeploy`.
    ///
    /// With an inline checksum, the image's source is not part of the identity: the same bytes from
    /// another mirror are the same. With a listed checksum, the source and the list's place are
    /// part of it, and the listed digest is not: a changed list is no change of the spec.
    pub fn identity(&self) -> Identity {
        let written = self.written(true);
        let digest = match &self.image.netboot {
            Some(netboot) => netboot.identity(&written),
            None => written.clone(),
        };
        Identity { digest, written }
    }

    /// Computes [`Identity::digest`].
    pub fn digest(&self) -> Digest {
        self.identity().digest
    }

    /// Computes the identity as an earlier version did, for machines that it installed: without the
    /// source of an image with a listed checksum and without network boot files.
    pub fn digest_v1(&self) -> Digest {
        self.written(false)
    }

    fn written(&self, with_source: bool) -> Digest {
        let mut hash = Sha256::new();
        let mut parts = Parts(&mut hash);
        parts.put("hostler identity 1");
        parts.put(&self.image.checksum.to_string());
        if let (Checksum::Listed(_), true) = (&self.image.checksum, with_source) {
            parts.put(&format!("source {}", self.image.source));
        }
        match &self.image.kind {
            ImageKind::Disk => parts.put("disk"),
            ImageKind::Partition(Partitions { table, swap_bytes, ephemeral_bytes, root_bytes }) => {
                // A machine that boots from the network needs no ESP.
                let esp = self.boot.firmware == Firmware::Uefi && self.image.netboot.is_none();
                let sizes = format!("{swap_bytes:?} {ephemeral_bytes:?} {root_bytes:?}");
                parts.put(&format!("partition {table:?} esp={esp} {sizes}"));
            }
        }
        let RootDeviceHints {
            name,
            serial,
            wwn,
            model,
            vendor,
            hctl,
            size,
            rotational,
            by_path,
            multipath: _, // the disk is the same whichever way it is reached
        } = &self.root_device;
        for hint in [name, serial, wwn, model, vendor, hctl] {
            parts.put(hint.as_deref().unwrap_or_default());
        }
        let size = size.map(|size| format!("{:?} {}", size.comparison, size.bytes));
        parts.put(&size.unwrap_or_default());
        parts.put(&rotational.map(|spins| spins.to_string()).unwrap_or_default());
        parts.put(self.redeploy.as_deref().unwrap_or_default());
        if let Some(drive) = &self.config_drive {
            parts.put_config_drive(drive);
        }
        if let Some(by_path) = by_path {
            parts.put(&format!("root device by path {by_path}"));
        }
        Digest::from_bytes(DigestAlgorithm::Sha256, &hash.finalize())
            .unwrap_or_else(|| unreachable!("a sha256 hash has 32 bytes"))
    }
}

impl Netboot {
    /// The identity of an installation whose disk has the identity `written`. A file is in it by
    /// its checksum, if the spec says one, and else by its path.
    fn identity(&self, written: &Digest) -> Digest {
        let Self { kernel, kernel_checksum, ramdisk, ramdisk_checksum, kernel_args } = self;
        let mut hash = Sha256::new();
        let mut parts = Parts(&mut hash);
        parts.put("hostler network boot 1");
        parts.put(&written.to_string());
        for (path, checksum) in [(kernel, kernel_checksum), (ramdisk, ramdisk_checksum)] {
            match checksum {
                Some(checksum) => parts.put(&format!("checksum {checksum}")),
                None => parts.put(&format!("path {path}")),
            }
        }
        for word in kernel_args {
            parts.put(word);
        }
        Digest::from_bytes(DigestAlgorithm::Sha256, &hash.finalize())
            .unwrap_or_else(|| unreachable!("a sha256 hash has 32 bytes"))
    }
}
