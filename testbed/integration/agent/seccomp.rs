//! The seccomp filter of a systemd unit: `RestrictSUIDSGID=` denies `openat2`.

use std::{collections::BTreeMap, fs, io, os::unix::fs::symlink, process::Command, thread};

use hostler::model::status::Phase;
use seccompiler::{SeccompAction, SeccompFilter};

use super::{
    NODE, ends_deployed,
    machine::Machine,
    site::{Site, answer},
};

/// The number of `openat2`, the same on all architectures.
const OPENAT2: i64 = 437;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

/// Runs work on a thread for which, and for whose programs, `openat2` fails with this error.
fn without_openat2<T: Send>(errno: u32, what: impl FnOnce() -> T + Send) -> T {
    let filter = SeccompFilter::new(
        BTreeMap::from([(OPENAT2, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program = seccompiler::BpfProgram::try_from(filter.unwrap()).unwrap();
    thread::scope(|scope| {
        let started = scope.spawn(|| {
            seccompiler::apply_filter(&program).unwrap();
            what()
        });
        started.join().unwrap()
    })
}

/// Runs `hostler check` under this filter.
fn checked(errno: u32, command: &mut Command) -> (i32, String) {
    let (code, said, errors) = without_openat2(errno, || answer(command));
    (code, format!("{said}{errors}"))
}

/// Invariant (secrets): No file outside its directory is opened, with or without `openat2`.
#[test]
fn a_machine_is_installed_by_an_agent_to_which_openat2_is_denied() {
    let site = Site::new();
    fs::write(site.path("loaders/grubx64.efi"), "loader").unwrap();
    symlink(site.path("vmlinuz"), site.path("loaders/link")).unwrap();
    fs::create_dir(site.path("images/real")).unwrap();
    fs::rename(site.path("images/disk.raw"), site.path("images/real/disk.raw")).unwrap();
    symlink("real/disk.raw", site.path("images/disk.raw")).unwrap();
    let machine = Machine::new(&site, NODE);
    let agent = without_openat2(ENOSYS, || site.start());
    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    assert_eq!(site.fetch("grubx64.efi").unwrap(), b"loader");
    let line = "files beneath a directory are opened component by component, \
                because openat2 is denied: Function not implemented";
    assert_eq!(site.log().matches(line).count(), 1, "{}", site.log());

    // A link out of the images directory is not followed. Nothing of that checksum is in the cache.
    symlink(site.path("vmlinuz"), site.path("images/out")).unwrap();
    let out = machine.spec(&site).with("image.source", "out").with("redeploy", "x");
    site.write(NODE, &out.with("image.checksum", &format!("sha256:{}", "0".repeat(64))));
    let status = site.until_phase(NODE, Phase::Failed);
    assert!(status.message.contains("a link in it leads out of"), "{}", status.message);
    drop(agent);
}

/// Invariant (secrets): No file outside its directory is opened, with or without `openat2`.
#[test]
fn what_a_spec_attaches_is_read_whatever_a_filter_answers_to_openat2() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    fs::create_dir(site.path("nodes/user")).unwrap();
    fs::write(site.path("nodes/user/data"), "#cloud-config\n").unwrap();
    let spec = |file: &str| machine.spec(&site).with("config_drive.user_data_file", file);
    symlink(site.path("vmlinuz"), site.path("nodes/user/out")).unwrap();
    for errno in [ENOSYS, EPERM] {
        let check = || site.hostler(&["check", site.path("nodes").to_str().unwrap()]);
        site.write(NODE, &spec("user/data"));
        let (code, said) = checked(errno, &mut check());
        assert_eq!(code, 0, "{}: {said}", io::Error::from_raw_os_error(errno.cast_signed()));
        site.write(NODE, &spec("user/out"));
        let (code, said) = checked(errno, &mut check());
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("`user/out` leads out of the spec directory"), "{said}");
    }
}
