//! Compressed files of the usual packers.

use std::{fs::File, ops::ControlFlow};

use hostler::{
    image::{DecodeError, DecodeLimits, decode, inspect},
    model::spec::ImageFormat,
};

use super::{Bench, decode_as, disk};

/// Commands that pack their input.
const PACKERS: &[&str] = &[
    "gzip -1",
    "gzip -6 -n",
    "gzip -9 --rsyncable",
    "pigz -p2",
    "pigz -p2 -i -b 128",
    "pigz -R -9",
    "xz -0",
    "xz -6",
    "xz -9e",
    "xz -T2 --block-size=1MiB",
    "xz -3 --check=none",
    "xz -3 --check=crc32",
    "xz -3 --check=sha256",
    "xz --x86 --lzma2=preset=1",
    "xz --delta=dist=4 --lzma2=preset=1,lc=0,lp=2",
    "zstd -1",
    "zstd -19",
    "zstd --fast=5",
    "zstd --ultra -22",
    "zstd --long=27",
    "zstd -T2 -B1MiB",
    "zstd --no-check",
    "zstd -c --no-content-size",
    "bzip2 -1",
    "bzip2 -9",
    "pbzip2 -p2 -b1 -c",
    "lbzip2 -n2",
];

/// One packer of each format.
const USUAL: &[&str] = &["gzip", "xz -1", "zstd", "bzip2"];

#[test]
fn what_the_usual_packers_write_is_unpacked() {
    let bench = Bench::new();
    let raw = disk((5 << 20) + 1234, 11);
    bench.write("disk.raw", &raw);
    for packer in PACKERS {
        bench.sh(&format!("{packer} <disk.raw >packed"));
        let ours = bench.decode("packed").unwrap_or_else(|error| panic!("{packer}: {error}"));
        assert!(ours == raw, "{packer}");
    }
}

#[test]
fn members_frames_and_streams_are_one_image() {
    let bench = Bench::new();
    let raw = disk(3 << 20, 12);
    bench.write("disk.raw", &raw);
    bench.sh("split -b 700000 disk.raw part");
    for packer in USUAL {
        bench.sh(&format!("for part in part??; do {packer} <$part; done >packed"));
        assert!(bench.decode("packed").unwrap() == raw, "{packer}");
        // An empty member in the middle and at the end.
        bench.sh(&format!("{packer} </dev/null >none; {packer} <disk.raw >disk"));
        bench.sh("cat none disk none none >packed");
        assert!(bench.decode("packed").unwrap() == raw, "{packer} with empty ones");
    }
}

#[test]
fn a_skippable_frame_of_zstd_is_skipped() {
    let bench = Bench::new();
    let raw = disk(1 << 20, 13);
    bench.write("disk.raw", &raw);
    bench.sh(r"printf '\x50\x2a\x4d\x18\x05\0\0\0hello' >skip");
    bench.sh("zstd <disk.raw >disk; cat skip disk skip >packed");
    assert!(bench.decode("packed").unwrap() == raw);
}

#[test]
fn qcow2_in_an_outer_layer_is_unpacked_and_read() {
    let bench = Bench::new();
    let raw = disk(5 << 20, 14);
    bench.write("disk.raw", &raw);
    for how in ["", "-c", "-c -o compression_type=zstd", "-o cluster_size=512"] {
        bench.sh(&format!("qemu-img convert -f raw -O qcow2 {how} disk.raw q"));
        for packer in USUAL {
            bench.sh(&format!("{packer} <q >packed"));
            assert!(bench.decode("packed").unwrap() == raw, "{packer} around {how}");
        }
    }
}

/// Invariant (image): An image with trailing bytes is unpacked as its format's own tool does it.
#[test]
fn what_follows_the_end_is_taken_as_the_formats_own_tool_takes_it() {
    let bench = Bench::new();
    let raw = disk(1 << 20, 15);
    bench.write("disk.raw", &raw);
    let metadata = r#"printf '{ "metadata_version": "1.1" }FWx0\0\0\0# signature'"#;
    for (packer, unpacker) in
        [("gzip", "gunzip"), ("xz -1", "unxz"), ("zstd", "unzstd"), ("bzip2", "bunzip2")]
    {
        for behind in [
            "echo junk",
            metadata,
            "head -c 8 /dev/zero; echo junk",
            "head -c 3M /dev/zero",
            "head -c 3 /dev/zero",
            // The first byte of another member.
            if packer == "gzip" { "printf '\\x1f'" } else { "printf B" },
        ] {
            bench.sh(&format!("{{ {packer} <disk.raw; {behind}; }} >packed"));
            // gunzip ends with 2 where it warns.
            let ends = format!("case '{packer}'$? in gzip2) ;; *) false;; esac");
            bench
                .sh(&format!("{{ {unpacker} <packed >raw || {ends}; }} && echo 0 >s || echo 1 >s"));
            if bench.read("s") == b"0\n" {
                assert!(bench.decode("packed").unwrap() == raw, "{packer} {behind}");
            } else {
                let said = bench.refusal("packed");
                assert!(said.contains("cannot be unpacked"), "{packer} {behind}: {said}");
            }
        }
    }
    for packer in ["gzip", "bzip2"] {
        bench.sh(&format!("{{ {packer} <disk.raw; {packer} <disk.raw | head -c 20; }} >packed"));
        assert!(bench.refusal("packed").contains("it is cut short"), "{packer}");
    }
}

