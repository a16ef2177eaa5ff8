//! Partition images: hostler makes the partitions around one file system. The machine boots it from
//! its disk, or by its own kernel from hostler (`boot.after = "network"`).

use std::{fs, ops::Range, path::Path, process::Command, thread, time::Duration};

use hostler::model::status::Phase;

use crate::{
    disks,
    rack::{Machine, repository},
    site::{BOOT_LIMIT, Image, Site, assert_boots_once_more},
};

/// The machine gets no soft shutdown: it is switched off and on.
const OFF_FOR: Duration = Duration::from_secs(2);

#[test]
fn one_file_system_boots_by_its_own_kernel_from_the_network_and_from_a_disk_that_it_brings_boot_files_for()
 {
    let mut site = Site::new("partition_images", &["bios", "uefi"], "512M");
    let image = site.copy_image("disk.root", "root.ext4");
    for (from, to) in [("disk.vmlinuz", "vmlinuz"), ("disk.initramfs", "initramfs")] {
        site.copy_image(from, to);
    }
    let [from_network, from_disk] = &site.rack.machines()[..] else { panic!("two machines") };
    [from_network, from_disk].into_iter().for_each(disks::fill);
    let netboot = "kernel = \"vmlinuz\"\nramdisk = \"initramfs\"\n\
                   kernel_args = [\"console=ttyS0,115200n8\", \"panic=10\"]";
    site.write_spec_after(
        from_network,
        "network",
        &rest(&image, from_network, netboot, "msdos", ""),
    );
    let drive = "ephemeral = \"16MiB\"\n[config_drive]\nlabel = \"cidata\"";
    site.write_spec(from_disk, &rest(&image, from_disk, "", "gpt", drive));

    for machine in [from_network, from_disk] {
        let status = site.wait_for_phase(&machine.name, Phase::Deployed, BOOT_LIMIT);
        assert_eq!(status.installed.unwrap().root_uuid.unwrap(), root_uuid());
        site.assert_runs_image(machine);
    }
    assert_boots_own_kernel(&site, from_network);
    site.assert_boots_local_disk(from_disk);
    assert_partitions(from_network, &["swap", "ext4"]);
    assert_partitions(from_disk, &["vfat", "swap", "ext4", "vfat", "ext4"]);

    // The boot device "network" is persistent.
    site.rack.ipmitool(from_network, &["chassis", "power", "off"]);
    thread::sleep(OFF_FOR);
    site.rack.ipmitool(from_network, &["chassis", "power", "on"]);
    assert_boots_once_more(from_network);
}

fn rest(image: &Image, machine: &Machine, in_image: &str, table: &str, more: &str) -> String {
    format!(
        r#"
        [image]
        source = "root.ext4"
        checksum = "sha256:{}"
        kind = "partition"
        {in_image}
        [root_device]
        serial = "{}"
        [partitions]
        table = "{table}"
        swap = "16MiB"
        {more}
        "#,
        image.sha256, machine.disks[0].serial,
    )
}

fn root_uuid() -> String {
    let text = fs::read_to_string(repository().join("target/testbed/image/disk.uuid")).unwrap();
    text.trim().to_owned()
}

fn assert_boots_own_kernel(site: &Site, machine: &Machine) {
    for menu in site.rack.menus(machine) {
        assert!(menu.contains("the installed system's own kernel"), "{menu}");
        assert!(menu.contains(&format!("node/{}/kernel", machine.name)), "{menu}");
        assert!(menu.contains(&format!("root=PARTUUID={}", root_partuuid(machine))), "{menu}");
        assert!(!menu.contains("deploy") && !menu.contains("key"), "{menu}");
    }
}

/// The last partition's name for `PARTUUID=`, by sfdisk.
fn root_partuuid(machine: &Machine) -> String {
    let disk = &machine.disks[0].path;
    let table = output("sfdisk", &["--json".as_ref(), disk]);
    let table: serde_json::Value = serde_json::from_str(&table).unwrap();
    let id = table["partitiontable"]["id"].as_str().unwrap().trim_start_matches("0x").to_owned();
    let partitions = table.pointer("/partitiontable/partitions").unwrap().as_array().unwrap();
    match partitions.last().unwrap()["uuid"].as_str() {
        Some(uuid) => uuid.to_lowercase(),
        None => format!("{id}-{:02x}", partitions.len()),
    }
}

/// Asserts the file systems that blkid finds in the machine's partitions, in the order of the disk.
fn assert_partitions(machine: &Machine, kinds: &[&str]) {
    let disk = &machine.disks[0].path;
    let found: Vec<String> = disks::partitions(disk)
        .into_iter()
        .map(|Range { start, end }| {
            let range = [format!("--offset={start}"), format!("--size={}", end - start)];
            let words = ["-p", "-o", "value", "-s", "TYPE", &range[0], &range[1]].map(Path::new);
            output("blkid", &[&words[..], &[disk.as_path()]].concat()).trim().to_owned()
        })
        .collect();
    assert_eq!(found, kinds, "{}", machine.name);
}

fn output(program: &str, args: &[&Path]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
