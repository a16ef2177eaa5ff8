//! Stub: watch.
