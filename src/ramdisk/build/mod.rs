//! The builder of the deploy kernel and initramfs, from any unpacked kernel package and the static `hostler-ramdisk`.
//!
//! Called by `hostler ramdisk build`. The same input gives the same bytes. It runs no program and needs no root.

mod cpio;
mod elf;
mod modinfo;
mod package;
mod select;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cpio::Archive;
use package::Package;

use crate::regular_file;

/// zstd's best level without long windows: 30 MB take some seconds once, and every machine's TFTP transfer is shorter for it.
const ZSTD_LEVEL: i32 = 19;

/// Largest file that goes into the initramfs as it is: a firmware file has a few MiB, a kernel some dozen.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// What to build from.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// An unpacked kernel package: `boot/vmlinuz-<release>` and `lib/modules/<release>` (or the same under `usr`). Firmware files
    /// under `lib/firmware` are taken along when a module of the initramfs asks for them.
    pub kernel_package: PathBuf,
    /// The `hostler-ramdisk` binary, statically linked for the kernel's architecture.
    pub binary: PathBuf,
    /// The directory to write `vmlinuz` and `initramfs` into; it is made if it does not exist.
    pub out: PathBuf,
}

/// What was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The kernel's release (`uname -r`).
    pub release: String,
    /// Path of the kernel.
    pub kernel: PathBuf,
    /// Path of the initramfs.
    pub initramfs: PathBuf,
    /// Size of the initramfs in bytes, compressed.
    pub initramfs_bytes: u64,
    /// Names of the modules in it, sorted.
    pub modules: Vec<String>,
}

/// Why nothing was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not exactly one kernel in the package.
    #[error(
        "{path}: {found} directories under lib/modules, must be exactly one; unpack one kernel package there (dpkg -x)"
    )]
    Releases {
        /// The package directory.
        path: PathBuf,
        /// How many kernels.
        found: usize,
    },
    /// The kernel cannot be an iSCSI target.
    #[error(
        "kernel {release} has no {module}, which serves the disk; use a distribution's general kernel"
    )]
    NoTarget {
        /// The module it lacks.
        module: &'static str,
        /// The kernel.
        release: String,
    },
    /// The kernel cannot unpack the initramfs.
    #[error("kernel {0} is configured without CONFIG_RD_ZSTD, which unpacks the initramfs")]
    NoZstd(String),
    /// The package is incomplete.
    #[error("module {by} needs {module}, which the package does not have")]
    MissingModule {
        /// What is missing.
        module: String,
        /// What needs it.
        by: String,
    },
    /// A module file is damaged or for a 32-bit or big-endian machine.
    #[error("module {0} is not a 64-bit little-endian ELF file with a .modinfo section")]
    NotAModule(String),
    /// The program would need a dynamic loader, which the initramfs does not have.
    #[error("{0}: not a static ELF program; build it with -C target-feature=+crt-static")]
    NotStatic(PathBuf),
    /// A file is too large for the archive.
    #[error("a file of the initramfs has 4 GiB or more")]
    TooLarge,
}

/// Builds `vmlinuz` and `initramfs` in `options.out`. Both are replaced by renaming, so a machine that is fetching gets the old or the
/// new file whole.
pub fn build(options: &BuildOptions) -> Result<Built, BuildError> {
    let package = Package::open(&options.kernel_package)?;
    if !package.unpacks_zstd() {
        return Err(BuildError::NoZstd(package.release));
    }
    let kernel = package.kernel()?;
    let program = read(&options.binary)?;
    if !elf::is_static_program(&program) {
        return Err(BuildError::NotStatic(options.binary.clone()));
    }
    let selection = select::select(&package)?;

    let mut archive = Archive::default();
    archive.file("init", 0o755, program);
    for directory in ["dev", "proc", "run", "sys"] {
        archive.directory(directory);
    }
    // The kernel opens it for process 1 before anything is mounted.
    archive.character_device("dev/console", 5, 1);
    let dir = format!("lib/modules/{}", package.release);
    archive.file(&format!("{dir}/modules.list"), 0o644, selection.list.to_text().into_bytes());
    let modules = selection.modules.keys().cloned().collect();
    for (name, contents) in selection.modules {
        archive.file(&format!("{dir}/{name}.ko"), 0o644, contents);
    }
    for (name, contents) in selection.firmware {
        archive.file(&format!("lib/firmware/{name}"), 0o644, contents);
    }
    let bytes = archive.to_bytes().ok_or(BuildError::TooLarge)?;
    let path = options.out.join("initramfs");
    let compressed = zstd::encode_all(bytes.as_slice(), ZSTD_LEVEL)
        .map_err(|source| BuildError::Io { path: path.clone(), source })?;

    fs::create_dir_all(&options.out)
        .map_err(|source| BuildError::Io { path: options.out.clone(), source })?;
    Ok(Built {
        kernel: replace(&options.out, "vmlinuz", &kernel)?,
        initramfs: replace(&options.out, "initramfs", &compressed)?,
        initramfs_bytes: compressed.len() as u64,
        release: package.release,
        modules,
    })
}

