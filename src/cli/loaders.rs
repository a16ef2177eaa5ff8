//! `hostler loaders install`: copies boot loaders from Debian's packages into `tftp.loaders`.
//!
//! The packages are installed on this host, unpacked in a directory, or fetched and unpacked by the
//! command. It must never remove a loader: an administrator may have put another one there.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{atomic_file, config, model::boot::Arch, regular_file};

use super::{Failure, configuration, debian, text::columns};

/// The largest boot loader, in bytes: most have less than one MiB.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Mode of the loaders: everybody on the deploy network may read them.
const MODE: u32 = 0o644;

/// A boot loader, and its file in a Debian package.
struct Loader {
    arch: Arch,
    /// The name by which machines request it.
    name: &'static str,
    package: &'static str,
    path: &'static str,
    purpose: &'static str,
}

const LOADERS: [Loader; 11] = [
    Loader {
        arch: Arch::X86_64,
        name: "pxelinux.0",
        package: "pxelinux",
        path: "usr/lib/PXELINUX/pxelinux.0",
        purpose: "BIOS",
    },
    Loader {
        arch: Arch::X86_64,
        name: "lpxelinux.0",
        package: "pxelinux",
        path: "usr/lib/PXELINUX/lpxelinux.0",
        purpose: "BIOS, with HTTP",
    },
    Loader {
        arch: Arch::X86_64,
        name: "ldlinux.c32",
        package: "syslinux-common",
        path: "usr/lib/syslinux/modules/bios/ldlinux.c32",
        purpose: "BIOS, a part of both",
    },
    Loader {
        arch: Arch::X86_64,
        name: "undionly.kpxe",
        package: "ipxe",
        path: "usr/lib/ipxe/undionly.kpxe",
        purpose: "BIOS, iPXE by the firmware's driver",
    },
    Loader {
        arch: Arch::X86_64,
        name: "ipxe.lkrn",
        package: "ipxe",
        path: "boot/ipxe.lkrn",
        purpose: "BIOS, iPXE by its own drivers",
    },
    Loader {
        arch: Arch::X86_64,
        name: "snponly.efi",
        package: "ipxe",
        path: "usr/lib/ipxe/snponly.efi",
        purpose: "UEFI, iPXE by the firmware's driver",
    },
    Loader {
        arch: Arch::X86_64,
        name: "ipxe.efi",
        package: "ipxe",
        path: "boot/ipxe.efi",
        purpose: "UEFI, iPXE by its own drivers",
    },
    Loader {
        arch: Arch::X86_64,
        name: "grubx64.efi",
        package: "grub-efi-amd64-signed",
        path: "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
        purpose: "UEFI, GRUB",
    },
    Loader {
        arch: Arch::X86_64,
        name: "shimx64.efi",
        package: "shim-signed",
        path: "usr/lib/shim/shimx64.efi.signed",
        purpose: "UEFI with Secure Boot, before GRUB",
    },
    Loader {
        arch: Arch::Aarch64,
        name: "grubaa64.efi",
        package: "grub-efi-arm64-signed",
        path: "usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed",
        purpose: "UEFI, GRUB",
    },
    Loader {
        arch: Arch::Aarch64,
        name: "shimaa64.efi",
        package: "shim-signed",
        path: "usr/lib/shim/shimaa64.efi.signed",
        purpose: "UEFI with Secure Boot, before GRUB",
    },
];

