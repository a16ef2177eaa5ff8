//! Rules of the code, checked on its text: dependencies of modules, lengths of files, and module
//! docs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const LINES_MAX: usize = 600;

/// The adapters: one for each outside party.
const ADAPTERS: [&str; 14] = [
    "spec_dir",
    "config",
    "watch",
    "store",
    "status_file",
    "netboot",
    "bmc",
    "iscsi",
    "image",
    "imaging",
    "drive",
    "callback",
    "admin",
    "port_probe",
];

/// The top-level modules that a module may name, besides itself; `None` for an unknown module.
fn may_name(module: &str) -> Option<&'static [&'static str]> {
    match module {
        "lib" | "bin" | "agent" | "cli" => Some(&["*"]),
        "model" | "atomic_file" | "checked_file" | "file_mark" | "listener" | "regular_file" => {
            Some(&[])
        }
        "progress" | "lifecycle" => Some(&["model"]),
        "boot_call" => Some(&["model", "listener"]),
        "ramdisk" => Some(&["model", "regular_file"]),
        adapter if ADAPTERS.contains(&adapter) => Some(&[
            "model",
            "atomic_file",
            "checked_file",
            "file_mark",
            "listener",
            "regular_file",
            "progress",
            "boot_call",
        ]),
        _ => None,
    }
}

