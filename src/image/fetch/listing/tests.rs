//! Every shape of list, and the errors of lists without an answer.

use std::{fs, process::Command};

use proptest::prelude::*;

use super::*;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn digest_in(text: &str, name: &str) -> Result<String, String> {
    find(text.as_bytes(), name.as_bytes(), b"SHA256SUMS").map(|digest| digest.to_string())
}

#[track_caller]
fn is_a(text: &str) {
    assert_eq!(digest_in(text, "disk.img"), Ok(format!("sha256:{A}")), "{text}");
}

#[test]
fn every_usual_shape_of_a_line_is_read() {
    for line in [
        format!("{A}  disk.img"),
        format!("{A} *disk.img"),
        format!("{A} disk.img"),
        format!("{A}\tdisk.img"),
        format!("{A}  ./disk.img"),
        format!("{A}  release/13/disk.img"),
        format!("{A}  /srv/disk.img"),
        format!("SHA256 (disk.img) = {A}"),
        format!("SHA256 (./disk.img) = {A}"),
        format!("SHA2-256(disk.img)= {A}"),
        format!("sha256(disk.img)={A}"),
        format!("{}  disk.img", A.to_uppercase()),
        A.to_owned(),
    ] {
        is_a(&line);
        is_a(&format!("\u{feff}{line}\r\n\r\n"));
        is_a(&format!("# a comment about (this) = {B}\n\n{line}\n; and another\n"));
    }
}

#[test]
fn a_list_signed_in_clear_text_is_read_through_its_wrapper() {
    is_a(&format!(
        "-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA256\r\n\r\n# disk.img: 14 bytes\r\n\
         SHA256 (disk.img) = {A}\r\n- {B}  -other.img\r\n-----BEGIN PGP SIGNATURE-----\r\n\r\n\
         iQIzBAEBCAAdFiEE8VaPPgzkhcSnGUVHXUXyk9Ia2A0FAmb0\r\n=abcd\r\n\
         -----END PGP SIGNATURE-----\r\n"
    ));
}

#[test]
fn names_with_spaces_brackets_backslashes_and_line_feeds_are_found() {
    for (line, name) in [
        (format!("{A}  a disk (13).img"), "a disk (13).img"),
        (format!("{A}   disk.img"), " disk.img"),
        (format!("SHA256 (a (b) = c).img) = {A}"), "a (b) = c).img"),
        (format!("\\{A}  back\\\\slash\\nfeed.img"), "back\\slash\nfeed.img"),
        (format!("\\SHA256 (back\\\\slash\\rreturn.img) = {A}"), "back\\slash\rreturn.img"),
        (format!("{A}  back\\slash.img"), "back\\slash.img"),
    ] {
        assert_eq!(digest_in(&line, name), Ok(format!("sha256:{A}")), "{line}");
    }
}

#[test]
fn a_name_is_never_found_by_a_part_of_it() {
    for name in ["isk.img", "disk", "disk.img.xz", "DISK.img", ""] {
        let error = digest_in(&format!("{A}  13/disk.img\n{B}  other"), name).unwrap_err();
        assert!(error.contains("has no checksum for"), "{error}");
    }
}

#[test]
fn two_different_checksums_for_a_name_are_no_answer_and_the_same_twice_is_one() {
    is_a(&format!("{A}  disk.img\nSHA256 (13/disk.img) = {A}\n{B}  other.img"));
    assert_eq!(
        digest_in(&format!("{A}  12/disk.img\n{B}  13/disk.img"), "disk.img"),
        Err(format!("has two checksums for disk.img: sha256:{A} and sha256:{B}"))
    );
}

/// Invariant (image): A list of checksums answers for the file at the image's own path.
#[test]
fn of_files_of_one_name_the_one_in_the_images_directory_is_meant() {
    let both = format!("{A}  amd64/disk.img\n{B}  arm64/disk.img");
    let found = |list: &str, source: &str, place: &str| {
        find(list.as_bytes(), source.as_bytes(), place.as_bytes()).map(|found| found.to_string())
    };
    for (source, wanted) in [("/13/amd64/disk.img", A), ("arm64/disk.img", B)] {
        assert_eq!(found(&both, source, "/13/SHA256SUMS"), Ok(format!("sha256:{wanted}")));
    }
    assert!(found(&both, "/13/riscv64/disk.img", "/13/SHA256SUMS").is_err());
    let nested = format!("{A}  disk.img\n{B}  old/disk.img");
    assert_eq!(found(&nested, "/13/disk.img", "/13/SUMS"), Ok(format!("sha256:{A}")));
    assert_eq!(found(&nested, "/13/old/disk.img", "/13/SUMS"), Ok(format!("sha256:{B}")));
    assert_eq!(found(&nested, "/13/old/disk.img", "/13/old/SUMS"), Ok(format!("sha256:{A}")));
}

/// Invariant (image): A list of checksums answers for the file at the image's own path.
#[test]
fn a_list_named_after_one_file_is_about_that_file_whatever_its_one_line_says() {
    let found = |list: &str, place: &str| {
        find(list.as_bytes(), b"/x/Leap.qcow2", place.as_bytes()).map(|found| found.to_string())
    };
    let line = format!("{A}  Leap-15.6.0-Build19.61.qcow2\n");
    for place in ["/x/Leap.qcow2.sha256", "Leap.qcow2.sha256sum", "/y/Leap.qcow2-CHECKSUM"] {
        assert_eq!(found(&line, place), Ok(format!("sha256:{A}")));
    }
    for (list, place) in [
        (line.clone(), "/x/SHA256SUMS"),
        (line.clone(), "/x/Leap.qcow2"),
        (format!("{line}{B}  other.qcow2"), "/x/Leap.qcow2.sha256"),
    ] {
        let error = found(&list, place).unwrap_err();
        assert!(error.starts_with("has no checksum for Leap.qcow2, but for "), "{error}");
    }
}

