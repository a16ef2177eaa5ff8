//! The builder of the deploy kernel and initramfs, from any unpacked kernel package and the static
//! `hostler-ramdisk`.
//!
//! `hostler ramdisk build` uses it. The same input gives the same bytes. It runs no program and
//! needs no root.

mod cpio;
mod drivers;
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

/// zstd's best level without long windows: 30 MB take some seconds once, and shorten every
/// machine's TFTP transfer.
const ZSTD_LEVEL: i32 = 19;

/// Largest file of the initramfs: a firmware file has a few MiB, a kernel some dozen.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// The input and output of a build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// An unpacked kernel package: `boot/vmlinuz-<release>` and `lib/modules/<release>` (or the
    /// same under `usr`). Other packages may be unpacked into the same directory, or each into a
    /// directory beneath it. The build adds firmware files under `lib/firmware` that a module of
    /// the initramfs may request.
    pub kernel_package: PathBuf,
    /// Additional modules, by the kernel's name or the file's.
    pub modules: Vec<String>,
    /// Whether to add every driver of a network interface or a disk controller in the package.
    pub all_drivers: bool,
    /// The `hostler-ramdisk` binary, statically linked for the kernel's architecture.
    pub binary: PathBuf,
    /// The output directory of `vmlinuz` and `initramfs`; it is made if it does not exist.
    pub out: PathBuf,
}

/// The report about a built ramdisk.
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
    /// Names of the firmware files in it, sorted.
    pub firmware: Vec<String>,
    /// Drivers of every initramfs that this kernel lacks.
    pub drivers_missing: Vec<String>,
    /// Firmware that the modules may request and that was not found.
    pub firmware_missing: Vec<MissingFirmware>,
}

/// Firmware that a module may request and that was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingFirmware {
    /// The module.
    pub module: String,
    /// Whether other files of the module were found: with most drivers, a NIC needs one file of
    /// many.
    pub has_some: bool,
    /// The files, beneath `lib/firmware`.
    pub files: Vec<String>,
    /// Debian's packages of the files, if known.
    pub debian_packages: Vec<String>,
}

/// A failed build.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The module.
        path: PathBuf,
        /// The reason why it is missing.
        source: io::Error,
    },
    /// The package does not hold exactly one kernel.
    #[error(
        "{path}: {found} kernels under lib/modules, must be exactly one; unpack one kernel package \
         there (dpkg -x)"
    )]
    Releases {
        /// The package directory.
        path: PathBuf,
        /// The number of kernels.
        found: usize,
    },
    /// The kernel lacks an iSCSI target.
    #[error(
        "kernel {release} has no {module}, which serves the disk; use a distribution's general \
         kernel"
    )]
    NoTarget {
        /// The missing module.
        module: &'static str,
        /// The kernel.
        release: String,
    },
    /// The kernel cannot unpack the initramfs.
    #[error("kernel {0} is configured without CONFIG_RD_ZSTD, which unpacks the initramfs")]
    NoZstd(String),
    /// The package has modules, but not their kernel.
    #[error("no boot/vmlinuz-{0}, the kernel that the modules are for; unpack its package, too")]
    NoKernel(String),
    /// The package lacks a requested module.
    #[error("the package has no module {0}")]
    NoModule(String),
    /// A module's dependency is missing.
    #[error("module {by} needs {module}, which the package does not have")]
    MissingModule {
        /// The missing firmware file.
        module: String,
        /// The modules that need it.
        by: String,
    },
    /// A module file is damaged or for a 32-bit or big-endian machine.
    #[error("module {0} is not a 64-bit little-endian ELF file with a .modinfo section")]
    NotAModule(String),
    /// The program would need a dynamic loader, which the initramfs does not have.
    #[error(
        "{0}: not a static ELF program; take the one of hostler's package, or build it with \
         -C target-feature=+crt-static and --target"
    )]
    NotStatic(PathBuf),
    /// The program would not run on the kernel's processors.
    #[error("{path}: a program for {program}, but the kernel is for {kernel}; build it for that")]
    OtherArch {
        /// The program.
        path: PathBuf,
        /// Its processors.
        program: &'static str,
        /// The processors of the kernel's modules.
        kernel: &'static str,
    },
    /// A file is too large for the archive.
    #[error("a file of the initramfs has 4 GiB or more")]
    TooLarge,
}