fn replace(dir: &Path, name: &str, contents: &[u8]) -> Result<PathBuf, BuildError> {
    let (path, new) = (dir.join(name), dir.join(format!(".{name}.new")));
    fs::write(&new, contents)
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|source| BuildError::Io { path: path.clone(), source })?;
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    regular_file::read(path, FILE_BYTES_MAX)
        .map_err(|source| BuildError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::{modinfo::tests::module, *};

    /// A kernel package with LIO, one driver and what it needs, and a static program.
    fn package(dir: &Path) -> BuildOptions {
        let modules = dir.join("package/lib/modules/6.1.0-1-amd64");
        let files: [(&str, Vec<u8>); 8] = [
            ("kernel/configfs.ko", module("depends=\0")),
            ("kernel/target_core_mod.ko", module("depends=configfs\0softdep=pre: crct10dif\0")),
            ("kernel/target_core_iblock.ko", module("depends=target_core_mod\0")),
            (
                "kernel/iscsi_target_mod.ko.zst",
                zstd::encode_all(&module("depends=target_core_mod,configfs\0")[..], 1).unwrap(),
            ),
            ("kernel/net/mlx4_core.ko", module("alias=pci:v000015B3d*\0softdep=post: mlx4-en\0")),
            ("kernel/net/mlx4_en.ko", module("depends=mlx4_core,ptp\0firmware=mlx4.bin\0")),
            ("kernel/sound/snd.ko", b"not looked at".to_vec()),
            ("modules.builtin", b"kernel/drivers/ptp/ptp.ko\n".to_vec()),
        ];
        for (name, contents) in files {
            fs::create_dir_all(modules.join(name).parent().unwrap()).unwrap();
            fs::write(modules.join(name), contents).unwrap();
        }
        fs::create_dir_all(dir.join("package/lib/firmware")).unwrap();
        fs::write(dir.join("package/lib/firmware/mlx4.bin"), "firmware").unwrap();
        fs::create_dir_all(dir.join("package/boot")).unwrap();
        fs::write(dir.join("package/boot/vmlinuz-6.1.0-1-amd64"), "kernel").unwrap();
        BuildOptions {
            kernel_package: dir.join("package"),
            binary: "/bin/busybox".into(),
            out: dir.join("out"),
        }
    }

    #[test]
    fn the_initramfs_holds_the_target_the_drivers_and_what_they_need_in_load_order() {
        let dir = tempfile::tempdir().unwrap();
        let built = build(&package(dir.path())).unwrap();
        let names =
            "configfs iscsi_target_mod mlx4_core mlx4_en target_core_iblock target_core_mod";
        assert_eq!(built.modules.join(" "), names);
        assert_eq!(fs::read(&built.kernel).unwrap(), b"kernel");

        let archive = zstd::decode_all(fs::File::open(&built.initramfs).unwrap()).unwrap();
        let has = |text: &str| archive.windows(text.len()).any(|w| w == text.as_bytes());
        assert!(has("module iscsi_target_mod configfs target_core_mod\n"));
        assert!(has("module mlx4_en mlx4_core\n"), "a builtin module is not loaded");
        assert!(has("alias mlx4_en pci:v000015B3d*\n"), "what comes after a driver comes with it");
        assert!(has("lib/firmware/mlx4.bin\0"));
        assert!(!has("snd"));
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bytes = |dir: &Path| fs::read(build(&package(dir)).unwrap().initramfs).unwrap();
        assert_eq!(bytes(one.path()), bytes(two.path()));
    }

    #[test]
    fn what_is_wrong_with_a_package_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = package(dir.path());
        let modules = dir.path().join("package/lib/modules/6.1.0-1-amd64");
        let error = |options: &BuildOptions| build(options).unwrap_err().to_string();

        options.binary = std::env::current_exe().unwrap();
        assert!(error(&options).contains("not a static ELF program"));
        options.binary = "/bin/busybox".into();

        fs::write(dir.path().join("package/boot/config-6.1.0-1-amd64"), "CONFIG_RD_GZIP=y\n")
            .unwrap();
        assert!(error(&options).contains("CONFIG_RD_ZSTD"));
        fs::remove_file(dir.path().join("package/boot/config-6.1.0-1-amd64")).unwrap();

        fs::remove_file(modules.join("modules.builtin")).unwrap();
        assert_eq!(error(&options), "module mlx4_en needs ptp, which the package does not have");
        fs::write(modules.join("kernel/target_core_iblock.ko"), "damaged").unwrap();
        assert!(error(&options).starts_with("module target_core_iblock is not"));
        fs::remove_file(modules.join("kernel/target_core_iblock.ko")).unwrap();
        assert!(error(&options).starts_with("kernel 6.1.0-1-amd64 has no target_core_iblock"));

        fs::create_dir(dir.path().join("package/lib/modules/6.1.0-2-amd64")).unwrap();
        assert!(error(&options).contains("2 directories under lib/modules"));
    }
}
