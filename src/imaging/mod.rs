//! Stub: imaging.
