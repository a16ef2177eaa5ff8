//! Moments of a deploy, seen from outside: by the agent's durable record and the machine's disk.

use std::{
    fmt,
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use hostler::{lifecycle::State, model::boot::BootStage};

use crate::{
    rack::Machine,
    site::{Image, Site},
};

/// Short enough to act between a record and the effects that follow it.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Longest delay of the moments "at once" after a point was reached.
const AT_ONCE_MS: u64 = 300;
const SECTOR_BYTES: usize = 512;

/// The points of a deploy, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Before an attempt, or between two.
    Pending,
    Preparing,
    PoweringOn,
    /// The firmware is booting.
    Booting,
    /// The boot menu was fetched; the machine is fetching the kernel.
    Menu,
    /// The kernel was fetched; the machine is fetching the ramdisk.
    Kernel,
    /// The ramdisk was fetched, and boots.
    Ramdisk,
    /// The ramdisk has called.
    Called,
    /// The target is known, and no write has begun.
    Imaging,
    /// The ends of the disk are zeros, and the body is being written.
    Wiped,
    /// The head of the image is on the disk; with `verify = "full"` the disk is being read back.
    Head,
    Switching,
    /// The ramdisk compares the disk, unless `verify` is another.
    WaitingCompleted,
    Restarting,
    Deployed,
}

/// Every point, and the approximate milliseconds that a machine without virtualisation stays there.
const WAY: [(Place, u64); 14] = [
    (Place::Pending, 10),
    (Place::Preparing, 1500),
    (Place::PoweringOn, 4000),
    (Place::Booting, 20_000),
    (Place::Menu, 2500),
    (Place::Kernel, 2500),
    (Place::Ramdisk, 14_000),
    (Place::Called, 400),
    (Place::Imaging, 100),
    (Place::Wiped, 4000),
    (Place::Head, 3000),
    (Place::Switching, 20),
    (Place::WaitingCompleted, 3000),
    (Place::Restarting, 4000),
];

impl Place {
    pub(crate) fn of(site: &Site, machine: &Machine, image: &Image) -> Self {
        let Some(record) = site.record(&machine.name) else { return Self::Pending };
        match &record.state {
            State::Idle if record.installed.is_some() => Self::Deployed,
            State::SettingPower { .. } => Self::Deployed,
            State::Idle | State::Held { .. } | State::Failed | State::CleaningUp { .. } => {
                Self::Pending
            }
            State::Preparing { .. } => Self::Preparing,
            State::PoweringOn { .. } => Self::PoweringOn,
            State::WaitingRamdisk { attempt } if attempt.peer.is_some() => Self::Called,
            State::WaitingRamdisk { .. } => match record.last_seen.fetched {
                None => Self::Booting,
                Some(BootStage::Loader | BootStage::Menu) => Self::Menu,
                Some(BootStage::Kernel) => Self::Kernel,
                Some(BootStage::Ramdisk) => Self::Ramdisk,
            },
            State::Imaging { .. } => {
                let (disk, head) =
                    (first_sector(&machine.disks[0].path), first_sector(&image.path));
                match disk {
                    zeros if zeros == [0; SECTOR_BYTES] => Self::Wiped,
                    written if written == head => Self::Head,
                    _ => Self::Imaging,
                }
            }
            State::Switching { .. } => Self::Switching,
            State::WaitingCompleted { .. } => Self::WaitingCompleted,
            State::Restarting { .. } | State::Booting { .. } => Self::Restarting,
        }
    }

    /// Whether a boot file is being fetched.
    pub(crate) fn fetches(self) -> bool {
        matches!(self, Self::Menu | Self::Kernel)
    }

    /// Whether the machine needs an answer within the time limits of its firmware or boot loader.
    pub(crate) fn netboots(self) -> bool {
        (Self::PoweringOn..Self::Ramdisk).contains(&self)
    }
}

/// The first sector of a disk or an image.
fn first_sector(path: &Path) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    File::open(path).unwrap().read_exact_at(&mut sector, 0).unwrap();
    sector
}

/// A time after a machine has reached a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    place: Place,
    delay: Duration,
    /// The machine's index in the rack.
    machine: usize,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, delay, machine } = self;
        write!(f, "{} ms after node-{} reached {place:?}", delay.as_millis(), machine + 1)
    }
}

impl Moment {
    /// Chooses so many moments, each for one of the machines: every other one falls anywhere in a
    /// deploy, spread evenly over its time, and the rest directly after a point, so that short ones
    /// occur too.
    pub(crate) fn choose(dice: &mut Rng, count: usize, machines: usize) -> Vec<Self> {
        let total: u64 = WAY.iter().map(|(_, length)| length).sum();
        let slices = count.div_ceil(2) as u64;
        let mut spread: Vec<u64> = (0..slices)
            .map(|slice| dice.u64(total * slice / slices..total * (slice + 1) / slices))
            .collect();
        dice.shuffle(&mut spread);
        let mut places = WAY;
        dice.shuffle(&mut places);
        let mut deck = places.iter().cycle();
        let mut choose_one = |number: usize| {
            let (place, delay) = if number.is_multiple_of(2) {
                let (place, length) = deck.next().unwrap();
                (*place, dice.u64(0..=AT_ONCE_MS.min(*length)))
            } else {
                place_at(spread.pop().unwrap())
            };
            let delay = Duration::from_millis(delay);
            Self { place, delay, machine: dice.usize(0..machines) }
        };
        (0..count).map(&mut choose_one).collect()
    }

    /// Waits for the moment; a past one is now.
    pub(crate) fn wait(
        &self,
        site: &mut Site,
        machines: &[Machine],
        image: &Image,
        limit: Duration,
    ) {
        let deadline = Instant::now() + limit;
        let machine = machines.get(self.machine).unwrap();
        while Place::of(site, machine, image) < self.place {
            site.assert_agent_runs();
            assert!(Instant::now() < deadline, "{self}: not reached within {limit:?}");
            thread::sleep(POLL_INTERVAL);
        }
        thread::sleep(self.delay);
    }
}

/// The point of a deploy so many milliseconds after its start, and the milliseconds since the
/// point.
fn place_at(mut ms: u64) -> (Place, u64) {
    for (place, length) in WAY {
        if ms < length {
            return (place, ms);
        }
        ms -= length;
    }
    (Place::Deployed, ms)
}
