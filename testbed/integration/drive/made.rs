//! Swap space and ephemeral file systems against the programs for them.

use std::{
    fs,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, symlink},
    },
    process,
};

use hostler::drive::{EPHEMERAL_LABEL, ephemeral, mke2fs_is_there, swap_header};
use jiff::Timestamp;

use super::{Place, blkid, run, tag};

#[test]
fn swap_space_is_known_to_blkid_and_swaplabel_as_if_mkswap_had_made_it() {
    const BYTES: u64 = (1 << 30) + 5000;
    let uuid = *b"\x01\x23\x45\x67\x89\xab\x4d\xef\x81\x23\x45\x67\x89\xab\xcd\xef";
    let header = swap_header(BYTES, uuid, "swap").unwrap();
    let place = Place::with(&header);
    let file = fs::File::options().write(true).open(place.path("image")).unwrap();
    file.set_len(BYTES).unwrap();
    let tags = blkid(&place);
    let uuid = "01234567-89ab-4def-8123-456789abcdef";
    assert_eq!(tag(&tags, "TYPE"), "swap");
    assert_eq!((tag(&tags, "UUID"), tag(&tags, "LABEL")), (uuid, "swap"));
    assert!(run("swaplabel", &[place.text("image")]).contains(uuid));

    let theirs = Place::with(&[]);
    fs::File::create(theirs.path("image")).unwrap().set_len(BYTES).unwrap();
    run("mkswap", &["-U", uuid, "-L", "swap", theirs.text("image")]);
    assert_eq!(&fs::read(theirs.path("image")).unwrap()[..header.len()], &header[..]);
}

const UUID: [u8; 16] = [1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16];

fn made_at() -> Timestamp {
    Timestamp::from_second(1_795_000_000).unwrap()
}

/// A resumed write must write the same bytes.
#[tokio::test]
async fn the_same_uuid_and_time_make_the_same_ephemeral_file_system() {
    let place = Place::with(&[]);
    let mut made = Vec::new();
    for _ in 0..2 {
        let file = ephemeral(64 << 20, &place.path(""), UUID, made_at()).await.unwrap();
        made.push(fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap());
    }
    let [one, other] = made.try_into().unwrap();
    assert!(one == other, "they differ");
    // The superblock's times of creation and of the last write.
    for at in [1024 + 0x108, 1024 + 0x30] {
        assert_eq!(one[at..at + 4], 1_795_000_000_u32.to_le_bytes(), "the time at {at:#x}");
    }
}

#[tokio::test]
async fn an_ephemeral_file_system_is_clean_ext4_and_leaves_no_file_behind() {
    assert!(mke2fs_is_there());
    for bytes in [8 << 20, 5_000_000_000] {
        let place = Place::with(&[]);
        let file = ephemeral(bytes, &place.path(""), UUID, made_at()).await.unwrap();
        assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 1);
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), bytes);
        assert!(metadata.blocks() * 512 < 16 << 20, "not sparse: {} blocks", metadata.blocks());
        symlink(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()), place.path("made"))
            .unwrap();
        let tags = run("blkid", &["-p", "-o", "export", place.text("made")]);
        assert_eq!((tag(&tags, "TYPE"), tag(&tags, "LABEL")), ("ext4", EPHEMERAL_LABEL));
        assert_eq!(tag(&tags, "UUID"), "01020304-0506-4708-890a-0b0c0d0e0f10");
        run("e2fsck", &["-f", "-n", place.text("made")]);
    }
}

#[tokio::test]
async fn an_ephemeral_file_system_that_cannot_be_says_why() {
    let place = Place::with(&[]);
    let error = ephemeral(4096, &place.path(""), UUID, made_at()).await.unwrap_err().to_string();
    assert_eq!(error, "an ephemeral file system of 4.0 KiB, needs at least 8.0 MiB");
    let error =
        ephemeral(8 << 20, &place.path("gone"), UUID, made_at()).await.unwrap_err().to_string();
    assert!(error.starts_with("making the ephemeral file system: No such file"), "{error}");
}
