//! Recognizes a file's format by its first bytes.
//!
//! The decoder calls it before it decodes, for the published file and for the content of a packed
//! one. It must never use a file's name, nor report a raw disk for a file of another known format.

use super::outer::Packing;

/// Bytes that are read: the deepest signature is tar's, at 257; the name of a qcow2 file's backing
/// file is deeper.
pub(super) const HEAD_BYTES: usize = 4096;

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileFormat {
    /// No known format: the bytes of a disk.
    Raw,
    /// QEMU's format, version 2 or later.
    Qcow2,
    /// A compressed file.
    Packed(Packing),
    /// A known format that hostler cannot write to a disk.
    Foreign(&'static str, Remedy),
}

/// The publisher's remedy for a foreign format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// A disk image in another format: convert it.
    Convert,
    /// An archive around a disk image: unpack it.
    Unpack,
    /// A file without a disk image: correct the source.
    Correct,
}

use FileFormat::{Foreign, Packed, Qcow2};
use Remedy::{Convert, Correct, Unpack};

/// Signatures and their offsets.
const SIGNATURES: &[(usize, &[u8], FileFormat)] = &[
    (0, b"QFI\xfb\0\0\0\x01", Foreign("qcow version 1", Convert)),
    (0, b"QFI\xfb", Qcow2),
    (0, b"\x1f\x8b", Packed(Packing::Gzip)),
    (0, b"\xfd7zXZ\0", Packed(Packing::Xz)),
    (0, b"\x28\xb5\x2f\xfd", Packed(Packing::Zstd)),
    (0, b"KDMV", Foreign("vmdk", Convert)),
    (0, b"COWD", Foreign("vmdk", Convert)),
    (0, b"# Disk DescriptorFile", Foreign("vmdk", Convert)),
    (64, b"\x7f\x10\xda\xbe", Foreign("vdi", Convert)),
    (0, b"conectix", Foreign("vhd", Convert)),
    (0, b"vhdxfile", Foreign("vhdx", Convert)),
    (0, b"QED\0", Foreign("qed", Convert)),
    (0, b"WithoutFreeSpace", Foreign("parallels", Convert)),
    (0, b"WithouFreSpacExt", Foreign("parallels", Convert)),
    (0, b"\x3a\xff\x26\xed", Foreign("android sparse", Unpack)),
    (0, b"\x04\x22\x4d\x18", Foreign("lz4", Unpack)),
    (0, b"LZIP", Foreign("lzip", Unpack)),
    (0, b"\x89LZO\0\r\n\x1a\n", Foreign("lzop", Unpack)),
    (0, b"\x1f\x9d", Foreign("compress", Unpack)),
    (0, b"PK\x03\x04", Foreign("zip", Unpack)),
    (0, b"PK\x05\x06", Foreign("zip", Unpack)),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign("7z", Unpack)),
    (0, b"Rar!\x1a\x07", Foreign("rar", Unpack)),
    (0, b"MSWIM\0\0\0", Foreign("wim", Unpack)),
    (257, b"ustar", Foreign("tar", Unpack)),
    (0, b"070701", Foreign("cpio", Unpack)),
    (0, b"070702", Foreign("cpio", Unpack)),
    (0, b"070707", Foreign("cpio", Unpack)),
    (0, b"!<arch>\n", Foreign("ar", Unpack)),
];

/// The beginning of a VHD's last 512 bytes, its only signature if its size is fixed.
pub(super) const VHD_FOOTER: &[u8] = b"conectix";

impl FileFormat {
    /// Recognizes the format by the first [`HEAD_BYTES`], or by all bytes of a shorter file.
    pub(super) fn of(head: &[u8]) -> Self {
        let signature = |(at, bytes, _): &&(usize, &[u8], Self)| {
            head.get(*at..).is_some_and(|rest| rest.starts_with(bytes))
        };
        if let Some((_, _, kind)) = SIGNATURES.iter().find(signature) {
            return *kind;
        }
        match head {
            // The compression level, and then a block, or the end of an empty file.
            [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..]
                if rest.starts_with(b"\x31\x41\x59\x26\x53\x59")
                    || rest.starts_with(b"\x17\x72\x45\x38\x50\x90") =>
            {
                Packed(Packing::Bzip2)
            }
            // A skippable frame, pzstd's first one (RFC 8878, 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packed(Packing::Zstd),
            _ if is_old_tar(head) => Foreign("tar", Unpack),
            _ if is_lzma(head) => Foreign("lzma", Unpack),
            _ if is_page(head) => Foreign("a web page, or XML", Correct),
            _ => Self::Raw,
        }
    }
}

