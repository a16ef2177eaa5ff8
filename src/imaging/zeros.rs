//! Finds runs of zeros in data, and lends static ones.
//!
//! The reader calls it for every byte of a file, so that it must be fast in data without zeros.

use std::ops::Range;

use bytes::Bytes;

use crate::model::range_digest;
pub(super) use crate::model::range_digest::is_zero;

/// Shortest run of zeros worth a command of its own. A shorter one costs more in commands than it
/// saves in bytes.
const UNIT_BYTES: usize = 64 << 10;

/// Up to 1 MiB of zeros.
pub(super) fn zeros(bytes: usize) -> Bytes {
    Bytes::from_static(range_digest::zeros(bytes))
}

/// The runs of a piece of data in order; true for zeros.
pub(super) fn runs(data: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    for unit in data.chunks(UNIT_BYTES) {
        let zero = unit.len() == UNIT_BYTES && is_zero(unit);
        let end = at + unit.len();
        match runs.last_mut() {
            Some((last, kind)) if *kind == zero => last.end = end,
            _ => runs.push((at..end, zero)),
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_units_of_zeros_are_runs_and_neighbours_of_a_kind_are_one_run() {
        let mut data = vec![0; 5 * UNIT_BYTES + 512];
        assert_eq!(
            runs(&data),
            [(0..5 * UNIT_BYTES, true), (5 * UNIT_BYTES..data.len(), false)],
            "a short rest is data"
        );
        data[2 * UNIT_BYTES] = 1;
        data[4 * UNIT_BYTES - 1] = 1;
        let ends: Vec<_> = runs(&data).into_iter().map(|(run, zero)| (run.end, zero)).collect();
        assert_eq!(
            ends,
            [
                (2 * UNIT_BYTES, true),
                (4 * UNIT_BYTES, false),
                (5 * UNIT_BYTES, true),
                (data.len(), false)
            ]
        );
        assert!(runs(&[]).is_empty());
    }
}
