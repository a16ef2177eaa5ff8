//! Tests of the identity of an installation: what changes it, and that an upgrade does not.

use super::*;

const NETBOOT: &str =
    "kernel = \"vmlinuz\"\nramdisk = \"initrd\"\nkernel_args = [\"root=/dev/vda2\"]\n";

/// Identities that version 0.1 computed.
const INLINE: &str = "sha256:61d88240d5a4c7156d07977b32a90636cc493e40ee8b4f6cb88f232946e000bc";
const LISTED: &str = "sha256:484e5da41096d86a6cbc7f5734ffcd298aa81fadccb5b579598f0aa2462f2c1c";

fn listed(source: &str, list: &str) -> NodeSpec {
    let (start, _) = MINIMAL.split_once("source").unwrap();
    good(&format!("{start}source = \"{source}\"\nchecksum = \"{list}\"\n"))
}

/// Makes a spec with `boot.after = "network"` and these keys in `[image]`.
fn netbooting(keys: &str) -> NodeSpec {
    let text = MINIMAL.replace("[boot]\n", "[boot]\nafter = \"network\"\n");
    good(&format!("{text}{keys}"))
}

/// Invariant (machine): A different installation has a different identity, and an upgrade is no
/// drift.
#[test]
fn a_machine_with_its_checksum_in_its_spec_keeps_its_identity_at_an_upgrade() {
    let spec = good(MINIMAL);
    assert_eq!(spec.digest().to_string(), INLINE);
    assert_eq!(spec.digest_v1().to_string(), INLINE);
    assert_eq!(spec.identity().written, spec.digest());
}

#[test]
fn what_the_version_before_had_as_identity_is_still_known() {
    let spec = listed("debian-13.raw", "SHA256SUMS.d/list");
    assert_eq!(spec.digest_v1().to_string(), LISTED);
    assert_ne!(spec.digest(), spec.digest_v1());
    let spec = netbooting(NETBOOT);
    assert_eq!(spec.digest_v1().to_string(), INLINE);
    assert_eq!(spec.identity().written.to_string(), INLINE);
    assert_ne!(spec.digest(), spec.digest_v1());
}

/// Invariant (machine): A different installation has a different identity, and an upgrade is no
/// drift.
#[test]
fn with_a_list_the_source_and_the_lists_place_count_and_without_one_the_source_does_not() {
    let digest = |source, list| listed(source, list).digest();
    let before = digest("debian-13.raw", "sums/SHA256SUMS");
    assert_ne!(before, digest("debian-14.raw", "sums/SHA256SUMS"));
    assert_ne!(before, digest("debian-13.raw", "other/SHA256SUMS"));
    let mirror = MINIMAL.replace("debian-13.raw", "https://mirror.example/debian-13.raw");
    assert_eq!(good(MINIMAL).digest(), good(&mirror).digest());
}

/// Invariant (machine): A different installation has a different identity, and an upgrade is no
/// drift.
#[test]
fn whatever_a_machine_boots_from_the_network_is_a_part_of_its_identity() {
    let sum = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let mut seen = std::collections::BTreeSet::new();
    let checked = format!("kernel_checksum = \"{}\"\n", sum("b"));
    for keys in [
        String::new(),
        NETBOOT.to_owned(),
        NETBOOT.replace("vmlinuz", "vmlinuz-2"),
        NETBOOT.replace("initrd", "initrd-2"),
        NETBOOT.replace("vda2", "vda3"),
        NETBOOT.replace("\"root=/dev/vda2\"", "\"root=/dev/vda2\", \"ro\""),
        format!("{NETBOOT}{checked}"),
        format!("{NETBOOT}ramdisk_checksum = \"{}\"\n", sum("b")),
        format!("{NETBOOT}kernel_checksum = \"{}\"\n", sum("c")),
    ] {
        let spec = if keys.is_empty() { good(MINIMAL) } else { netbooting(&keys) };
        assert_eq!(spec.identity().written.to_string(), INLINE, "the disk is the same: {keys}");
        assert!(seen.insert(spec.digest().to_string()), "{keys}");
    }
    // The path of a file with a checksum does not matter.
    let elsewhere = NETBOOT.replace("vmlinuz", "kernels/vmlinuz");
    let [one, other] = [NETBOOT.to_owned(), elsewhere]
        .map(|keys| netbooting(&format!("{keys}{checked}")).digest());
    assert_eq!(one, other);
}

#[test]
fn checksums_of_kernel_and_ramdisk_are_digests() {
    let text = MINIMAL.replace("[boot]\n", "[boot]\nafter = \"network\"\n");
    let text = format!(
        "{text}{NETBOOT}kernel_checksum = \"SHA256SUMS\"\nramdisk_checksum = \"sha256:ab\"\n"
    );
    check(
        &text,
        &expect![[r#"
        nodes/edge-07.toml:13:19: image.kernel_checksum: no algorithm; write sha256:<64 hex digits> or sha512:<128 hex digits>
        nodes/edge-07.toml:14:20: image.ramdisk_checksum: 2 hex digits, sha256 needs 64
    "#]],
    );
    let idle = format!("{MINIMAL}kernel_checksum = \"sha256:{}\"\n", "a".repeat(64));
    check(
        &idle,
        &expect![[r#"
        nodes/edge-07.toml:9:19: image.kernel_checksum: is of no use unless boot.after = "network"
    "#]],
    );
}

#[test]
fn a_path_is_a_part_of_the_identity_and_the_choice_among_paths_is_not() {
    let digest = |hints: &str| good(&format!("{MINIMAL}[root_device]\n{hints}")).digest();
    let before = digest("wwn = \"0x1\"\n");
    assert_ne!(before, digest("wwn = \"0x1\"\nby_path = \"pci-0000:00:04.0\"\n"));
    assert_eq!(before, digest("wwn = \"0x1\"\nmultipath = \"first\"\n"));
}
