//! The methods that make a range of a disk read as zeros, and the choice between them.
//!
//! The disk holds the choice; this module does no I/O. Every method ends in commands after whose
//! GOOD the SCSI standards allow the range no other content; where a target's promise is not
//! enough, the initiator sends zeros.
//!
//! - [`Zeroing::Unmap`]: WRITE SAME(16) of zeros with UNMAP. Certain by SBC-3 §5.45: the target
//!   writes blocks that it does not unmap. Unmapped blocks read as zeros by LBPRZ, which both READ
//!   CAPACITY(16) and VPD page B2h must show, next to LBPWS.
//! - [`Zeroing::Same`]: WRITE SAME(16) of zeros. Certain, because it is a write.
//! - [`Zeroing::Write`]: WRITE(16) of zeros. Certain, because it is a write.
//!
//! The command UNMAP is not used: a target may leave any block of an UNMAP unchanged (SBC-3
//! §4.7.3), so that old data could show, and a target that unmaps with certainty reports LBPWS. The
//! initiator does not repeat a refused method on the same connection.
//!
//! WRITE SAME needs no bandwidth, but not every target is fast at it: tgtd writes 512 bytes at a
//! time, slower than a fast network delivers the same zeros, and faster than a slow network does.
//! So both methods alternate for the first few MiB, and WRITE SAME stays unless writes are faster.
//! On a slow network both wait behind the data in flight, so that only calls of several MiB tell
//! them apart.

use std::time::Duration;

/// Bytes that each method zeroes before the comparison: enough to average out a pause of the
/// scheduler.
const TRIAL_BYTES: u64 = 2 * TRIAL_CALL_BYTES;
/// Most bytes of one WRITE SAME of the trial, and of the concurrent writes that it is compared
/// with: as much as a connection has in flight.
pub(super) const TRIAL_CALL_BYTES: u64 = 4 << 20;

/// A method that makes a range read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// WRITE SAME(16) with UNMAP: the target may deallocate the blocks.
    Unmap,
    /// WRITE SAME(16): the target writes the zeros itself.
    Same,
    /// WRITE(16): the initiator sends zeros.
    Write,
}

/// The method in use, or the trial that chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZeroingChoice {
    /// This method, until the target refuses it.
    Settled(Zeroing),
    /// The trial of WRITE SAME and WRITE.
    Open(Trial),
}

/// The bytes and times of both methods so far.
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
    /// The next method of the trial: they alternate.
    pub(super) fn next(&self) -> Zeroing {
        if self.same.bytes <= self.write.bytes { Zeroing::Same } else { Zeroing::Write }
    }

    /// Adds one result; returns the faster method once the trial has enough results.
    pub(super) fn add(&mut self, way: Zeroing, bytes: u64, taken: Duration) -> Option<Zeroing> {
        let rate = if way == Zeroing::Write { &mut self.write } else { &mut self.same };
        rate.bytes += bytes;
        rate.taken += taken;
        let time_of =
            |rate: ZeroingRate, other: ZeroingRate| rate.taken.as_nanos() * u128::from(other.bytes);
        (self.same.bytes.min(self.write.bytes) >= TRIAL_BYTES).then(|| {
            if time_of(self.write, self.same) < time_of(self.same, self.write) {
                Zeroing::Write
            } else {
                Zeroing::Same
            }
        })
    }
}

impl ZeroingChoice {
    /// The first choice, by the disk's features and the method that the caller demands.
    pub(super) fn first(wanted: Option<Zeroing>, unmap_is_certain: bool) -> Self {
        match wanted {
            // A caller cannot demand a method that is not certain.
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

    /// Invariant (disk): Zeros take no bandwidth of a network that is slower than the disk.
    #[test]
    fn write_same_stays_unless_sent_zeros_are_quicker() {
        // The last ones wait 160 ms for the data that was sent before them over 200 Mbit/s.
        let times = [
            (5, 3, Zeroing::Write),
            (3, 3, Zeroing::Same),
            (3, 5, Zeroing::Same),
            (160 + 40, 160 + 168, Zeroing::Same),
        ];
        for (same_ms, write_ms, quicker) in times {
            let mut trial = Trial::default();
            let mut turns = Vec::new();
            let chosen = loop {
                let way = trial.next();
                turns.push(way);
                let taken = if way == Zeroing::Write { write_ms } else { same_ms };
                if let Some(way) = trial.add(way, TRIAL_CALL_BYTES, Duration::from_millis(taken)) {
                    break way;
                }
            };
            assert_eq!(chosen, quicker);
            assert_eq!(turns, [Zeroing::Same, Zeroing::Write].repeat(2));
        }
    }
}
