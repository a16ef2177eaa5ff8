//! Stub: ipmi.
