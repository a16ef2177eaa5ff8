//! The deploy ramdisk: PID 1 of a netbooted machine whose disk the agent writes, and the builder of
//! its initramfs.
//!
//! `hostler-ramdisk` calls [`init`]; `hostler ramdisk build` calls [`build::build`].
//! [`boot_sequence`] holds the steps: mounts, modules, network, disks, lookup, target, deploy
//! state, flush, verify, completed. The ramdisk sends its log three times: before the lookup,
//! before it reports a failure or the completion, and when the agent has ended the attempt.
//!
//! It must never write to a disk itself, export a disk that the agent did not choose, or end
//! without a reason on the console.

use std::sync::Arc;

use crate::model::{boot::RamdiskArgs, callback::DiskRange, disk::Disk};

pub mod build;
pub mod dhcp;

mod agent;
mod boot_sequence;
mod by_path;
mod disks;
mod init;
mod log;
mod machine;
mod module_list;
mod modules;
mod mounts;
mod network;
mod pin;
mod sysfs;
mod target;
mod verify;

pub use init::init;
pub use log::Log;
pub use verify::{VerifyError, early::EarlyComparison};

/// Sends this log and the kernel's to the agent, as the boot sequence does, within a short limit.
pub async fn send_log(args: RamdiskArgs, log: Log) -> Result<(), rustls::Error> {
    agent::Agent::new(args, log)?.send_log().await;
    Ok(())
}

/// Compares a written disk with the agent's digests, as the boot sequence does.
pub async fn compare(
    disk: &Disk,
    ranges: Vec<DiskRange>,
    early: &EarlyComparison,
) -> Result<(), VerifyError> {
    verify::verify(disk, ranges, early, Arc::default()).await
}

/// Entry point of the fuzz target: any reply of a DHCP server.
#[cfg(fuzzing)]
pub fn fuzz(datagram: &[u8]) {
    let mac = crate::model::ids::MacAddr::new([0x52, 0x54, 0, 0, 0, 1]);
    let talk = dhcp::Conversation { mac, xid: 0x1234_5678 };
    if let Some(Ok(dhcp::Reply::Offer(lease))) = talk.reply(datagram) {
        assert!(lease.prefix <= 32 && lease.routes.iter().all(|route| route.prefix <= 32));
        assert!(lease.renew_after.is_none_or(|wait| wait.as_secs() >= 10));
        talk.message(dhcp::Ask::Take { address: lease.address, server: lease.server }, 0);
    }
}

/// A directory on a real file system, which supports reads without the cache: beside the test
/// program.
#[cfg(test)]
fn dir_on_disk() -> tempfile::TempDir {
    let program = std::env::current_exe().unwrap();
    tempfile::tempdir_in(program.parent().unwrap()).unwrap()
}
