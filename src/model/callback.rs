//! The bodies the deploy ramdisk and the agent exchange (JSON over pinned TLS), continuing Ironic's
//! `vendor_passthru` names.
//!
//! Written and read by the callback subsystem on one side and by the ramdisk on the other; judged
//! by the core. Everything that comes from the ramdisk is untrusted until its key has been
//! compared.

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
    /// `POST …/log`
    Log(RamdiskLog),
    /// `POST …/pass_deploy_info` of Ironic's ramdisk, which asks for nothing before and knows no
    /// CHAP.
    IronicDeployInfo(DeployInfo),
    /// `POST …/pass_bootloader_install_info` of Ironic's ramdisk: why it could not install a boot
    /// loader; empty: it could.
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
            Self::Log(_) => "log",
            Self::IronicBootloader(_) => "pass_bootloader_install_info",
        }
    }

    /// The ramdisk that makes it.
    pub const fn ramdisk(&self) -> DeployRamdisk {
        match self {
            Self::Lookup(_)
            | Self::PassDeployInfo(_)
            | Self::DeployState
            | Self::Completed(_)
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
    /// 202: taken note of.
    Accepted,
    /// 200: what to do now.
    State(DeployStateReply),
    /// 404, the same for an unknown node, a wrong key and a wrong phase.
    Refused,
    /// 409: the root device is not there yet.
    LookupAgain(LookupAgain),
    /// 409: the attempt cannot go on, and why.
    Failed(String),
}

/// `POST …/lookup`: who the machine is and which disks it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// Its network interfaces.
    pub macs: Vec<MacAddr>,
    /// SMBIOS system UUID.
    #[serde(default)]
    pub system_uuid: Option<String>,
    /// SMBIOS system serial number.
    #[serde(default)]
    pub system_serial: Option<String>,
    /// Its disks.
    pub disks: Vec<Disk>,
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
    /// The target name to export it under.
    pub iqn: String,
    /// Seconds between two questions for the deploy state.
    pub poll_after: u32,
}

/// The answer to a lookup whose disks do not include the root device: one that starts up slowly may
/// still appear. A ramdisk that does not know this answer takes it for a refusal, because of
/// `error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupAgain {
    /// Why no disk was chosen.
    pub error: String,
    /// Seconds until the ramdisk is to send its disks again; earlier if they have changed.
    pub look_again_after: u32,
}

/// `POST …/pass_deploy_info`: the iSCSI target, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployInfo {
    /// The ramdisk's address: must be the one it speaks from.
    pub address: Option<IpAddr>,
    /// TCP port, 3260 unless said.
    #[serde(default = "iscsi_port", deserialize_with = "nonzero")]
    pub port: u16,
    /// Logical unit.
    #[serde(default)]
    pub lun: u8,
    /// Target name.
    #[serde(default)]
    pub iqn: String,
    /// CHAP user made for this attempt.
    #[serde(default)]
    pub chap_username: String,
    /// CHAP secret made for this attempt.
    #[serde(default)]
    pub chap_password: Option<Secret>,
    /// Not empty: the ramdisk failed, in its own words.
    #[serde(default)]
    pub error: String,
}

/// Nobody listens at port 0.
fn nonzero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    NonZeroU16::deserialize(deserializer).map(NonZeroU16::get)
}

const fn iscsi_port() -> u16 {
    3260
}

/// `GET …/deploy_state`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployStateReply {
    /// The ramdisk's next step.
    pub state: DeployState,
    /// With `release`: what the disk must hold, for the ramdisk to compare once its target has
    /// stopped; in order, at most [`VERIFY_RANGES_MAX`]. Empty: it need not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<DiskRange>,
    /// How the machine is to be left by the ramdisk, once that has done what `state` says.
    #[serde(default, skip_serializing_if = "Then::is_wait")]
    pub then: Then,
}

impl From<DeployState> for DeployStateReply {
    fn from(state: DeployState) -> Self {
        Self { state, verify: Vec::new(), then: Then::Wait }
    }
}

/// How the ramdisk is to leave its machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// On: a BMC does the rest.
    #[default]
    Wait,
    /// Restarted, with `release` after its completed notice: there is no BMC.
    Reboot,
    /// Switched off: there is no BMC.
    PowerOff,
}

impl Then {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    const fn is_wait(&self) -> bool {
        matches!(self, Self::Wait)
    }
}

/// Most ranges a disk's content is described by: they are kept in the node's record.
pub const VERIFY_RANGES_MAX: usize = 64;

/// A range of the disk's bytes, and their digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRange {
    /// Its first byte.
    pub from: u64,
    /// How many there are.
    pub bytes: u64,
    /// The digest of these bytes.
    pub digest: Digest,
}

/// The ramdisk's next step with its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeployState {
    /// Keep it; ask again.
    Imaging,
    /// The image is written: stop the target, flush, and say completed.
    Release,
    /// The attempt is over: stop the target.
    Abort,
}

/// `POST …/completed`: the target is stopped and the disk flushed, or why not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completed {
    /// Not empty: the ramdisk failed, in its own words.
    #[serde(default)]
    pub error: String,
    /// Whether the ramdisk itself compared the disk with the image. With an error: they differ, and
    /// it says where.
    #[serde(default)]
    pub verified: bool,
    /// How long that took, in milliseconds.
    #[serde(default)]
    pub verify_ms: u64,
}

/// Most of each log that is sent and kept, in bytes: the end.
pub const LOG_BYTES_MAX: usize = 64 << 10;

/// `POST …/log`: what the deploy ramdisk has logged since its boot.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamdiskLog {
    /// The kernel's messages, a line each.
    #[serde(default)]
    pub kernel: String,
    /// The ramdisk's own.
    #[serde(default)]
    pub ramdisk: String,
}

/// The kernel prints its command line, and with it the attempt's key.
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
