//! hostler: a directory of TOML files in, installed machines out.
//!
//! The layers, lowest first; a module may use those below it only (`testbed/integration/layers.rs`
//! keeps it so):
//!
//! - L0 [`model`]: the vocabulary; `atomic_file`: replaces files; `file_mark`: notices changed
//!   files; `regular_file`: opens files that others wrote; [`checked_file`]: compares a file with
//!   its checksums at each read; `listener`: accepts connections; [`progress`]: progress and
//!   cancellation; [`boot_call`]: an installed system's call, which two listeners receive.
//! - L1 [`lifecycle`], the core, and the adapters, one for each outside party: an adapter knows the
//!   model and no other module.
//! - L2 [`agent`], the wiring; [`ramdisk`], the deploy ramdisk's boot sequence; [`cli`], the
//!   commands.
//! - L3 the two binaries.

mod atomic_file;
pub mod boot_call;
pub mod checked_file;
mod file_mark;
mod listener;
pub mod model;
pub mod progress;
mod regular_file;

pub mod admin;
pub mod bmc;
pub mod callback;
pub mod config;
pub mod drive;
pub mod image;
pub mod imaging;
pub mod iscsi;
pub mod lifecycle;
pub mod netboot;
pub mod port_probe;
pub mod spec_dir;
pub mod status_file;
pub mod store;
pub mod watch;

pub mod agent;
pub mod cli;
pub mod ramdisk;
