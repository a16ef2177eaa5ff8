//! The place of a disk in the hardware, as in `/dev/disk/by-path` (systemd's
//! `udev-builtin-path_id`): `pci-0000:00:17.0-ata-1.0`.
//!
//! The inventory uses it. The ramdisk has no udev, so that this module reads the same from sysfs:
//! the devices from the disk up to its bus, and their identifiers. A disk behind a device without
//! stable name gets no path.

use std::path::Path;

use super::sysfs;

/// Finds the path of the disk with this directory in sysfs.
pub(super) fn by_path(dir: &Path) -> Option<String> {
    let disk = dir.canonicalize().ok()?;
    let mut parts = Vec::new();
    let (mut has_parent, mut has_transport) = (false, false);
    let mut device = disk.parent().map(Path::to_path_buf);
    while let Some(at) = device {
        let subsystem = subsystem(&at);
        let (mut next, name) = (at.parent().map(Path::to_path_buf), file_name(&at));
        match subsystem.as_deref() {
            Some("scsi") if name.split(':').count() == 4 => {
                let (part, up) = scsi(&at, name)?;
                parts.push(part);
                (next, has_transport) = (Some(up), true);
            }
            Some("nvme") => {
                parts.push(format!("nvme-{}", nsid(&disk)?));
                has_transport = true;
            }
            Some("nvme-subsystem") => {
                // A disk with several controllers belongs to the one with its number.
                let (controller, _) = file_name(&disk).rsplit_once('n')?;
                next = Some(at.join(controller).canonicalize().ok()?);
            }
            Some("usb") => {
                // A USB interface, or its device, as `2-1:1.0` and `2-1`.
                let interface = at.ancestors().take_while(|up| is_in(up, "usb"));
                let port = interface.map(file_name).find_map(|name| {
                    name.contains(':').then(|| name.split_once('-').map(|(_, port)| port))?
                })?;
                parts.push(format!("usb-0:{port}"));
                (next, has_transport) = (Some(above(&at, "usb")?), true);
            }
            Some("virtio" | "mmc") => has_transport = true,
            Some(bus @ ("pci" | "platform" | "acpi")) => {
                parts.push(format!("{bus}-{name}"));
                has_parent = true;
                has_transport |= bus == "platform";
                next = above(&at, bus);
            }
            _ => {}
        }
        device = next.filter(|up| up.parent().is_some());
    }
    parts.reverse();
    (has_parent && has_transport).then(|| parts.join("-"))
}

/// The identifier of a SCSI device at its host, and the device above the host.
fn scsi(device: &Path, name: &str) -> Option<(String, std::path::PathBuf)> {
    let named = |start: &'static str| {
        move |up: &&Path| {
            file_name(up).strip_prefix(start).is_some_and(|rest| rest.starts_with(is_digit))
        }
    };
    let host = device.ancestors().find(named("host"))?;
    let up = host.parent()?;
    let [_, bus, target, lun] = name.split(':').collect::<Vec<_>>().try_into().ok()?;
    let at_host = |other: &str| device.ancestors().any(|up| file_name(up).starts_with(other));
    if at_host("rport-") || at_host("session") || at_host("vmbus_") || at_host("VMBUS") {
        return None;
    }
    if let Some(end) = device.ancestors().find(named("end_device-"))
        && let Some(part) = sas(end, lun)
    {
        return Some((part, up.to_owned()));
    }
    if let Some(port) = device.ancestors().find(named("ata")) {
        let number = sysfs::text(&port.join("ata_port").join(file_name(port)).join("port_no"))?;
        // Behind a port multiplier the SCSI bus is its port.
        let part = match bus {
            "0" => format!("ata-{number}.{target}"),
            bus => format!("ata-{number}.{bus}.0"),
        };
        return Some((part, up.to_owned()));
    }
    // Host numbers follow the order of detection; the first host of a controller counts as 0.
    let number = |name: &str| name.strip_prefix("host")?.parse::<u32>().ok();
    let first = sysfs::names(up).iter().filter_map(|name| number(name)).min()?;
    let host = number(file_name(host))?.checked_sub(first)?;
    Some((format!("scsi-{host}:{bus}:{target}:{lun}"), up.to_owned()))
}

