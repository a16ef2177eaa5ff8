//! Replaces small files atomically: a reader sees the old content or the new one and nothing
//! between.
//!
//! Called by the adapters that keep files. It must never leave half a file under the final name,
//! nor follow a planted link. [`replace`] writes content that must outlive a power cut;
//! [`replace_unsynced`] writes content that carries a checksum and can be made again.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

const TEMP_SUFFIX: &str = ".tmp";
/// Temporary names tried for one file; a directory may occupy the first ones.
const TEMP_NAMES_MAX: u32 = 8;
/// Bad files kept under one name: so many in a row point to a failing disk, which more would fill.
const BAD_FILES_MAX: u32 = 100;

/// Writes `bytes` to a new file beside `path`, gives it exactly `mode`, makes it durable and
/// renames it over `path`.
///
/// One writer per path at a time: the temporary name is fixed, so that a crash leaves at most one
/// temporary file behind. Whatever has that name is removed; a directory that is not empty stays,
/// and the next temporary name is used. An error names the obstacle.
pub(crate) fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    write_beside(path, mode, bytes, true)
}

/// Replaces a file as [`replace`] does, but without `fsync`. After a power cut the file may be the
/// old one, empty or gone: its reader must be able to verify it.
pub(crate) fn replace_unsynced(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    write_beside(path, mode, bytes, false)
}

fn write_beside(path: &Path, mode: u32, bytes: &[u8], sync: bool) -> io::Result<()> {
    let (temp, file) = create_temp(path, mode)?;
    write_and_rename(file, &temp, path, mode, bytes, sync).inspect_err(|_| {
        // The first error matters more than a failed removal; the next write clears the name
        // anyway.
        fs::remove_file(&temp).unwrap_or_default();
    })
}

/// Creates a new file under a temporary name, and clears the name only if it is taken.
fn create_temp(path: &Path, mode: u32) -> io::Result<(PathBuf, File)> {
    let mut first_error = None;
    for number in 0..TEMP_NAMES_MAX {
        let temp = temp_path(path, number)?;
        // `create_new` is O_EXCL: it does not follow a link planted under the temporary name.
        let create = || OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp);
        let created = match create() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if let Err(error) = clear_temp(&temp) {
                    first_error.get_or_insert(at(&temp, &error));
                    continue;
                }
                create()
            }
            created => created,
        };
        let file = created.map_err(|error| at(&temp, &error))?;
        return Ok((temp, file));
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into()))
}

fn clear_temp(temp: &Path) -> io::Result<()> {
    remove_if_there(temp).or_else(|error| match error.kind() {
        io::ErrorKind::IsADirectory => fs::remove_dir(temp),
        _ => Err(error),
    })
}

/// Adds the file's name to an error.
pub(crate) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Removes the temporary file of a killed [`replace`]. A directory of that name stays.
pub(crate) fn remove_torn(path: &Path) -> io::Result<()> {
    remove_if_there(path).or_else(|error| match error.kind() {
        io::ErrorKind::IsADirectory => Ok(()),
        _ => Err(error),
    })
}

/// Whether this is the name of a temporary file, which a killed [`replace`] leaves behind.
pub(crate) fn is_torn(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMP_SUFFIX)
}

/// Makes a rename or removal in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn write_and_rename(
    mut file: File,
    temp: &Path,
    path: &Path,
    mode: u32,
    bytes: &[u8],
    sync: bool,
) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(temp, path).map_err(|error| at(path, &error))?;
    if sync { sync_dir(parent(path)) } else { Ok(()) }
}

/// Keeps a bad file under the first free name `<name>.bad-<n>`, too, and returns its fate in words.
/// The file is linked, not moved: if the agent is killed now, the next one must not take the file
/// for one that never existed.
pub(crate) fn keep_aside(path: &Path) -> String {
    for n in 1..=BAD_FILES_MAX {
        let aside = PathBuf::from(format!("{}.bad-{n}", path.display()));
        let there = fs::symlink_metadata(&aside).and_then(|there| Ok((there, fs::metadata(path)?)));
        let kept = match there {
            Ok((there, bad)) if (there.dev(), there.ino()) == (bad.dev(), bad.ino()) => Ok(()),
            Ok(_) => continue,
            // A directory can only be moved.
            Err(_) => fs::hard_link(path, &aside).or_else(|_| fs::rename(path, &aside)),
        };
        return match kept {
            Ok(()) => format!("kept as {}", aside.display()),
            Err(error) => format!("it cannot be kept: {error}"),
        };
    }
    format!("it is not kept: there are {BAD_FILES_MAX} bad ones beside it already")
}

