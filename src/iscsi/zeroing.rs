//! The ways to make a range of a disk read as zeros, and the choice between them.
//!
//! Kept by the disk, without I/O. Every way ends in commands after whose GOOD the SCSI standards leave the range
//! no other content; where a target's word is not enough, the initiator sends zeros.
//!
//! | way | command | certain because |
//! |---|---|---|
//! | [`Zeroing::Unmap`] | WRITE SAME(16) of zeros with UNMAP | SBC-3 §5.45: what is not unmapped is written. What is reads as zeros by LBPRZ, which both READ CAPACITY(16) and VPD page B2h must show, next to LBPWS |
//! | [`Zeroing::Same`] | WRITE SAME(16) of zeros | it is a write |
//! | [`Zeroing::Write`] | WRITE(16) of zeros | it is a write |
//!
//! UNMAP is not used: a target may leave any block of an UNMAP as it was (SBC-3 §4.7.3), so old data could show through, and a target
//! that unmaps with certainty says so by LBPWS. A way the target refuses is not tried again on the same connection.
//!
//! WRITE SAME costs no network, but not every target is quick at it: tgtd writes it block by block, 512 bytes each, slower than the
//! same zeros arrive by a fast network; one behind a slow network is quicker that way. So both zero the first
//! few MiB in turn, and WRITE SAME stays if it is clearly quicker.

use std::time::Duration;

/// What each way zeroes before they are compared: enough to level out a pause of the scheduler.
const TRIAL_BYTES: u64 = 4 << 20;
/// How many times quicker a single WRITE SAME must be than a single write: writes gain by being many at once, as the trial's are not.
const SAME_GAIN: u128 = 2;

/// How a range is made to read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// WRITE SAME(16) with UNMAP: the target may drop its blocks.
    Unmap,
    /// WRITE SAME(16): the target writes zeros by itself.
    Same,
    /// WRITE(16): zeros are sent.
    Write,
}

/// What is known of the ways so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This way, until the target refuses it.
    Settled(Zeroing),
    /// WRITE SAME or WRITE, whichever proves to be quicker.
    Open(Trial),
}

/// What both ways have done and how long they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trial {
    same: Pace,
    write: Pace,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pace {
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
        let pace = if way == Zeroing::Write { &mut self.write } else { &mut self.same };
        pace.bytes += bytes;
        pace.taken += taken;
        let time_of = |pace: Pace, other: Pace| pace.taken.as_nanos() * u128::from(other.bytes);
        (self.same.bytes.min(self.write.bytes) >= TRIAL_BYTES).then(|| {
            if time_of(self.write, self.same) < SAME_GAIN * time_of(self.same, self.write) {
                Zeroing::Write
            } else {
                Zeroing::Same
            }
        })
    }
}

impl Choice {
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
        let (settled, open) = (Choice::Settled, Choice::Open(Trial::default()));
        assert_eq!(Choice::first(None, true), settled(Zeroing::Unmap));
        assert_eq!(Choice::first(None, false), open);
        assert_eq!(Choice::first(Some(Zeroing::Unmap), true), settled(Zeroing::Unmap));
        assert_eq!(Choice::first(Some(Zeroing::Unmap), false), open);
        assert_eq!(Choice::first(Some(Zeroing::Write), true), settled(Zeroing::Write));
        assert_eq!(Choice::first(Some(Zeroing::Same), true), settled(Zeroing::Same));
    }

    #[test]
    fn a_refused_way_gives_way_to_one_with_less_to_refuse() {
        assert_eq!(Choice::without(Zeroing::Unmap), Choice::Open(Trial::default()));
        assert_eq!(Choice::without(Zeroing::Same), Choice::Settled(Zeroing::Write));
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
