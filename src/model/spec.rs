//! A node's spec after checking: what one machine should be. `_defaults.toml` and hostler's own defaults are already in it.
//!
//! Made by the spec reader only; read by the core and the agent. There is no invalid value of these types, and no secret in them:
//! a password is a reference to a file. It can be written to the agent's durable record, so that the last good spec outlives a restart.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    boot::Firmware,
    disk::RootDeviceHints,
    ids::{Digest, DigestAlgorithm, MacAddr, NodeName},
};

/// What one machine should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The node's name: the stem of the spec's file name.
    pub name: NodeName,
    /// What hostler is to do with the machine.
    pub goal: Goal,
    /// The power state wanted once deployed. A change of it is an order, carried out once; a later difference is drift.
    pub power: WantedPower,
    /// Start nothing and stop what is under way; keep observing.
    pub paused: bool,
    /// Changing this text is the operator's consent to wipe and reinstall.
    pub redeploy: Option<String>,
    /// How the machine netboots.
    pub boot: Boot,
    /// How its power is controlled.
    pub bmc: Bmc,
    /// Which of its disks is written.
    pub root_device: RootDeviceHints,
    /// What is written there.
    pub image: Image,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// How often a failed attempt is repeated.
    pub retry: Retry,
}

/// What hostler is to do with a machine (`state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Install it and keep it installed.
    Deployed,
    /// Keep it off, serve it nothing, leave its disk as it is.
    Available,
    /// Observe only.
    Unmanaged,
}

/// The power state wanted of a deployed machine (`power`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantedPower {
    /// On.
    On,
    /// Off, also after an installation.
    Off,
    /// Either.
    Ignore,
}

/// `[boot]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The cards it may netboot from, at least one, no two alike.
    pub macs: Vec<MacAddr>,
    /// Its firmware.
    pub firmware: Firmware,
    /// Added to the deploy ramdisk's kernel command line.
    pub kernel_args: Vec<String>,
}

/// `[bmc]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bmc {
    /// Where it answers.
    pub address: BmcAddress,
    /// Its user, at most 16 bytes (IPMI 2.0 §13.28); may be empty.
    pub username: String,
    /// The password's file, a plain path relative to the secrets directory.
    pub password_file: String,
    /// The privilege level to ask for.
    pub privilege: Privilege,
    /// The one cipher suite to use; `None` tries 17, then 3, and remembers what worked.
    pub cipher_suite: Option<CipherSuite>,
}

/// Host and UDP port of a BMC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BmcAddress {
    /// A host name or an IPv4 or IPv6 address, without brackets.
    pub host: String,
    /// The RMCP port, usually 623.
    pub port: u16,
}

impl fmt::Display for BmcAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// An IPMI session privilege level (IPMI 2.0 §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Privilege {
    /// Operator, level 3: enough for power and boot device on most BMCs.
    Operator,
    /// Administrator, level 4.
    Administrator,
}

/// An RMCP+ cipher suite hostler speaks (IPMI 2.0 table 22-20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum CipherSuite {
    /// Suite 3: HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128.
    Sha1,
    /// Suite 17: HMAC-SHA256, HMAC-SHA256-128, AES-CBC-128.
    Sha256,
}

impl TryFrom<u8> for CipherSuite {
    type Error = String;

    fn try_from(id: u8) -> Result<Self, Self::Error> {
        match id {
            3 => Ok(Self::Sha1),
            17 => Ok(Self::Sha256),
            _ => Err(format!("cipher suite {id} is not supported; 17 and 3 are")),
        }
    }
}

impl From<CipherSuite> for u8 {
    fn from(suite: CipherSuite) -> Self {
        match suite {
            CipherSuite::Sha1 => 3,
            CipherSuite::Sha256 => 17,
        }
    }
}

/// `[image]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// A path: absolute, or relative to the images directory.
    pub source: String,
    /// The digest of the file as published.
    pub checksum: Digest,
    /// What the file is said to be.
    pub format: ImageFormat,
}

/// `image.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageFormat {
    /// Found by looking into the file.
    Auto,
    /// The disk's bytes as they are.
    Raw,
}

/// `[timeouts]`: how long each wait may last, each at least one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From power on to the ramdisk's iSCSI target.
    pub ramdisk: Duration,
    /// Without any byte of progress while imaging.
    pub imaging_stall: Duration,
    /// The whole imaging.
    pub imaging: Duration,
    /// From the release of the target to the ramdisk's Completed notice.
    pub completed: Duration,
    /// For the BMC to answer and for a power state to be reached.
    pub power: Duration,
}

/// `[retry]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Attempts before the node is `failed`, at least 1.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles from there.
    pub backoff: Duration,
}

impl NodeSpec {
    /// The identity of what is to be installed: image, root device and `redeploy`. Names, power, timeouts and BMC are not in it,
    /// so that changing them never makes a machine look out of date.
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        // Each part is led by its length: no two different specs can run together into the same bytes.
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        part("hostler identity 1");
        part(&self.image.checksum.to_string());
        part("disk");
        let RootDeviceHints { name, serial, wwn, model, vendor, hctl, size, rotational } =
            &self.root_device;
        for hint in [name, serial, wwn, model, vendor, hctl] {
            part(hint.as_deref().unwrap_or_default());
        }
        part(&size.map(|size| format!("{:?} {}", size.comparison, size.bytes)).unwrap_or_default());
        part(&rotational.map(|spins| spins.to_string()).unwrap_or_default());
        part(self.redeploy.as_deref().unwrap_or_default());
        Digest::from_bytes(DigestAlgorithm::Sha256, &hash.finalize())
            .unwrap_or_else(|| unreachable!("a sha256 hash has 32 bytes"))
    }
}
