//! Tests of irregular files, which are errors at once, and of the limits of reads.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::*;

/// Makes a FIFO, which a plain open waits at.
pub(crate) fn make_fifo(path: &Path) {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
}

/// Runs an operation, and fails if it hangs.
pub(crate) fn at_once<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(what()));
    result.recv_timeout(Duration::from_secs(10)).expect("it hangs")
}

/// Invariant (fair): A FIFO, socket, device or directory in place of a file is named, and nobody
/// waits for it.
#[test]
fn whatever_lies_where_a_file_should_be_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    make_fifo(&path("fifo"));
    let _socket = UnixListener::bind(path("socket")).unwrap();
    fs::create_dir(path("folder")).unwrap();
    symlink("fifo", path("link")).unwrap();
    symlink("/dev/zero", path("zero")).unwrap();
    for (name, said) in [
        ("fifo", "a FIFO, not a regular file"),
        ("link", "a FIFO, not a regular file"),
        ("socket", "a socket, not a regular file"),
        ("folder", "a directory, not a regular file"),
        ("zero", "a device, not a regular file"),
    ] {
        let file = path(name);
        let error = at_once(move || read(&file, 100)).unwrap_err();
        assert_eq!(error.to_string(), said, "{name}");
        assert!(NotRegular::is_cause_of(&error), "{name}");
    }
    assert_eq!(open(&path("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_file_is_read_up_to_its_limit_and_a_longer_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for (text, is_good) in [("", true), ("ten bytes!", true), ("eleven byte", false)] {
        fs::write(&path, text).unwrap();
        let read = read_to_string(&path, 10);
        assert_eq!(read.is_ok(), is_good, "{text}");
        if let Err(error) = read {
            assert_eq!(error.to_string(), "more than 10 bytes");
        }
    }
    fs::write(&path, b"a\xff").unwrap();
    assert_eq!(read_to_string(&path, 10).unwrap_err().to_string(), "not UTF-8 from byte 1 on");
}

#[test]
fn the_file_that_was_taken_hold_of_is_the_one_that_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "checked").unwrap();
    let held = openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    fs::remove_file(&path).unwrap();
    make_fifo(&path);
    let file = at_once(move || open_held(&held)).unwrap();
    assert_eq!(read_start(file, 100).unwrap(), b"checked");
}