/// The identifier of a single disk at a phy of a SAS controller or expander.
fn sas(end_device: &Path, lun: &str) -> Option<String> {
    let attribute = |at: &Path, class: &str, name: &str| {
        sysfs::text(&at.join(class).join(file_name(at)).join(name))
    };
    let port = end_device.parent()?;
    if attribute(port, "sas_port", "num_phys")? != "1" {
        return None;
    }
    let phy = attribute(end_device, "sas_device", "phy_identifier")?;
    Some(match attribute(port.parent()?, "sas_device", "sas_address") {
        Some(expander) => format!("sas-exp{expander}-phy{phy}-lun-{lun}"),
        None => format!("sas-phy{phy}-lun-{lun}"),
    })
}

fn nsid(disk: &Path) -> Option<u64> {
    sysfs::number(&disk.join("nsid"))
}

/// The first directory above `at` that is no device of this bus: bridges and hubs are skipped.
fn above(at: &Path, bus: &str) -> Option<std::path::PathBuf> {
    at.ancestors().find(|up| !is_in(up, bus)).map(Path::to_path_buf)
}

fn is_in(device: &Path, bus: &str) -> bool {
    subsystem(device).as_deref() == Some(bus)
}

/// The name of a device's bus or class.
fn subsystem(device: &Path) -> Option<String> {
    let link = std::fs::read_link(device.join("subsystem")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// The path of a simulated disk; `way` lists its devices, each with its bus after a `=`.
    fn path_of(way: &str, attributes: &[(&str, &str)]) -> Option<String> {
        let sys = tempfile::tempdir().unwrap();
        let mut at = sys.path().join("devices");
        for step in way.split(' ') {
            let (name, bus) = step.split_once('=').map_or((step, None), |(n, b)| (n, Some(b)));
            at.push(name);
            fs::create_dir_all(&at).unwrap();
            if let Some(bus) = bus {
                symlink(Path::new("../bus").join(bus), at.join("subsystem")).unwrap();
            }
        }
        let write = |path: &str, value: &str| {
            let path = sys.path().join("devices").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        };
        for (path, value) in attributes {
            write(path, value);
        }
        let block = sys.path().join("block");
        fs::create_dir(&block).unwrap();
        symlink(&at, block.join("disk")).unwrap();
        by_path(&block.join("disk"))
    }

    #[test]
    fn disks_are_where_udev_says_they_are() {
        let sata = "pci0000:00 0000:00:17.0=pci ata3 host2 target2:0:0 2:0:0:0=scsi block sda";
        let port = "pci0000:00/0000:00:17.0/ata3/ata_port/ata3/port_no";
        assert_eq!(path_of(sata, &[(port, "3\n")]).unwrap(), "pci-0000:00:17.0-ata-3.0");

        let raid = "pci0000:3a 0000:3a:00.0=pci 0000:3b:00.0=pci host5 target5:2:1 5:2:1:0=scsi \
                    block sdb";
        let first = ("pci0000:3a/0000:3a:00.0/0000:3b:00.0/host4/x", "");
        assert_eq!(path_of(raid, &[]).unwrap(), "pci-0000:3b:00.0-scsi-0:2:1:0");
        assert_eq!(path_of(raid, &[first]).unwrap(), "pci-0000:3b:00.0-scsi-1:2:1:0");

        let nvme = "pci0000:00 0000:00:1d.0=pci 0000:01:00.0=pci nvme nvme0=nvme nvme0n1";
        let nsid = "pci0000:00/0000:00:1d.0/0000:01:00.0/nvme/nvme0/nvme0n1/nsid";
        assert_eq!(path_of(nvme, &[(nsid, "1\n")]).unwrap(), "pci-0000:01:00.0-nvme-1");

        let vmd =
            "pci0000:64 0000:64:05.5=pci pci10000:00 10000:01:00.0=pci nvme nvme0=nvme nvme0n1";
        let nsid = "pci0000:64/0000:64:05.5/pci10000:00/10000:01:00.0/nvme/nvme0/nvme0n1/nsid";
        let path = path_of(vmd, &[(nsid, "1")]).unwrap();
        assert_eq!(path, "pci-0000:64:05.5-pci-10000:01:00.0-nvme-1");

        let virtio = "pci0000:00 0000:00:04.0=pci virtio1=virtio block vda";
        assert_eq!(path_of(virtio, &[]).unwrap(), "pci-0000:00:04.0");

        let emmc = "pci0000:00 0000:00:1a.0=pci mmc_host mmc0 mmc0:0001=mmc block mmcblk0";
        assert_eq!(path_of(emmc, &[]).unwrap(), "pci-0000:00:1a.0");

        let usb = "pci0000:00 0000:00:14.0=pci usb2=usb 2-1=usb 2-1:1.0=usb host6 target6:0:0 \
                   6:0:0:0=scsi block sdc";
        let path = path_of(usb, &[]).unwrap();
        assert_eq!(path, "pci-0000:00:14.0-usb-0:1:1.0-scsi-0:0:0:0");
    }

    /// Invariant (machine): A hint chooses a disk in every tool's spelling, and never by a guess.
    #[test]
    fn the_disks_of_this_machine_are_where_udev_says() {
        let block = Path::new("/sys/block");
        for name in sysfs::names(block) {
            let dir = block.join(name);
            let udev = std::process::Command::new("udevadm")
                .args(["test-builtin", "path_id"])
                .arg(&dir)
                .output()
                .unwrap();
            let said = String::from_utf8(udev.stdout).unwrap();
            let path = said.lines().find_map(|line| line.strip_prefix("ID_PATH="));
            assert_eq!(by_path(&dir).as_deref(), path, "{}", dir.display());
        }
    }

    #[test]
    fn a_sas_disk_is_at_its_phy_and_with_several_at_its_target() {
        let way = "pci0000:00 0000:03:00.0=pci host0 port-0:0 end_device-0:0 target0:0:0 \
                   0:0:0:0=scsi block sda";
        let host = "pci0000:00/0000:03:00.0/host0";
        let phys = format!("{host}/port-0:0/sas_port/port-0:0/num_phys");
        let phy =
            format!("{host}/port-0:0/end_device-0:0/sas_device/end_device-0:0/phy_identifier");
        let one = path_of(way, &[(&phys, "1"), (&phy, "4")]).unwrap();
        assert_eq!(one, "pci-0000:03:00.0-sas-phy4-lun-0");
        let wide = path_of(way, &[(&phys, "2"), (&phy, "4")]).unwrap();
        assert_eq!(wide, "pci-0000:03:00.0-scsi-0:0:0:0");

        let way = way.replace("port-0:0 ", "port-0:0 expander-0:0 port-0:0:2 ");
        let expander = format!("{host}/port-0:0/expander-0:0");
        let phys = format!("{expander}/port-0:0:2/sas_port/port-0:0:2/num_phys");
        let end = format!("{expander}/port-0:0:2/end_device-0:0");
        let phy = format!("{end}/sas_device/end_device-0:0/phy_identifier");
        let address = format!("{expander}/sas_device/expander-0:0/sas_address");
        let values = [(&*phys, "1"), (&*phy, "7"), (&*address, "0x500056b3")];
        let path = path_of(&way, &values).unwrap();
        assert_eq!(path, "pci-0000:03:00.0-sas-exp0x500056b3-phy7-lun-0");
    }

    #[test]
    fn what_has_no_stable_place_has_no_path() {
        let fc = "pci0000:00 0000:03:00.0=pci host0 rport-0:0-1 target0:0:0 0:0:0:0=scsi block sda";
        assert_eq!(path_of(fc, &[]), None);
        assert_eq!(path_of("virtual block loop0", &[]), None);
        assert_eq!(path_of("pci0000:00 0000:00:04.0=pci block odd0", &[]), None);
    }
}
