//! The messages between deploy ramdisk and agent: JSON over pinned TLS, with the names of Ironic's
//! `vendor_passthru`.
//!
//! Used by the callback subsystem and the ramdisk; the core judges the calls. Everything from a
//! ramdisk is untrusted until the core has compared its key.

use std::{fmt, net::IpAddr, num::NonZeroU16};

use serde::{Deserialize, Deserializer, Serialize};

use super::{
    disk::Disk,
    ids::{Digest, MacAddr},
    secret::Secret,
    spec::DeployRamdisk,
};

/// Longest body of a call, in bytes: an inventory of hundreds of disks has some 100 KiB.
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// One call of a ramdisk, parsed and not yet judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `POST …/lookup`
    Lookup(Lookup),
    /// `POST …/pass_deploy_info`
    PassDeployInfo(DeployInfo),
    /// `GET …/deploy_state`
    DeployState,
    /// `POST …/completed`
    Completed(Completed),
    /// `POST …/flushed`
    Flushed(KnownRanges),
    /// `POST …/verifying`
    Verifying(VerifyProgress),
    /// `POST …/log`
    Log(RamdiskLog),
    /// `POST …/pass_deploy_info` of Ironic's ramdisk, which makes no lookup and has no CHAP.
    IronicDeployInfo(DeployInfo),
    /// `POST …/pass_bootloader_install_info` of Ironic's ramdisk: the error of its boot loader's
    /// installation, or empty.
    IronicBootloader(String),
}

impl Call {
    /// The call's name in its URL.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Lookup(_) => "lookup",
            Self::PassDeployInfo(_) | Self::IronicDeployInfo(_) => "pass_deploy_info",
            Self::DeployState => "deploy_state",
            Self::Completed(_) => "completed",
            Self::Flushed(_) => "flushed",
            Self::Verifying(_) => "verifying",
            Self::Log(_) => "log",
            Self::IronicBootloader(_) => "pass_bootloader_install_info",
        }
    }

    /// The ramdisk that makes this call.
    pub const fn ramdisk(&self) -> DeployRamdisk {
        match self {
            Self::Lookup(_)
            | Self::PassDeployInfo(_)
            | Self::DeployState
            | Self::Completed(_)
            | Self::Flushed(_)
            | Self::Verifying(_)
            | Self::Log(_) => DeployRamdisk::Hostler,
            Self::IronicDeployInfo(_) | Self::IronicBootloader(_) => DeployRamdisk::Ironic,
        }
    }
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// 200: the disk to export.
    Lookup(LookupReply),
    /// 202: noted.
    Accepted,
    /// 200: the ramdisk's next step.
    State(DeployStateReply),
    /// 200: the ranges that are on the disk. The core leaves them out, the agent fills them in.
    Flushed(FlushedRanges),
    /// 404, the same for an unknown node, a wrong key and a wrong phase.
    Refused,
    /// 409: the root device has not appeared yet.
    LookupAgain(LookupAgain),
    /// 409: the attempt cannot go on, with the reason.
    Failed(String),
}

/// `POST …/lookup`: the machine's identity and disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// The MAC addresses of the machine's network interfaces.
    pub macs: Vec<MacAddr>,
    /// The SMBIOS system UUID.
    #[serde(default)]
    pub system_uuid: Option<String>,
    /// SMBIOS system serial number.
    #[serde(default)]
    pub system_serial: Option<String>,
    /// The machine's disks.
    pub disks: Vec<Disk>,
    /// How long these have been the machine's disks, in milliseconds. An earlier version's ramdisk
    /// does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks_same_for_ms: Option<u64>,
    /// Memory, in bytes.
    #[serde(default)]
    pub memory: u64,
    /// Logical processors.
    #[serde(default)]
    pub cpus: u32,
}

/// The answer to a lookup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupReply {
    /// The kernel name of the disk to export (`vda`).
    pub disk: String,
    /// The iSCSI name of the target.
    pub iqn: String,
    /// Seconds between two polls of the deploy state.
    pub poll_after: u32,
}

/// The answer to a lookup without the root device, which may be a disk that starts up slowly. An
/// older ramdisk takes the answer for a refusal, because of `error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupAgain {
    /// The reason why no disk fits.
    pub error: String,
    /// Seconds until the ramdisk must send its disks again; it sends changed disks earlier.
    pub look_again_after: u32,
}

/// `POST …/pass_deploy_info`: the iSCSI target, or the reason why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployInfo {
    /// The ramdisk's address, which must be the call's source.
    pub address: Option<IpAddr>,
    /// TCP port, 3260 unless said.
    #[serde(default = "iscsi_port", deserialize_with = "nonzero")]
    pub port: u16,
    /// Logical unit.
    #[serde(default)]
    pub lun: u8,
    /// The iSCSI name of the target.
    #[serde(default)]
    pub iqn: String,
    /// The CHAP user of this attempt.
    #[serde(default)]
    pub chap_username: String,
    /// The CHAP secret of this attempt.
    #[serde(default)]
    pub chap_password: Option<Secret>,
    /// The ramdisk's failure in its own words, or empty.
    #[serde(default)]
    pub error: String,
    /// Whether the ramdisk knows digests with a salt ([`DiskRange::salt`]). An older one does not.
    #[serde(default)]
    pub knows_salt: bool,
}

