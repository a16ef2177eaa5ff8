//! Tests that need a separate process: for measurements, limits, or a network.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    process::Command,
};

/// Runs a test in a separate process, under the given command. `name` is the test's with its
/// module's. Returns its standard error; nothing in that process itself.
pub(super) fn alone(name: &str, wrapper: &[&str], test: impl FnOnce()) -> String {
    alone_as(&format!("tftp::{name}"), wrapper, test)
}

/// Runs a test of another module in a separate process, by its whole name.
pub(crate) fn alone_as(name: &str, wrapper: &[&str], test: impl FnOnce()) -> String {
    if std::env::var_os("HOSTLER_TEST_ALONE").is_some() {
        test();
        return String::new();
    }
    // Another user may not be able to reach the test binary.
    let open_to_all = Permissions::from_mode(0o755);
    let dir = tempfile::Builder::new().permissions(open_to_all).tempdir().unwrap();
    let program = dir.path().join("adapters");
    // Copied by another process: a test that starts a program at the same time would inherit this
    // descriptor, and a file that is open for writing cannot be run.
    let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status();
    assert!(copied.unwrap().success());
    let arguments = [wrapper, &[program.to_str().unwrap()]].concat();
    let done = Command::new(arguments[0])
        .args(&arguments[1..])
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env("HOSTLER_TEST_ALONE", "1")
        .output()
        .unwrap();
    let [out, err] = [done.stdout, done.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    assert!(done.status.success() && out.contains("1 passed"), "{out}{err}");
    // The library's output is between these words.
    assert!(out.contains(&format!("test {name} ... ok\n")), "{out}");
    err
}

/// Resident memory of this process, in KiB.
pub(super) fn memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The number of the server's threads: its loop, and one for each transfer, which inherit its name.
pub(super) fn server_threads() -> usize {
    let names = fs::read_dir("/proc/self/task").unwrap().flatten();
    // A thread that has just ended has no name.
    let names = names.flat_map(|task| fs::read_to_string(task.path().join("comm")));
    names.filter(|name| name == "tftp\n").count()
}

/// The number of open files and sockets.
pub(super) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Processor time this process has used, in ms (fields 14 and 15 of proc(5) stat, in hundredths of
/// a second).
pub(super) fn processor_ms() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    10 * fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
}
