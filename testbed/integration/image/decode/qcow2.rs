//! qcow2 images of qemu-img and qemu-io, each compared with qemu-img's own reading.

use std::fmt::Write as _;

use super::{Bench, ZEROS, disk};

/// Not a multiple of any large cluster.
const DISK_BYTES: usize = (9 << 20) + 3 * 512;

/// Options of images. Version 2 supports neither zstd nor zero clusters.
const VARIANTS: &[&str] = &[
    "compat=0.10",
    "compat=0.10,cluster_size=512",
    "compat=0.10,cluster_size=2M",
    "compat=1.1",
    "compat=1.1,cluster_size=512",
    "compat=1.1,cluster_size=1K",
    "compat=1.1,cluster_size=4K",
    "compat=1.1,cluster_size=2M",
    "compat=1.1,lazy_refcounts=on",
    "compat=1.1,refcount_bits=1",
    "compat=1.1,refcount_bits=64",
    "compat=1.1,preallocation=metadata",
    "compat=1.1,preallocation=falloc",
    "compat=1.1,preallocation=full",
    "compat=1.1,compression_type=zstd",
    "compat=1.1,compression_type=zstd,cluster_size=512",
    "compat=1.1,compression_type=zstd,cluster_size=2M",
    "compat=1.1,extended_l2=on",
    "compat=1.1,extended_l2=on,cluster_size=16K",
    "compat=1.1,extended_l2=on,cluster_size=2M",
    "compat=1.1,extended_l2=on,compression_type=zstd",
    "compat=1.1,extended_l2=on,preallocation=metadata",
];

/// Compares an image with qemu-img's reading.
fn check(bench: &Bench, image: &str, how: &str) {
    bench.sh(&format!("qemu-img convert -O raw {image} theirs.raw"));
    let ours = bench.decode(image).unwrap_or_else(|error| panic!("{how}: {error}"));
    assert!(ours == bench.read("theirs.raw"), "{how}: not what qemu-img reads");
}

#[test]
fn what_qemu_img_converts_is_read_as_it_was() {
    let bench = Bench::new();
    let raw = disk(DISK_BYTES, 1);
    bench.write("disk.raw", &raw);
    for options in VARIANTS {
        for packed in ["", "-c"] {
            // Compression excludes preallocation.
            if packed == "-c" && options.contains("preallocation") {
                continue;
            }
            bench.sh(&format!("qemu-img convert {packed} -f raw -O qcow2 -o {options} disk.raw q"));
            let ours = bench.decode("q").unwrap_or_else(|error| panic!("{options}: {error}"));
            assert!(ours == raw, "{options} {packed}");
        }
    }
}

/// Random overlapping writes, zeros, discards and compressed writes.
fn scribble(random: &mut fastrand::Rng, bytes: u64, count: usize) -> String {
    let mut commands = String::new();
    for _ in 0..count {
        let at = random.u64(0..bytes / 512) * 512;
        let length = (512_u64 << random.u32(0..10)).min(bytes - at);
        let pattern = random.u8(1..);
        let command = match random.u8(0..6) {
            0 => format!("write -z {at} {length}"),
            1 => format!("write -z -u {at} {length}"),
            2 => format!("discard {at} {length}"),
            // Whole clusters only; qemu-io refuses overlaps, which does no harm.
            3 => format!("write -c -P {pattern} {} 2M", at >> 21 << 21),
            _ => format!("write -P {pattern} {at} {length}"),
        };
        write!(commands, " -c '{command}'").unwrap();
    }
    commands
}

#[test]
fn what_was_written_over_and_over_is_read_as_qemu_reads_it() {
    let bench = Bench::new();
    for (index, options) in VARIANTS.iter().enumerate() {
        let mut random = fastrand::Rng::with_seed(index as u64);
        bench.sh(&format!("qemu-img create -q -f qcow2 -o {options} q {DISK_BYTES}"));
        for _ in 0..2 {
            let commands = scribble(&mut random, DISK_BYTES as u64, 60);
            bench.sh(&format!("qemu-io {commands} q >said || true"));
        }
        check(&bench, "q", options);
    }
}

