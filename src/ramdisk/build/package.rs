//! An unpacked kernel package, of Debian or of any other distribution that puts modules under `lib/modules/<release>`.
//!
//! Called by the builder. It reads; nothing in the package is run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use super::{BuildError, FILE_BYTES_MAX, modinfo::normal, read};
use crate::regular_file;

/// A decompressed module is a few MiB at most (the largest, of a graphics driver, has 15); more is a decompression bomb.
const MODULE_BYTES_MAX: u64 = 256 << 20;
/// `kernel/drivers/net/ethernet/mellanox/mlx5/core` is eight deep.
const DEPTH_MAX: usize = 16;

/// The package's kernel and what is beside it.
#[derive(Debug)]
pub(super) struct Package {
    root: PathBuf,
    /// Where its modules are.
    dir: PathBuf,
    /// `uname -r` of the kernel.
    pub(super) release: String,
    /// Module files by normal name.
    modules: BTreeMap<String, PathBuf>,
    /// Modules compiled into the kernel, by normal name.
    pub(super) builtin: BTreeSet<String>,
}

impl Package {
    /// Looks at the package in `root`, which must hold exactly one kernel.
    pub(super) fn open(root: &Path) -> Result<Self, BuildError> {
        let dirs: Vec<PathBuf> = ["lib/modules", "usr/lib/modules"]
            .into_iter()
            .flat_map(|under| subdirectories(&root.join(under)))
            .collect();
        let [dir] = dirs.as_slice() else {
            return Err(BuildError::Releases { path: root.to_owned(), found: dirs.len() });
        };
        let release = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut modules = BTreeMap::new();
        walk(dir, DEPTH_MAX, &mut modules)
            .map_err(|source| BuildError::Io { path: dir.clone(), source })?;
        let builtin = regular_file::read_to_string(&dir.join("modules.builtin"), FILE_BYTES_MAX)
            .unwrap_or_default();
        let builtin = builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { root: root.to_owned(), dir: dir.clone(), release, modules, builtin })
    }

    /// The kernel image.
    pub(super) fn kernel(&self) -> Result<Vec<u8>, BuildError> {
        let debian = self.root.join(format!("boot/vmlinuz-{}", self.release));
        let beside_modules = self.dir.join("vmlinuz");
        read(if beside_modules.is_file() { &beside_modules } else { &debian })
    }

    /// Whether the kernel's configuration says that it can unpack a zstd initramfs; without a configuration it is believed.
    pub(super) fn unpacks_zstd(&self) -> bool {
        let path = self.root.join(format!("boot/config-{}", self.release));
        regular_file::read_to_string(&path, FILE_BYTES_MAX)
            .map_or(true, |config| config.lines().any(|line| line == "CONFIG_RD_ZSTD=y"))
    }

    /// Whether the package has a module of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }

    /// A module's ELF file, decompressed; `None` when the package has none of that name.
    pub(super) fn module(&self, name: &str) -> Result<Option<Vec<u8>>, BuildError> {
        let Some(path) = self.modules.get(name) else { return Ok(None) };
        decompressed(path).map(Some).map_err(|source| BuildError::Io { path: path.clone(), source })
    }

    /// A firmware file with the name it has in the package, which may say that it is compressed: the kernel unpacks it.
    pub(super) fn firmware(&self, name: &str) -> Option<(String, Vec<u8>)> {
        if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        ["lib/firmware", "usr/lib/firmware"].iter().find_map(|dir| {
            ["", ".xz", ".zst"].iter().find_map(|suffix| {
                let name = format!("{name}{suffix}");
                let contents =
                    regular_file::read(&self.root.join(dir).join(&name), FILE_BYTES_MAX).ok()?;
                Some((name, contents))
            })
        })
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}

fn walk(dir: &Path, depth: usize, found: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Links (`build`, `source`) lead out of the package.
        if entry.file_type()?.is_dir() {
            if depth > 0 {
                walk(&entry.path(), depth - 1, found)?;
            }
        } else if let Some(name) = module_name(&entry.path()) {
            found.insert(name, entry.path());
        }
    }
    Ok(())
}

/// `kernel/drivers/net/virtio-net.ko.xz` is `virtio_net`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let bare = [".ko", ".ko.xz", ".ko.zst"].iter().find_map(|suffix| name.strip_suffix(suffix))?;
    Some(normal(bare))
}

fn decompressed(path: &Path) -> io::Result<Vec<u8>> {
    let file = regular_file::open(path)?;
    let reader: Box<dyn Read> = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new_multi_decoder(file)),
        Some("zst") => Box::new(zstd::Decoder::new(file)?),
        _ => Box::new(file),
    };
    let mut bytes = Vec::new();
    if reader.take(MODULE_BYTES_MAX).read_to_end(&mut bytes)? as u64 == MODULE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any kernel module"));
    }
    Ok(bytes)
}