/// Deserializes a port, and refuses 0.
fn nonzero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    NonZeroU16::deserialize(deserializer).map(NonZeroU16::get)
}

const fn iscsi_port() -> u16 {
    3260
}

/// `GET …/deploy_state`: the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployStateReply {
    /// The ramdisk's next step.
    pub state: DeployState,
    /// With `release`: the digests that the ramdisk must compare its disk with once the target has
    /// stopped, in order, at most [`VERIFY_RANGES_MAX`]. Empty: no comparison.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<DiskRange>,
    /// The ramdisk's last act, after `state`.
    #[serde(default, skip_serializing_if = "Then::is_wait")]
    pub then: Then,
}

impl From<DeployState> for DeployStateReply {
    fn from(state: DeployState) -> Self {
        Self { state, verify: Vec::new(), then: Then::Wait }
    }
}

/// The ramdisk's last act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// Wait: the BMC restarts the machine.
    #[default]
    Wait,
    /// Restart a machine without a BMC, with `release` after the completed notice.
    Reboot,
    /// Switch off a machine without a BMC.
    PowerOff,
}

impl Then {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    const fn is_wait(&self) -> bool {
        matches!(self, Self::Wait)
    }
}

/// Most ranges of a disk's content: the node's record keeps them.
pub const VERIFY_RANGES_MAX: usize = 64;

/// A range of the disk's bytes with their digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRange {
    /// The offset of the first byte.
    pub from: u64,
    /// The number of bytes.
    pub bytes: u64,
    /// The digest of these bytes.
    pub digest: Digest,
    /// Present: `digest` is that of [`RangeHasher`](super::range_digest::RangeHasher) with this
    /// salt, which belongs to one write of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<u32>,
}

/// `POST …/flushed`: asks for ranges to compare while the agent still writes others. An older agent
/// does not know the call, and an older ramdisk does not make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownRanges {
    /// The number of ranges in the last answer. The agent answers once it has another number, or
    /// after a while.
    pub known: usize,
}

/// The answer to [`KnownRanges`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushedRanges {
    /// The ranges of the running write that the disk holds, flushed, in order.
    pub ranges: Vec<DiskRange>,
}

/// The ramdisk's next step with its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeployState {
    /// Keep the target, and poll again.
    Imaging,
    /// The image is written: stop the target, flush the disk and send the completed notice.
    Release,
    /// The attempt is over: stop the target.
    Abort,
}

/// `POST …/completed`: the target is stopped and the disk flushed, or the reason why not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completed {
    /// The ramdisk's failure in its own words, or empty.
    #[serde(default)]
    pub error: String,
    /// Whether the ramdisk compared the disk with the image; with an error, they differ.
    #[serde(default)]
    pub verified: bool,
    /// The duration of the comparison, in milliseconds.
    #[serde(default)]
    pub verify_ms: u64,
}

/// `POST …/verifying`: the progress of the ramdisk's comparison of its disk. An older agent does
/// not know the call, and an older ramdisk does not make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProgress {
    /// Bytes compared so far.
    pub done_bytes: u64,
}

/// Longest part of each log, in bytes, which is its end.
pub const LOG_BYTES_MAX: usize = 64 << 10;

/// `POST …/log`: the logs of the deploy ramdisk and its kernel since the boot.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamdiskLog {
    /// The kernel's messages, a line each.
    #[serde(default)]
    pub kernel: String,
    /// The ramdisk's own log.
    #[serde(default)]
    pub ramdisk: String,
}

/// Hides the texts, because the kernel logs its command line with the attempt's key.
impl fmt::Debug for RamdiskLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, ramdisk } = self;
        write!(f, "RamdiskLog({} and {} bytes)", kernel.len(), ramdisk.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deploy_info_may_leave_out_what_ironics_ramdisk_left_out() {
        let info: DeployInfo =
            serde_json::from_str(r#"{"address":"192.0.2.9","iqn":"iqn.x","error":""}"#).unwrap();
        assert_eq!((info.port, info.lun, info.chap_password), (3260, 0, None));
    }

    #[test]
    fn a_target_at_port_0_is_none() {
        for (port, is_good) in [("0", false), ("1", true), ("65535", true), ("65536", false)] {
            let body = format!(r#"{{"iqn":"iqn.x","port":{port}}}"#);
            assert_eq!(serde_json::from_str::<DeployInfo>(&body).is_ok(), is_good, "{port}");
        }
    }

    #[test]
    fn a_ramdisk_is_told_how_to_leave_its_machine_only_if_that_is_its_part() {
        let reported = |then| {
            let reply = DeployStateReply { then, ..DeployState::Release.into() };
            let text = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<DeployStateReply>(&text).unwrap(), reply);
            text
        };
        assert_eq!(reported(Then::Wait), r#"{"state":"release"}"#);
        assert_eq!(reported(Then::Reboot), r#"{"state":"release","then":"reboot"}"#);
        assert_eq!(reported(Then::PowerOff), r#"{"state":"release","then":"poweroff"}"#);
    }
}
