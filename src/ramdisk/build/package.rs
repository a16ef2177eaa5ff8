//! An unpacked kernel package, of Debian or another distribution with modules under
//! `lib/modules/<release>`, and other packages beside it, such as firmware.
//!
//! The builder uses it. It only reads, and runs nothing from the package.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use super::{BuildError, FILE_BYTES_MAX, modinfo::normal, read};
use crate::regular_file;

/// Largest decompressed module. The largest real one, a graphics driver, has 15 MiB; more is a
/// decompression bomb.
const MODULE_BYTES_MAX: u64 = 256 << 20;
/// Most levels of directories: `kernel/drivers/net/ethernet/mellanox/mlx5/core` has eight.
const DEPTH_MAX: usize = 16;

/// Least similarity of a suggested name (Jaro and Winkler's measure).
const SIMILAR_MIN: f64 = 0.8;
const LIBRARIES: [&str; 2] = ["lib", "usr/lib"];

/// The unpacked kernel, its modules, and packages beside it.
#[derive(Debug)]
pub(super) struct Package {
    /// The directories of unpacked packages: a common one, or one for each.
    roots: Vec<PathBuf>,
    /// The directories of modules. Some distributions split them into several packages.
    dirs: Vec<PathBuf>,
    /// `uname -r` of the kernel.
    pub(super) release: String,
    /// Module files by normal name.
    modules: BTreeMap<String, PathBuf>,
    /// Modules compiled into the kernel, by normal name.
    pub(super) builtin: BTreeSet<String>,
}

impl Package {
    /// Reads the packages in `root`, which must hold exactly one kernel.
    pub(super) fn open(root: &Path) -> Result<Self, BuildError> {
        let top = root
            .canonicalize()
            .map_err(|source| BuildError::Io { path: root.to_owned(), source })?;
        let mut roots = vec![top.clone()];
        roots.extend(subdirectories(&top));
        let mut releases = BTreeMap::<String, BTreeMap<PathBuf, BTreeMap<String, PathBuf>>>::new();
        for dir in beneath(&top, &roots, "modules").iter().flat_map(|under| subdirectories(under)) {
            let mut modules = BTreeMap::new();
            walk(&dir, DEPTH_MAX, &mut modules)
                .map_err(|source| BuildError::Io { path: dir.clone(), source })?;
            // A package of headers has such a directory, too, which holds only links.
            if !modules.is_empty() || dir.join("modules.builtin").is_file() {
                let release = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                releases.entry(release).or_default().insert(dir, modules);
            }
        }
        let found = releases.len();
        let (Some((release, dirs)), true) = (releases.pop_first(), found == 1) else {
            return Err(BuildError::Releases { path: root.to_owned(), found });
        };
        let builtin = dirs.keys().filter_map(|dir| {
            regular_file::read_to_string(&dir.join("modules.builtin"), FILE_BYTES_MAX).ok()
        });
        let builtin: Vec<String> = builtin.collect();
        let builtin = builtin.iter().flat_map(|text| text.lines());
        let builtin = builtin.filter_map(|line| module_name(Path::new(line))).collect();
        let (dirs, modules): (Vec<_>, Vec<_>) = dirs.into_iter().unzip();
        let modules = modules.into_iter().flatten().collect();
        Ok(Self { roots, dirs, release, modules, builtin })
    }

    /// The kernel image.
    pub(super) fn kernel(&self) -> Result<Vec<u8>, BuildError> {
        let beside_modules = self.dirs.iter().map(|dir| dir.join("vmlinuz"));
        let in_boot = self.in_boot("vmlinuz");
        let path = beside_modules.chain(in_boot).find(|path| path.is_file());
        read(&path.ok_or_else(|| BuildError::NoKernel(self.release.clone()))?)
    }

    /// The path of a file of this kernel in `boot`.
    fn in_boot(&self, name: &str) -> Option<PathBuf> {
        let name = format!("{name}-{}", self.release);
        self.roots.iter().map(|root| root.join("boot").join(&name)).find(|path| path.is_file())
    }

    /// Whether the kernel can unpack a zstd initramfs by its configuration; assumed without one.
    pub(super) fn unpacks_zstd(&self) -> bool {
        self.in_boot("config")
            .and_then(|path| regular_file::read_to_string(&path, FILE_BYTES_MAX).ok())
            .is_none_or(|config| config.lines().any(|line| line == "CONFIG_RD_ZSTD=y"))
    }

    /// The modules in these directories of `kernel/drivers`, by name.
    pub(super) fn modules_in(&self, directories: &[&str]) -> Vec<String> {
        let drivers = self.dirs.iter().map(|dir| dir.join("kernel/drivers"));
        let drivers: Vec<PathBuf> =
            drivers.flat_map(|at| directories.iter().map(move |dir| at.join(dir))).collect();
        let modules = self.modules.iter();
        let lies_there = |path: &Path| drivers.iter().any(|dir| path.starts_with(dir));
        modules.filter(|(_, path)| lies_there(path)).map(|(name, _)| name.clone()).collect()
    }

    /// Describes an unknown module name, with the most similar known one.
    pub(super) fn unknown(&self, name: &str) -> String {
        let similar = self.modules.keys().map(|known| (strsim::jaro_winkler(name, known), known));
        let best = similar.max_by(|(one, _), (other, _)| one.total_cmp(other));
        match best.filter(|(alike, _)| *alike > SIMILAR_MIN) {
            Some((_, known)) => format!("{name}; did you mean {known}?"),
            None => name.to_owned(),
        }
    }

    /// Whether the package has a module with this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }

    /// Reads a module's ELF file, decompressed; `None` if the package has none with this name.
    pub(super) fn module(&self, name: &str) -> Result<Option<Vec<u8>>, BuildError> {
        let Some(path) = self.modules.get(name) else { return Ok(None) };
        decompressed(path).map(Some).map_err(|source| BuildError::Io { path: path.clone(), source })
    }

    /// Reads a firmware file; returns it with its name in the package, which may be that of a
    /// compressed file: the kernel unpacks it.
    pub(super) fn firmware(&self, name: &str) -> Option<(String, Vec<u8>)> {
        if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        self.roots.iter().flat_map(|root| LIBRARIES.map(|lib| root.join(lib))).find_map(|lib| {
            ["", ".xz", ".zst"].iter().find_map(|suffix| {
                let name = format!("{name}{suffix}");
                let path = lib.join("firmware").join(&name);
                Some((name, regular_file::read(&path, FILE_BYTES_MAX).ok()?))
            })
        })
    }
}

/// Finds this directory in every root's `lib`, each once: with a merged `/usr`, `lib` is a link to
/// `usr/lib`. A link that leads out of the packages is not followed: it would lead to the builder's
/// own files.
fn beneath(top: &Path, roots: &[PathBuf], name: &str) -> BTreeSet<PathBuf> {
    let places = roots.iter().flat_map(|root| LIBRARIES.map(|lib| root.join(lib).join(name)));
    places.filter_map(|at| at.canonicalize().ok()).filter(|at| at.starts_with(top)).collect()
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let dirs = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    let mut dirs: Vec<PathBuf> = dirs.collect();
    dirs.sort_unstable();
    dirs
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

/// The module's name for a path: `kernel/drivers/net/virtio-net.ko.xz` is `virtio_net`.
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
