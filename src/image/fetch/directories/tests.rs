//! Accepted sources, and the errors of refused ones.

use std::{fs, io::Read as _, os::unix::fs::symlink, path::Path};

use proptest::prelude::*;

use super::*;

/// Makes a directory `images` with a valid image, and a directory `other` beside it.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["images/sub", "other"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    for name in ["images/good.img", "images/sub/deep.img", "other/away.img"] {
        fs::write(dir.path().join(name), "a disk's bytes").unwrap();
    }
    dir
}

fn images(dir: &Path) -> Directories {
    Directories::new(dir.join("images"), Vec::new())
}

fn error(images: &Directories, source: &str) -> String {
    images.open(source).unwrap_err().to_string()
}

#[test]
fn images_open_by_relative_and_absolute_path_and_by_links_that_stay_inside() {
    let dir = tree();
    symlink("sub/deep.img", dir.path().join("images/latest.img")).unwrap();
    let images = Directories::new(dir.path().join("images"), vec![dir.path().join("other")]);
    let absolute = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for source in [
        "good.img",
        "sub/deep.img",
        "sub/../good.img",
        "latest.img",
        &absolute("images/good.img"),
        &absolute("other/away.img"),
    ] {
        let mut bytes = String::new();
        images.open(source).unwrap().read_to_string(&mut bytes).unwrap();
        assert_eq!(bytes, "a disk's bytes", "{source}");
    }
}

#[test]
fn nothing_opens_outside_the_allowed_directories() {
    let dir = tree();
    let outside = dir.path().join("other/away.img");
    symlink(&outside, dir.path().join("images/absolute.img")).unwrap();
    symlink("../other/away.img", dir.path().join("images/relative.img")).unwrap();
    symlink("../other", dir.path().join("images/folder")).unwrap();
    symlink("/proc/self/root", dir.path().join("images/magic")).unwrap();
    let images = images(dir.path());
    for source in [
        "absolute.img",
        "relative.img",
        "folder/away.img",
        "../other/away.img",
        &format!("magic{}", outside.display()),
        &format!("{}/images/../other/away.img", dir.path().display()),
    ] {
        let error = error(&images, source);
        assert!(error.contains("leads out of"), "{source}: {error}");
    }
    let error = error(&images, outside.to_str().unwrap());
    assert!(error.ends_with(&format!("must lie under {}/images", dir.path().display())), "{error}");
}

#[test]
fn devices_kernel_files_pipes_and_directories_are_no_images() {
    let dir = tree();
    let pipe = dir.path().join("images/pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let images = Directories::new(dir.path().join("images"), vec!["/".into()]);
    for source in ["pipe", "sub", "/dev/zero", "/proc/kallsyms", "/sys/kernel/uevent_seqnum"] {
        let error = error(&images, source);
        assert!(error.contains("not a regular file"), "{source}: {error}");
    }
}

#[test]
fn a_missing_or_empty_image_is_named_with_its_whole_path() {
    let dir = tree();
    fs::write(dir.path().join("images/empty.img"), "").unwrap();
    let images = images(dir.path());
    let there = dir.path().join("images");
    for (source, reason) in [
        ("none.img", "No such file or directory (os error 2)"),
        ("empty.img", "empty; was the copy interrupted?"),
    ] {
        let wanted = format!("{}/{source}: {reason}", there.display());
        assert_eq!(error(&images, source), wanted);
    }
    assert!(error(&images, "").contains("images/: "));
    assert!(error(&images, "a\0b").contains("images/a\0b: "));
}

proptest! {
    #[test]
    fn never_panics_on_any_path(
        source in "[a./\\\\\0é~-]{0,12}",
    ) {
        let dir = tree();
        drop(images(dir.path()).open(&source));
    }
}
