//! Root images: blkid and hostler recognize the same ones; and the boot partition made from an
//! image's files.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, symlink},
    path::Path,
    sync::Arc,
};

use hostler::{
    checked_file::CheckedFile,
    drive::{check_disk, esp, probe},
    model::boot::Arch,
};

use super::{Place, assert_clean_fat, blkid, run, tag};

/// Paths with their lengths in bytes.
type Files<'a> = &'a [(&'a str, usize)];

/// Programs that make a root file system, and its size in MiB.
const ROOTS: [(&[&str], u64); 7] = [
    (&["mke2fs", "-q", "-t", "ext2"], 16),
    (&["mke2fs", "-q", "-t", "ext3"], 16),
    (&["mke2fs", "-q", "-t", "ext4"], 16),
    (&["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^64bit"], 16),
    (&["mkfs.xfs", "-q"], 320),
    (&["mkfs.btrfs", "-q"], 128),
    (&["mkfs.btrfs", "-q", "--mixed"], 64),
];

#[test]
fn every_root_is_seen_as_blkid_sees_it() {
    for (command, mib) in ROOTS {
        let place = made(command, mib);
        let tags = blkid(&place);
        let found = probe(&open(&place)).unwrap();
        assert_eq!(found.kind.as_str(), tag(&tags, "TYPE"), "{command:?}");
        assert_eq!(found.uuid, tag(&tags, "UUID"), "{command:?}");
        assert_eq!(found.bytes, mib << 20, "{command:?}");

        File::options()
            .write(true)
            .open(place.path("image"))
            .unwrap()
            .set_len(found.bytes - 1)
            .unwrap();
        let error = probe(&open(&place)).unwrap_err().to_string();
        assert!(error.contains("of which only"), "{error}");
    }
}

/// Invariant (image): A file that is no disk is never installed as one, and the machine is not
/// touched for it.
#[test]
fn what_is_no_disk_is_named_with_what_to_write_and_disks_are_let_be() {
    let refused: [(&[&str], &str); 8] = [
        (
            &["mke2fs", "-q", "-F", "-t", "ext4"],
            "the file system ext4 without a partition table; use image.kind = \"partition\"",
        ),
        (&["mke2fs", "-q", "-F"], "the file system ext2 without a partition table"),
        (&["mkfs.xfs", "-q"], "the file system xfs without a partition table"),
        (&["mkfs.btrfs", "-q"], "the file system btrfs without a partition table"),
        (&["mkswap", "-q"], "swap space"),
        (&["truncate", "-s", "64M"], "zeros where a disk begins"),
        (
            &["sh", "-c", "echo Not found, sorry. >$0"],
            "a text that begins with \"Not found, sorry.\\n\"",
        ),
        (
            &["sh", "-c", "printf '\\001\\002\\003' >$0"],
            "something unknown that begins with 010203",
        ),
    ];
    for (command, name) in refused {
        let error = check_disk(&open(&made(command, 320))).unwrap_err().to_string();
        assert!(error.contains("neither a boot signature"), "{command:?}: {error}");
        assert!(error.contains(name), "{command:?}: {error}");
    }
    let no_protection = made(&["sgdisk", "-n", "1:0:0"], 64);
    File::options()
        .write(true)
        .open(no_protection.path("image"))
        .unwrap()
        .write_all_at(&[0; 512], 0)
        .unwrap();
    let error = check_disk(&open(&no_protection)).unwrap_err().to_string();
    assert!(error.contains("whose protective master boot record is missing"), "{error}");
    let signed: [(&[&str], &str); 2] = [
        // The beginning of an x86 kernel (Linux x86 boot protocol).
        (
            &[
                "sh",
                "-c",
                "printf '\\125\\252\\353\\146HdrS' | dd of=$0 bs=1 seek=510 conv=notrunc",
            ],
            "a Linux kernel",
        ),
        (&["sh", "-c", "echo label: dos | sfdisk -q $0"], "without partitions"),
    ];
    for (command, name) in signed {
        let error = check_disk(&open(&made(command, 64))).unwrap_err().to_string();
        assert!(error.contains(name), "{command:?}: {error}");
    }
    let disks: [&[&str]; 3] = [
        &["sgdisk", "-n", "1:0:0"],
        &["sh", "-c", "echo ,,83 | sfdisk -q -X dos $0"],
        &["mkfs.vfat"],
    ];
    for command in disks {
        check_disk(&open(&made(command, 64))).unwrap();
    }
    let place = Place::with(&[]);
    run("genisoimage", &["-quiet", "-o", place.text("image"), place.text("image")]);
    check_disk(&open(&place)).unwrap();
}

#[test]
fn what_can_be_no_root_is_named() {
    let others: [(&[&str], &str); 5] = [
        (&["mkfs.vfat"], "a FAT file system"),
        (&["mkfs.vfat", "-F", "32"], "a FAT file system"),
        (&["mkswap", "-q"], "swap space"),
        (
            &["mke2fs", "-q", "-F", "-O", "journal_dev", "-b", "4096"],
            "journal of another file system",
        ),
        (&["sgdisk", "-n", "1:0:0"], "a whole disk; use image.kind = \"disk\""),
    ];
    for (command, name) in others {
        let error = probe(&open(&made(command, 64))).unwrap_err().to_string();
        assert!(error.contains(name), "{command:?}: {error}");
    }
    let place = Place::with(&[]);
    run("genisoimage", &["-quiet", "-o", place.text("image"), place.text("image")]);
    assert!(probe(&open(&place)).unwrap_err().to_string().contains("an ISO 9660 file system"));
    let error = probe(&open(&Place::with(&[0; 4096]))).unwrap_err().to_string();
    assert!(error.contains("no known file system"), "{error}");
}

/// Invariant (image): A boot partition has all files of the directory where the image's system
/// mounts it, and those of no other.
#[test]
fn a_boot_partition_has_the_images_boot_files() {
    let files = [
        ("boot/efi/EFI/BOOT/BOOTX64.EFI", 1_000_003),
        ("boot/efi/EFI/BOOT/fbx64.efi", 0),
        ("boot/efi/EFI/debian/grub.cfg", 126),
        ("boot/efi/EFI/debian/A name that is quite long, longer than thirteen.\u{fc}", 5000),
        ("boot/efi/EFI/debian/sub/deeper/x", 1),
        ("boot/efi/EFI/Linux/debian-6.1.0-50-amd64.efi", 70_000),
        ("boot/efi/loader/loader.conf", 30),
        ("boot/efi/loader/entries/debian-6.1.0-50-amd64+3.conf", 300),
        ("boot/efi/debian/6.1.0-50-amd64/initrd.img-6.1.0-50-amd64", 90_000),
        ("boot/efi/startup.nsh", 9),
        ("boot/vmlinuz", 2),
        ("efi/EFI/BOOT/BOOTX64.EFI", 1),
    ];
    for (kind, block_bytes) in [("ext4", 512), ("ext4", 4096), ("ext2", 512)] {
        let place = root(kind, &files);
        let made = esp(&open(&place), Arch::X86_64, block_bytes).unwrap();
        assert_eq!(made, esp(&open(&place), Arch::X86_64, block_bytes).unwrap());
        assert!((64 << 20..512 << 20).contains(&made.len()), "{}", made.len());
        let partition = Place::with(&made);
        let tags = blkid(&partition);
        assert_eq!((tag(&tags, "TYPE"), tag(&tags, "VERSION")), ("vfat", "FAT32"));
        assert_clean_fat(&partition);
        fs::create_dir(partition.path("out")).unwrap();
        run("mcopy", &["-s", "-n", "-i", partition.text("image"), "::*", partition.text("out")]);
        let theirs = place.path("tree/boot/efi");
        run("diff", &["-r", theirs.to_str().unwrap(), partition.text("out")]);
    }
}

#[test]
fn a_boot_partition_with_kernels_has_room_for_their_updates() {
    const MIB: usize = 1 << 20;
    for (kernel_mib, room_mib) in [(10, 64), (40, 120), (190, 448)] {
        let kernel = ("boot/loader/linux", kernel_mib * MIB);
        let made = esp(
            &open(&root("ext4", &[kernel, ("boot/EFI/BOOT/BOOTX64.EFI", 1)])),
            Arch::X86_64,
            512,
        );
        let bytes = made.unwrap().len();
        assert!(bytes >= room_mib * MIB, "{bytes} for a kernel of {kernel_mib} MiB");
        assert!(bytes < (room_mib + 8) * MIB, "{bytes} for a kernel of {kernel_mib} MiB");
    }
}

#[test]
fn a_lone_loader_is_put_where_firmware_looks() {
    let cases: [(Files<'_>, Files<'_>); 5] = [
        (
            &[("boot/EFI/debian/shimx64.efi", 10), ("boot/EFI/debian/grubx64.efi", 20)],
            &[
                ("EFI/BOOT/BOOTX64.EFI", 10),
                ("EFI/BOOT/grubx64.efi", 20),
                ("EFI/debian/shimx64.efi", 10),
            ],
        ),
        (
            &[("efi/EFI/fedora/grubx64.efi", 20)],
            &[("EFI/BOOT/BOOTX64.EFI", 20), ("EFI/fedora/grubx64.efi", 20)],
        ),
        (
            &[
                ("boot/efi/EFI/systemd/systemd-bootx64.efi", 7),
                ("boot/efi/EFI/Linux/one.efi", 8),
                ("boot/efi/old/grubx64.efi", 9),
            ],
            &[("EFI/BOOT/BOOTX64.EFI", 7), ("EFI/Linux/one.efi", 8), ("old/grubx64.efi", 9)],
        ),
        (&[("boot/efi/EFI/Linux/one.EFI", 8)], &[("EFI/BOOT/BOOTX64.EFI", 8)]),
        (&[("efi/EFI/systemd/systemd-bootx64.efi", 7)], &[("EFI/BOOT/BOOTX64.EFI", 7)]),
    ];
    for (files, wanted) in cases {
        let partition = Place::with(&esp(&open(&root("ext4", files)), Arch::X86_64, 512).unwrap());
        assert_clean_fat(&partition);
        for (path, bytes) in wanted {
            let path = format!("::{path}");
            let read = run("mtype", &["-i", partition.text("image"), &path]);
            assert_eq!(read.len(), *bytes, "{path}");
        }
    }
}

/// Invariant (image): A machine gets boot files for its own processors.
#[test]
fn an_arm_machine_gets_the_loaders_of_its_kind() {
    let signed = [
        ("boot/efi/EFI/debian/shimaa64.efi", 10),
        ("boot/efi/EFI/debian/grubaa64.efi", 20),
        ("boot/efi/EFI/debian/mmaa64.efi", 30),
        ("boot/efi/EFI/debian/grubx64.efi", 40),
    ];
    let partition = Place::with(&esp(&open(&root("ext4", &signed)), Arch::Aarch64, 512).unwrap());
    assert_clean_fat(&partition);
    for (name, bytes) in [("BOOTAA64.EFI", 10), ("grubaa64.efi", 20), ("mmaa64.efi", 30)] {
        let path = format!("::EFI/BOOT/{name}");
        assert_eq!(run("mtype", &["-i", partition.text("image"), &path]).len(), bytes, "{name}");
    }
    let pcs = root("ext4", &[("boot/efi/EFI/BOOT/BOOTX64.EFI", 10)]);
    let error = esp(&open(&pcs), Arch::Aarch64, 512).unwrap_err().to_string();
    let wanted = "(/boot/efi/EFI/BOOT/BOOTAA64.EFI): EFI/BOOT/BOOTX64.EFI is for x86_64 machines;";
    assert!(error.contains(wanted), "{error}");
}

#[test]
fn an_image_without_boot_files_that_can_be_taken_says_why() {
    let refused = |files: Files<'_>| {
        esp(&open(&root("ext4", files)), Arch::X86_64, 512).unwrap_err().to_string()
    };
    let none = "the image brings no boot files (/boot/efi/EFI/BOOT/BOOTX64.EFI)";
    let instead = "; use a whole-disk image or boot.after = \"network\"";
    assert_eq!(refused(&[("etc/fstab", 1)]), format!("{none}{instead}"));
    assert_eq!(refused(&[("boot/efi/EFI/debian/grub.cfg", 1)]), format!("{none}{instead}"));
    let two = [("efi/EFI/a/grubx64.efi", 1), ("efi/EFI/b/grubx64.efi", 1)];
    let which = ": which of EFI/a/grubx64.efi, EFI/b/grubx64.efi is to be booted?";
    assert_eq!(refused(&two), format!("{none}{which}{instead}"));
    let capitals = [("efi/EFI/BOOT/BOOTX64.EFI", 1), ("efi/EFI/BOOT/bootx64.efi", 1)];
    assert!(refused(&capitals).contains("is there twice"), "{}", refused(&capitals));
    let two = [("efi/EFI/Linux/a.efi", 1), ("efi/EFI/Linux/b.efi", 1), ("efi/grubx64.efi", 1)];
    let which = ": which of EFI/Linux/a.efi, EFI/Linux/b.efi is to be booted?";
    assert_eq!(refused(&two), format!("{none}{which}{instead}"));
    let name = [("efi/EFI/BOOT/BOOTX64.EFI", 1), ("efi/loader/entries/a:b.conf", 1)];
    assert!(refused(&name).contains("FAT cannot have the name \"a:b.conf\""), "{}", refused(&name));
    let deep = format!("efi/EFI/{}x", "a/".repeat(9));
    assert!(refused(&[(&deep, 1)]).contains("more than 8 directories in each other"));
    let large = [("efi/EFI/x", 100 << 20), ("efi/initrd", 100 << 20)];
    assert!(refused(&large).contains("more than 192 MiB"));
    let many: Vec<String> = (0..2001).map(|number| format!("efi/loader/{number}")).collect();
    let many: Vec<_> = many.iter().map(|path| (&**path, 1)).chain([("efi/EFI/x", 1)]).collect();
    assert!(refused(&many).contains("more than 2000 files and directories"));

    for (at, is_link) in [("EFI/BOOTX64.EFI", true), ("initrd", true), ("loader/pipe", false)] {
        let place = tree(&[("efi/EFI/x", 1), ("efi/loader/loader.conf", 1)]);
        let special = place.path("tree/efi").join(at);
        if is_link {
            symlink("/etc/passwd", special).unwrap();
        } else {
            run("mkfifo", &[special.to_str().unwrap()]);
        }
        make_root("ext4", &place);
        let error = esp(&open(&place), Arch::X86_64, 512).unwrap_err().to_string();
        assert!(error.contains(&format!("/efi/{at} is neither file nor directory")), "{error}");
    }

    let error =
        esp(&open(&made(&["mkfs.xfs", "-q"], 320)), Arch::X86_64, 512).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("the image's boot files: they are read from ext4 only, this is xfs{instead}")
    );
}

