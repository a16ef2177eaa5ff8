//! Evidence from requests for boot files, for operators and for the message of a missed deadline.
//!
//! Called by the node's step. It must never move an attempt by itself: anybody on the deploy
//! network can fetch boot files.

use jiff::Timestamp;

use crate::model::{
    boot::{BootStage, Fetch},
    fault::{Fault, Step},
    status::LastSeen,
};

use super::{event::Menu, node::Node, ramdisk_log::READ_ITS_LOG, state::Attempt, text::plain};

/// Most unknown network interfaces kept for one attempt.
const UNKNOWN_MACS_MAX: usize = 4;

impl Node {
    /// Notes a request for a boot file. It changes no state, except that it ends the wait for an
    /// operator.
    pub(super) fn take_evidence(&mut self, now: Timestamp, fetch: &Fetch) {
        if !matches!(self.menu(), Menu::Deploy(_)) {
            if fetch.stage == BootStage::Menu && fetch.complete && fetch.unknown_mac.is_none() {
                self.note_netboot(now, fetch.peer);
            }
            return;
        }
        if !self.has_begun() {
            // The deploy menu is not served yet.
            return;
        }
        if let Some(attempt) = self.record.state.attempt_mut()
            && (fetch.stage, fetch.complete) == (BootStage::Ramdisk, true)
            && attempt.ramdisk_fetched_by.len() < 2
            && !attempt.ramdisk_fetched_by.contains(&fetch.peer)
        {
            attempt.ramdisk_fetched_by.push(fetch.peer);
        }
        let seen = &mut self.record.last_seen;
        if let Some(mac) = fetch.unknown_mac {
            let is_new =
                seen.unknown_macs.len() < UNKNOWN_MACS_MAX && !seen.unknown_macs.contains(&mac);
            if seen.fetched.is_none() && is_new {
                seen.unknown_macs.push(mac);
            }
            return;
        }
        if fetch.refused_times > 0 {
            if seen.fetched.is_none() {
                seen.missing_loader = Some(plain(&fetch.path));
                seen.missing_loader_times = fetch.refused_times;
                seen.missing_loader_from = Some(fetch.peer);
            }
            return;
        }
        // Each stage is noted once: anybody can send requests at any rate, which must not write
        // records at that rate.
        if fetch.complete && seen.fetched.is_none_or(|furthest| furthest < fetch.stage) {
            seen.address = Some(fetch.peer);
            seen.fetched = Some(fetch.stage);
            seen.fetched_path = Some(plain(&fetch.path));
            seen.fetched_at = Some(now);
            if fetch.stage >= BootStage::Menu {
                self.note_manual_power_on(now);
            }
        }
    }
}

/// Formats `192.0.2.51 asked 3 times for lpxelinux.0, which is not among the loaders`.
fn missing_loader(seen: &LastSeen) -> String {
    let who = seen.missing_loader_from.map_or_else(|| "a machine".to_owned(), |ip| ip.to_string());
    let times = match seen.missing_loader_times {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    let path = seen.missing_loader.as_deref().unwrap_or_default();
    format!("{who} asked {times} for {path}, which is not among the loaders")
}

/// Formats `52:54:00:00:00:01, which no spec names, asked for a boot menu`.
fn unknown_macs(seen: &LastSeen) -> String {
    let macs: Vec<String> = seen.unknown_macs.iter().map(ToString::to_string).collect();
    format!("{}, which no spec names, asked for a boot menu", macs.join(" and "))
}

/// The unexpected requests, while the machine has fetched nothing.
pub(super) fn instead(seen: &LastSeen) -> Option<String> {
    match seen.fetched {
        Some(_) => None,
        None if seen.missing_loader.is_some() => Some(missing_loader(seen)),
        None => (!seen.unknown_macs.is_empty()).then(|| unknown_macs(seen)),
    }
}

/// The fault of a ramdisk that did not export its disk in time, by the machine's last evidence.
pub(super) fn ramdisk_timeout(attempt: &Attempt, seen: &LastSeen) -> Fault {
    let (message, hint) = match (&attempt.peer, &attempt.disk, seen.fetched) {
        (Some(peer), Some(disk), _) => (
            format!(
                "the deploy ramdisk at {peer} was told to export {} and did not in time",
                disk.name
            ),
            READ_ITS_LOG,
        ),
        (Some(peer), None, _) => (
            format!("the deploy ramdisk at {peer} called but did not report its disks in time"),
            READ_ITS_LOG,
        ),
        (None, _, Some(BootStage::Ramdisk)) => (
            "the machine fetched the deploy ramdisk but it never called back".to_owned(),
            "look at the machine's console, which bmc.console = true keeps: no driver for its \
             network interface, no DHCP lease, or the callback port is not reachable",
        ),
        (None, _, Some(BootStage::Kernel)) => (
            "the machine fetched the deploy kernel but not the whole deploy ramdisk".to_owned(),
            "too little memory, or a network that loses packets; or raise timeouts.ramdisk",
        ),
        (None, _, Some(BootStage::Menu)) => (
            "the machine fetched its boot menu but not the whole deploy kernel".to_owned(),
            "a network that loses packets, a boot loader that cannot read the kernel, or an iPXE \
             without a driver for the network interface: the next attempt goes without iPXE, and \
             with boot.loader = \"pxelinux\" or \"grub\" every one does",
        ),
        (None, _, Some(BootStage::Loader)) => (
            "the machine fetched a boot loader but not its boot menu".to_owned(),
            "the boot loader does not fit the firmware, or it netbooted from a network interface \
             that is not in boot.mac",
        ),
        (None, _, None) if seen.missing_loader.is_some() => (
            format!(
                "the machine was switched on but never fetched anything over TFTP; {}",
                missing_loader(seen)
            ),
            "put that file into tftp.loaders with `hostler loaders install`, or have the DHCP \
             server name the one that `hostler dhcp-snippet` prints; if another machine asked: \
             boot order, cable, VLAN, boot.mac",
        ),
        (None, _, None) if !seen.unknown_macs.is_empty() => (
            format!(
                "the machine was switched on but did not ask for its boot menu; {}",
                unknown_macs(seen)
            ),
            "if that is the machine, correct boot.mac; if it is another one: boot order, cable, \
             VLAN, and DHCP's next-server and boot file as `hostler dhcp-snippet` prints them",
        ),
        (None, _, None) => (
            "the machine was switched on but never fetched anything over TFTP".to_owned(),
            "look whether it netboots at all: boot order, cable, VLAN, DHCP's next-server and boot \
             file as `hostler dhcp-snippet` prints them, boot.mac, boot.firmware",
        ),
    };
    Fault::passing(Step::Ramdisk, "RamdiskTimeout", message, hint)
}
