//! The ways to make a range of a disk read as zeros, and the choice between them.
//!
//! Kept by the disk, without I/O. Every way ends in commands after whose GOOD the SCSI standards
//! leave the range no other content; where a target's word is not enough, the initiator sends
//! zeros.
//!
//! - [`Zeroing::Unmap`]: WRITE SAME(16) of zeros with UNMAP. Certain by SBC-3 §5.45: the target
//!   writes blocks that it does not unmap. Unmapped blocks read as zeros by LBPRZ, which both READ
//!   CAPACITY(16) and VPD page B2h must show, next to LBPWS.
//! - [`Zeroing::Same`]: WRITE SAME(16) of zeros. Certain, because it is a write.
//! - [`Zeroing::Write`]: WRITE(16) of zeros. Certain, because it is a write.
//!
//! UNMAP is not used: a target may leave any block of an UNMAP as it was (SBC-3 §4.7.3), so old
//! data could show through, and a target that unmaps with certainty says so by LBPWS. A way the
//! target refuses is not tried again on the same connection.
//!
//! WRITE SAME costs no network, but not every target is quick at it: tgtd writes it block by block,
//! 512 bytes each, slower than the same zeros arrive by a fast network; one behind a slow network
//! is quicker that way. So both zero the first few MiB in turn, and WRITE SAME stays if it is
//! clearly quicker.

use std::time::Duration;

/// Bytes that each way zeroes before they are compared: enough to level out a pause of the
/// scheduler.
const TRIAL_BYTES: u64 = 4 << 20;
/// Factor by which a single WRITE SAME must be quicker than a single write: writes gain by being
/// many at once, as the trial's are not.
const SAME_GAIN: u128 = 2;

/// A way to make a range read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// WRITE SAME(16) with UNMAP: the target may drop its blocks.
    Unmap,
    /// WRITE SAME(16): the target writes zeros by itself.
    Same,
    /// WRITE(16): zeros are sent.
    Write,
}

/// The way in use, or the trial that chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZeroingChoice {
    /// This way, until the target refuses it.
    Settled(Zeroing),
    /// WRITE SAME or WRITE, whichever proves to be quicker.
    Open(Trial),
}

/// The bytes and times of both ways so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trial {
    same: ZeroingRate,
    write: ZeroingRate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ZeroingRate {
    bytes: u64,
    taken: Duration,
}

impl Trial {
    /// The way to try next: they take turns.
    pub(super) fn next(&self) -> Zeroing {
        if self.same.bytes <= self.write.bytes { Zeroing::Same } else { Zeroing::Write }
    }

    /// Takes one result; the way to stay with, when there are enough.
    pub(super) fn add(&mut self, way: Zeroing, bytes: u64, taken: Duration) -> Option<Zeroing> {
        let rate = if way == Zeroing::Write { &mut self.write } else { &mut self.same };
        rate.bytes += bytes;
        rate.taken += taken;
        let time_of =
            |rate: ZeroingRate, other: ZeroingRate| rate.taken.as_nanos() * u128::from(other.bytes);
        (self.same.bytes.min(self.write.bytes) >= TRIAL_BYTES).then(|| {
            if time_of(self.write, self.same) < SAME_GAIN * time_of(self.same, self.write) {
                Zeroing::Write
            } else {
                Zeroing::Same
            }
        })
    }
}

impl ZeroingChoice {
    /// The choice for a disk as it describes itself, and for what its user insists on.
    pub(super) fn first(wanted: Option<Zeroing>, unmap_is_certain: bool) -> Self {
        match wanted {
            // Nobody can insist on what is not certain.
            Some(Zeroing::Unmap) | None if unmap_is_certain => Self::Settled(Zeroing::Unmap),
            Some(Zeroing::Unmap) | None => Self::Open(Trial::default()),
            Some(way) => Self::Settled(way),
        }
    }

    /// The choice after the target refused a way.
    pub(super) fn without(refused: Zeroing) -> Self {
        match refused {
            Zeroing::Unmap => Self::Open(Trial::default()),
            Zeroing::Same | Zeroing::Write => Self::Settled(Zeroing::Write),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_unmapped_only_where_zeros_are_certain_whoever_insists() {
        let (settled, open) = (ZeroingChoice::Settled, ZeroingChoice::Open(Trial::default()));
        assert_eq!(ZeroingChoice::first(None, true), settled(Zeroing::Unmap));
        assert_eq!(ZeroingChoice::first(None, false), open);
        assert_eq!(ZeroingChoice::first(Some(Zeroing::Unmap), true), settled(Zeroing::Unmap));
        assert_eq!(ZeroingChoice::first(Some(Zeroing::Unmap), false), open);
        assert_eq!(ZeroingChoice::first(Some(Zeroing::Write), true), settled(Zeroing::Write));
        assert_eq!(ZeroingChoice::first(Some(Zeroing::Same), true), settled(Zeroing::Same));
    }

    #[test]
    fn a_refused_way_gives_way_to_one_with_less_to_refuse() {
        assert_eq!(ZeroingChoice::without(Zeroing::Unmap), ZeroingChoice::Open(Trial::default()));
        assert_eq!(ZeroingChoice::without(Zeroing::Same), ZeroingChoice::Settled(Zeroing::Write));
    }

    #[test]
    fn write_same_stays_only_if_it_is_clearly_quicker() {
        for (same_ms, write_ms, quicker) in [(3, 5, Zeroing::Write), (2, 5, Zeroing::Same)] {
            let mut trial = Trial::default();
            let mut turns = Vec::new();
            let chosen = loop {
                let way = trial.next();
                turns.push(way);
                let taken = if way == Zeroing::Write { write_ms } else { same_ms };
                if let Some(way) = trial.add(way, 1 << 20, Duration::from_millis(taken)) {
                    break way;
                }
            };
            assert_eq!(chosen, quicker);
            assert_eq!(turns, [Zeroing::Same, Zeroing::Write].repeat(4));
        }
    }
}