#[test]
fn snapshots_are_left_aside_and_resized_disks_have_their_new_size() {
    let bench = Bench::new();
    for options in ["compat=0.10", "compat=1.1", "compat=1.1,extended_l2=on"] {
        let mut random = fastrand::Rng::with_seed(7);
        bench.sh(&format!("qemu-img create -q -f qcow2 -o {options} q {DISK_BYTES}"));
        for name in ["first", "second"] {
            let commands = scribble(&mut random, DISK_BYTES as u64, 40);
            bench.sh(&format!("qemu-io {commands} q >said || true; qemu-img snapshot -c {name} q"));
        }
        bench.sh(&format!("qemu-io {} q >said || true", scribble(&mut random, 9 << 20, 40)));
        check(&bench, "q", &format!("{options} with snapshots"));
        bench.sh("qemu-img snapshot -d first q; qemu-img snapshot -d second q");
        bench.sh("qemu-img resize -q q +700M && qemu-io -c 'write -P 9 600M 1M' q >said");
        check(&bench, "q", &format!("{options} grown"));
        bench.sh("qemu-img resize -q --shrink q 5M");
        check(&bench, "q", &format!("{options} shrunk"));
    }
}

#[test]
fn an_image_that_was_in_use_when_its_machine_died_is_read() {
    let bench = Bench::new();
    bench.sh("qemu-img create -q -f qcow2 -o lazy_refcounts=on q 4M");
    bench.sh("qemu-io -c 'write -P 7 1M 1M' -c flush -c abort q >said 2>&1 || true");
    bench.sh("qemu-img info q | grep -q 'incompatible\\|dirty' || true");
    assert_eq!(bench.read("q")[79] & 1, 1, "it is not marked dirty");
    let ours = bench.decode("q").unwrap();
    assert!(ours[1 << 20..2 << 20].iter().all(|byte| *byte == 7));
    assert!(ours[..1 << 20].iter().chain(&ours[2 << 20..]).all(|byte| *byte == 0));
}

/// Invariant (image): A file that is cut short or damaged is never taken for whole, and unpacking
/// has its limits.
#[test]
fn an_image_that_is_cut_short_is_never_taken_for_whole() {
    let bench = Bench::new();
    let raw = disk(3 << 20, 3);
    bench.write("disk.raw", &raw);
    for how in ["", "-c", "-o extended_l2=on", "-c -o compression_type=zstd"] {
        bench.sh(&format!("qemu-img convert -f raw -O qcow2 {how} disk.raw q"));
        let image = bench.read("q");
        let mut random = fastrand::Rng::with_seed(5);
        let lengths: Vec<usize> = (0..60).map(|_| random.usize(..image.len() - 1024)).collect();
        for length in lengths {
            bench.write("cut", &image[..length]);
            let said = bench.refusal("cut");
            // The cut may be within a compressed cluster's last sector.
            let is_seen = ["cut short", "empty", "the compressed cluster at"];
            assert!(is_seen.iter().any(|why| said.contains(why)), "{how} at {length}: {said}");
        }
        // The last bytes may be unused.
        for length in (image.len() - 1024..image.len()).step_by(89) {
            bench.write("cut", &image[..length]);
            if let Ok(ours) = bench.decode("cut") {
                assert!(ours == raw, "{how} at {length}: zeros in place of what is cut off");
            }
        }
    }
}

#[test]
fn a_large_disk_with_little_on_it_takes_no_time_and_no_space() {
    let bench = Bench::new();
    bench.sh("qemu-img create -q -f qcow2 q 512M && qemu-io -c 'write -P 5 300M 64k' q >said");
    let ours = bench.decode("q").unwrap();
    let (before, rest) = ours.split_at(300 << 20);
    let (data, after) = rest.split_at(64 << 10);
    assert!([before, after].concat().chunks(4096).all(|block| ZEROS.starts_with(block)));
    assert_eq!(data, [5; 1024].repeat(64));
    bench.sh("qemu-img create -q -f qcow2 q 64T");
    assert!(bench.refusal("q").contains("more than 1.0 GiB"));
}
