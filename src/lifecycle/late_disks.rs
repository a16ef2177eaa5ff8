//! The wait for disks that follow the one that fits: volumes of a RAID controller, or disks that
//! spin up one after another.
//!
//! Called by `callback.rs` for each lookup whose hints could fit a further disk, too. Such a disk
//! must not be taken for the only one before the disks have been the same for a while.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{
    disk::Disk,
    fault::{Fault, Step},
};

use super::{limits::after, text::plain_up_to};

/// How long the disks must have been the same.
const SAME_FOR: Duration = Duration::from_secs(10);
/// The least time for which the root device is waited for once a disk fits, whatever
/// `timeouts.root_device` says: the ramdisk reports its disks again before that.
pub(super) const SETTLING_WAIT: Duration = Duration::from_secs(20);
/// The code of a fault about a machine on which no disk was chosen.
pub(super) const NO_ROOT_DEVICE: &str = "NoRootDevice";
/// Longest list of disks that is shown, in characters.
pub(super) const DISKS_CHARS_MAX: usize = 4000;
/// The advice about disks of which none or several fit.
pub(super) const GIVE_HINTS: &str =
    "give [root_device] hints that match exactly one of these disks";

/// A wait for a root device that the ramdisk has not reported yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MissingDisk {
    /// The end of the wait.
    pub(super) until: Timestamp,
    /// The fault at the end of the wait.
    pub(super) fault: Fault,
    /// The machine's disks, once one would do, and since when there are no others.
    pub(super) late: Option<(Vec<Disk>, Timestamp)>,
}

/// A lookup whose hints fit one disk, and could fit more.
pub(super) struct VagueLookup<'a> {
    pub(super) fitting: &'a Disk,
    pub(super) disks: &'a [Disk],
    /// The time since the machine's last change of disks, by the ramdisk's report. `None`: an
    /// earlier version's ramdisk does not report it.
    pub(super) same_for: Option<Duration>,
}

impl VagueLookup<'_> {
    /// The rest of the wait for further disks; `None` if the disk may be taken. `limit` is the
    /// longest wait for the root device.
    pub(super) fn must_wait(
        &self,
        slot: &mut Option<Box<MissingDisk>>,
        now: Timestamp,
        limit: Duration,
    ) -> Option<Duration> {
        let Self { fitting, disks, same_for } = *self;
        let Some(missing) = slot.as_deref_mut() else {
            let same_for = same_for?;
            let rest = SAME_FOR.checked_sub(same_for).filter(|rest| !rest.is_zero())?;
            let message = format!("{fitting} fits, and another disk that fits may follow");
            let message = plain_up_to(DISKS_CHARS_MAX, &message);
            let fault = Fault::passing(Step::Ramdisk, NO_ROOT_DEVICE, message, GIVE_HINTS);
            let since = now.checked_sub(same_for).unwrap_or(Timestamp::MIN);
            let until = after(now, limit.max(SETTLING_WAIT));
            let late = Some((disks.to_vec(), since));
            *slot = Some(Box::new(MissingDisk { until, fault, late }));
            return Some(rest);
        };
        match &missing.late {
            Some((before, since)) if before == disks && *since <= now => {
                let ends_at = after(*since, SAME_FOR);
                let rest = Duration::try_from(ends_at.duration_since(now)).ok();
                rest.filter(|rest| !rest.is_zero())
            }
            _ => {
                missing.late = Some((disks.to_vec(), now));
                missing.until = missing.until.max(after(now, SETTLING_WAIT));
                missing.fault.message = plain_up_to(
                    DISKS_CHARS_MAX,
                    &format!("{fitting} appeared late; another disk that fits may follow"),
                );
                Some(SAME_FOR)
            }
        }
    }
}
