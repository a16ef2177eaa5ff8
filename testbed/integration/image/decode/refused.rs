//! Files that cannot be written to a disk, or need another file, are refused by name.

use hostler::model::spec::ImageFormat;

use super::{Bench, MOST_BYTES, decode_as, disk};

/// Invariant (image): A file that is no disk is never installed as one, and the machine is not
/// touched for it.
#[test]
fn other_formats_are_refused_by_name_with_what_to_do() {
    let bench = Bench::new();
    bench.write("disk.raw", &disk(4 << 20, 21));
    for (format, name) in [
        ("vmdk", "vmdk"),
        ("vmdk -o subformat=streamOptimized", "vmdk"),
        ("vmdk -o subformat=monolithicFlat", "vmdk"),
        ("vdi", "vdi"),
        ("vpc", "vhd"),
        ("vpc -o subformat=fixed", "vhd"),
        ("vhdx", "vhdx"),
        ("qed", "qed"),
        ("qcow", "qcow version 1"),
        ("parallels", "parallels"),
    ] {
        bench.sh(&format!("qemu-img convert -f raw -O {format} disk.raw image"));
        let said = bench.refusal("image");
        let expected = format!("is {name}: convert it with `qemu-img convert");
        assert!(said.contains(&expected), "{format}: {said}");
        bench.sh("xz -0 <image >packed");
        let said = bench.refusal("packed");
        assert!(said.contains(&expected), "{format}: {said}");
    }
    for (command, name) in [
        ("tar c disk.raw", "tar"),
        ("tar c --format=v7 disk.raw", "tar"),
        ("echo disk.raw | cpio -o -H newc", "cpio"),
        ("echo disk.raw | cpio -o -H odc", "cpio"),
        ("xz --format=lzma <disk.raw", "lzma"),
        ("xz --format=lzma -0 <disk.raw", "lzma"),
        ("python3 -m zipfile -c it disk.raw; cat it", "zip"),
        ("printf '\\x04\\x22\\x4d\\x18junk'", "lz4"),
        ("printf '7z\\xbc\\xaf\\x27\\x1c'", "7z"),
    ] {
        bench.sh(&format!("{{ {command}; }} >image; gzip <image >packed"));
        let said = bench.refusal("packed");
        assert!(said.starts_with(&format!("what is in the gzip file is {name}: take")), "{said}");
    }
}

/// Invariant (image): A file that is no disk is never installed as one, and the machine is not
/// touched for it.
#[test]
fn a_page_that_a_server_sent_instead_is_refused() {
    let bench = Bench::new();
    bench.write("page", b"<!DOCTYPE html><html><body>Sign in</body></html>");
    let said = bench.refusal("page");
    assert_eq!(said, "the file is a web page, or XML: look at what image.source leads to");
}

/// Invariant (image): An image needs nothing but itself.
#[test]
fn an_image_that_needs_what_is_not_in_it_is_refused() {
    let bench = Bench::new();
    bench.sh("qemu-img create -q -f qcow2 base 1M");
    let secret = "--object secret,id=s,data=secret";
    for (options, said) in [
        (
            "-b base -F qcow2 q",
            "qcow2: it needs a backing file, `base`; publish it with what it is based on",
        ),
        ("-b $'base\\e[31m' -F qcow2 -u q 1M", "`base\\u{1b}[31m`"),
        ("-o data_file=other,data_file_raw=on q 1M", "qcow2: its data is in another file"),
        (
            "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 q 1M",
            "encrypted with LUKS",
        ),
        ("-o encrypt.format=aes,encrypt.key-secret=s q 1M", "encrypted with AES"),
    ] {
        // On a busy machine qemu-img cannot always measure the time of its key derivation.
        bench.sh(&format!(
            "for _ in 1 2 3 4 5 6 7 8 9; do rm -f q; qemu-img create -q -f qcow2 {secret} \
             {options} && break; done; test -e q"
        ));
        let refusal = bench.refusal("q");
        assert!(refusal.contains(said), "{options}: {refusal}");
    }
}

#[test]
fn an_image_with_a_header_that_is_not_understood_is_refused() {
    let bench = Bench::new();
    bench.sh("qemu-img create -q -f qcow2 q 1M");
    let image = bench.read("q");
    for (at, bytes, said) in [
        (4, &[0, 0, 0, 4][..], "version 4 is not known"),
        (20, &[0, 0, 0, 8], "cluster_bits is 8, must be 9 to 21"),
        (20, &[0, 0, 0, 22], "cluster_bits is 22"),
        (24, &[0; 8], "the disk has no bytes"),
        (24, &[0, 0, 0x10, 0, 0, 0, 0, 0], "l1_size is 1, but a disk of"),
        (32, &[0, 0, 0, 3], "encryption method 3"),
        (40, &[0, 0, 0, 0, 0, 3, 0, 1], "does not begin with a cluster"),
        (40, &[0, 0, 1, 0, 0, 0, 0, 0], "is not in the file"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 2], "marked corrupt"),
        (72, &[0, 0, 0, 0, 0, 0, 1, 32], "incompatible bits 5, 8"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 8], "which its feature bit denies"),
        (104, &[1], "which its feature bit denies"),
        (104, &[2], "compression_type 2 is not known"),
    ] {
        let mut image = image.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        bench.write("bad", &image);
        let refusal = bench.refusal("bad");
        assert!(refusal.contains(said), "{at} {bytes:?}: {refusal}");
    }
}

#[test]
fn a_file_that_is_not_what_the_spec_says_is_refused() {
    let bench = Bench::new();
    bench.write("disk.raw", &disk(1 << 20, 22));
    bench.sh("qemu-img convert -f raw -O qcow2 disk.raw q; gzip <q >q.gz; gzip <disk.raw >disk.gz");
    let refusal = |name: &str, format| {
        decode_as(&bench.path(name), format, MOST_BYTES).unwrap_err().to_string()
    };
    assert_eq!(refusal("q", ImageFormat::Raw), "the file is qcow2, but image.format is \"raw\"");
    assert_eq!(
        refusal("q.gz", ImageFormat::Raw),
        "what is in the gzip file is qcow2, but image.format is \"raw\""
    );
    let raw = "raw, or nothing that is known, but image.format is \"qcow2\"";
    assert_eq!(refusal("disk.raw", ImageFormat::Qcow2), format!("the file is {raw}"));
    assert_eq!(
        refusal("disk.gz", ImageFormat::Qcow2),
        format!("what is in the gzip file is {raw}")
    );
    for (name, format) in [
        ("q", ImageFormat::Qcow2),
        ("q.gz", ImageFormat::Qcow2),
        ("disk.raw", ImageFormat::Raw),
        ("disk.gz", ImageFormat::Raw),
    ] {
        let ours = decode_as(&bench.path(name), format, MOST_BYTES).unwrap();
        assert!(ours == bench.read("disk.raw"), "{name}");
    }
}

#[test]
fn one_layer_is_taken_off_and_not_a_second() {
    let bench = Bench::new();
    bench.write("disk.raw", &disk(1 << 20, 23));
    bench.sh("xz -0 <disk.raw | gzip >packed");
    assert_eq!(
        bench.refusal("packed"),
        "what is in the gzip file is xz again: only one layer of packing is taken off"
    );
    bench.sh(": >empty; gzip <empty >packed");
    assert_eq!(bench.refusal("empty"), "the file is empty");
    assert_eq!(bench.refusal("packed"), "what is in the gzip file is empty");
}
