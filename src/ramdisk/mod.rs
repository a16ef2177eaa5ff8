//! Stub: ramdisk.
