//! Stub: tftp.