/// Invariant (code): A module names only those below it.
#[test]
fn every_module_names_only_those_below_it() {
    let wrong: Vec<String> = sources("src").iter().flat_map(|path| offences(path)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Invariant (code): The files of a folder name each other in one direction.
#[test]
fn no_files_of_a_folder_name_each_other_in_a_circle() {
    let paths = [sources("src"), sources("testbed/sim")].concat();
    let mut named: BTreeMap<PathBuf, BTreeSet<PathBuf>> =
        paths.iter().map(|path| (module_of(path), siblings_named(path))).collect();
    loop {
        let left = named.len();
        let modules: BTreeSet<PathBuf> = named.keys().cloned().collect();
        // A module that names no remaining module is in no circle.
        named.retain(|module, others| others.iter().any(|o| o != module && modules.contains(o)));
        if named.len() == left {
            break;
        }
    }
    assert!(named.is_empty(), "these, or some of them, name each other: {named:#?}");
}

/// The path of a file's module: `a/b` for `a/b.rs` and for `a/b/mod.rs`.
fn module_of(path: &Path) -> PathBuf {
    let is_folder = path.file_name().is_some_and(|name| name == "mod.rs");
    if is_folder { path.parent().unwrap().to_owned() } else { path.with_extension("") }
}

/// The modules beside a file's own that its code names, tests left out.
fn siblings_named(path: &Path) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code = without_comments(code).replace("super::super::", "");
    let beside = module_of(path);
    let beside = beside.parent().unwrap();
    code.split("super::").skip(1).flat_map(heads).map(|name| beside.join(name)).collect()
}

#[test]
fn every_file_says_what_it_is_and_stays_readable_in_one_sitting() {
    let mut wrong = Vec::new();
    for path in [sources("src"), sources("testbed")].concat() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        if !text.starts_with("//! ") {
            wrong.push(format!("{}: does not open with `//!`: what is it?", path.display()));
        }
        if lines > LINES_MAX {
            wrong.push(format!(
                "{}: {lines} lines, at most {LINES_MAX}: one thought per file",
                path.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Functions that open or read a file without a check of its kind.
const BARE_OPENS: [&str; 9] = [
    "File::open(",
    "File::options(",
    "OpenOptions::new(",
    "fs::read(",
    "fs::read_to_string(",
    "fs::copy(",
    "tokio::fs",
    "openat(",
    "openat2(",
];

/// Files that may use them, each with the reason.
const MAY_OPEN: [(&str, &str); 12] = [
    ("regular_file.rs", "it is the helper"),
    ("regular_file/beneath.rs", "it is the helper"),
    ("atomic_file.rs", "a directory, and files it makes itself"),
    ("drive/ephemeral.rs", "a temporary file it makes itself"),
    ("spec_dir/directory.rs", "a directory"),
    ("store/mod.rs", "the lock, which it makes itself, for reading and writing"),
    ("image/library/cache.rs", "locks and files it makes itself, never waiting"),
    ("ramdisk/modules.rs", "the initramfs, where nobody else is"),
    ("ramdisk/boot_sequence.rs", "/proc, in the initramfs"),
    ("ramdisk/log.rs", "/dev/kmsg, without waiting, in the initramfs"),
    ("ramdisk/sysfs.rs", "/sys, in the initramfs"),
    ("ramdisk/target.rs", "/dev and configfs, in the initramfs"),
];

/// Invariant (fair): A FIFO, socket, device or directory in place of a file is named, and nobody
/// waits for it.
#[test]
fn whatever_lies_in_other_peoples_directories_is_opened_by_one_helper() {
    let src = root().join("src");
    let mut wrong = Vec::new();
    let mut needed = BTreeSet::new();
    for path in sources("src") {
        let inside = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        if inside.ends_with("tests.rs") || inside.contains("/tests/") {
            continue;
        }
        for (at, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap();
            if let Some(bare) = BARE_OPENS.iter().find(|bare| line.contains(**bare)) {
                match MAY_OPEN.iter().find(|(file, _)| *file == inside) {
                    Some((file, _)) => drop(needed.insert(*file)),
                    None => wrong.push(format!(
                        "{inside}:{}: `{bare}` waits at a FIFO; use `regular_file`",
                        at + 1
                    )),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (file, reason) in MAY_OPEN {
        assert!(needed.contains(file), "{file} opens nothing by itself any more: {reason}");
    }
}

/// Files that may print besides `cli/print.rs`, each with the reason.
const MAY_PRINT: [(&str, &str); 5] = [
    ("cli/print.rs", "it is the one writer"),
    ("cli/log.rs", "the log, which escapes every value"),
    ("cli/cache.rs", "the line of progress, which a terminal is to draw over"),
    ("bin/hostler.rs", "it hands both to the one writer"),
    ("ramdisk/init.rs", "the deploy ramdisk's own console"),
];

/// Invariant (secrets): No text from outside does anything to a terminal; JSON and TOML read back
/// the same.
#[test]
fn whatever_a_command_prints_goes_through_one_writer() {
    let src = root().join("src");
    for path in sources("src") {
        let inside = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let prints = ["stdout()", "stderr()", "io::stdout", "io::stderr"];
        let printed = text.lines().any(|line| {
            let code = line.split("//").next().unwrap().replace("print::stderr()", "");
            prints.iter().any(|prints| code.contains(prints))
        });
        let may = MAY_PRINT.iter().any(|(file, _)| *file == inside);
        assert_eq!(printed, may, "{inside} prints by itself, or need not be named any more");
    }
}

#[test]
fn the_reader_of_names_sees_plain_grouped_and_nested_ones_but_no_comments() {
    let text = "
        use crate::model::{ids, fault}; // not crate::cli
        use crate::{\n store, iscsi::{pdu, login}, netboot as t };
        /// [`crate::agent`]
        fn f() { crate::bmc::call(); $crate::watch!() }";
    let names: Vec<String> = named(text).into_iter().collect();
    assert_eq!(names, ["bmc", "iscsi", "model", "netboot", "store", "watch"]);
}

/// The forbidden modules that a file names.
fn offences(path: &Path) -> Vec<String> {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap();
    let module = Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap();
    let Some(allowed) = may_name(module) else {
        return vec![format!("{}: `{module}` has no place in the layers", path.display())];
    };
    named(&fs::read_to_string(path).unwrap())
        .into_iter()
        .filter(|name| name != module && !allowed.contains(&name.as_str()) && allowed != ["*"])
        .map(|name| format!("{}: `{module}` must not name `{name}`", path.display()))
        .collect()
}

/// The top-level modules a file names by `crate::`.
fn named(text: &str) -> BTreeSet<String> {
    without_comments(text).split("crate::").skip(1).flat_map(heads).collect()
}

fn without_comments(text: &str) -> String {
    let code = text.lines().map(|line| line.split("//").next().unwrap().trim());
    code.collect::<Vec<_>>().join(" ")
}

/// The first name of a path, or of each path in a `{group}`.
fn heads(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else { return vec![head(path)] };
    let mut depth = 0;
    let (mut heads, mut from) = (Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' if depth == 0 => {
                heads.push(head(&group[from..at]));
                from = at + 1;
            }
            '}' if depth == 0 => {
                heads.push(head(&group[from..at]));
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    heads.retain(|name| !name.is_empty());
    heads
}

fn head(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// Every Rust file in a folder of the package.
pub(crate) fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no source under {folder}");
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
