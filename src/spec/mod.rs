//! Stub: spec.
