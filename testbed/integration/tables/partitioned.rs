//! Disks around one file system.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use bytes::Bytes;
use hostler::{
    imaging::{Content, Geometry, Parts, needed_bytes, partitioned},
    model::{
        boot::Arch,
        spec::{PartitionTable, Partitions},
    },
};

use super::disk::{
    Bench, MIB, apply, assert_good_gpt, bytes_of, geometry, guids, image, listed_by_fdisk,
    partitions, probe, run,
};

const ALL: Partitions = Partitions {
    table: PartitionTable::Gpt,
    swap_bytes: Some(32 * MIB),
    ephemeral_bytes: Some(48 * MIB),
    root_bytes: None,
};

/// Makes an ESP, swap space, an ephemeral file system, and a config drive.
fn parts(bench: &Bench) -> Parts {
    let esp = bench.filesystem("esp", 34 * MIB, "mkfs.vfat", &["-F32", "-n", "ESP"]);
    let swap = bench.filesystem("swap", 32 * MIB, "mkswap", &["-L", "swap"]);
    let ephemeral = bench.filesystem("ephemeral", 48 * MIB, "mkfs.ext4", &["-L", "ephemeral"]);
    Parts {
        esp: Some(Content::of_file(image(&esp))),
        swap: Some(bytes_of(&swap, &(0..4096)).into()),
        ephemeral: Some(image(&ephemeral)),
        config_drive: Some(bench.drive(2 * MIB)),
        ..Parts::default()
    }
}

/// Writes the content of old disks: an ext4 file system, the copies of a LUKS2 header, and a backup
/// of a partition table.
fn spoil(disk: &Path, bytes: &std::ops::Range<u64>) {
    let file = File::options().write(true).open(disk).unwrap();
    let kib = ((bytes.end - bytes.start) / 1024).to_string();
    let offset = format!("offset={}", bytes.start);
    let output = std::process::Command::new("mkfs.ext4")
        .args(["-q", "-F", "-E", &offset])
        .arg(disk)
        .arg(kib)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    for shift in 14..=22 {
        let place = 1_u64 << shift;
        let begin = [b"SKUL\xba\xbe\x00\x02".as_slice(), &[0; 248]].concat();
        let header = [begin, place.to_be_bytes().to_vec(), vec![0; 3832]].concat();
        file.write_all_at(&header, bytes.start + place).unwrap();
    }
}

