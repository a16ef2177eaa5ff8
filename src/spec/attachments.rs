//! Files that specs name and that are read with them, so that what is in them is a part of what was checked.
//!
//! Called by the directory reader, with its handle. Nothing outside the spec directory may ever be read, however links lead; and what is in
//! these files may be secret, so no message holds any of it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use crate::regular_file::{
    self, NotRegular,
    beneath::{self, Links},
};

#[cfg(test)]
mod tests;

/// Largest attached file, in bytes: user data has a few thousand, and all of it is in the agent's memory and in its records.
pub const ATTACHMENT_BYTES_MAX: u64 = 256 * 1024;
/// Most bytes of different attached files in one reading of the directory, so that a wrong directory does not eat the memory.
pub const ATTACHED_BYTES_MAX: u64 = 64 << 20;

/// The files beside the specs of one directory. Each is read once, so that all specs of one reading see the same.
pub(super) struct Attachments<'d> {
    dir: &'d OwnedFd,
    read: RefCell<BTreeMap<String, Result<Arc<str>, String>>>,
    contents: RefCell<BTreeSet<Arc<str>>>,
    /// Bytes of all `contents`.
    bytes: Cell<u64>,
}

impl<'d> Attachments<'d> {
    /// Those in `dir` and below.
    pub(super) fn beside(dir: &'d OwnedFd) -> Self {
        Self { dir, read: RefCell::default(), contents: RefCell::default(), bytes: Cell::new(0) }
    }

    /// What is in the file at a plain relative path; files with the same content share it.
    pub(super) fn read(&self, path: &str) -> Result<Arc<str>, String> {
        if let Some(known) = self.read.borrow().get(path) {
            return known.clone();
        }
        let content = self
            .read_anew(path)
            .and_then(|text| self.share(text))
            .map_err(|message| format!("`{path}` {message}"));
        self.read.borrow_mut().insert(path.to_owned(), content.clone());
        content
    }

    fn share(&self, text: String) -> Result<Arc<str>, String> {
        let mut contents = self.contents.borrow_mut();
        if let Some(known) = contents.get(text.as_str()) {
            return Ok(known.clone());
        }
        let bytes = self.bytes.get() + text.len() as u64;
        if bytes > ATTACHED_BYTES_MAX {
            return Err(format!(
                "is too much: all files beside the specs may have {ATTACHED_BYTES_MAX} bytes"
            ));
        }
        self.bytes.set(bytes);
        let content: Arc<str> = text.into();
        contents.insert(content.clone());
        Ok(content)
    }

    fn read_anew(&self, path: &str) -> Result<String, String> {
        let bytes = beneath::open(self.dir, Path::new(path), Links::Beneath)
            .and_then(|file| regular_file::read_start(file, ATTACHMENT_BYTES_MAX + 1))
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => "is not there".to_owned(),
                _ if beneath::leads_out(&error) => "leads out of the spec directory".to_owned(),
                _ if NotRegular::is_cause_of(&error) => format!("is {error}"),
                _ => format!("cannot be read: {error}"),
            })?;
        if bytes.len() as u64 > ATTACHMENT_BYTES_MAX {
            return Err(format!("has more than {ATTACHMENT_BYTES_MAX} bytes"));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            format!("is not UTF-8 from byte {} on", error.utf8_error().valid_up_to())
        })?;
        // Nothing that reads such a drive can use them, and a record would hold each in six bytes.
        let is_binary = |c: char| c < ' ' && !matches!(c, '\t' | '\n' | '\r');
        match text.find(is_binary) {
            Some(at) => Err(format!("is not text: byte {at} is a control character")),
            None => Ok(text),
        }
    }
}
