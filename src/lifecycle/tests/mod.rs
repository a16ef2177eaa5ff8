//! The core's tests: stories of single nodes, the rules of consent, all kinds of trouble, a table
//! of every phase against every event, and random histories against a reference.

mod adoption;
mod boot_evidence;
mod breaker;
mod callback;
mod consent;
mod deadlines;
mod executor;
mod first_boot;
mod histories;
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
mod site;
mod story;
mod support;
mod table;
pub(super) mod transitions;
mod trouble;
mod verify;