#[test]
fn a_gpt_disk_has_its_partitions_in_order_and_nothing_of_what_was_there_before() {
    let bench = Bench::new();
    let root = bench.filesystem("root", 60 * MIB, "mkfs.ext4", &["-L", "root"]);
    let disk = geometry(400 * MIB);
    let layout = partitioned(&image(&root), disk, &ALL, parts(&bench), &mut guids()).unwrap();
    let path = bench.file("disk", disk.bytes);
    apply(&layout, &path);
    let places = partitions(&path);
    for place in &places {
        spoil(&path, &place.bytes);
        assert!(!probe(&path, &place.bytes).contains("LABEL"), "nothing was spoilt");
    }
    apply(&layout, &path);

    assert_good_gpt(&path);
    assert_eq!(partitions(&path), places);
    let expected = [
        ("esp", 34, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "LABEL=ESP"),
        ("swap", 32, "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "LABEL=swap"),
        ("ephemeral", 48, "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "LABEL=ephemeral"),
        ("config-2", 64, "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "LABEL=config-2"),
        ("root", 220, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "LABEL=root"),
    ];
    let mut start = MIB;
    assert_eq!(places.len(), expected.len());
    for (place, (name, mib, kind, label)) in places.iter().zip(expected) {
        assert_eq!(place.bytes, start..start + mib * MIB, "{name}");
        assert_eq!(place.rest["name"], name);
        assert_eq!(place.rest["type"], kind);
        let found = probe(&path, &place.bytes);
        assert!(found.contains(label), "{name}: {found}");
        start = place.bytes.end;
    }
}

/// Invariant (disk): Partition tables fit the disk, and nothing of its earlier contents is found.
#[test]
fn a_partition_without_content_looks_empty() {
    let bench = Bench::new();
    let root = bench.filesystem("root", 8 * MIB, "mkfs.ext4", &["-L", "root"]);
    let disk = geometry(200 * MIB);
    let layout = partitioned(&image(&root), disk, &ALL, Parts::default(), &mut guids()).unwrap();
    let path = bench.disk(&layout, disk);
    for empty in &partitions(&path)[..2] {
        spoil(&path, &empty.bytes);
        assert!(!probe(&path, &empty.bytes).is_empty());
        apply(&layout, &path);
        assert_eq!(probe(&path, &empty.bytes), "");
    }
}

/// Invariant (disk): The type of the root's partition names the machine's processors.
#[test]
fn the_root_of_an_arm_machine_is_a_root_for_it() {
    let bench = Bench::new();
    let root = bench.filesystem("root", 8 * MIB, "mkfs.ext4", &["-L", "root"]);
    let disk = geometry(200 * MIB);
    for (arch, kind) in [(Arch::X86_64, "Linux x86-64 root"), (Arch::Aarch64, "Linux ARM64 root")] {
        let parts = Parts { arch, ..Parts::default() };
        let layout = partitioned(&image(&root), disk, &ALL, parts, &mut guids()).unwrap();
        let path = bench.disk(&layout, disk);
        let said = run("sgdisk", &["--info=3"], &path, "");
        assert!(said.contains(kind), "{said}");
    }
}

#[test]
fn an_msdos_disk_has_at_most_four_partitions() {
    let bench = Bench::new();
    let root = bench.filesystem("root", 8 * MIB, "mkfs.ext4", &["-L", "root"]);
    let disk = geometry(400 * MIB);
    let msdos = Partitions { table: PartitionTable::Msdos, ..ALL };
    let five = partitioned(&image(&root), disk, &msdos, parts(&bench), &mut guids());
    assert_eq!(
        five.unwrap_err().to_string(),
        "an msdos table has room for four partitions, 5 are wanted; use `table = \"gpt\"`"
    );
    let four = Partitions { ephemeral_bytes: None, root_bytes: Some(20 * MIB), ..msdos };
    let layout = partitioned(&image(&root), disk, &four, parts(&bench), &mut guids()).unwrap();
    let path = bench.disk(&layout, disk);
    let verdict = run("sfdisk", &["--verify"], &path, "");
    assert!(verdict.contains("No errors detected"), "{verdict}");
    let found = partitions(&path);
    let kinds: Vec<_> = found.iter().map(|partition| partition.rest["type"].as_str()).collect();
    assert_eq!(kinds, ["ef", "82", "c", "83"].map(Some));
    assert_eq!(found[3].bytes, 131 * MIB..151 * MIB);
    assert!(probe(&path, &(0..disk.bytes)).contains("PTTYPE=dos"));
    assert!(probe(&path, &found[3].bytes).contains("LABEL=root"));
}

#[test]
fn a_disk_of_4096_byte_blocks_is_partitioned_by_its_own_limits() {
    let bench = Bench::new();
    let root = bench.filesystem("root", 8 * MIB, "mkfs.ext4", &["-L", "root"]);
    let disk = Geometry { bytes: 400 * MIB, block_bytes: 4096, optimal_bytes: 3 << 20 };
    let layout = partitioned(&image(&root), disk, &ALL, parts(&bench), &mut guids()).unwrap();
    let rows = listed_by_fdisk(&bench.disk(&layout, disk), "4096");
    let starts: Vec<u64> =
        rows.lines().map(|row| row.split_whitespace().next().unwrap().parse().unwrap()).collect();
    assert_eq!(starts.len(), 5);
    assert!(starts.iter().all(|start| start * 4096 % (3 * MIB) == 0), "{rows}");
}

#[test]
fn the_smallest_disk_that_is_said_to_do_does() {
    let bench = Bench::new();
    let root = bench.filesystem("root", 8 * MIB, "mkfs.ext4", &["-L", "root"]);
    let parts = parts(&bench);
    let needed = needed_bytes(8 * MIB, &ALL, Some(34 * MIB), true);
    let lay =
        |bytes| partitioned(&image(&root), geometry(bytes), &ALL, parts.clone(), &mut guids());
    let path = bench.disk(&lay(needed).unwrap(), geometry(needed));
    assert_good_gpt(&path);
    assert!(probe(&path, &partitions(&path)[4].bytes).contains("LABEL=root"));
    assert_eq!(
        lay(needed - 512).unwrap_err().to_string(),
        "the disk has 197131776 bytes (187.9 MiB), 197132288 are needed (188.0 MiB)"
    );
    let small = Parts { swap: Some(Bytes::from(vec![0; 33 << 20])), ..parts.clone() };
    let error = partitioned(&image(&root), geometry(400 * MIB), &ALL, small, &mut guids());
    assert_eq!(
        error.unwrap_err().to_string(),
        "what goes into the swap partition has 34603008 bytes, the partition only 33554432"
    );
}
