//! Lists the cache, and removes the least recently used images when it grows too large.
//!
//! The library calls it before and during a fetch, and `hostler cache` does. It must never remove
//! an image in use, a kernel or ramdisk that a machine may still boot, or a file that is not the
//! cache's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind::NotFound},
    os::unix::fs::MetadataExt as _,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use rustix::fs::statvfs;
use tracing::info;

use super::cache::{Cache, CacheFileKind, Name};
use crate::model::ids::Digest;

/// Bytes left free on the cache's disk, which may also hold the agent's records, without which it
/// takes no step; a twentieth of a small disk.
const RESERVE_BYTES_MAX: u64 = 128 << 20;
/// Time for which an unfinished fetch is kept, so that another one can resume it.
const LEFTOVER_TIME: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a block in `st_blocks` on every file system (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// An image in the cache, complete or not.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The digest of the file as published.
    pub digest: Digest,
    /// The source; `None` until the image is complete.
    pub source: Option<String>,
    /// Raw bytes; `None` until the image is complete.
    pub bytes: Option<u64>,
    /// Bytes of its blocks on the cache's disk.
    pub used_bytes: u64,
    /// The time of the last request for it.
    pub last_used: Timestamp,
    /// Whether a process uses it or works on it.
    pub in_use: bool,
}

/// The result of pruning.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// The removed images, in the order of removal.
    pub removed: Vec<Digest>,
    /// Bytes of their blocks.
    pub freed_bytes: u64,
    /// Bytes of the remaining images' blocks.
    pub left_bytes: u64,
}

/// The files of one name.
#[derive(Debug)]
struct CacheItem {
    name: Name,
    used_bytes: u64,
    last_used: SystemTime,
    is_entry: bool,
}

impl Cache {
    /// Lists all images, least recently used first.
    pub(super) fn list(&self) -> io::Result<Vec<Kept>> {
        self.items()?.iter().map(|item| self.kept(item)).collect()
    }

    /// Removes images until the cache takes at most so many bytes.
    pub(super) fn prune(&self, to_bytes: u64) -> io::Result<Pruned> {
        self.remove_while(|left_bytes| Ok(left_bytes > to_bytes))
    }

    /// Makes space for so many more bytes, and keeps the cache within its limit as far as unused
    /// images allow. Returns whether the space is there.
    pub(super) fn make_room(&self, bytes: u64, cache_bytes: u64) -> io::Result<bool> {
        let is_short = || Ok::<_, io::Error>(self.free_bytes()? < bytes.max(1));
        self.remove_while(|left_bytes| {
            Ok(left_bytes.saturating_add(bytes) > cache_bytes || is_short()?)
        })?;
        Ok(!is_short()?)
    }

    /// Removes kernels and ramdisks that are not needed any more and had no recent request: an
    /// attempt verifies a file a moment before it names it as needed.
    pub(super) fn prune_plain(&self, needed: &BTreeSet<Digest>) -> io::Result<()> {
        for CacheItem { name, last_used, .. } in self.items()? {
            let is_needed = name.digest().is_some_and(|digest| needed.contains(&digest));
            let is_old = last_used.elapsed().is_ok_and(|age| age > LEFTOVER_TIME);
            if !name.is_plain() || is_needed || !is_old {
                continue;
            }
            let Some(_alone) = self.take_idle(&name) else { continue };
            for kind in CacheFileKind::ALL {
                self.remove(&name, kind)?;
            }
            info!(file = %name, "removed from the image cache: no machine boots it any more");
        }
        Ok(())
    }

    /// Removes leftovers of crashes: files beside an entry, and old unfinished ones.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for CacheItem { name, last_used, is_entry, .. } in self.items()? {
            let is_old = last_used.elapsed().is_ok_and(|age| age > LEFTOVER_TIME);
            if !is_entry && !is_old {
                continue;
            }
            let Some(_alone) = self.take_idle(&name) else { continue };
            let left: &[_] = if is_entry {
                &[CacheFileKind::Partial, CacheFileKind::Temporary]
            } else {
                &CacheFileKind::ALL
            };
            for kind in left {
                self.remove(&name, *kind)?;
            }
        }
        Ok(())
    }

    /// The free bytes for images on the disk.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let disk = statvfs(&self.dir)?;
        let [all, free] =
            [disk.f_blocks, disk.f_bavail].map(|blocks| blocks.saturating_mul(disk.f_frsize));
        Ok(free.saturating_sub(RESERVE_BYTES_MAX.min(all / 20)))
    }

    /// Removes the least recently used images while `is_too_much` holds for the remaining bytes.
    /// Kernels and ramdisks stay: machines may boot them at any time.
    fn remove_while(&self, is_too_much: impl Fn(u64) -> io::Result<bool>) -> io::Result<Pruned> {
        let items = self.items()?;
        let left_bytes = items.iter().map(|item| item.used_bytes).sum();
        let mut pruned = Pruned { left_bytes, ..Pruned::default() };
        let goes =
            |item: &&CacheItem| item.used_bytes > 0 && !(item.is_entry && item.name.is_plain());
        for CacheItem { name, used_bytes, .. } in items.iter().filter(goes) {
            if !is_too_much(pruned.left_bytes)? {
                break;
            }
            let Some(_alone) = self.take_idle(name) else { continue };
            for kind in CacheFileKind::ALL {
                self.remove(name, kind)?;
            }
            info!(image = %name, bytes = used_bytes, "removed from the image cache");
            pruned.removed.extend(name.digest());
            pruned.freed_bytes += used_bytes;
            pruned.left_bytes -= used_bytes;
        }
        Ok(pruned)
    }

    fn kept(&self, item: &CacheItem) -> io::Result<Kept> {
        let about = self.about(&item.name).filter(|_| item.is_entry);
        Ok(Kept {
            digest: item.name.digest().ok_or(io::ErrorKind::InvalidData)?,
            source: about.as_ref().map(|about| about.source.clone()),
            bytes: about.map(|about| about.bytes),
            used_bytes: item.used_bytes,
            last_used: Timestamp::try_from(item.last_used).map_err(io::Error::other)?,
            in_use: self.take_idle(&item.name).is_none(),
        })
    }

    /// The files of each name, least recently used first; none if there is no directory yet.
    fn items(&self) -> io::Result<Vec<CacheItem>> {
        let mut items: BTreeMap<Name, CacheItem> = BTreeMap::new();
        let files = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == NotFound => return Ok(Vec::new()),
            files => files?,
        };
        for file in files {
            let file = file?;
            let Some((name, kind)) = file.file_name().to_str().and_then(Name::of_file) else {
                continue;
            };
            let metadata = match file.metadata() {
                // Other processes may remove files in the meantime.
                Err(error) if error.kind() == NotFound => continue,
                metadata => metadata?,
            };
            let item = items.entry(name).or_insert_with_key(|name| CacheItem {
                name: name.clone(),
                used_bytes: 0,
                last_used: SystemTime::UNIX_EPOCH,
                is_entry: false,
            });
            item.is_entry |= kind == CacheFileKind::Raw;
            if kind == CacheFileKind::Lock {
                item.last_used = metadata.modified()?;
            } else {
                item.used_bytes += metadata.blocks() * STAT_BLOCK_BYTES;
            }
        }
        let mut items: Vec<CacheItem> = items.into_values().collect();
        items.sort_by_key(|item| item.last_used);
        Ok(items)
    }
}