/// Offset of the boot signature of a disk.
const BOOT_SIGNATURE_AT: usize = 510;

fn is_boot_sector(head: &[u8]) -> bool {
    head.get(BOOT_SIGNATURE_AT..).is_some_and(|rest| rest.starts_with(b"\x55\xaa"))
}

/// Recognizes a tar of the seventh edition: it has no signature, but a checksum of its first
/// header, in which the checksum itself counts as blanks.
fn is_old_tar(head: &[u8]) -> bool {
    let Some(header) = head.first_chunk::<512>() else { return false };
    let sum = header.get(148..156).unwrap_or_default();
    let digits = sum.trim_ascii_start().split(|byte| matches!(byte, 0 | b' ')).next();
    let stated = digits.and_then(|digits| std::str::from_utf8(digits).ok());
    let stated = stated.and_then(|digits| u32::from_str_radix(digits, 8).ok());
    let all: u32 = header.iter().copied().map(u32::from).sum();
    let own: u32 = sum.iter().copied().map(u32::from).sum();
    // A header without a name is no member.
    header.first() != Some(&0) && stated == Some(all - own + 8 * u32::from(b' '))
}

/// Recognizes .lzma, which has no signature either, as xz does: properties, the size of a
/// dictionary, and a size that is unknown or below 256 GiB.
fn is_lzma(head: &[u8]) -> bool {
    let [properties, a, b, c, d, size @ ..] = head else { return false };
    let Some(size) = size.first_chunk().map(|size| u64::from_le_bytes(*size)) else { return false };
    let dictionary = u32::from_le_bytes([*a, *b, *c, *d]);
    let is_usual = dictionary.is_power_of_two()
        || (dictionary % 3 == 0 && (dictionary / 3).is_power_of_two())
        || dictionary == u32::MAX;
    *properties < 225
        && dictionary >= 4096
        && is_usual
        && (size == u64::MAX || size < 1 << 38)
        && size > 0
        && !is_boot_sector(head)
}

/// Recognizes web pages, which servers send instead of a missing file.
fn is_page(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins =
        |with: &[u8]| head.get(..with.len()).is_some_and(|it| it.eq_ignore_ascii_case(with));
    [&b"<!doctype"[..], b"<html", b"<?xml", b"<head", b"<!--"].into_iter().any(begins)
}

impl Remedy {
    /// The advice, as the end of a sentence.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Convert => "convert it with `qemu-img convert -O qcow2 OLD NEW`",
            Unpack => "take the disk image out of it and publish that",
            Correct => "look at what image.source leads to",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_goes_by_its_content() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let mut vdi = b"<<< Oracle VM VirtualBox Disk Image >>>\n".to_vec();
        vdi.resize(64, 0);
        vdi.extend(b"\x7f\x10\xda\xbe");
        for (head, kind) in [
            (&b"QFI\xfb\0\0\0\x03"[..], Qcow2),
            (b"QFI\xfb\0\0\0\x01", Foreign("qcow version 1", Convert)),
            (b"\x1f\x8b\x08", Packed(Packing::Gzip)),
            (b"BZh91AY&SY", Packed(Packing::Bzip2)),
            (b"BZh9, said the boot sector", FileFormat::Raw),
            (b"\x52\x2a\x4d\x18\x04\0\0\0", Packed(Packing::Zstd)),
            (&tar, Foreign("tar", Unpack)),
            (&vdi, Foreign("vdi", Convert)),
            (b"<!DOCTYPE html><html><body>Sign in", Foreign("a web page, or XML", Correct)),
            (b"\xef\xbb\xbf \r\n<HTML>", Foreign("a web page, or XML", Correct)),
            (b"< is less", FileFormat::Raw),
            (b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0", Foreign("lzma", Unpack)),
            (b"\x5d\0\0\x80\0\xff\xff", FileFormat::Raw),
            (b"\x5d\0\0\x81\0\xff\xff\xff\xff\xff\xff\xff\xff\0", FileFormat::Raw),
            (b"\xeb\x63\x90", FileFormat::Raw),
            (b"", FileFormat::Raw),
            (&[0; HEAD_BYTES], FileFormat::Raw),
        ] {
            assert_eq!(FileFormat::of(head), kind, "{head:?}");
        }
    }

    #[test]
    fn the_head_is_long_enough_for_every_signature() {
        for (at, bytes, kind) in SIGNATURES {
            assert!(at + bytes.len() <= HEAD_BYTES);
            let mut head = vec![0; *at];
            head.extend_from_slice(bytes);
            assert_eq!(FileFormat::of(&head), *kind);
        }
    }
}
