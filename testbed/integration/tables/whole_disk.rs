//! Whole-disk images on disks of other sizes.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, process::Command};

use hostler::imaging::{
    CONFIG_DRIVE_BYTES, Geometry, ImageFile, LayoutError, whole_disk, whole_disk_needs,
};

use super::disk::{
    Bench, MIB, assert_good_gpt, bytes_of, geometry, guids, image, listed_by_fdisk, partitions,
    probe, run,
};

/// Makes an image with sgdisk: an ESP and a root partition to the end.
fn gpt_image(bench: &Bench) -> std::path::PathBuf {
    let file = bench.file("image", 64 * MIB);
    run("sgdisk", &["-n1:2048:+8M", "-t1:ef00", "-n2:0:0", "-c2:root"], &file, "");
    file
}

/// Asserts that there is no layout; returns the reason.
fn refusal(image: &ImageFile, disk: Geometry, drive: Option<bytes::Bytes>) -> String {
    whole_disk(image, disk, drive, &mut guids()).unwrap_err().to_string()
}

fn overwrite(file: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

/// Invariant (disk): Partition tables fit the disk, and nothing of its earlier contents is found.
#[test]
fn a_gpt_image_on_a_bigger_disk_has_its_backup_at_the_real_end() {
    let bench = Bench::new();
    let file = gpt_image(&bench);
    for bytes in [64 * MIB, 64 * MIB + 512, 64 * MIB + 16 * 512, 65 * MIB, 200 * MIB] {
        let disk = geometry(bytes);
        let layout = whole_disk(&image(&file), disk, None, &mut guids()).unwrap();
        let written = bench.disk(&layout, disk);
        assert_good_gpt(&written);
        assert_eq!(partitions(&written), partitions(&file));
        assert!(probe(&written, &(0..bytes)).contains("PTTYPE=gpt"));
    }
}

#[test]
fn an_image_for_4096_byte_blocks_goes_onto_such_a_disk_and_onto_no_other() {
    let bench = Bench::new();
    let file = bench.file("image", 64 * MIB);
    run("fdisk", &["-b", "4096"], &file, "g\nn\n1\n\n+8M\nn\n2\n\n\nx\nn\n2\nroot\nr\nw\n");
    let disk = Geometry { block_bytes: 4096, ..geometry(200 * MIB) };
    let drive = Some(bench.drive(2 * MIB));
    let layout = whole_disk(&image(&file), disk, drive, &mut guids()).unwrap();
    let written = listed_by_fdisk(&bench.disk(&layout, disk), "4096");
    let (image_part, drive_part) = written.rsplit_once('\n').unwrap();
    assert_eq!(image_part, listed_by_fdisk(&file, "4096"));
    assert!(drive_part.contains("EBD0A0A2") && drive_part.contains("config-2"), "{drive_part}");

    assert_eq!(
        refusal(&image(&file), geometry(200 * MIB), None),
        "the image has a partition table for 4096-byte blocks, the disk has 512-byte blocks; \
         take an image made for 512-byte blocks, or a partition image, which fits any"
    );
    let msdos = bench.file("msdos", 64 * MIB);
    run("sfdisk", &["--quiet"], &msdos, "label: dos\n,,83\n");
    for file in [gpt_image(&bench), msdos] {
        let reason = refusal(&image(&file), disk, None);
        assert!(reason.contains("table for 512-byte blocks, the disk has 4096"), "{reason}");
    }
}

#[test]
fn images_of_parted_with_their_flags_and_hybrid_records_keep_them() {
    let bench = Bench::new();
    let parted = bench.file("parted", 64 * MIB);
    let commands = "mklabel gpt mkpart bios 1MiB 2MiB set 1 bios_grub on mkpart root ext4 2MiB \
                    100% disk_set pmbr_boot on";
    parted_script(&parted, commands);
    let disk = geometry(200 * MIB);
    let layout = whole_disk(&image(&parted), disk, None, &mut guids()).unwrap();
    let written = bench.disk(&layout, disk);
    assert_good_gpt(&written);
    assert_eq!(partitions(&written), partitions(&parted));
    let record = bytes_of(&written, &(446..462));
    assert_eq!((record[0], record[4]), (0x80, 0xee), "bootable and protective");
    assert_eq!(u32::from_le_bytes(record[12..].try_into().unwrap()), 200 * 2048 - 1);

    let hybrid = gpt_image(&bench);
    run("sgdisk", &["--hybrid=1"], &hybrid, "");
    let layout = whole_disk(&image(&hybrid), disk, None, &mut guids()).unwrap();
    let written = bench.disk(&layout, disk);
    assert_eq!(bytes_of(&written, &(0..512)), bytes_of(&hybrid, &(0..512)));
    let table = run("sgdisk", &["--print"], &written, "");
    assert!(table.contains("409566"), "{table}");
}

fn parted_script(file: &Path, commands: &str) {
    let done = Command::new("parted").arg("--script").arg(file).args(commands.split(' ')).output();
    let done = done.unwrap_or_else(|error| panic!("parted: {error}; see testbed/install"));
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn a_smaller_disk_will_do_if_the_partitions_fit() {
    let bench = Bench::new();
    let file = bench.file("image", 64 * MIB);
    run("sgdisk", &["-n1:2048:+8M"], &file, "");
    let (disk, short) = (geometry(9 * MIB + 33 * 512), geometry(9 * MIB + 32 * 512));
    let layout = whole_disk(&image(&file), disk, None, &mut guids()).unwrap();
    let written = bench.disk(&layout, disk);
    assert_good_gpt(&written);
    assert_eq!(partitions(&written), partitions(&file));
    assert_eq!(
        refusal(&image(&file), short, None),
        "the disk has 9453568 bytes (9.0 MiB), 9454080 are needed (9.0 MiB)"
    );
}

/// Invariant (disk): The smallest disk named as enough is enough; impossible images are refused
/// before power-on.
#[test]
fn the_smallest_disk_that_an_image_is_said_to_need_does_and_no_smaller_one() {
    let bench = Bench::new();
    let drive = bench.drive(2 * MIB);
    let gpt = bench.file("gpt", 64 * MIB);
    run("sgdisk", &["-n1:2048:100000"], &gpt, "");
    let large_blocks = bench.file("4096", 64 * MIB);
    run("fdisk", &["-b", "4096"], &large_blocks, "g\nn\n1\n\n+8M\nw\n");
    let msdos = bench.file("msdos", 64 * MIB);
    run("sfdisk", &["--quiet"], &msdos, "label: dos\nstart=2048,size=100001,type=83\n");
    let longer = bench.file("longer", 64 * MIB);
    run("sfdisk", &["--quiet"], &longer, "label: dos\nstart=2048,size=100001,type=83\n");
    File::options().write(true).open(&longer).unwrap().set_len(32 * MIB).unwrap();
    let iso = bench.file("iso", 4 * MIB);
    let hybrid = bench.file("hybrid", 0);
    run("genisoimage", &["-quiet", "-o", hybrid.to_str().unwrap()], &iso, "");
    run("sfdisk", &["--quiet", "-w", "never"], &hybrid, "label: dos\nstart=64,size=128,type=83\n");
    for (file, block_bytes) in
        [(&gpt, 512), (&large_blocks, 4096), (&msdos, 512), (&longer, 512), (&hybrid, 512)]
    {
        for with_drive in [false, true] {
            let image = image(file);
            let needed = whole_disk_needs(&image, with_drive).unwrap();
            let lay = |bytes| {
                let disk = Geometry { block_bytes, ..geometry(bytes) };
                whole_disk(&image, disk, with_drive.then(|| drive.clone()), &mut guids())
            };
            lay(needed).unwrap_or_else(|error| panic!("{} {with_drive}: {error}", file.display()));
            let short = lay(needed - u64::from(block_bytes)).unwrap_err();
            let is_short = matches!(short, LayoutError::TooBig { .. } | LayoutError::NoRoom { .. });
            assert!(is_short, "{} {with_drive}: {short}", file.display());
        }
    }
    // Less than the image's size, and more.
    assert!(whole_disk_needs(&image(&gpt), false).unwrap() < 50 * MIB);
    assert_eq!(whole_disk_needs(&image(&longer), false).unwrap(), (2048 + 100_001) * 512);
    let hybrid_bytes = hybrid.metadata().unwrap().len();
    assert!(whole_disk_needs(&image(&hybrid), false).unwrap() > hybrid_bytes - 400_000);
    let full = bench.file("full", 64 * MIB);
    run("sfdisk", &["--quiet"], &full, "label: dos\n,8M\n,8M\n,8M\n,8M\n");
    let error = whole_disk_needs(&image(&full), true).unwrap_err().to_string();
    assert!(
        error.starts_with("all 4 entries of the image's partition table are in use"),
        "{error}"
    );
}

/// Invariant (disk): A partition that reaches past the image shows nothing of the old disk.
#[test]
fn nothing_of_the_old_disk_is_in_a_partition_that_reaches_past_the_image() {
    let bench = Bench::new();
    let file = bench.file("image", 64 * MIB);
    let table = "label: dos\nstart=2048,size=20480,type=83\nstart=22528,size=100000,type=83\n";
    run("sfdisk", &["--quiet"], &file, table);
    overwrite(&file, 12 * MIB, &[7; 4096]);
    // The cut is inside the second partition, and inside a block of 4096 bytes.
    File::options().write(true).open(&file).unwrap().set_len(20 * MIB + 512).unwrap();
    let disk = geometry(100 * MIB);
    let layout = whole_disk(&image(&file), disk, None, &mut guids()).unwrap();
    let path = bench.file("old", disk.bytes);
    overwrite(&path, 0, &b"OLD SECRET DATA ".repeat(100 << 16));
    super::disk::apply(&layout, &path);
    let found = partitions(&path);
    assert_eq!(found[1].bytes.end, (22528 + 100_000) * 512);
    let content = bytes_of(&path, &(12 * MIB..found[1].bytes.end));
    assert!(content.starts_with(&[7; 4096]));
    assert!(content[4096..].iter().all(|byte| *byte == 0), "old bytes shine through");
}

/// Invariant (disk): A master boot record is never written to a disk of another block size.
#[test]
fn the_blocks_of_a_master_boot_record_are_told_by_what_it_points_to() {
    let bench = Bench::new();
    let filesystems: [(&str, &[&str]); 5] = [
        ("mkfs.ext4", &["-q"]),
        ("mkfs.vfat", &[]),
        ("mkswap", &["-q"]),
        ("mkfs.btrfs", &["-q"]),
        ("true", &[]),
    ];
    for (tool, options) in filesystems {
        let content = bench.filesystem("content", 120 * MIB, tool, options);
        let content = bytes_of(&content, &(0..MIB));
        let made = |block_bytes: u64, start: u64| {
            let file = bench.file("image", 64 * MIB);
            run("sfdisk", &["--quiet"], &file, &format!("label: dos\nstart={start},size=400\n"));
            overwrite(&file, start * block_bytes, &content);
            image(&file)
        };
        let disk = |block_bytes| Geometry { block_bytes, ..geometry(200 * MIB) };
        let lay = |image: &ImageFile, block_bytes| {
            whole_disk(image, disk(block_bytes), None, &mut guids()).map(|_| ())
        };
        // In the first eighth, so that the image's size gives no hint.
        let small = made(512, 2048);
        lay(&small, 512).unwrap();
        let error = lay(&small, 4096).unwrap_err().to_string();
        assert!(error.contains("for 512-byte blocks, the disk has 4096"), "{tool}: {error}");
        let large = made(4096, 256);
        lay(&large, 4096).unwrap();
        let reversed = lay(&large, 512).map_err(|error| error.to_string());
        let is_reported = reversed
            .as_ref()
            .is_err_and(|error| error.contains("for 4096-byte blocks, the disk has 512"));
        assert!(is_reported || tool == "true", "{tool}: {reversed:?}");
    }
    // A boot loader's core is where the second block of 512 bytes is.
    let file = bench.file("image", 64 * MIB);
    run("sfdisk", &["--quiet"], &file, "label: dos\nstart=2304,size=400\n");
    let disk = Geometry { block_bytes: 4096, ..geometry(200 * MIB) };
    whole_disk(&image(&file), disk, None, &mut guids()).unwrap();
    overwrite(&file, 512, b"loading");
    let error = refusal(&image(&file), disk, None);
    assert!(error.contains("for 512-byte blocks"), "{error}");
}

/// Invariant (disk): Partition tables fit the disk, and nothing of its earlier contents is found.
#[test]
fn the_old_backup_inside_the_image_is_gone() {
    let bench = Bench::new();
    let file = gpt_image(&bench);
    let disk = geometry(200 * MIB);
    let layout = whole_disk(&image(&file), disk, None, &mut guids()).unwrap();
    let written = bench.disk(&layout, disk);
    let old = 64 * MIB - 33 * 512..64 * MIB;
    assert_eq!(&bytes_of(&file, &old)[32 * 512..][..8], b"EFI PART");
    assert!(bytes_of(&written, &old).iter().all(|byte| *byte == 0));
}

#[test]
fn an_image_with_a_damaged_table_is_written_with_its_backup_and_with_two_of_them_not_at_all() {
    let bench = Bench::new();
    let file = gpt_image(&bench);
    let good = partitions(&file);
    let disk = geometry(200 * MIB);
    overwrite(&file, 1024 + 40, &[1]);
    let layout = whole_disk(&image(&file), disk, None, &mut guids()).unwrap();
    let written = bench.disk(&layout, disk);
    assert_good_gpt(&written);
    assert_eq!(partitions(&written), good);
    overwrite(&file, 64 * MIB - 512, &[0; 512]);
    assert_eq!(
        refusal(&image(&file), disk, None),
        "the image's GUID partition table cannot be used: its entries are damaged; its backup \
         at the image's end: there is none"
    );
}

/// Invariant (disk): A partition table restored from its backup overwrites nothing before the
/// partitions.
#[test]
fn a_backup_that_is_used_leaves_a_loader_before_the_partitions_alone() {
    let bench = Bench::new();
    let disk = geometry(200 * MIB);
    let loader = b"LOADER".repeat(85);
    // Three images: entries far after the header, as for boards that boot from the block between;
    // free blocks after the header; and a loader after the entries.
    for (label, arguments, loader_at) in [
        ("moved", &["-a1", "-j", "2048", "-n1:4096:50000"][..], 2 * 512),
        ("behind", &["-n1:4096:50000", "-a1", "-j", "2"], 2040 * 512),
    ] {
        let file = bench.file(label, 64 * MIB);
        run("sgdisk", arguments, &file, "");
        if label == "behind" {
            run("sfdisk", &["-q"], &file, "label: gpt\nfirst-lba: 2048\nstart=4096,size=40000\n");
        }
        overwrite(&file, loader_at, &loader);
        let good = partitions(&file);
        // A damaged byte of the header: of the disk's GUID, or of the place of its entries.
        for damaged in [56, 72, 0] {
            let sound = bytes_of(&file, &(512..1024));
            overwrite(&file, 512 + damaged, &[sound[usize::try_from(damaged).unwrap()] ^ 2]);
            let layout = whole_disk(&image(&file), disk, None, &mut guids()).unwrap();
            let written = bench.disk(&layout, disk);
            assert_good_gpt(&written);
            assert_eq!(partitions(&written), good, "{label} {damaged}");
            let kept = bytes_of(&written, &(loader_at..loader_at + 510));
            assert!(kept == loader, "{label} {damaged}: the loader is overwritten");
            overwrite(&file, 512, &sound);
        }
    }
    // Neither the same entries nor zeros are anywhere.
    let file = bench.file("unclear", 64 * MIB);
    run("sfdisk", &["-q"], &file, "label: gpt\nfirst-lba: 2048\nstart=4096,size=40000\n");
    overwrite(&file, 512, &vec![7; 2047 * 512]);
    let error = refusal(&image(&file), disk, None);
    assert!(error.contains("may be a boot loader"), "{error}");
}

#[test]
fn a_table_without_partitions_or_with_too_many_entries_is_told_as_such() {
    let bench = Bench::new();
    let disk = geometry(200 * MIB);
    let empty = bench.file("empty", 64 * MIB);
    run("sgdisk", &["-o"], &empty, "");
    let error = whole_disk_needs(&image(&empty), false).unwrap_err();
    assert!(error.to_string().ends_with("has no partitions"), "{error}");
    let large = bench.file("large", 64 * MIB);
    run("sgdisk", &["-S", "2048", "-n1:4096:50000"], &large, "");
    let error = refusal(&image(&large), disk, None);
    assert!(error.contains("more than 128 KiB of entries"), "{error}");
}

#[test]
fn a_config_drive_gets_a_partition_at_the_end_of_the_disk() {
    let bench = Bench::new();
    let drive = bench.drive(2 * MIB);
    let gpt = gpt_image(&bench);
    let msdos = bench.file("msdos", 64 * MIB);
    run("sfdisk", &["--quiet"], &msdos, "label: dos\n,20M,83\n,20M,5\n,,83\n");
    for (file, kind) in [(gpt, "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"), (msdos, "c")] {
        let disk = geometry(200 * MIB);
        let layout = whole_disk(&image(&file), disk, Some(drive.clone()), &mut guids()).unwrap();
        let written = bench.disk(&layout, disk);
        let mut found = partitions(&written);
        let new = found.pop().unwrap();
        assert_eq!(found, partitions(&file));
        assert_eq!(new.bytes.end - new.bytes.start, CONFIG_DRIVE_BYTES);
        assert!((198 * MIB..=200 * MIB).contains(&new.bytes.end), "{new:?}");
        assert_eq!(new.rest["type"], kind);
        assert_eq!(bytes_of(&written, &new.bytes)[..drive.len()], drive);
        assert!(probe(&written, &new.bytes).contains("LABEL=config-2"));
    }
}

#[test]
fn a_partition_that_waits_for_a_config_drive_is_taken() {
    let bench = Bench::new();
    let drive = bench.drive(2 * MIB);
    let named = gpt_image(&bench);
    run("sgdisk", &["-d2", "-n2:0:+4M", "-c2:config-2", "-n3:0:0"], &named, "");
    let labelled = bench.file("labelled", 64 * MIB);
    run("sfdisk", &["--quiet"], &labelled, "label: dos\n,8M,83\n,4M,c\n,,83\n");
    let fat = bench.file("cidata", 4 * MIB);
    run("mkfs.vfat", &["-n", "CIDATA"], &fat, "");
    overwrite(&labelled, 9 * MIB, &bytes_of(&fat, &(0..4 * MIB)));
    for file in [named, labelled] {
        overwrite(&file, 12 * MIB, &[7; 512]);
        let disk = geometry(200 * MIB);
        let layout = whole_disk(&image(&file), disk, Some(drive.clone()), &mut guids()).unwrap();
        let written = bench.disk(&layout, disk);
        let found = partitions(&written);
        assert_eq!(found, partitions(&file));
        let content = bytes_of(&written, &found[1].bytes);
        assert_eq!(content[..drive.len()], drive);
        assert!(content[drive.len()..].iter().all(|byte| *byte == 0), "old bytes shine through");
        let big = bench.drive(5 * MIB);
        assert_eq!(
            refusal(&image(&file), disk, Some(big)),
            "the config drive has 5242880 bytes, its partition only 4194304"
        );
    }
}

#[test]
fn what_has_no_place_for_a_config_drive_is_refused_with_numbers() {
    let bench = Bench::new();
    let drive = Some(bench.drive(2 * MIB));
    let gpt = gpt_image(&bench);
    assert_eq!(
        refusal(&image(&gpt), geometry(100 * MIB), drive.clone()),
        "the config drive needs 64.0 MiB at the end of the disk, only 35.9 MiB are free there"
    );
    let full = bench.file("full", 64 * MIB);
    run("sfdisk", &["--quiet"], &full, "label: dos\n,8M\n,8M\n,8M\n,8M\n");
    assert_eq!(
        refusal(&image(&full), geometry(200 * MIB), drive.clone()),
        "all 4 entries of the image's partition table are in use; the config drive needs one"
    );
    let bare = bench.file("bare", 64 * MIB);
    run("mkfs.vfat", &[], &bare, "");
    assert!(matches!(
        whole_disk(&image(&bare), geometry(200 * MIB), drive, &mut guids()),
        Err(LayoutError::NoTable)
    ));
    let layout = whole_disk(&image(&bare), geometry(200 * MIB), None, &mut guids()).unwrap();
    let written = bench.disk(&layout, geometry(200 * MIB));
    assert!(probe(&written, &(0..200 * MIB)).contains("TYPE=vfat"));
}