#[test]
fn no_damage_to_an_image_makes_reading_it_panic_or_last() {
    const ROUNDS: u32 = 500;
    let place = tree(&[("efi/EFI/BOOT/BOOTX64.EFI", 5000), ("efi/EFI/a/b/c", 70_000)]);
    let (tree, image) = (place.text("tree"), place.text("image"));
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-O", "^metadata_csum", "-d", tree, image, "16M"]);
    let file = File::options().read(true).write(true).open(image).unwrap();
    let good = fs::read(image).unwrap();
    // Only damage in non-zero bytes matters.
    let used: Vec<usize> = (0..good.len() - 4).filter(|at| good[*at] != 0).collect();
    let mut random = fastrand::Rng::with_seed(7);
    let mut still_good = 0;
    for _ in 0..ROUNDS {
        let mut places: Vec<usize> = (0..random.usize(1..=8))
            .map(|_| used[random.usize(..used.len())] + random.usize(..4))
            .collect();
        // Half of the cases damage the superblock, too.
        places.extend(random.bool().then(|| 1024 + random.usize(..0x180)));
        for at in &places {
            let byte = [0, 1, 0x7f, 0x80, 0xff, random.u8(..)][random.usize(..6)];
            file.write_all_at(&[byte], *at as u64).unwrap();
        }
        still_good += u32::from(esp(&unchecked(&file), Arch::X86_64, 512).is_ok());
        for at in &places {
            file.write_all_at(&good[*at..=*at], *at as u64).unwrap();
        }
    }
    assert!((1..ROUNDS).contains(&still_good), "{still_good} of {ROUNDS}");
}

