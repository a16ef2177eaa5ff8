//! Kernel and ramdisk of an installed machine that boots over the network: as its spec wants them,
//! and as they are served.
//!
//! Used by the core, by the agent that verifies the files, and by the boot menus. It must never
//! take files that nobody has looked at for verified ones.

use serde::{Deserialize, Serialize};

use super::ids::Digest;

/// The files that a spec wants an installed machine to boot (`boot.after = "network"`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netboot {
    /// The kernel's path, absolute or relative to the images directory.
    pub kernel: String,
    /// The digest the kernel must have, if the spec says one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_checksum: Option<Digest>,
    /// The initial ramdisk's path.
    pub ramdisk: String,
    /// The digest the initial ramdisk must have, if the spec says one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramdisk_checksum: Option<Digest>,
    /// Its kernel command line. Without a `root=` in it, the root file system's UUID is added.
    pub kernel_args: Vec<String>,
}

/// The files that an installed machine is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetbootFiles {
    /// Where the kernel came from: its path as the spec had it.
    pub kernel: String,
    /// Its digest, by which it lies in the cache. `None`: installed by a version that did not look
    /// at it, so that it is served from its path until it was verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_digest: Option<Digest>,
    /// Where the initial ramdisk came from.
    pub ramdisk: String,
    /// Its digest, like the kernel's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramdisk_digest: Option<Digest>,
    /// The command line, without what is added.
    pub kernel_args: Vec<String>,
}

/// A kernel or ramdisk that a machine is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootFile {
    /// The file in the cache with this digest.
    Cached(Digest),
    /// The file that lies there, whatever it is.
    Path(String),
}

impl Netboot {
    /// The whole command line; `None` if it would not say where the root file system is.
    pub fn command_line(&self, root: Option<&str>) -> Option<String> {
        command_line(&self.kernel_args, root)
    }

    /// The files that a version without checksums served.
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
    /// The whole command line; `None` if it would not say where the root file system is.
    pub fn command_line(&self, root: Option<&str>) -> Option<String> {
        command_line(&self.kernel_args, root)
    }

    /// The kernel, and then the ramdisk.
    pub fn files(&self) -> [BootFile; 2] {
        let file = |path: &String, digest: &Option<Digest>| {
            digest.clone().map_or_else(|| BootFile::Path(path.clone()), BootFile::Cached)
        };
        [file(&self.kernel, &self.kernel_digest), file(&self.ramdisk, &self.ramdisk_digest)]
    }

    /// Whether both files were verified.
    pub fn is_verified(&self) -> bool {
        self.kernel_digest.is_some() && self.ramdisk_digest.is_some()
    }

    /// Whether these files, verified, are what the spec wants.
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

    /// Whether these are those other ones, which may not have been verified yet.
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

/// How a kernel is told the root file system that hostler has put into a partition: by that
/// partition, which is on no other disk, or, where an earlier version made it, by the file system,
/// which is on each disk that the image was ever written to.
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
