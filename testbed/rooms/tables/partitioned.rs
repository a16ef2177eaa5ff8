//! Disks around one file system.
