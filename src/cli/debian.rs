//! Debian's packages, fetched and unpacked for `hostler ramdisk build` and `hostler loaders
//! install`.
//!
//! `apt-get download` and `dpkg-deb` do the work. This module must never install a package: the
//! package of a boot loader may write to this host's own disk.

use std::{
    ffi::OsStr,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::print;

/// The directory for unpacked packages, unless TMPDIR names another: a kernel takes hundreds of
/// MiB, and `/tmp` is often in memory.
const TEMP_DIR: &str = "/var/tmp";
/// The beginning of the names of kernels' packages.
const KERNEL: &str = "linux-image-";

/// Most lines of a failed program's messages that are shown.
const LINES_MAX: usize = 3;

/// A package that cannot be fetched or unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum DebianError {
    /// One of Debian's programs cannot be started.
    #[error(
        "{program}: {source}; --debian needs Debian's package tools: elsewhere, unpack the \
         packages and name their directory"
    )]
    NotStarted {
        /// The program.
        program: String,
        /// The reason.
        source: io::Error,
    },
    /// One of Debian's programs failed.
    #[error("{program}: {said}{hint}")]
    Failed {
        /// The program's name.
        program: String,
        /// The first lines of its messages.
        said: String,
        /// The next step.
        hint: &'static str,
    },
    /// A directory cannot be made or read.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// Fetches packages and unpacks them into a directory, which is removed when dropped.
pub(super) fn unpack(packages: &[String]) -> Result<TempDir, DebianError> {
    let parent = std::env::var_os("TMPDIR").map_or_else(|| TEMP_DIR.into(), PathBuf::from);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DebianError::Io { path, source }
    };
    let dir =
        tempfile::Builder::new().prefix("hostler-").tempdir_in(&parent).map_err(failed(&parent))?;
    drop(writeln!(print::stderr(), "apt-get download {}", packages.join(" ")));
    // The directory is root's alone, so that apt's own user could not write there.
    let mut download = Command::new("apt-get");
    download.args(["-qq", "-o", "APT::Sandbox::User=root", "download", "--"]).args(packages);
    run(download.current_dir(dir.path()))?;
    for entry in fs::read_dir(dir.path()).map_err(failed(dir.path()))? {
        let package = entry.map_err(failed(dir.path()))?.path();
        if package.extension() == Some(OsStr::new("deb")) {
            run(Command::new("dpkg-deb").arg("--extract").args([&package, dir.path()]))?;
            fs::remove_file(&package).map_err(failed(&package))?;
        }
    }
    Ok(dir)
}

/// Adds Debian's usual kernel, unless a kernel is among the packages, and replaces each
/// metapackage of kernels, which is empty, by its kernel's package.
pub(super) fn with_kernel(packages: &[String]) -> Result<Vec<String>, DebianError> {
    let mut named = packages.to_vec();
    if !packages.iter().any(|name| name.starts_with(KERNEL)) {
        let arch = run(Command::new("dpkg").arg("--print-architecture"))?;
        named.push(format!("{KERNEL}{}", arch.trim()));
    }
    let resolved = named.into_iter().map(|name| {
        if !name.starts_with(KERNEL) {
            return Ok(name);
        }
        let depends = run(Command::new("apt-cache").args(["depends", "--"]).arg(&name))?;
        Ok(kernel_of(&depends).map_or(name, ToOwned::to_owned))
    });
    resolved.collect()
}

/// The kernel's package on which a metapackage depends, by the answer of `apt-cache depends`.
fn kernel_of(depends: &str) -> Option<&str> {
    let names = depends.lines().filter_map(|line| line.trim_start().strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with(KERNEL))
}

/// Runs a program that must succeed. Returns its standard output.
fn run(command: &mut Command) -> Result<String, DebianError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| DebianError::NotStarted { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = first_lines(&String::from_utf8_lossy(&output.stderr));
    let said = said.unwrap_or_else(|| output.status.to_string());
    let hint = if program.starts_with("apt") { "; run \"apt-get update\" first" } else { "" };
    Err(DebianError::Failed { program, said, hint })
}

/// The first lines of a program's messages as one line: on a full disk `tar` has one for each file.
fn first_lines(said: &str) -> Option<String> {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let (shown, rest) = lines.split_at(lines.len().min(LINES_MAX));
    let more = if rest.is_empty() { String::new() } else { format!("; {} more", rest.len()) };
    (!shown.is_empty()).then(|| shown.join("; ") + &more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_says_the_same_of_a_thousand_files_is_quoted_in_one_line() {
        assert_eq!(first_lines("\n \n"), None);
        assert_eq!(first_lines(" E: a\n\nE: b\n").as_deref(), Some("E: a; E: b"));
        let said = "tar: no space\n".repeat(1000);
        let expected = "tar: no space; tar: no space; tar: no space; 997 more";
        assert_eq!(first_lines(&said).as_deref(), Some(expected));
    }

    #[test]
    fn the_kernel_of_a_metapackage_is_its_dependency_and_a_kernel_is_its_own() {
        let meta = "linux-image-amd64\n  Depends: linux-image-6.1.0-57-amd64\n";
        assert_eq!(kernel_of(meta), Some("linux-image-6.1.0-57-amd64"));
        let kernel = "linux-image-6.1.0-57-amd64\n  Depends: kmod\n \
            |Depends: linux-initramfs-tool\n  Suggests: linux-image-6.1.0-57-amd64-dbg\n";
        assert_eq!(kernel_of(kernel), None);
    }

    #[test]
    fn a_failed_program_is_named_with_its_message() {
        let failed = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert_eq!(failed.to_string(), "sh: why");
        let missing = run(&mut Command::new("/nonexistent/apt-get")).unwrap_err().to_string();
        assert!(
            missing.contains("/nonexistent/apt-get") && missing.contains("unpack"),
            "{missing}"
        );
    }
}
