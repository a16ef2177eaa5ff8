//! The core's tests: stories of single nodes, the rules of consent, all kinds of trouble, a table
//! of every phase against every event. Random histories of a whole site are `testbed/sim`'s.

mod adoption;
mod boot_call;
mod boot_evidence;
mod booting_polls;
mod breaker;
mod callback;
mod consent;
mod deadlines;
mod executor;
mod first_boot;
mod identity;
mod ironic;
mod listed;
mod lost;
mod machines;
mod missing;
mod netboot;
mod no_bmc;
mod other_disks;
mod permits;
mod plan;
mod polls;
mod power;
mod rack;
mod ramdisk_log;
mod records;
mod settle;
mod story;
mod support;
mod table;
pub(super) mod transitions;
mod trouble;
mod unexpected_netboots;
mod verify;