/// Makes an image of so many MiB by a program.
fn made(command: &[&str], mib: u64) -> Place {
    let place = Place::with(&[]);
    File::create(place.path("image")).unwrap().set_len(mib << 20).unwrap();
    let (program, options) = command.split_first().unwrap();
    run(program, &[options, &[place.text("image")]].concat());
    place
}

/// Makes an ext image with files of these lengths.
fn root(kind: &str, files: Files<'_>) -> Place {
    let place = tree(files);
    make_root(kind, &place);
    place
}

fn tree(files: Files<'_>) -> Place {
    let place = Place::with(&[]);
    for (path, bytes) in files {
        let path = place.path("tree").join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).unwrap();
        if *bytes > 1 << 20 {
            File::create(path).unwrap().set_len(*bytes as u64).unwrap();
            continue;
        }
        // Unique content for each file and block.
        let letters = b"abcdefghijklmnopqrstuvw".iter().copied().cycle();
        let content: Vec<u8> = letters.skip(bytes % 23).take(*bytes).collect();
        fs::write(path, content).unwrap();
    }
    place
}

fn make_root(kind: &str, place: &Place) {
    let tree = place.text("tree");
    run("mke2fs", &["-q", "-F", "-t", kind, "-d", tree, place.text("image"), "256M"]);
}

fn open(place: &Place) -> CheckedFile {
    unchecked(&File::open(place.path("image")).unwrap())
}

fn unchecked(file: &File) -> CheckedFile {
    CheckedFile::unchecked(Arc::new(file.try_clone().unwrap())).unwrap()
}
