//! The vocabulary of all other modules: names, checked specs, disks, boot menus, power, faults and
//! status.
//!
//! Used everywhere. It must never do I/O, read a clock or know a protocol. Values are checked when
//! they are made, so that no invalid one exists.

pub mod admin;
pub mod agent_mark;
pub mod attached;
pub mod backoff;
pub mod bmc_key;
pub mod boot;
pub mod boot_report;
pub mod callback;
pub mod consent;
pub mod disk;
pub mod fault;
pub mod identity;
pub mod ids;
pub mod ironic;
pub mod machine;
pub mod netboot;
pub mod power;
pub mod printable;
pub mod problem;
pub mod range_digest;
pub mod secret;
pub mod size;
pub mod spec;
pub mod status;
pub mod system_guid;
pub mod toml_reader;
