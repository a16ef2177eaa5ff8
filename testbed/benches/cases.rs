//! The cases: images, targets and contenders.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    contest::{Contender, contest},
    images, open_iscsi,
    relay::{Relay, Trouble},
    tgtd::{IQN, Tgtd},
};

const GIB: u64 = 1 << 30;
/// The rate of each connection of a narrow path, in bytes per second.
const NARROW_BYTES: u64 = 100 << 20;
/// The limits of the deploy ramdisk's target, as tgtd parameters.
const TUNED: [(&str, &str); 4] = [
    ("MaxRecvDataSegmentLength", "262144"),
    ("FirstBurstLength", "262144"),
    ("MaxBurstLength", "1048576"),
    ("MaxOutstandingR2T", "8"),
];

pub(crate) fn run() {
    let dir = TempDir::new().unwrap();
    dense(dir.path());
    narrow(dir.path());
    sparse(dir.path());
    debian(dir.path());
    four(dir.path());
}

/// An image full of data: measures the path.
fn dense(dir: &Path) {
    let image = images::dense(dir, 2 * GIB);
    for (case, tuned) in [("dense", false), ("dense-tuned", true)] {
        let target = target(2 * GIB, tuned);
        contest(
            case,
            2.0,
            &raw_contenders(&image, &target),
            || {},
            |who| compare(who, &image, &target),
        );
    }
    // The target discards the bytes.
    let target = target(2 * GIB, true);
    let unit = ["--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "2"];
    target.adm(&[&unit[..], &["--bstype", "null", "--backing-store", "2G"]].concat());
    let mut contenders = raw_contenders(&image, &target);
    for contender in &mut contenders {
        contender.command = contender.command.replace(&format!("{IQN}/1"), &format!("{IQN}/2"));
    }
    contest("dense-null", 2.0, &contenders, || {}, |_| {});
    vm(&image);
    fs::remove_file(image).unwrap();
}

/// A path that gives each connection only a part of its bandwidth.
fn narrow(dir: &Path) {
    let image = images::dense(dir, GIB);
    let target = target(GIB, true);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let relay = runtime.block_on(Relay::start(target.portal, Trouble::Narrow(NARROW_BYTES)));
    let mut contenders = raw_contenders(&image, &target);
    for contender in &mut contenders {
        let (straight, narrow) = (target.portal.to_string(), relay.address.to_string());
        contender.command = contender.command.replace(&straight, &narrow);
    }
    contest("dense-narrow", 1.0, &contenders, || {}, |who| compare(who, &image, &target));
    fs::remove_file(image).unwrap();
}

/// Against the kernel's initiator, in a virtual machine. Its time is that of dd alone.
fn vm(image: &Path) {
    let target = target(2 * GIB, true);
    let command = open_iscsi::command(image, &target);
    let contenders = [
        Contender { name: "hostler", command: hostler(&[(image, &target)]) },
        Contender { name: "open-iscsi-dd-in-a-vm", command },
    ];
    contest("dense-vm", 2.0, &contenders, || {}, |who| compare(who, image, &target));
}

/// A tenth of 8 GiB is data, and the disk holds old bytes: one target that needs sent zeros, and
/// one that makes them itself.
fn sparse(dir: &Path) {
    let image = images::sparse(dir, 8 * GIB);
    for (case, thin) in [("sparse", false), ("sparse-thin", true)] {
        let target = target(8 * GIB, true);
        if thin {
            let unit = ["--mode", "logicalunit", "--op", "update", "--tid", "1", "--lun", "1"];
            target.adm(&[&unit[..], &["--params", "thin_provisioning=1"]].concat());
        }
        let before = || target.fill_disk(0xaa);
        let after = |who: &str| compare(who, &image, &target);
        contest(case, 8.0, &raw_contenders(&image, &target), before, after);
    }
    fs::remove_file(image).unwrap();
}

/// A real system as its publisher packs it.
fn debian(dir: &Path) {
    let there = PathBuf::from("target/testbed/bench");
    let [raw, qcow2, zstd] = images::debian(&there);
    let target = target(4 * GIB, true);
    let url = url(&target);
    for (case, image) in [("debian-raw", &raw), ("debian-qcow2", &qcow2), ("debian-zstd", &zstd)] {
        let (image, scratch) = (image.display(), dir.join("scratch.raw"));
        let scratch = scratch.display();
        let peers = match case {
            "debian-raw" => [
                format!("qemu-img convert -n -f raw -O raw {image} {url}"),
                format!("qemu-img convert -n -W -m 16 -f raw -O raw {image} {url}"),
            ],
            "debian-qcow2" => [
                format!("qemu-img convert -n -f qcow2 -O raw {image} {url}"),
                format!("qemu-img convert -n -W -m 16 -f qcow2 -O raw {image} {url}"),
            ],
            _ => ["", "-W -m 16"].map(|how| {
                format!(
                    "zstd -q -d -f --sparse {image} -o {scratch}; \
                     qemu-img convert -n {how} -f raw -O raw {scratch} {url}; rm {scratch}"
                )
            }),
        };
        let [plain, unordered] = peers;
        let contenders = [
            Contender {
                name: "hostler",
                command: hostler(&[(Path::new(&image.to_string()), &target)]),
            },
            Contender { name: "qemu-img", command: plain },
            Contender { name: "qemu-img-W-m16", command: unordered },
        ];
        contest(
            case,
            4.0,
            &contenders,
            || target.fill_disk(0xaa),
            |who| compare(who, &raw, &target),
        );
    }
}

/// Four machines at once: one hostler, four qemu-img.
fn four(dir: &Path) {
    let image = images::dense(dir, GIB);
    let targets: Vec<Tgtd> = (0..4).map(|_| target(GIB, true)).collect();
    let pairs: Vec<(&Path, &Tgtd)> =
        targets.iter().map(|target| (image.as_path(), target)).collect();
    let image_shown = image.display();
    let all = |how: &str| -> String {
        let each = |target: &Tgtd| {
            format!("qemu-img convert -n {how} -f raw -O raw {image_shown} {} & ", url(target))
        };
        let started: Vec<String> = targets.iter().map(each).collect();
        format!("{} wait", started.concat())
    };
    let contenders = [
        Contender { name: "hostler", command: hostler(&pairs) },
        Contender { name: "qemu-img", command: all("") },
        Contender { name: "qemu-img-W-m16", command: all("-W -m 16") },
    ];
    contest(
        "four",
        4.0,
        &contenders,
        || {},
        |who| {
            for target in &targets {
                compare(who, &image, target);
            }
        },
    );
    fs::remove_file(image).unwrap();
}

fn raw_contenders(image: &Path, target: &Tgtd) -> Vec<Contender> {
    let (image_shown, url) = (image.display(), url(target));
    vec![
        Contender { name: "hostler", command: hostler(&[(image, target)]) },
        Contender {
            name: "qemu-img",
            command: format!("qemu-img convert -n -f raw -O raw {image_shown} {url}"),
        },
        Contender {
            name: "qemu-img-W-m16",
            command: format!("qemu-img convert -n -W -m 16 -f raw -O raw {image_shown} {url}"),
        },
    ]
}

/// Runs this program in a separate process, so that it is measured like the others.
fn hostler(disks: &[(&Path, &Tgtd)]) -> String {
    let me = env::current_exe().unwrap();
    let disk =
        |(image, target): &(&Path, &Tgtd)| format!("{} {} {IQN}/1", image.display(), target.portal);
    let disks: Vec<String> = disks.iter().map(disk).collect();
    format!("{} write {}", me.display(), disks.join(" "))
}

fn url(target: &Tgtd) -> String {
    format!("iscsi://{}/{IQN}/1", target.portal)
}

fn target(bytes: u64, tuned: bool) -> Tgtd {
    let target = Tgtd::serve(IQN, bytes);
    for (name, value) in TUNED.iter().filter(|_| tuned) {
        target.set(name, value);
    }
    target.fill_disk(0xaa);
    target
}

/// Compares the disk with the image, byte by byte.
fn compare(who: &str, image: &Path, target: &Tgtd) {
    let bytes = fs::metadata(image).unwrap().len();
    let same = Command::new("cmp")
        .args(["-n", &bytes.to_string()])
        .args([image, &target.disk_file()])
        .status()
        .unwrap();
    assert!(same.success(), "{who} left another disk");
}
