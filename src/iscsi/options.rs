//! Settings of the initiator for one target: identity, digests, time limits, queue depth.
//!
//! Callers pass them to [`super::Lun::connect`]. The defaults suit a ramdisk's target on a quiet
//! network.

use std::time::Duration;

use super::zeroing::Zeroing;

/// Identity, digests, time limits and queue depth for one target.
#[derive(Clone, Debug)]
pub struct IscsiOptions {
    /// The initiator's iSCSI name. Default `iqn.2026-01.hostler:agent`.
    pub initiator_iqn: String,
    /// Demand CRC32C over headers. Default false: TCP's checksum and the image's digest are enough
    /// on a quiet network.
    pub header_digest: bool,
    /// Demand CRC32C over data. Default false.
    pub data_digest: bool,
    /// Limit for the TCP connection. Default 5 s.
    pub connect_timeout: Duration,
    /// Limit for the whole login with all its rounds. Default 15 s: a ramdisk's target may be busy
    /// starting.
    pub login_timeout: Duration,
    /// Limit for one command, from its slot in the queue to its status. Default 30 s, as Linux
    /// gives a SCSI disk.
    pub command_timeout: Duration,
    /// Limit for a flush or a zeroing, which may take long on a slow disk. Default 120 s.
    pub flush_timeout: Duration,
    /// Limit for each step of a logout. Default 5 s.
    pub logout_timeout: Duration,
    /// Keepalive interval: the initiator sends a NOP-Out after one to two silent intervals, and
    /// ends the session after five. At least 100 ms. Default 5 s.
    pub keepalive: Duration,
    /// Most commands in flight, 1 to 1024; the target's window may allow fewer. Default 32.
    pub queue_depth: u16,
    /// The method of zeroing. `None`, the default, chooses the cheapest one that is certain on this
    /// target. The initiator never uses a method that is not certain there or that the target
    /// refuses.
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
