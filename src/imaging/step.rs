//! The steps of a write in their order, which is what keeps a half-written disk from booting.
//!
//! Advanced by the write, compared by the reconnecting writer. A step is reached only when
//! everything before it is flushed.

/// The last step that is certain: everything before it is done and flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ImagingStep {
    /// Untouched.
    Nothing,
    /// Being wiped.
    Wipe,
    /// The body, flushed up to there.
    Body(u64),
    Tail,
    Head,
    /// Reading back, the same up to there.
    Compare(u64),
    Done,
}
