//! Serves boot files, read-only, to firmware and boot loaders.
//!
//! The agent binds a TFTP [`Server`] and an [HTTP server](http::Server) beside it, keeps the
//! [`BootTable`] in step with its nodes, and reads from a channel what each machine has fetched
//! ([`Fetch`](crate::model::boot::Fetch)). It must never write a file, block the agent, or serve
//! anything that is not in the table, in the loader directory or among the fixed files.
//!
//! `menu` renders the boot loaders' menus, `table` keeps them, `files` opens the named files,
//! `evidence` attributes fetches to nodes, and `catalog` combines these; `tftp` and `http` serve
//! the catalog.

mod catalog;
mod evidence;
mod files;
pub mod http;
mod loaders;
mod menu;
mod name;
mod refusal;
mod table;
mod tftp;

pub use catalog::{BootFileCatalog, Cached};
pub use files::has_ipxe;
pub use loaders::{LoaderFiles, NoLoader};
pub use menu::MenuError;
pub use table::{BootSettings, BootTable};
#[cfg(fuzzing)]
pub use tftp::fuzz;
pub use tftp::{Config, Running, Server};
