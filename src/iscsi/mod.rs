//! Stub: iscsi.
