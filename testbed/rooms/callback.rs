//! Stub: callback.
