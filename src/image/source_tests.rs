//! Which sources open, and what is said of those that do not.

use std::{fs, os::unix::fs::symlink, path::Path};

use proptest::prelude::*;

use crate::imaging::Images;

/// A directory `images` with a good image, and a directory `other` beside it.
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

fn images(dir: &Path) -> Images {
    Images::new(dir.join("images"), Vec::new())
}

fn error(images: &Images, source: &str) -> String {
    images.open(source).unwrap_err().to_string()
}

#[test]
fn images_open_by_relative_and_absolute_path_and_by_links_that_stay_inside() {
    let dir = tree();
    symlink("sub/deep.img", dir.path().join("images/latest.img")).unwrap();
    let images = Images::new(dir.path().join("images"), vec![dir.path().join("other")]);
    let absolute = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for source in [
        "good.img",
        "sub/deep.img",
        "sub/../good.img",
        "latest.img",
        &absolute("images/good.img"),
        &absolute("other/away.img"),
    ] {
        assert_eq!(images.open(source).unwrap().bytes(), 14, "{source}");
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
    let images = Images::new(dir.path().join("images"), vec!["/".into()]);
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
        let wanted = format!("image {}/{source}: {reason}", there.display());
        assert_eq!(error(&images, source), wanted);
    }
    assert!(error(&images, "https://example.net/a.img").contains("URLs are not supported yet"));
    assert!(error(&images, "").contains("image "));
    assert!(error(&images, "a\0b").contains("image "));
}

#[test]
fn what_is_not_a_disks_bytes_is_recognised_whatever_its_name() {
    let dir = tree();
    let path = dir.path().join("images/disguised.raw");
    for (tool, name) in [
        ("qemu-img create -q -f qcow2", "qcow2"),
        ("qemu-img create -q -f vmdk", "vmdk"),
        ("qemu-img create -q -f vdi", "vdi"),
        ("qemu-img create -q -f vhdx", "vhdx"),
        ("qemu-img create -q -f vpc", "vhd"),
    ] {
        run(&format!("{tool} {} 4M", path.display()));
        assert!(
            error(&images(dir.path()), "disguised.raw").contains(&format!("looks like {name}:"))
        );
        fs::remove_file(&path).unwrap();
    }
    for tool in ["gzip", "xz", "bzip2"] {
        run(&format!("echo bytes | {tool} > {}", path.display()));
        assert!(
            error(&images(dir.path()), "disguised.raw").contains(&format!("looks like {tool}:"))
        );
    }
    fs::write(&path, zstd::encode_all(&b"bytes"[..], 0).unwrap()).unwrap();
    assert!(error(&images(dir.path()), "disguised.raw").contains("looks like zstd:"));
}

fn run(command: &str) {
    let done = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(done.success(), "{command}");
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(
        source in "[a./\\\\\0é~-]{0,12}",
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let dir = tree();
        fs::write(dir.path().join("images/a"), bytes).unwrap();
        drop(images(dir.path()).open(&source));
        drop(images(dir.path()).open("a"));
    }
}
