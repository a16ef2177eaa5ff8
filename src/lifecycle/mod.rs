//! Stub: lifecycle.
