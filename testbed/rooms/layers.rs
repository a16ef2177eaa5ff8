//! Stub: layers.
