//! An EFI system partition (UEFI 2.10 §13.3) with the boot files that an image of one ext4 file
//! system brings: all files of the directory where the installed system mounts that partition.
//!
//! The agent uses it for a machine that boots such an image from its disk. The crate `ext4-view`
//! reads the image, within limits: a number of bytes, and plausible dimensions of the file system.
//! Symbolic links are not followed, because FAT has none.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::{
    DriveError, fat,
    probe::{FileSystemKind, ext4_measures, probe},
};
use crate::{checked_file::CheckedFile, model::boot::Arch};

/// Directories in an image that hold boot files, if they have a directory `EFI`.
const PLACES: [&str; 3] = ["/boot/efi", "/efi", "/boot"];
/// Loaders that may replace the default one, by preference: signed ones first. The suffix of the
/// processors follows these names.
const LOADERS: [&str; 3] = ["shim", "grub", "systemd-boot"];
/// A directory of kernels that firmware starts by themselves (Unified Kernel Image specification,
/// UAPI.5).
const KERNELS: &str = "EFI/Linux/";
/// Files that boot loaders load from their own directory, likewise.
const COMPANIONS: [&str; 2] = ["grub", "mm"];
/// Least room for files on the partition, so that the installed system can update its loader.
const ESP_BYTES_MIN: u64 = 64 << 20;
/// Room in times of the files' length, because the partition may hold the kernels: an update keeps
/// the old one, and writes a third before it removes the first.
const ESP_TIMES: u64 = 3;
/// Most such room; the partition is in memory.
const ESP_BYTES_MAX: u64 = 448 << 20;
/// Most bytes of boot files: a loader has a few million, all files are in memory, and one loader
/// may be copied.
const FILES_BYTES_MAX: u64 = 192 << 20;
/// Most files and directories, and most levels of directories.
const ENTRIES_MAX: usize = 2000;
const DEPTH_MAX: usize = 8;
/// Most bytes read of the image: the files, the metadata on the way to them, and a journal to
/// replay.
const READ_BYTES_MAX: u64 = 2 << 30;
/// Time limit of reading an image.
const READ_TIME_MAX: Duration = Duration::from_secs(60);
/// Most block groups, each of which takes memory; a file system of 32 TiB has so many.
const GROUPS_MAX: u64 = 1 << 18;
/// The largest block, in bytes.
const BLOCK_BYTES_MAX: u64 = 64 * 1024;

/// Makes the partition for a machine with these processors and a disk with blocks of `block_bytes`
/// bytes: at least 64 MiB and less than 512 MiB, mostly zeros. It holds the files of the image's
/// `/boot/efi`, `/efi` or `/boot`, the first that has a directory `EFI`. If that holds only one
/// distribution's loader, or no loader and one kernel, it is also copied to the firmware's default
/// path.
pub fn esp(root: &CheckedFile, arch: Arch, block_bytes: u32) -> Result<Bytes, DriveError> {
    let sector_bytes = fat::sector_bytes(block_bytes)?;
    let found = probe(root)?;
    match found.kind {
        FileSystemKind::Ext2 | FileSystemKind::Ext3 | FileSystemKind::Ext4 => {}
        FileSystemKind::Xfs | FileSystemKind::Btrfs => {
            let message = format!("they are read from ext4 only, this is {}", found.kind.as_str());
            return Err(DriveError::BootFiles { message });
        }
    }
    let measures = ext4_measures(root).map_err(|source| DriveError::Read { source })?;
    if measures.block_bytes > BLOCK_BYTES_MAX || measures.groups > GROUPS_MAX {
        return Err(DriveError::BootFiles { message: "the file system is damaged".to_owned() });
    }
    let image = Ext4::load(Box::new(Bounded::new(root))).map_err(|error| failed(&error))?;
    let files = boot_files(&image, arch)?;
    let total: u64 = files.values().map(|file| u64::from(file.bytes)).sum();
    let room = (total * ESP_TIMES).clamp(ESP_BYTES_MIN, ESP_BYTES_MAX);
    let format = fat::FatFormat {
        label: "ESP",
        id: u32::from_str_radix(found.uuid.get(..8).unwrap_or_default(), 16).unwrap_or(0),
        kind: fat::FatKind::Fat32,
        bytes_min: u32::try_from(room).unwrap_or(u32::MAX),
        sector_bytes,
    };
    let lengths: Vec<(&str, u32)> =
        files.iter().map(|(path, file)| (path.as_str(), file.bytes)).collect();
    let from: Vec<&str> = files.values().map(|file| file.from.as_str()).collect();
    fat::make(&format, &lengths, |number, place| {
        let path = from.get(number).copied().unwrap_or_default();
        read(&image, path, place).map_err(|error| io::Error::other(format!("{path}: {error}")))
    })
    .map_err(|error| DriveError::BootFiles { message: error.to_string() })
}

/// A file for the partition.
#[derive(Clone)]
struct BootFile {
    /// The file's path in the image.
    from: String,
    bytes: u32,
}

