//! Installations in the virtual rack: machines with firmware, disks and BMCs, and the shipped
//! release binaries.
//!
//! `./testbed/check` runs it after `./testbed/build`; needs root and no virtualisation. Every test
//! has its own rack, so that two may run at once: `cargo test --test e2e -- --test-threads=2`. A
//! test keeps its output in `target/testbed/e2e/<test>/`: the agent's log, specs and statuses, and
//! the console and BMC log of each machine.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]
#![allow(missing_docs, reason = "tests are not an interface")]

mod aarch64;
mod arm;
mod dead_targets;
mod disks;
mod doctor;
mod documents;
mod faults_before_power;
mod host;
mod images;
mod ipxe;
mod ironic;
mod kernel_package;
mod killed_agent;
mod local_disk;
mod moments;
mod no_bmc;
mod partition_images;
mod rack;
mod random_kills;
mod real_layouts;
mod real_systems;
mod root_devices;
mod secure_boot;
mod site;
mod strangers;
mod two_machines;
