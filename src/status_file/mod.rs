//! Stub: `status_file`.