/// Builds `vmlinuz` and `initramfs` in `options.out`. Renames replace both, so that a machine gets
/// the old or the new file whole.
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
    let selection = select::select(&package, &options.modules, options.all_drivers)?;
    if let (Some(program), Some(kernel)) = (elf::arch(&program), selection.arch)
        && program != kernel
    {
        let (program, kernel) = (program.as_str(), kernel.as_str());
        return Err(BuildError::OtherArch { path: options.binary.clone(), program, kernel });
    }

    let mut archive = Archive::default();
    archive.file("init", 0o755, program);
    for directory in ["dev", "proc", "run", "sys"] {
        archive.directory(directory);
    }
    // The kernel opens it for process 1 before any mount.
    archive.character_device("dev/console", 5, 1);
    let dir = format!("lib/modules/{}", package.release);
    archive.file(&format!("{dir}/modules.list"), 0o644, selection.list.to_text().into_bytes());
    let modules = selection.modules.keys().cloned().collect();
    for (name, contents) in selection.modules {
        archive.file(&format!("{dir}/{name}.ko"), 0o644, contents);
    }
    let firmware = selection.firmware.keys().cloned().collect();
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
        firmware,
        drivers_missing: selection.drivers_missing,
        firmware_missing: selection.firmware_missing,
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
    use crate::model::boot::Arch;

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
        fs::write(dir.join("program"), elf::static_program()).unwrap();
        BuildOptions {
            kernel_package: dir.join("package"),
            modules: Vec::new(),
            all_drivers: false,
            binary: dir.join("program"),
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
        options.binary = dir.path().join("program");

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

        let other = dir.path().join("package/lib/modules/6.1.0-2-amd64");
        fs::create_dir(&other).unwrap();
        assert!(error(&options).starts_with("kernel 6.1.0-1-amd64"), "it holds no module");
        fs::write(other.join("x.ko"), module("depends=\0")).unwrap();
        assert!(error(&options).contains("2 kernels under lib/modules"));
        fs::remove_dir_all(other).unwrap();
        options.kernel_package = dir.path().join("nowhere");
        assert!(error(&options).contains("nowhere"));
    }

    /// Invariant (ramdisk): A ramdisk's kernel, modules and program are for the same processors.
    #[test]
    fn a_ramdisk_for_64_bit_arm_has_its_drivers_and_takes_no_pcs_program() {
        let dir = tempfile::tempdir().unwrap();
        let options = package(dir.path());
        let kernel = dir.path().join("package/lib/modules/6.1.0-1-amd64/kernel");
        for name in ["configfs", "target_core_mod", "target_core_iblock", "net/mlx4_core"] {
            let path = kernel.join(format!("{name}.ko"));
            fs::write(&path, elf::for_arch(Arch::Aarch64, fs::read(&path).unwrap())).unwrap();
        }
        for name in ["netsec", "isci"] {
            fs::write(kernel.join(format!("{name}.ko")), module("depends=\0")).unwrap();
        }
        let program = |arch| elf::for_arch(arch, elf::static_program());
        fs::write(&options.binary, program(Arch::Aarch64)).unwrap();
        let built = build(&options).unwrap();
        let has = |name: &str| built.modules.iter().any(|module| module == name);
        assert!(has("netsec") && !has("isci"), "{:?}", built.modules);
        let lacks = |name: &str| built.drivers_missing.iter().any(|missing| missing == name);
        assert!(lacks("genet") && !lacks("vmd"), "{:?}", built.drivers_missing);

        fs::write(&options.binary, program(Arch::X86_64)).unwrap();
        let error = build(&options).unwrap_err().to_string();
        let wanted = ": a program for x86_64, but the kernel is for aarch64; build it for that";
        assert!(error.ends_with(wanted), "{error}");
    }

    /// Invariant (ramdisk): The builder names the drivers and firmware that its ramdisk lacks.
    #[test]
    fn what_was_asked_for_is_taken_and_what_lacks_is_named_with_debians_package() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = package(dir.path());
        let drivers = dir.path().join("package/lib/modules/6.1.0-1-amd64/kernel/drivers");
        for (file, modinfo) in [
            ("net/ethernet/bnx2x.ko", "alias=pci:v1*\0firmware=bnx2x/a.fw\0firmware=bnx2x/b.fw\0"),
            ("net/ethernet/old-model.ko", "alias=pci:v2*\0firmware=old/model.bin\0"),
            ("net/ethernet/no_hardware.ko", "depends=\0"),
            ("scsi/st.ko", "alias=scsi:t-0x01*\0"),
            ("usb/storage/usb-storage.ko", "alias=usb:v*ic08*\0"),
        ] {
            fs::create_dir_all(drivers.join(file).parent().unwrap()).unwrap();
            fs::write(drivers.join(file), module(modinfo)).unwrap();
        }
        let built = build(&options).unwrap();
        let has = |built: &Built, name: &str| built.modules.iter().any(|module| module == name);
        assert!(has(&built, "bnx2x") && !has(&built, "old_model") && !has(&built, "usb_storage"));
        assert_eq!(built.firmware, ["mlx4.bin"]);
        let lacks = |name: &str| built.drivers_missing.iter().any(|missing| missing == name);
        assert!(lacks("mpi3mr") && !lacks("bnx2x"));
        let [missing] = built.firmware_missing.as_slice() else { panic!("{built:?}") };
        assert_eq!((&*missing.module, missing.has_some), ("bnx2x", false));
        assert_eq!(missing.files, ["bnx2x/a.fw", "bnx2x/b.fw"]);
        assert_eq!(missing.debian_packages, ["firmware-bnx2x"]);

        options.all_drivers = true;
        let all = build(&options).unwrap();
        assert!(has(&all, "old_model"));
        for not in ["no_hardware", "st", "usb_storage"] {
            assert!(!has(&all, not), "{not}");
        }
        assert_eq!(all.firmware_missing[1].debian_packages, [""; 0], "nobody knows");

        options.all_drivers = false;
        options.modules = vec!["usb-storage".into(), "ptp".into(), "no_hardware".into()];
        let more = build(&options).unwrap();
        assert!(has(&more, "usb_storage") && has(&more, "no_hardware"), "ptp is built in");
        options.modules = vec!["old-modal".into()];
        let error = build(&options).unwrap_err().to_string();
        assert_eq!(error, "the package has no module old_modal; did you mean old_model?");
    }

    /// Invariant (ramdisk): The builder names the drivers and firmware that its ramdisk lacks.
    #[test]
    fn packages_may_lie_beside_each_other_and_with_a_merged_usr() {
        let dir = tempfile::tempdir().unwrap();
        let options = package(dir.path());
        let plain = build(&options).unwrap();
        let root = options.kernel_package.clone();
        let unpacked = |built: &Built| (built.modules.clone(), built.firmware.clone());

        // `lib` is a link, as on an installed system.
        fs::create_dir(root.join("usr")).unwrap();
        fs::rename(root.join("lib"), root.join("usr/lib")).unwrap();
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
        assert_eq!(unpacked(&build(&options).unwrap()), unpacked(&plain));

        // A firmware package that was unpacked beside the kernel's, which has a directory of its
        // own.
        let inner = root.join("linux-image");
        fs::create_dir(&inner).unwrap();
        for name in ["boot", "usr", "lib"] {
            fs::rename(root.join(name), inner.join(name)).unwrap();
        }
        fs::create_dir_all(root.join("firmware-x/usr")).unwrap();
        fs::rename(inner.join("usr/lib/firmware"), root.join("firmware-x/usr/firmware")).unwrap();
        fs::create_dir_all(root.join("firmware-x/usr/lib")).unwrap();
        fs::rename(root.join("firmware-x/usr/firmware"), root.join("firmware-x/usr/lib/firmware"))
            .unwrap();
        assert_eq!(unpacked(&build(&options).unwrap()), unpacked(&plain));

        // A distribution that has rarer modules in a package of their own.
        let extra = root.join("modules-extra/lib/modules/6.1.0-1-amd64/kernel");
        fs::create_dir_all(&extra).unwrap();
        fs::write(extra.join("igb.ko"), module("depends=\0alias=pci:v3*\0")).unwrap();
        assert!(build(&options).unwrap().modules.contains(&"igb".to_owned()));

        // A link out of the packages would lead to this machine's own kernel.
        fs::remove_file(inner.join("lib")).unwrap();
        fs::rename(inner.join("usr"), dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere/lib"), inner.join("lib")).unwrap();
        assert!(build(&options).is_err());
    }
}