/// Removes whatever has this name and is no regular file, and returns in words what that was. A
/// directory that is not empty is kept under another name.
pub(crate) fn clear_irregular(path: &Path) -> io::Result<Option<String>> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        there => there.map_err(|error| at(path, &error))?.file_type(),
    };
    if there.is_file() {
        return Ok(None);
    }
    if !there.is_dir() {
        fs::remove_file(path).map_err(|error| at(path, &error))?;
        let what = if there.is_symlink() { "a link" } else { "no regular file" };
        return Ok(Some(format!("{what}, removed")));
    }
    if fs::remove_dir(path).is_ok() {
        return Ok(Some("an empty directory, removed".to_owned()));
    }
    let fate = keep_aside(path);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Some(format!("a directory, {fate}")))
        }
        _ => Err(at(path, &io::Error::new(io::ErrorKind::IsADirectory, fate))),
    }
}

/// Removes a file. A missing file is no error.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Returns `dir/.name.tmp` for `dir/name`, or `dir/.name.<number>.tmp`: hidden from globs and from
/// the spec scan. A hidden name gets no second dot, because Kubernetes volumes own the names with
/// two.
fn temp_path(path: &Path, number: u32) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let is_hidden = name.as_bytes().starts_with(b".");
    let mut hidden = OsString::from(if is_hidden { "" } else { "." });
    hidden.push(name);
    if number > 0 {
        hidden.push(format!(".{number}"));
    }
    hidden.push(TEMP_SUFFIX);
    Ok(path.with_file_name(hidden))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    type Replace = fn(&Path, u32, &[u8]) -> io::Result<()>;

    #[test]
    fn the_new_content_has_the_asked_mode_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let rounds: [(Replace, u32, &str); 3] =
            [(replace, 0o644, "one"), (replace, 0o600, "two"), (replace_unsynced, 0o644, "three")];
        for (replace, mode, text) in rounds {
            replace(&path, mode, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_under_the_temporary_name_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("a"), dir.path().join("victim"));
        fs::write(&victim, "untouched").unwrap();
        symlink(&victim, temp_path(&path, 0).unwrap()).unwrap();
        replace(&path, 0o600, b"new").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    /// Invariant (status): A status file that cannot be written is no answer, and the obstacle is
    /// named.
    #[test]
    fn a_directory_under_the_temporary_name_keeps_no_file_from_being_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for number in 0..3 {
            let temp = temp_path(&path, number).unwrap();
            let inside = if number == 2 { temp } else { temp.join("inside") };
            fs::create_dir_all(inside).unwrap();
        }
        for text in ["one", "two"] {
            replace(&path, 0o600, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let left = |number| temp_path(&path, number).unwrap().exists();
        assert!(left(0) && left(1) && !left(2), "only what is empty is removed");
        remove_torn(&temp_path(&path, 0).unwrap()).unwrap();
        assert!(left(0));
    }

    /// Invariant (status): A status file that cannot be written is no answer, and the obstacle is
    /// named.
    #[test]
    fn an_error_names_what_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for number in 0..TEMP_NAMES_MAX {
            fs::create_dir_all(temp_path(&path, number).unwrap().join("inside")).unwrap();
        }
        let error = replace(&path, 0o600, b"new").unwrap_err().to_string();
        assert!(error.contains("/.a.tmp: ") && !path.exists(), "{error}");
        let path = dir.path().join("b");
        fs::create_dir_all(path.join("inside")).unwrap();
        let error = replace(&path, 0o600, b"new").unwrap_err().to_string();
        assert!(error.contains("/b: "), "{error}");
    }

    #[test]
    fn a_failed_write_keeps_the_old_content_and_removes_its_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "").unwrap();
        replace(&path, 0o600, b"new").unwrap_err();
        assert!(path.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
