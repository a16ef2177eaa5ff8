//! Properties for arbitrary bytes and for handmade images.

use std::{
    io::{Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
};

use proptest::prelude::*;

use super::*;

const MOST_BYTES: u64 = 1 << 20;
const ZEROS: [u8; 4096] = [0; 4096];

// Flags of the tables' entries; bit 61 of a compressed entry, in a cluster of 512 bytes, means a
// second sector.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// Most progress reports, far more than such small inputs need.
const REPORTED_MAX: usize = 10_000;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Decodes, and checks the invariants for all inputs.
fn decode_bytes(bytes: &[u8], format: ImageFormat) -> Result<Vec<u8>, DecodeError> {
    let (published, into) = (file(bytes), tempfile::tempfile()?);
    let look = inspect(&published, format);
    let mut reported = Vec::new();
    let mut progress = |at| {
        reported.push(at);
        ControlFlow::Continue(())
    };
    let mut limits = DecodeLimits {
        raw_bytes_max: MOST_BYTES,
        progress: &mut progress,
        scratch: &tempfile::tempfile,
    };
    let result = decode(&published, format, &into, &mut limits);
    assert!(
        reported.len() < REPORTED_MAX
            && reported.is_sorted()
            && reported.last() <= Some(&(bytes.len() as u64))
    );
    assert!(into.metadata()?.len() <= MOST_BYTES);
    let mut raw = Vec::new();
    (&into).read_to_end(&mut raw)?;
    let written = result?;
    assert_eq!(raw.len() as u64, written);
    assert!(!look?.is_raw || raw == bytes);
    Ok(raw)
}

fn pack(packing: Packing, bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    match packing {
        Packing::Gzip => {
            let level = flate2::Compression::fast();
            flate2::bufread::GzEncoder::new(bytes, level).read_to_end(&mut packed).map(drop)
        }
        Packing::Xz => {
            liblzma::bufread::XzEncoder::new(bytes, 0).read_to_end(&mut packed).map(drop)
        }
        Packing::Zstd => zstd::stream::copy_encode(bytes, &mut packed, 1),
        Packing::Bzip2 => {
            let level = bzip2::Compression::fast();
            bzip2::bufread::BzEncoder::new(bytes, level).read_to_end(&mut packed).map(drop)
        }
    }
    .unwrap();
    packed
}

const PACKINGS: [Packing; 4] = [Packing::Gzip, Packing::Xz, Packing::Zstd, Packing::Bzip2];

/// A disk of four clusters of 512 bytes: plain, zeros, compressed, and unallocated.
fn qcow2(version: u8) -> Vec<u8> {
    let mut image = b"QFI\xfb\0\0\0".to_vec();
    image.push(version);
    image.resize(6 * 512, 0);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(20, &9_u32.to_be_bytes());
    put(24, &2048_u64.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &512_u64.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(512, &(COPIED + 1024).to_be_bytes());
    put(1024, &(COPIED + 1536).to_be_bytes());
    put(1032, &if version == 2 { 0_u64 } else { 2048 + 1 }.to_be_bytes());
    let mut packed = Vec::new();
    flate2::bufread::DeflateEncoder::new(&[7; 512][..], flate2::Compression::best())
        .read_to_end(&mut packed)
        .unwrap();
    put(1040, &(COMPRESSED + 2560).to_be_bytes());
    put(1536, &[5; 512]);
    put(2048, &[9; 512]);
    put(2560, &packed);
    image
}

fn disk_of_qcow2() -> Vec<u8> {
    [[5; 512], [0; 512], [7; 512], [0; 512]].concat()
}

#[test]
fn every_kind_of_cluster_is_read() {
    for version in [2, 3] {
        let ours = decode_bytes(&qcow2(version), ImageFormat::Qcow2).unwrap();
        assert!(ours == disk_of_qcow2(), "version {version}");
    }
}

#[test]
fn a_layer_around_changes_nothing() {
    let raw = [&[1; 5000][..], &[0; 9000], &[2; 300]].concat();
    for packing in PACKINGS {
        let ours = decode_bytes(&pack(packing, &raw), ImageFormat::Auto).unwrap();
        assert!(ours == raw, "{packing}");
        let ours = decode_bytes(&pack(packing, &qcow2(3)), ImageFormat::Auto).unwrap();
        assert!(ours == disk_of_qcow2(), "{packing}");
    }
}

#[test]
fn a_bit_that_is_reserved_is_not_passed_over() {
    for (at, bit, name) in [
        (512, 1, "L1 entry"),
        (512, 1 << 62, "L1 entry"),
        (1024, 1 << 56, "L2 entry"),
        (1024, 1 << 1, "L2 entry"),
    ] {
        let mut image = qcow2(3);
        let entry = u64::from_be_bytes(*image[at..].first_chunk().unwrap()) | bit;
        image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        let said = decode_bytes(&image, ImageFormat::Auto).unwrap_err().to_string();
        assert!(
            said.starts_with(&format!("qcow2: {name}")) && said.ends_with("reserved bits"),
            "{said}"
        );
    }
    // The bit means zeros from version 3 on.
    let mut image = qcow2(2);
    image[1031] |= 1;
    assert!(decode_bytes(&image, ImageFormat::Auto).is_err());
}

#[test]
fn a_cluster_past_the_end_is_refused_and_not_read_as_zeros() {
    let image = qcow2(3);
    for (at, entry, name) in [
        (512, 8192_u64, "the L2 table at 8192"),
        (1024, 8192, "the cluster at 8192"),
        (1024, 1536 + 256, "reserved bits"),
        (1040, COMPRESSED + 3072, "the compressed cluster at 3072"),
        (1040, COMPRESSED + (1 << 61) + 2561, "the compressed cluster at 2561"),
    ] {
        let mut image = image.clone();
        image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        let said = decode_bytes(&image, ImageFormat::Auto).unwrap_err().to_string();
        assert!(said.contains(name), "{name}: {said}");
    }
}

#[test]
fn what_cannot_be_written_is_an_error_and_not_a_short_image() {
    let published = file(&[7; 8192]);
    let into = File::options().write(true).open("/dev/full").unwrap();
    let mut progress = |_| ControlFlow::Continue(());
    let mut limits = DecodeLimits {
        raw_bytes_max: MOST_BYTES,
        progress: &mut progress,
        scratch: &tempfile::tempfile,
    };
    let error = decode(&published, ImageFormat::Raw, &into, &mut limits).unwrap_err();
    assert!(matches!(error, DecodeError::Io(_)), "{error:?}");
}

#[test]
fn a_bomb_around_qcow2_stops_at_the_scratch_files_limit_or_before_there_is_one() {
    let refusal = |image: &[u8], scratch: &dyn Fn() -> io::Result<File>| {
        let (published, into) = (file(&pack(Packing::Zstd, image)), tempfile::tempfile().unwrap());
        let mut progress = |_| ControlFlow::Continue(());
        let mut limits =
            DecodeLimits { raw_bytes_max: MOST_BYTES, progress: &mut progress, scratch };
        decode(&published, ImageFormat::Auto, &into, &mut limits).unwrap_err().to_string()
    };
    // A small disk in a large file.
    let mut large_file = qcow2(3);
    large_file.resize(usize::try_from(scratch_bytes_max(MOST_BYTES)).unwrap() + 1, 0);
    assert!(refusal(&large_file, &tempfile::tempfile).contains("more than 65.0 MiB"));
    let mut large_disk = qcow2(3);
    large_disk[20..24].copy_from_slice(&21_u32.to_be_bytes());
    large_disk[24..32].copy_from_slice(&(MOST_BYTES + 1).to_be_bytes());
    let said = refusal(&large_disk, &|| panic!("unpacked for nothing"));
    assert!(said.contains("more than 1.0 MiB"), "{said}");
}

#[test]
fn zeros_take_no_space() {
    for packing in PACKINGS {
        let published = file(&pack(packing, &ZEROS.repeat(256)));
        let into = tempfile::tempfile().unwrap();
        let mut progress = |_| ControlFlow::Continue(());
        let mut limits = DecodeLimits {
            raw_bytes_max: MOST_BYTES,
            progress: &mut progress,
            scratch: &tempfile::tempfile,
        };
        let bytes = decode(&published, ImageFormat::Auto, &into, &mut limits).unwrap();
        assert_eq!((bytes, into.metadata().unwrap().blocks()), (MOST_BYTES, 0), "{packing}");
    }
}

/// Beginnings that reach a decoder.
fn begun() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        Vec::new(),
        pack(Packing::Gzip, b"")[..10].to_vec(),
        pack(Packing::Xz, b"")[..12].to_vec(),
        pack(Packing::Zstd, b"")[..4].to_vec(),
        b"BZh9\x31\x41\x59\x26\x53\x59".to_vec(),
        b"\x50\x2a\x4d\x18".to_vec(),
        qcow2(2)[..72].to_vec(),
        qcow2(3)[..104].to_vec(),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn never_panics_on_any_bytes(
        begin in begun(),
        rest in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        drop(decode_bytes(&[begin, rest].concat(), ImageFormat::Auto));
    }

    #[test]
    fn never_panics_on_a_damaged_image(
        packing in prop::option::of(prop::sample::select(PACKINGS.to_vec())),
        is_qcow2: bool,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut: prop::sample::Index,
        is_cut: bool,
    ) {
        let inner = if is_qcow2 { qcow2(3) } else { disk_of_qcow2().repeat(3) };
        let mut image = packing.map_or(inner.clone(), |packing| pack(packing, &inner));
        for (at, byte) in damage {
            let at = at.index(image.len());
            image[at] = byte;
        }
        if is_cut {
            image.truncate(cut.index(image.len()));
        }
        drop(decode_bytes(&image, ImageFormat::Auto));
    }

    #[test]
    fn never_panics_on_any_tables(
        entries in prop::collection::vec((0_usize..320, any::<u64>(), 0_u32..60), 1..6),
        cluster_bits in 9_u32..22,
        bytes in 0_u64..4 << 20,
        features in 0_u8..32,
    ) {
        let mut image = qcow2(3);
        image[20..24].copy_from_slice(&cluster_bits.to_be_bytes());
        image[24..32].copy_from_slice(&bytes.to_be_bytes());
        image[79] = features;
        for (at, entry, shift) in entries {
            image[512 + 8 * at..520 + 8 * at].copy_from_slice(&(entry >> shift).to_be_bytes());
        }
        drop(decode_bytes(&image, ImageFormat::Auto));
    }
}
