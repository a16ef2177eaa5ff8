//! The steps of a write; their order keeps a half-written disk from booting.
//!
//! The write advances them, and the reconnecting writer compares them. A step is reached only when
//! all bytes of earlier steps are flushed.

/// The current step: all bytes of earlier steps are written and flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ImagingStep {
    /// The disk is untouched.
    Nothing,
    /// The write is wiping both ends.
    Wipe,
    /// The body is flushed up to this offset.
    Body(u64),
    Tail,
    Head,
    /// The disk was read back up to this offset.
    Compare(u64),
    Done,
}
