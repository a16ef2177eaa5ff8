//! Kernel and ramdisk of an installed machine that boots over the network: those in its spec, and
//! those that it is served.
//!
//! Used by the core, by the agent, which verifies the files, and by the boot menus. Unverified
//! files must never count as verified.

use serde::{Deserialize, Serialize};

use super::ids::Digest;

/// The files that a spec wants an installed machine to boot (`boot.after = "network"`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netboot {
    /// The kernel's path, absolute or relative to the images directory.
    pub kernel: String,
    /// The kernel's expected digest, if the spec has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_checksum: Option<Digest>,
    /// The initial ramdisk's path.
    pub ramdisk: String,
    /// The initial ramdisk's expected digest, if the spec has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramdisk_checksum: Option<Digest>,
    /// The kernel command line, to which hostler adds `root=` if it has none.
    pub kernel_args: Vec<String>,
}

/// The files that an installed machine is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetbootFiles {
    /// The kernel's path in the spec.
    pub kernel: String,
    /// The kernel's digest, which is its name in the cache. `None`: an earlier version installed
    /// the machine without a digest, and the kernel is served from its path until it is verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_digest: Option<Digest>,
    /// The initial ramdisk's path in the spec.
    pub ramdisk: String,
    /// The initial ramdisk's digest, like the kernel's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramdisk_digest: Option<Digest>,
    /// The command line without an added `root=`.
    pub kernel_args: Vec<String>,
}

/// A kernel or ramdisk that a machine is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootFile {
    /// The file in the cache with this digest.
    Cached(Digest),
    /// The unverified file at this path.
    Path(String),
}

impl Netboot {
    /// Returns the whole command line; `None` if it would name no root file system.
    pub fn command_line(&self, root: Option<&str>) -> Option<String> {
        command_line(&self.kernel_args, root)
    }

    /// The files without digests, as an earlier version served them.
    pub fn unverified(&self) -> NetbootFiles {
        NetbootFiles {
            kernel: self.kernel.clone(),
            kernel_digest: None,
            ramdisk: self.ramdisk.clone(),
            ramdisk_digest: None,
            kernel_args: self.kernel_args.clone(),
        }
    }
}

impl NetbootFiles {
    /// Returns the whole command line; `None` if it would name no root file system.
    pub fn command_line(&self, root: Option<&str>) -> Option<String> {
        command_line(&self.kernel_args, root)
    }

    /// The kernel and the ramdisk.
    pub fn files(&self) -> [BootFile; 2] {
        let file = |path: &String, digest: &Option<Digest>| {
            digest.clone().map_or_else(|| BootFile::Path(path.clone()), BootFile::Cached)
        };
        [file(&self.kernel, &self.kernel_digest), file(&self.ramdisk, &self.ramdisk_digest)]
    }

    /// Whether both files are verified.
    pub fn is_verified(&self) -> bool {
        self.kernel_digest.is_some() && self.ramdisk_digest.is_some()
    }

    /// Whether these files are verified and the spec's.
    pub fn are_of(&self, wanted: &Netboot) -> bool {
        let is =
            |path: &str, digest: &Option<Digest>, wanted: &str, checksum: &Option<Digest>| match (
                digest, checksum,
            ) {
                (None, _) => false,
                (digest, Some(_)) => digest == checksum,
                (Some(_), None) => path == wanted,
            };
        is(&self.kernel, &self.kernel_digest, &wanted.kernel, &wanted.kernel_checksum)
            && is(&self.ramdisk, &self.ramdisk_digest, &wanted.ramdisk, &wanted.ramdisk_checksum)
            && self.kernel_args == wanted.kernel_args
    }

    /// Whether these files are `others`, of which some may be unverified.
    pub fn are_verified_of(&self, others: &Self) -> bool {
        let same =
            |digest: &Option<Digest>, other: &Option<Digest>| other.is_none() || digest == other;
        self.kernel == others.kernel
            && self.ramdisk == others.ramdisk
            && self.kernel_args == others.kernel_args
            && same(&self.kernel_digest, &others.kernel_digest)
            && same(&self.ramdisk_digest, &others.ramdisk_digest)
    }
}

/// Returns the value of `root=`: the partition's UUID, which is unique, or, if an earlier version
/// made the partition, the file system's UUID, which every disk with this image has.
pub fn root(partuuid: Option<&str>, uuid: Option<&str>) -> Option<String> {
    match (partuuid, uuid) {
        (Some(partuuid), _) => Some(format!("PARTUUID={partuuid}")),
        (None, uuid) => uuid.map(|uuid| format!("UUID={uuid}")),
    }
}

fn command_line(kernel_args: &[String], root: Option<&str>) -> Option<String> {
    let says_root = kernel_args.iter().any(|word| word.starts_with("root="));
    let added = root.filter(|_| !says_root).map(|root| format!("root={root}"));
    let words: Vec<&str> = kernel_args.iter().map(String::as_str).chain(added.as_deref()).collect();
    (says_root || root.is_some()).then(|| words.join(" "))
}
