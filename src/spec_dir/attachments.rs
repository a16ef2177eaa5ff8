//! Attached files, which are read with the specs, so that their content is checked and hashed, too.
//!
//! Called by the directory reader, with its handle. It must never read anything outside of the spec
//! directory, wherever links lead. The content may be secret: messages must never quote it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    path::Path,
};

use crate::{
    model::attached::AttachedContent,
    regular_file::{
        self, NotRegular,
        beneath::{self, Links},
    },
};

#[cfg(test)]
mod tests;

/// Largest attached file, in bytes: user data has a few thousand, and the agent keeps it in memory
/// and records.
pub const ATTACHMENT_BYTES_MAX: u64 = 256 * 1024;
/// The size of a config drive's partition, which is Ironic's limit, too.
const DRIVE_MIB: u32 = 64;
/// Most bytes of different attached files in one scan, so that a wrong directory does not exhaust
/// the memory.
pub const ATTACHED_BYTES_MAX: u64 = 64 << 20;

/// The attached files of one scan. Each is read once, so that all specs get the same content.
pub(super) struct Attachments<'d> {
    dir: &'d OwnedFd,
    read: RefCell<BTreeMap<String, Result<AttachedContent, String>>>,
    contents: RefCell<BTreeSet<AttachedContent>>,
    /// Total bytes of `contents`.
    bytes: Cell<u64>,
}

impl<'d> Attachments<'d> {
    /// The files in `dir` and its subdirectories.
    pub(super) fn beside(dir: &'d OwnedFd) -> Self {
        Self { dir, read: RefCell::default(), contents: RefCell::default(), bytes: Cell::new(0) }
    }

    /// Reads the file at a plain relative path. Files with the same content share it.
    pub(super) fn read(&self, path: &str) -> Result<AttachedContent, String> {
        if let Some(known) = self.read.borrow().get(path) {
            return known.clone();
        }
        let content = self
            .read_anew(path)
            .and_then(|bytes| self.share(bytes))
            .map_err(|message| format!("`{path}` {message}"));
        self.read.borrow_mut().insert(path.to_owned(), content.clone());
        content
    }

    fn share(&self, bytes: Vec<u8>) -> Result<AttachedContent, String> {
        let mut contents = self.contents.borrow_mut();
        let content = AttachedContent::from(bytes);
        if let Some(known) = contents.get(&content) {
            return Ok(known.clone());
        }
        let bytes = self.bytes.get() + content.as_bytes().len() as u64;
        if bytes > ATTACHED_BYTES_MAX {
            return Err(format!(
                "is too much: all files beside the specs may have {ATTACHED_BYTES_MAX} bytes"
            ));
        }
        self.bytes.set(bytes);
        contents.insert(content.clone());
        Ok(content)
    }

    fn read_anew(&self, path: &str) -> Result<Vec<u8>, String> {
        let bytes = beneath::open(self.dir, Path::new(path), Links::Beneath)
            .and_then(|file| regular_file::read_start(file, ATTACHMENT_BYTES_MAX + 1))
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => "is not there".to_owned(),
                _ if beneath::leads_out(&error) => "leads out of the spec directory".to_owned(),
                _ if NotRegular::is_cause_of(&error) => format!("is {error}"),
                _ => format!("cannot be read: {error}"),
            })?;
        if bytes.len() as u64 > ATTACHMENT_BYTES_MAX {
            return Err(format!(
                "has more than {ATTACHMENT_BYTES_MAX} bytes; a config drive has {DRIVE_MIB} MiB, \
                 as Ironic's, but attached files are kept in memory and records: let the machine \
                 fetch more (`#include`)"
            ));
        }
        Ok(bytes)
    }
}
