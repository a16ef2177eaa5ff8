//! A layout that fits its disk, cut into head, body and tail.
//!
//! The write makes it before it touches the disk, and every pass reads it. It must never exceed the
//! disk or split a block.

use std::{ops::Range, sync::Arc};

use super::{Geometry, ImagingError, Layout, Segment};

/// Bytes wiped at either end: the MBR and both copies of a GPT, each with 128 KiB of entries at
/// 4096-byte blocks (UEFI 2.10 §5.3), and a BIOS boot loader before the first partition. One write
/// makes the disk bootable. A multiple of every block size.
pub(super) const EDGE_BYTES: u64 = 1 << 20;

/// A layout on a disk. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    layout: Arc<Layout>,
    geometry: Geometry,
}

impl Plan {
    pub(super) fn new(layout: &Layout, geometry: Geometry) -> Result<Self, ImagingError> {
        let plan = Self { layout: Arc::new(layout.clone()), geometry };
        let mut free_from = 0;
        for segment in layout.segments() {
            let end = plan.end_of(segment).filter(|end| *end <= geometry.bytes);
            let Some(end) = end else {
                let image_bytes = plan.end_of(segment).unwrap_or(u64::MAX);
                return Err(ImagingError::TooBig { image_bytes, disk_bytes: geometry.bytes });
            };
            if segment.at < free_from || !segment.at.is_multiple_of(plan.block_bytes()) {
                return Err(ImagingError::Misplaced { at: segment.at });
            }
            free_from = end;
        }
        Ok(plan)
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.geometry.block_bytes.into()
    }

    /// The disk's first MiB.
    pub(super) fn head(&self) -> Range<u64> {
        0..EDGE_BYTES.min(self.geometry.bytes)
    }

    /// The disk's last MiB, without the part that is also the first MiB.
    pub(super) fn tail(&self) -> Range<u64> {
        let from = self.geometry.bytes.saturating_sub(EDGE_BYTES);
        from.max(self.head().end)..self.geometry.bytes
    }

    /// The disk between head and tail.
    pub(super) fn body(&self) -> Range<u64> {
        self.head().end..self.tail().start
    }

    /// The whole disk.
    pub(super) fn disk(&self) -> Range<u64> {
        0..self.geometry.bytes
    }

    /// Bytes of its segments, without the padding of their last blocks.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_in(&self.disk())
    }

    /// Bytes of its segments in a part of the disk.
    pub(super) fn bytes_in(&self, window: &Range<u64>) -> u64 {
        let content =
            |segment: &Segment| segment.at..segment.at.saturating_add(segment.content.bytes());
        let parts = self.layout.segments().iter().map(|segment| clip(&content(segment), window));
        parts.map(|part| part.end - part.start).sum()
    }

    /// The segments in a part of the disk, each with its whole blocks there.
    pub(super) fn segments_in(
        &self,
        window: &Range<u64>,
    ) -> impl Iterator<Item = (&Segment, Range<u64>)> {
        let segments = self.layout.segments().iter().map(move |segment| {
            let end = self.end_of(segment).unwrap_or(segment.at);
            (segment, clip(&(segment.at..end), window))
        });
        segments.filter(|(_, part)| !part.is_empty())
    }

    /// The parts of the disk that are covered without a gap, in the order of the disk.
    pub(super) fn runs_in(&self, window: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (_, part) in self.segments_in(window) {
            match runs.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => runs.push(part),
            }
        }
        runs
    }

    /// End of a segment's last block; `None` if it exceeds `u64`.
    fn end_of(&self, segment: &Segment) -> Option<u64> {
        segment
            .at
            .checked_add(segment.content.bytes())?
            .checked_next_multiple_of(self.block_bytes())
    }
}

/// The part of `part` within `window`; an empty range if there is none.
fn clip(part: &Range<u64>, window: &Range<u64>) -> Range<u64> {
    let from = part.start.clamp(window.start, window.end);
    from..part.end.clamp(from, window.end.max(from))
}