/// Invariant (image): A file that is cut short or damaged is never taken for whole, and unpacking
/// has its limits.
#[test]
fn what_is_cut_short_is_never_taken_for_whole() {
    let bench = Bench::new();
    bench.write("disk.raw", &disk(1 << 20, 16));
    for packer in USUAL.iter().chain(&["xz -T2 --block-size=256KiB", "zstd --no-check"]) {
        bench.sh(&format!("{packer} <disk.raw >packed"));
        let packed = bench.read("packed");
        let mut random = fastrand::Rng::with_seed(5);
        let lengths = (0..30).map(|_| random.usize(20..packed.len()));
        for length in lengths.chain(packed.len() - 9..packed.len()) {
            bench.write("cut", &packed[..length]);
            let said = bench.refusal("cut");
            assert!(said.contains("cut short"), "{packer}, {length} bytes: {said}");
        }
    }
}

#[test]
fn what_does_not_compare_is_refused() {
    let bench = Bench::new();
    bench.write("disk.raw", &disk(1 << 20, 17));
    for packer in USUAL {
        bench.sh(&format!("{packer} <disk.raw >packed"));
        let packed = bench.read("packed");
        let mut random = fastrand::Rng::with_seed(6);
        // Bytes that are not compared, as gzip's time, are in the first few.
        for _ in 0..40 {
            let mut damaged = packed.clone();
            damaged[random.usize(40..packed.len())] ^= 1 << random.u8(0..8);
            bench.write("damaged", &damaged);
            let said = bench.refusal("damaged");
            assert!(said.contains("cannot be unpacked after"), "{packer}: {said}");
        }
    }
}

#[test]
fn memory_is_bounded_and_the_option_that_needs_more_is_named() {
    let bench = Bench::new();
    bench.write("disk.raw", &disk(1 << 20, 18));
    bench.sh("zstd --ultra -1 --long=28 <disk.raw >packed");
    assert!(bench.refusal("packed").ends_with("pack it with --long=27 or less"));
    bench.sh("xz --lzma2=dict=129MiB,mode=fast,mf=hc3,nice=10 <disk.raw >packed");
    assert!(
        bench.refusal("packed").ends_with("more than 128.0 MiB of memory; pack it with -9 or less")
    );
}

/// Invariant (image): A file that is cut short or damaged is never taken for whole, and unpacking
/// has its limits.
#[test]
fn a_bomb_stops_at_the_limit() {
    let bench = Bench::new();
    for packer in USUAL {
        bench.sh(&format!("head -c 300M /dev/zero | {packer} >bomb"));
        let error = decode_as(&bench.path("bomb"), ImageFormat::Auto, 4 << 20).unwrap_err();
        assert!(error.to_string().contains("more than 4.0 MiB"), "{packer}: {error}");
    }
    bench.sh("qemu-img create -q -f qcow2 q 4M; gzip <q >packed");
    let error = decode_as(&bench.path("packed"), ImageFormat::Auto, (4 << 20) - 1).unwrap_err();
    assert!(error.to_string().contains("more than 3.9 MiB"), "{error}");
}

#[test]
fn work_is_told_about_at_least_every_two_mib_and_stops_when_it_is_to() {
    let bench = Bench::new();
    bench.sh("head -c 64M /dev/zero >disk.raw");
    let mut images = vec!["disk.raw".to_owned()];
    for packer in USUAL {
        bench.sh(&format!(
            "{packer} <disk.raw >of-{packer}",
            packer = packer.split(' ').next().unwrap()
        ));
        bench.sh(&format!("{packer} </dev/null >/dev/null"));
        images.push(format!("of-{}", packer.split(' ').next().unwrap()));
    }
    bench.sh("qemu-img convert -O qcow2 -o preallocation=full -S 0 disk.raw q");
    images.push("q".to_owned());
    for image in &images {
        let published = File::open(bench.path(image)).unwrap();
        for stop_after in [0, 3, usize::MAX] {
            let mut reports = 0;
            let mut progress = |_| {
                reports += 1;
                if reports > stop_after {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            let into = tempfile::tempfile().unwrap();
            let mut limits = DecodeLimits {
                raw_bytes_max: 1 << 30,
                progress: &mut progress,
                scratch: &tempfile::tempfile,
            };
            let result = decode(&published, ImageFormat::Auto, &into, &mut limits);
            if stop_after == usize::MAX {
                assert_eq!(result.unwrap(), 64 << 20, "{image}");
                assert!(reports >= 32, "{image}: reported {reports} times");
            } else {
                assert!(matches!(result, Err(DecodeError::Cancelled)), "{image}: {result:?}");
                assert_eq!(reports, stop_after + 1, "{image}");
            }
        }
    }
}

#[test]
fn what_a_packed_file_says_it_holds_is_known_before() {
    let bench = Bench::new();
    bench.write("disk.raw", &disk(3 << 20, 19));
    let look =
        |name: &str| inspect(&File::open(bench.path(name)).unwrap(), ImageFormat::Auto).unwrap();
    for (packer, bytes) in [
        ("cat", Some(3 << 20)),
        ("gzip", None),
        ("bzip2", None),
        ("xz -T2 --block-size=1MiB", Some(3 << 20)),
        ("zstd --stream-size=3145728", Some(3 << 20)),
        ("zstd", None),
    ] {
        bench.sh(&format!("{packer} <disk.raw >packed"));
        let look = look("packed");
        assert_eq!((look.is_raw, look.raw_bytes), (packer == "cat", bytes), "{packer}");
    }
    bench.sh("qemu-img create -q -f qcow2 q 7M; xz <q >packed");
    assert_eq!(look("packed").raw_bytes, Some(7 << 20));
    assert!(!look("q").is_raw);
}
