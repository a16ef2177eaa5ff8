//! Files that specs name and that are read with them, so that what is in them is a part of what was
//! checked.
//!
//! Called by the directory reader, with its handle. Nothing outside the spec directory may ever be
//! read, however links lead; and what is in these files may be secret, so no message holds any of
//! it.

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

/// Largest attached file, in bytes: user data has a few thousand, and all of it is in the agent's
/// memory and in its records.
pub const ATTACHMENT_BYTES_MAX: u64 = 256 * 1024;
/// The bytes that the partition of a config drive has, and Ironic's config drive at most.
const DRIVE_MIB: u32 = 64;
/// Most bytes of different attached files in one reading of the directory, so that a wrong
/// directory does not eat the memory.
pub const ATTACHED_BYTES_MAX: u64 = 64 << 20;

/// The files beside the specs of one directory. Each is read once, so that all specs of one reading
/// see the same.
pub(super) struct Attachments<'d> {
    dir: &'d OwnedFd,
    read: RefCell<BTreeMap<String, Result<AttachedContent, String>>>,
    contents: RefCell<BTreeSet<AttachedContent>>,
    /// Bytes of all `contents`.
    bytes: Cell<u64>,
}

impl<'d> Attachments<'d> {
    /// Those in `dir` and below.
    pub(super) fn beside(dir: &'d OwnedFd) -> Self {
        Self { dir, read: RefCell::default(), contents: RefCell::default(), bytes: Cell::new(0) }
    }

    /// The content of the file at a plain relative path; files with the same content share it.
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
                "has more than {ATTACHMENT_BYTES_MAX} bytes; a config drive as a whole has \
                 {DRIVE_MIB} MiB, as Ironic's, but what a spec attaches is kept in memory and \
                 records: let the machine fetch more (`#include`)"
            ));
        }
        Ok(bytes)
    }
}
