//! What machines netboot: the room of their firmware and boot loaders. Read-only.
//!
//! The agent binds a TFTP [`Server`] and an [HTTP server](http::Server) beside it, keeps the [`BootTable`] in step with its nodes, and reads
//! from a channel what each machine has fetched ([`Fetch`](crate::model::boot::Fetch)). The room must never write a file, block the agent,
//! or serve anything that is not in the table, in the loader directory or among the fixed files.
//!
//! `menu` renders what each boot loader reads, `table` keeps it, `files` opens what it names, `evidence` knows whose fetch it was, and
//! `shelf` is all of it together; `tftp` and `http` serve it.

mod evidence;
mod files;
pub mod http;
mod menu;
mod shelf;
mod table;
mod tftp;

use std::{io, path::PathBuf};

pub use menu::{MenuError, Menus};
pub use shelf::Shelf;
pub use table::BootTable;
#[cfg(fuzzing)]
pub use tftp::fuzz;
pub use tftp::{Config, Running, Server};

/// Whether a kernel or ramdisk that a spec names could be served now; see [`Config::images`]. Blocks for as long as the file system does.
pub fn check_own_file(images: &[PathBuf], path: &str) -> io::Result<()> {
    files::open_own(images, path).map(drop)
}
