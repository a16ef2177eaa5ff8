//! The initiator's settings for one target: identity, digests, time limits, queue depth.
//!
//! Given by the caller of [`super::Lun::connect`]. The defaults suit a ramdisk's target on a quiet
//! network.

use std::time::Duration;

use super::zeroing::Zeroing;

/// Identity, checks and time limits for one target.
#[derive(Clone, Debug)]
pub struct IscsiOptions {
    /// The initiator's iSCSI name. Default `iqn.2026-01.hostler:agent`.
    pub initiator_iqn: String,
    /// Insist on CRC32C over headers. Default false: TCP's checksum and the image's digest are
    /// enough on a quiet network.
    pub header_digest: bool,
    /// Insist on CRC32C over data. Default false.
    pub data_digest: bool,
    /// Limit for the TCP connection. Default 5 s.
    pub connect_timeout: Duration,
    /// Limit for the whole login with all its rounds. Default 15 s: a ramdisk's target may be busy
    /// starting.
    pub login_timeout: Duration,
    /// Limit for one command, from its slot in the queue to its status. Default 30 s, as Linux
    /// gives a SCSI disk.
    pub command_timeout: Duration,
    /// Limit for a flush or a zeroing, which may take a slow disk long. Default 120 s.
    pub flush_timeout: Duration,
    /// Limit for each step of a logout. Default 5 s.
    pub logout_timeout: Duration,
    /// Keepalive interval: after one to two intervals of silence the initiator sends a NOP-Out,
    /// after five the session ends. At least 100 ms. Default 5 s.
    pub keepalive: Duration,
    /// Commands in flight at most, 1 to 1024; the target's window may allow fewer. Default 32.
    pub queue_depth: u16,
    /// The way zeros are written. By default (`None`) the cheapest that is certain on this target.
    /// The initiator never takes a way that is not certain there or that the target refuses.
    pub zeroing: Option<Zeroing>,
}

impl Default for IscsiOptions {
    fn default() -> Self {
        Self {
            initiator_iqn: "iqn.2026-01.hostler:agent".to_owned(),
            header_digest: false,
            data_digest: false,
            connect_timeout: Duration::from_secs(5),
            login_timeout: Duration::from_secs(15),
            command_timeout: Duration::from_secs(30),
            flush_timeout: Duration::from_secs(120),
            logout_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(5),
            queue_depth: 32,
            zeroing: None,
        }
    }
}