#[derive(Debug, clap::Subcommand)]
pub(super) enum LoadersCommand {
    /// Copy boot loaders from Debian's packages, and name those that are missing, with their
    /// packages. Exit code 1 if one is missing.
    Install(InstallArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct InstallArgs {
    /// The directory with the unpacked packages. By default those that are installed here.
    #[arg(long, value_name = "DIR", default_value = "/")]
    from: PathBuf,
    /// Fetch the packages with apt-get. None is installed.
    #[arg(long, conflicts_with = "from")]
    debian: bool,
    /// The machines' processors: `x86_64` or `aarch64`.
    #[arg(long, default_value = "x86_64", value_parser = arch)]
    arch: Arch,
    /// The directory for the loaders, instead of tftp.loaders in the configuration.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// The agent's configuration; without it the one of this machine, if there is one.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// The outcome for one loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Copied,
    Unchanged,
    /// The loader is in place, but no package to compare it with.
    Kept,
    Missing,
}

/// A file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
struct FileError {
    path: PathBuf,
    source: io::Error,
}

pub(super) fn run(command: LoadersCommand, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let LoadersCommand::Install(InstallArgs { from, debian, arch, to, config }) = command;
    let to = match to {
        Some(to) => to,
        None => configuration(config.as_deref())?
            .map_or_else(|| config::LOADERS_DIR.into(), |config| config.tftp.loaders),
    };
    let wanted: Vec<&Loader> = LOADERS.iter().filter(|loader| loader.arch == arch).collect();
    let outcomes = if debian {
        let unpacked = debian::unpack(&packages(&wanted))?;
        install(&wanted, unpacked.path(), &to)?
    } else {
        install(&wanted, &from, &to)?
    };
    write!(out, "{}", report(&wanted, &outcomes, &to))?;
    Ok(if outcomes.contains(&Outcome::Missing) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn install(wanted: &[&Loader], from: &Path, to: &Path) -> Result<Vec<Outcome>, FileError> {
    fs::create_dir_all(to).map_err(at(to))?;
    wanted.iter().map(|loader| install_one(loader, from, to)).collect()
}

/// A rename replaces the file: a machine gets the old or the new one whole.
fn install_one(loader: &Loader, from: &Path, to: &Path) -> Result<Outcome, FileError> {
    let (source, target) = (from.join(loader.path), to.join(loader.name));
    let Some(new) = read_if_there(&source)? else {
        let is_there = target.exists();
        return Ok(if is_there { Outcome::Kept } else { Outcome::Missing });
    };
    if read_if_there(&target)? == Some(new.clone()) {
        return Ok(Outcome::Unchanged);
    }
    atomic_file::replace(&target, MODE, &new).map_err(at(&target))?;
    Ok(Outcome::Copied)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match regular_file::read(path, FILE_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(at(path)),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    |source| FileError { path, source }
}

/// The packages of these loaders, each once, as apt-get wants them on this host.
fn packages(loaders: &[&Loader]) -> Vec<String> {
    let mut packages: Vec<String> = Vec::new();
    for loader in loaders {
        let package = package(loader);
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    packages
}

/// The package's name, with its architecture where that is not this host's.
fn package(loader: &Loader) -> String {
    if loader.arch.as_str() == std::env::consts::ARCH {
        return loader.package.to_owned();
    }
    let arch = match loader.arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    };
    format!("{}:{arch}", loader.package)
}

/// The Debian package of a boot loader, by the name under which machines request it.
pub(super) fn package_of(name: &str) -> Option<String> {
    LOADERS.iter().find(|loader| loader.name == name).map(package)
}

fn report(loaders: &[&Loader], outcomes: &[Outcome], to: &Path) -> String {
    let rows: Vec<_> = loaders.iter().zip(outcomes).collect();
    let lines: Vec<[String; 3]> = rows
        .iter()
        .map(|(loader, outcome)| {
            let said = match outcome {
                Outcome::Copied => "copied".to_owned(),
                Outcome::Unchanged => "unchanged".to_owned(),
                Outcome::Kept => "kept as it is".to_owned(),
                Outcome::Missing => format!("MISSING, from package {}", package(loader)),
            };
            [loader.name.to_owned(), said, loader.purpose.to_owned()]
        })
        .collect();
    let mut text = format!("{}:\n{}", to.display(), columns(&lines));
    let is_missing = |row: &&(&&Loader, &Outcome)| *row.1 == Outcome::Missing;
    let missing: Vec<&Loader> =
        rows.iter().filter(is_missing).map(|(loader, _)| **loader).collect();
    if !missing.is_empty() {
        writeln!(
            text,
            "{} missing: \"hostler loaders install --debian\" fetches the packages; without \
             apt-get, unpack {} into DIR and give --from DIR",
            missing.len(),
            packages(&missing).join(", ")
        )
        .unwrap_or_default();
    }
    text
}

fn arch(text: &str) -> Result<Arch, String> {
    let known = Arch::ALL.into_iter().find(|arch| arch.as_str() == text);
    known.ok_or_else(|| format!("must be {}", Arch::ALL.map(Arch::as_str).join(" or ")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use expect_test::expect;
    use tempfile::tempdir;

    use super::*;
    use crate::cli::dhcp_snippet;

    const X86_64: &[&str] = &["--arch", "x86_64"];

    /// Runs the command. Returns its report, without directories, and whether it succeeded.
    fn installed(from: &Path, to: &Path, more: &[&str]) -> (String, bool) {
        #[derive(clap::Parser)]
        struct Args {
            #[command(subcommand)]
            command: LoadersCommand,
        }
        let [from, to] = [from, to].map(|path| path.to_str().unwrap());
        let args = ["loaders", "install", "--from", from, "--to", to];
        let args = <Args as clap::Parser>::parse_from(args.iter().chain(more));
        let mut out = Vec::new();
        let code = run(args.command, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap().replace(to, "TO");
        (text, code == ExitCode::SUCCESS)
    }

    fn put(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Invariant (code): `hostler loaders install` copies the loaders it finds, and names each
    /// missing one with its package.
    #[test]
    fn loaders_are_copied_and_each_missing_one_is_named_with_its_package() {
        let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
        let to = to.path().join("made/loaders");
        put(from.path(), "usr/lib/PXELINUX/pxelinux.0", "new");
        put(from.path(), "usr/lib/syslinux/modules/bios/ldlinux.c32", "same");
        put(&to, "pxelinux.0", "old");
        put(&to, "ldlinux.c32", "same");
        put(&to, "ipxe.efi", "the administrator's");
        put(&to, "other.efi", "the administrator's");
        let (said, is_complete) = installed(from.path(), &to, X86_64);
        assert!(!is_complete);
        expect![[r#"
            TO:
            pxelinux.0     copied                                       BIOS
            lpxelinux.0    MISSING, from package pxelinux               BIOS, with HTTP
            ldlinux.c32    unchanged                                    BIOS, a part of both
            undionly.kpxe  MISSING, from package ipxe                   BIOS, iPXE by the firmware's driver
            ipxe.lkrn      MISSING, from package ipxe                   BIOS, iPXE by its own drivers
            snponly.efi    MISSING, from package ipxe                   UEFI, iPXE by the firmware's driver
            ipxe.efi       kept as it is                                UEFI, iPXE by its own drivers
            grubx64.efi    MISSING, from package grub-efi-amd64-signed  UEFI, GRUB
            shimx64.efi    MISSING, from package shim-signed            UEFI with Secure Boot, before GRUB
            6 missing: "hostler loaders install --debian" fetches the packages; without apt-get, unpack pxelinux, ipxe, grub-efi-amd64-signed, shim-signed into DIR and give --from DIR
        "#]]
        .assert_eq(&said);
        assert_eq!(fs::read_to_string(to.join("pxelinux.0")).unwrap(), "new");
        let mode = fs::metadata(to.join("pxelinux.0")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, MODE);
        for theirs in ["ipxe.efi", "other.efi"] {
            assert_eq!(fs::read_to_string(to.join(theirs)).unwrap(), "the administrator's");
        }
    }

    #[test]
    fn loaders_of_every_kind_of_processor_are_installed_when_all_are_there() {
        let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
        for loader in &LOADERS {
            put(from.path(), loader.path, loader.path);
        }
        for arch in Arch::ALL {
            let (said, is_complete) = installed(from.path(), to.path(), &["--arch", arch.as_str()]);
            assert!(is_complete && !said.contains("issing"), "{said}");
        }
        for loader in &LOADERS {
            assert_eq!(fs::read_to_string(to.path().join(loader.name)).unwrap(), loader.path);
        }
    }

    #[test]
    fn every_loader_that_a_dhcp_server_names_is_installed() {
        for choice in dhcp_snippet::CHOICES {
            assert!(LOADERS.iter().any(|loader| loader.name == choice.file), "{}", choice.file);
        }
    }

    #[test]
    fn a_package_for_other_processors_is_named_with_them() {
        let other = Arch::ALL.into_iter().find(|arch| arch.as_str() != std::env::consts::ARCH);
        let loaders: Vec<_> = LOADERS.iter().filter(|loader| Some(loader.arch) == other).collect();
        assert!(
            packages(&loaders).iter().all(|name| name.contains(':')),
            "{:?}",
            packages(&loaders)
        );
        assert_eq!(arch("amd64").unwrap_err(), "must be x86_64 or aarch64");
    }
}
