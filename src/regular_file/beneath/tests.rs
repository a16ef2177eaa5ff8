//! Tests of both ways of opening beneath a directory, with links, `..` and renames.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use proptest::prelude::*;

use super::*;
use crate::regular_file::{read_start, tests::make_fifo};

const BY_COMPONENTS: Way = Way::Components(Errno::NOSYS);
const WAYS: [Way; 2] = [Way::Kernel, BY_COMPONENTS];

/// Makes a directory `inside` with a secret file beside it.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("inside/a/b")).unwrap();
    fs::create_dir(path("outside")).unwrap();
    fs::write(path("secret"), "secret").unwrap();
    fs::write(path("outside/secret"), "secret").unwrap();
    fs::write(path("inside/file"), "file").unwrap();
    fs::write(path("inside/a/b/deep"), "deep").unwrap();
    make_fifo(&path("inside/fifo"));
    dir
}

/// The content of the opened file, or the error.
fn opened(way: Way, dir: &Path, path: &str, links: Links) -> Result<String, String> {
    open_dir(dir)
        .and_then(|dir| open_by(way, dir, Path::new(path), links))
        .and_then(|file| read_start(file, 100))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|error| error.to_string())
}

fn target() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop::sample::select(vec!["file", "a", "b", "deep", "fifo", "l0", "l1", "l2", "l3"]),
        3 => Just(".."),
        1 => Just("."),
        1 => Just("outside"),
        1 => Just("secret"),
    ];
    let slash = |often| prop::sample::select([vec![""; often], vec!["/"]].concat());
    (slash(9), prop::collection::vec(part, 1..6), slash(5))
        .prop_map(|(first, parts, last)| format!("{first}{}{last}", parts.join("/")))
}

proptest! {
    // `testbed/check damage` plays more.
    /// Invariant (secrets): No file outside its directory is opened, with or without `openat2`.
    #[test]
    fn both_ways_open_the_same_and_never_what_is_outside(
        links in prop::collection::vec((0..3_usize, target()), 0..4),
        paths in prop::collection::vec(target(), 1..12),
    ) {
        let tree = tree();
        let inside = tree.path().join("inside");
        for (n, (place, target)) in links.iter().enumerate() {
            symlink(target, inside.join(["", "a", "a/b"][*place]).join(format!("l{n}"))).unwrap();
        }
        for path in &paths {
            for mode in [Links::Beneath, Links::Refused] {
                let [kernel, components] = WAYS.map(|way| opened(way, &inside, path, mode));
                prop_assert_eq!(&kernel, &components, "{} {:?}", path, mode);
                prop_assert!(kernel.as_deref() != Ok("secret"), "{} {:?}", path, mode);
            }
        }
    }
}

#[test]
fn links_lead_where_they_may_and_nothing_leads_out() {
    let tree = tree();
    let inside = tree.path().join("inside");
    let link = |target: &str, name: &str| symlink(target, inside.join(name)).unwrap();
    link("a/b/deep", "in");
    link("../file", "a/up");
    link("../secret", "out");
    link("a/b", "folder");
    link(&inside.join("file").display().to_string(), "absolute");
    link("/proc/self/environ", "kernel");
    link("loop", "loop");
    link("chain-0", "chain-start");
    for n in 0..39 {
        link(&format!("chain-{}", n + 1), &format!("chain-{n}"));
    }
    link("file", "chain-39");
    let out = "Invalid cross-device link (os error 18)";
    let loops = "Too many levels of symbolic links (os error 40)";
    for way in WAYS {
        for (path, expected) in [
            ("file", Ok("file")),
            ("./a/../a/b//deep", Ok("deep")),
            ("in", Ok("deep")),
            ("a/up", Ok("file")),
            ("folder/../b/deep", Ok("deep")),
            ("chain-0", Ok("file")),
            ("chain-start", Err(loops)),
            ("loop", Err(loops)),
            ("out", Err(out)),
            ("absolute", Err(out)),
            ("kernel", Err(out)),
            ("../inside/file", Err(out)),
            ("a/../../secret", Err(out)),
            ("/etc/passwd", Err(out)),
            ("", Err("No such file or directory (os error 2)")),
            ("none", Err("No such file or directory (os error 2)")),
            ("file/", Err("Not a directory (os error 20)")),
            ("file/..", Err("Not a directory (os error 20)")),
            ("fifo", Err("a FIFO, not a regular file")),
            (".", Err("a directory, not a regular file")),
            ("a/b/", Err("a directory, not a regular file")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(opened(way, &inside, path, Links::Beneath), expected, "{way:?} {path}");
        }
        for path in ["in", "folder/deep", "out", "absolute"] {
            let refused = opened(way, &inside, path, Links::Refused);
            assert_eq!(refused, Err(loops.to_owned()), "{way:?} {path}");
        }
        assert_eq!(
            opened(way, Path::new("/sys"), "devices/system/cpu/online", Links::Beneath),
            Err("something of the kernel's, not a regular file".to_owned()),
        );
    }
}

/// Invariant (secrets): No file outside its directory is opened, with or without `openat2`.
#[test]
fn renames_meanwhile_lead_nobody_out() {
    let tree = tree();
    let (inside, outside) = (tree.path().join("inside"), tree.path().join("outside"));
    fs::create_dir_all(inside.join("catalog/x/y")).unwrap();
    fs::write(inside.join("catalog/secret"), "allowed").unwrap();
    symlink("../outside", inside.join("swap-link")).unwrap();
    fs::create_dir(inside.join("swap")).unwrap();
    fs::write(inside.join("swap/secret"), "allowed").unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Once moved out, `x/y/../..` has the other secret.
                fs::rename(inside.join("catalog/x"), outside.join("x")).unwrap();
                fs::rename(outside.join("x"), inside.join("catalog/x")).unwrap();
                rustix::fs::renameat_with(
                    CWD,
                    inside.join("swap"),
                    CWD,
                    inside.join("swap-link"),
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
            }
        });
        let mut allowed = [0; 2];
        for (n, way) in WAYS.iter().enumerate() {
            for _ in 0..3_000 {
                for path in ["catalog/x/y/../../secret", "swap/secret"] {
                    match opened(*way, &inside, path, Links::Beneath).as_deref() {
                        Ok("allowed") => allowed[n] += 1,
                        Ok(other) => {
                            done.store(true, Ordering::Relaxed);
                            panic!("{way:?} {path}: {other}");
                        }
                        // The file may be missing for a moment; no other error is right.
                        Err(error) => assert!(!error.contains("unavailable"), "{way:?} {error}"),
                    }
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(allowed.iter().all(|count| *count > 0), "{allowed:?}");
    });
}

#[test]
fn a_way_that_is_very_deep_takes_a_bounded_number_of_descriptors() {
    let tree = tempfile::tempdir().unwrap();
    let deep = ["d"; DEPTH_MAX + 1].join("/");
    fs::create_dir_all(tree.path().join(&deep)).unwrap();
    fs::write(tree.path().join(&deep[2..]).join("file"), "file").unwrap();
    let open = |path: &str| opened(BY_COMPONENTS, tree.path(), path, Links::Beneath);
    assert_eq!(open(&format!("{}/file", &deep[2..])), Ok("file".to_owned()));
    assert_eq!(open(&deep), Err("File name too long (os error 36)".to_owned()));
}

#[test]
fn the_way_says_why_it_was_chosen() {
    assert_eq!(Way::Kernel.to_string(), "by openat2");
    let said = "component by component, because openat2 is denied: \
                Function not implemented (os error 38)";
    assert_eq!(BY_COMPONENTS.to_string(), said);
}
