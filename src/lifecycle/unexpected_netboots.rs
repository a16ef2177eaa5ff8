//! Netboots of an installed machine whose boot device is its disk: firmware that lost its boot
//! entry, or a boot order with the network first.
//!
//! Called by `boot_evidence.rs`. Such a machine is served its local disk. hostler counts these
//! netboots, but never acts on one: anybody on the deploy network can request a boot menu. A boot
//! that hostler itself ordered is evidence for its first boot instead, and not counted.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;

use crate::model::spec::Goal;

use super::{
    event::Menu,
    limits::after,
    node::Node,
    state::{FirstBoot, State},
};

/// Requests for the boot menu within this time belong to one boot: a firmware and its loaders may
/// request it several times. It also limits how often a request writes the record.
const SAME_BOOT: Duration = Duration::from_secs(30);

impl Node {
    /// Notes that a machine which is served no deploy ramdisk has fetched its boot menu.
    pub(super) fn note_netboot(&mut self, now: Timestamp, peer: IpAddr) {
        let is_booting = matches!(
            self.record.state,
            State::Booting { boot: FirstBoot::Waiting | FirstBoot::Overdue }
        );
        if !is_booting && !self.record.state.at_rest() || self.netbooted_just_now(now) {
            return;
        }
        let is_own = self.ends_own_boot(now);
        if is_own || is_booting && self.record.last_seen.netbooted_at.is_none() {
            self.record.last_seen.netbooted_at = Some(now);
            self.record.last_seen.address = Some(peer);
        } else if self.should_boot_disk()
            && let Some(installed) = &mut self.record.installed
        {
            installed.unexpected_netboots = installed.unexpected_netboots.saturating_add(1);
            installed.unexpected_netboot_at = Some(now);
        }
    }

    /// Notes that the BMC has switched the machine on, by hostler's own decision.
    pub(super) fn note_own_boot(&mut self, now: Timestamp) {
        self.record.switched_on_at = Some(now);
    }

    /// Whether this netboot is that of hostler's own restart, which is over with it.
    fn ends_own_boot(&mut self, now: Timestamp) -> bool {
        let limit = self.record.spec.as_ref().map(|spec| spec.timeouts.first_boot);
        let switched_on = self.record.switched_on_at.take().zip(limit);
        switched_on.is_some_and(|(at, limit)| at <= now && now < after(at, limit))
    }

    /// Whether the machine's last netboot was a moment ago. A time ahead of the clock is none.
    fn netbooted_just_now(&self, now: Timestamp) -> bool {
        let counted = self.record.installed.as_ref().and_then(|it| it.unexpected_netboot_at);
        let last = [self.record.last_seen.netbooted_at, counted];
        last.into_iter().flatten().any(|at| at <= now && now < after(at, SAME_BOOT))
    }

    /// Whether hostler has set the machine's boot device to its disk, and its spec wants that.
    fn should_boot_disk(&self) -> bool {
        let spec = self.record.spec.as_ref();
        let wants_disk = spec.is_some_and(|spec| {
            spec.goal == Goal::Deployed && spec.bmc.is_some() && spec.image.netboot.is_none()
        });
        wants_disk && self.menu() == Menu::LocalDisk
    }
}