/// Invariant (image): A list of checksums answers for the file at the image's own path.
#[test]
fn lists_from_windows_and_with_more_columns_are_read() {
    for line in [
        format!("sha256:{A}  disk.img"),
        format!("SHA256:{A} *disk.img"),
        format!("{A}  C:\\images\\disk.img"),
        format!("\\{A} *C:\\\\images\\\\disk.img"),
        format!("{A}\t\tdisk.img"),
        format!("{A}\tdisk.img\t123456"),
        format!("{A}    disk.img"),
        format!("{B}  other\\name.img\n{A}  x\\disk.img"),
    ] {
        is_a(&line);
        for (mark, to_bytes) in [(true, true), (true, false), (false, true), (false, false)] {
            let marked = if mark { format!("\u{feff}{line}\r\n") } else { line.clone() };
            let bytes = |unit: u16| if to_bytes { unit.to_le_bytes() } else { unit.to_be_bytes() };
            let wide: Vec<u8> = marked.encode_utf16().flat_map(bytes).collect();
            let found = find(&wide, b"disk.img", b"SUMS").map(|digest| digest.to_string());
            assert_eq!(found, Ok(format!("sha256:{A}")), "{line} {mark} {to_bytes}");
        }
    }
    let error = digest_in(&format!("md5:{}  disk.img", &A[..32]), "disk.img").unwrap_err();
    assert!(error.starts_with("has only a checksum of another algorithm"), "{error}");
    let error = digest_in(&format!("sha3-256:{A}  disk.img"), "disk.img").unwrap_err();
    assert!(error.starts_with("has only a checksum of another algorithm"), "{error}");
}

#[test]
fn of_sha256_and_sha512_sha256_is_taken_and_sha512_where_it_is_alone() {
    is_a(&format!("{B}{B}  disk.img\n{A}  disk.img"));
    let list = format!("{B}{B}  disk.img\n{A}  other.img");
    assert_eq!(digest_in(&list, "disk.img"), Ok(format!("sha512:{B}{B}")));
    assert_eq!(digest_in(&format!("{B}{B}\n"), "any"), Ok(format!("sha512:{B}{B}")));
}

#[test]
fn other_algorithms_are_refused_by_name_even_at_the_right_length() {
    for line in [
        format!("{}  disk.img", &A[..32]),
        format!("{} *disk.img", &A[..40]),
        format!("MD5 (disk.img) = {}", &A[..32]),
        format!("SHA3-256 (disk.img) = {A}"),
        format!("SHA512/256 (disk.img) = {A}"),
        format!("BLAKE2b (disk.img) = {A}{A}"),
        A[..32].to_owned(),
    ] {
        assert_eq!(
            digest_in(&line, "disk.img"),
            Err(
                "has only a checksum of another algorithm for disk.img; sha256 or sha512 is needed"
                    .to_owned()
            ),
            "{line}"
        );
    }
}

#[test]
fn what_is_listed_instead_is_said_and_bounded() {
    assert_eq!(
        digest_in("<html>not here</html>", "disk.img"),
        Err("has no checksum for disk.img, nor for any other file".to_owned())
    );
    assert_eq!(
        digest_in(&format!("{A}  a\n{A}  b\u{1b}[31m"), "disk.img"),
        Err("has no checksum for disk.img, but for a, b\\u{1b}[31m".to_owned())
    );
    let many = format!("{A}  {}\n", "x".repeat(500)).repeat(1700);
    let error = digest_in(&many, "disk.img").unwrap_err();
    assert!(error.ends_with(" and 1690 more") && error.len() < 1200, "{error}");
}

#[test]
fn lists_written_by_the_tools_themselves_are_read() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["disk.img", "a (b) c.img", "back\\slash\n.img"] {
        fs::write(dir.path().join(name), name).unwrap();
        for tool in ["sha256sum", "sha256sum -b", "sha256sum --tag", "openssl dgst -sha256"] {
            if tool.starts_with("openssl") && name.contains('\n') {
                continue; // openssl does not escape names
            }
            let command = format!("{tool} -- * 2>/dev/null || {tool} *");
            let shell = Command::new("sh").args(["-c", &command]).current_dir(dir.path()).output();
            let list = shell.unwrap().stdout;
            let mut hash = crate::image::fetch::hash::Hash::new(DigestAlgorithm::Sha256);
            hash.update(name.as_bytes());
            assert_eq!(find(&list, name.as_bytes(), b"list"), Ok(hash.finish()), "{tool} {name}");
        }
    }
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(
        text in proptest::collection::vec(any::<u8>(), 0..300),
        name: Vec<u8>,
    ) {
        drop(find(&text, &name, b"list"));
        drop(find(&text, b"a/b", &name));
    }

    #[test]
    fn never_panics_on_what_looks_like_a_list(text in "([\\\\]?(SHA256|MD5)? ?[(]?[ab]{32}{0,4}[ \
        *\\\\()=./a]{0,6}\r?\n){0,4}") {
        if let Err(reason) = find(text.as_bytes(), b"a", b"a.sha256") {
            prop_assert!(!reason.chars().any(char::is_control));
        }
    }
}