/// Collects the files by their paths on the partition, with a loader at the firmware's default
/// path.
fn boot_files(image: &Ext4, arch: Arch) -> Result<BTreeMap<String, BootFile>, DriveError> {
    let mut files = BTreeMap::new();
    for place in PLACES {
        let folder = format!("{place}/EFI");
        // A symbolic link could lead anywhere.
        if image.symlink_metadata(&*folder).is_ok_and(|metadata| metadata.is_dir()) {
            collect(image, place, &mut files)?;
            break;
        }
    }
    let has = |path: &str| files.keys().any(|found| found.eq_ignore_ascii_case(path));
    let default = default_loader(arch);
    if has(&default) {
        return Ok(files);
    }
    let program = |name: &str| format!("{name}{}.efi", arch.efi_suffix());
    let stand_in = stand_in(&files, LOADERS.map(program));
    let [loader] = &*stand_in else {
        let other = Arch::ALL.into_iter().find(|other| has(&default_loader(*other)));
        let found = match other {
            _ if !stand_in.is_empty() => {
                format!(": which of {} is to be booted?", stand_in.join(", "))
            }
            Some(other) => {
                format!(": {} is for {} machines", default_loader(other), other.as_str())
            }
            None => String::new(),
        };
        return Err(DriveError::NoBootFiles { loader: default, found });
    };
    let folder = loader.strip_suffix(name(loader)).unwrap_or_default();
    let beside = COMPANIONS
        .map(program)
        .into_iter()
        .filter(|companion| !name(loader).eq_ignore_ascii_case(companion))
        .map(|companion| (format!("{folder}{companion}"), format!("EFI/BOOT/{companion}")));
    let copies: Vec<(String, String)> =
        std::iter::once((loader.clone(), default)).chain(beside).collect();
    for (from, to) in copies {
        let is_there = |path: &String| path.eq_ignore_ascii_case(&to);
        if let Some(file) = files.get(&from).cloned()
            && !files.keys().any(is_there)
        {
            files.insert(to, file);
        }
    }
    Ok(files)
}

/// The loader that firmware tries on any disk (§3.5.1.1).
fn default_loader(arch: Arch) -> String {
    format!("EFI/BOOT/BOOT{}.EFI", arch.efi_suffix().to_ascii_uppercase())
}

/// The files of the most preferred kind that may stand in for a missing default loader.
fn stand_in(files: &BTreeMap<String, BootFile>, loaders: [String; LOADERS.len()]) -> Vec<String> {
    let having = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        files.keys().filter(|path| path.starts_with("EFI/") && wanted(path)).cloned().collect()
    };
    let loaders = loaders
        .into_iter()
        .map(|loader| having(&|path: &str| name(path).eq_ignore_ascii_case(&loader)));
    let kernels = std::iter::once_with(|| {
        having(&|path: &str| {
            path.strip_prefix(KERNELS)
                .is_some_and(|name| name.to_ascii_lowercase().ends_with(".efi"))
        })
    });
    loaders.chain(kernels).find(|found| !found.is_empty()).unwrap_or_default()
}

/// Adds the files of a directory and of its subdirectories, by their paths in it.
fn collect(
    image: &Ext4,
    place: &str,
    files: &mut BTreeMap<String, BootFile>,
) -> Result<(), DriveError> {
    let refused = |message: String| Err(DriveError::BootFiles { message });
    // Each with a slash after its name, and the number of directories down to it.
    let mut folders = vec![(String::new(), 0)];
    let (mut entries, mut bytes) = (0, 0);
    while let Some((folder, depth)) = folders.pop() {
        if depth > DEPTH_MAX {
            return refused(format!("more than {DEPTH_MAX} directories in each other"));
        }
        for entry in
            image.read_dir(&*format!("{place}/{folder}")).map_err(|error| failed(&error))?
        {
            let entry = entry.map_err(|error| failed(&error))?;
            let name = entry.file_name();
            let Ok(name) = name.as_str() else {
                return refused(format!("a name in {place}/{folder} is not UTF-8"));
            };
            if matches!(name, "." | "..") {
                continue;
            }
            let path = format!("{folder}{name}");
            let from = format!("{place}/{path}");
            let metadata = entry.metadata().map_err(|error| failed(&error))?;
            entries += 1;
            if entries > ENTRIES_MAX {
                return refused(format!("more than {ENTRIES_MAX} files and directories"));
            }
            if metadata.is_dir() {
                folders.push((path + "/", depth + 1));
            } else if metadata.file_type().is_regular_file() {
                bytes += metadata.len();
                let Some(length) =
                    u32::try_from(metadata.len()).ok().filter(|_| bytes <= FILES_BYTES_MAX)
                else {
                    return refused(format!("more than {} MiB", FILES_BYTES_MAX >> 20));
                };
                files.insert(path, BootFile { from, bytes: length });
            } else {
                return refused(format!("{} is neither file nor directory", from.escape_debug()));
            }
        }
    }
    Ok(())
}

/// Reads a whole file.
fn read(image: &Ext4, path: &str, mut place: &mut [u8]) -> Result<(), Ext4Error> {
    let mut file = image.open(path)?;
    while !place.is_empty() {
        match file.read_bytes(place)? {
            0 => break,
            bytes => place = place.get_mut(bytes..).unwrap_or_default(),
        }
    }
    Ok(())
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn failed(error: &Ext4Error) -> DriveError {
    DriveError::BootFiles { message: error.to_string() }
}

/// An image with limits on the bytes read and on the time.
struct Bounded {
    image: CheckedFile,
    bytes_left: u64,
    until: Instant,
}

impl Bounded {
    fn new(image: &CheckedFile) -> Self {
        let image = image.clone();
        Self { image, bytes_left: READ_BYTES_MAX, until: Instant::now() + READ_TIME_MAX }
    }
}

impl Ext4Read for Bounded {
    fn read(&mut self, at: u64, to: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let left = self.bytes_left.checked_sub(to.len() as u64);
        self.bytes_left = left.filter(|_| Instant::now() < self.until).ok_or("too much to read")?;
        Ok(self.image.read_exact_at(to, at)?)
    }
}
