//! The inventory of disks, from sysfs.
//!
//! The boot sequence sends it to the agent, which chooses. It must never open a disk, only read the
//! kernel's properties of it.

use std::{ops::Range, path::Path, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{by_path::by_path, sysfs};
use crate::model::disk::Disk;

/// Longest wait for the drivers' probes: large controllers start up in half a minute.
const DRIVERS_WAIT: Duration = Duration::from_secs(120);
/// The inventory is complete without a new disk for this time: the disks of one controller appear
/// faster.
const SETTLED_AFTER: Duration = Duration::from_millis(1500);
const POLL_EVERY: Duration = Duration::from_millis(100);
/// Devices that resemble a machine's own disk: optical drives, floppies, network block devices.
const NOT_A_DISK: [&str; 3] = ["sr", "fd", "nbd"];
/// sysfs counts sectors of 512 bytes for every block size of a disk.
const SYSFS_SECTOR_BYTES: u64 = 512;
/// The length of a VPD page's header (SPC-4 §7.8.13).
const VPD_HEADER_BYTES: usize = 4;
/// The model in VPD page 0x89.
const ATA_MODEL_BYTES: Range<usize> = 60 + 54..60 + 94;

/// The machine's disks.
#[derive(Clone, Debug)]
pub(super) struct Inventory {
    pub(super) disks: Vec<Disk>,
    /// The time of the last change.
    pub(super) since: Instant,
}

impl Inventory {
    pub(super) fn read(sys: &Path) -> Self {
        Self { disks: inventory(sys), since: Instant::now() }
    }

    /// Reads the disks again. Returns whether they have changed.
    fn update(&mut self, sys: &Path) -> bool {
        let disks = inventory(sys);
        let has_changed = disks != self.disks;
        if has_changed {
            *self = Self { disks, since: Instant::now() };
        }
        has_changed
    }

    /// Waits until no more disks appear.
    async fn settle(&mut self, sys: &Path) {
        let mut last_change = Instant::now();
        self.update(sys);
        while last_change.elapsed() < SETTLED_AFTER {
            sleep(POLL_EVERY).await;
            if self.update(sys) {
                last_change = Instant::now();
            }
        }
    }
}

/// Waits until the drivers have probed and no more disks appear. The agent knows which disks must
/// exist, and [`changed`] waits for those.
pub(super) async fn settled(sys: &Path, drivers: oneshot::Receiver<()>) -> Inventory {
    let mut disks = Inventory::read(sys);
    // After a timeout or a panic of the drivers' thread, the found disks are still useful.
    let probing = timeout(DRIVERS_WAIT, drivers);
    tokio::pin!(probing);
    while timeout(POLL_EVERY, &mut probing).await.is_err() {
        disks.update(sys);
    }
    disks.settle(sys).await;
    disks
}

/// Waits until the disks differ from `known` and no more appear, for at most `limit`.
pub(super) async fn changed(sys: &Path, known: &Inventory, limit: Duration) -> Inventory {
    let deadline = Instant::now() + limit;
    let mut disks = known.clone();
    while !disks.update(sys) {
        if Instant::now() >= deadline {
            return disks;
        }
        sleep(POLL_EVERY).await;
    }
    disks.settle(sys).await;
    disks
}

/// All disks under `sys` (`/sys`), by name.
pub(super) fn inventory(sys: &Path) -> Vec<Disk> {
    let block = sys.join("block");
    sysfs::names(&block).into_iter().filter_map(|name| disk(&block.join(&name), name)).collect()
}

fn disk(dir: &Path, name: String) -> Option<Disk> {
    // Loop, RAM, zram, device mapper and md devices have no `device` link.
    let physical = dir.join("device").exists() && !sysfs::flag(&dir.join("hidden"));
    let size = sysfs::number(&dir.join("size"))?.checked_mul(SYSFS_SECTOR_BYTES)?;
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if !physical || size == 0 || NOT_A_DISK.contains(&kind) {
        return None;
    }
    let text = |attribute: &str| sysfs::text(&dir.join(attribute));
    Some(Disk {
        size,
        serial: text("serial").or_else(|| text("device/serial")).or_else(|| vpd_serial(dir)),
        wwn: text("wwid").or_else(|| text("device/wwid")).filter(|wwid| is_wwn(wwid)),
        model: ata_model(dir).or_else(|| text("device/model")),
        vendor: text("device/vendor").filter(|vendor| !vendor.starts_with("0x")),
        hctl: hctl(dir),
        by_path: by_path(dir),
        rotational: sysfs::flag(&dir.join("queue/rotational")),
        logical_block_size: sysfs::number(&dir.join("queue/logical_block_size"))
            .and_then(|bytes| u32::try_from(bytes).ok())
            .unwrap_or(512),
        removable: sysfs::flag(&dir.join("removable")),
        read_only: sysfs::flag(&dir.join("ro")),
        name,
    })
}

/// The serial number of a SCSI or SATA disk: VPD page 0x80.
fn vpd_serial(dir: &Path) -> Option<String> {
    let page = sysfs::bytes(&dir.join("device/vpd_pg80"))?;
    let text = String::from_utf8_lossy(page.get(VPD_HEADER_BYTES..)?);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The full model of a SATA disk, of which SCSI's standard data have the first 16 characters: VPD
/// page 0x89 holds the disk's IDENTIFY DEVICE data from byte 60 on (SAT-4 §12.4.2), with the model
/// in words 27 to 46, two characters in each, the second first (ACS-3 §7.12.7.10).
fn ata_model(dir: &Path) -> Option<String> {
    let page = sysfs::bytes(&dir.join("device/vpd_pg89"))?;
    let words = page.get(ATA_MODEL_BYTES)?.chunks_exact(2);
    let bytes: Vec<u8> = words.flat_map(|word| word.iter().rev().copied()).collect();
    let text = String::from_utf8(bytes).ok()?;
    let text = text.trim_matches([' ', '\0']);
    let is_text = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    is_text.then(|| text.to_owned())
}

/// Whether an identifier is a world-wide name; a `t10.` identifier only concatenates vendor, model
/// and serial.
fn is_wwn(wwid: &str) -> bool {
    ["naa.", "eui.", "nvme.", "uuid."].iter().any(|prefix| wwid.starts_with(prefix))
}

/// The address of a SCSI disk: `device` links to a directory host:channel:target:lun.
fn hctl(dir: &Path) -> Option<String> {
    let device = dir.join("device").canonicalize().ok()?;
    let name = device.file_name()?.to_str()?;
    let numbers =
        name.split(':').filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    (name.split(':').count() == 4 && numbers.count() == 4).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// Writes attributes under `sys/block/<name>`.
    fn block(sys: &Path, name: &str, attributes: &[(&str, &str)]) {
        for (attribute, value) in attributes {
            let path = sys.join("block").join(name).join(attribute);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
    }

    #[test]
    fn virtio_scsi_and_nvme_disks_are_described_by_what_the_kernel_knows() {
        let sys = tempfile::tempdir().unwrap();
        let sys = sys.path();
        block(
            sys,
            "vda",
            &[("size", "16777216\n"), ("serial", "root-1"), ("device/vendor", "0x1af4\n")],
        );
        let scsi = sys.join("devices/host2/2:0:1:0");
        fs::create_dir_all(&scsi).unwrap();
        fs::write(scsi.join("model"), "SAMSUNG MZ7LH480\n").unwrap();
        fs::write(scsi.join("vendor"), "ATA     \n").unwrap();
        fs::write(scsi.join("wwid"), "naa.5002538e40a1b2c3\n").unwrap();
        fs::write(scsi.join("vpd_pg80"), b"\0\x80\0\x0e  S45PNA0M1234").unwrap();
        let mut identity = vec![0; 60 + 54];
        for pair in format!("{:40}", "SAMSUNG MZ7LH480HAHQ-00005").as_bytes().chunks_exact(2) {
            identity.extend([pair[1], pair[0]]);
        }
        fs::write(scsi.join("vpd_pg89"), &identity).unwrap();
        block(sys, "sda", &[("size", "937703088"), ("queue/rotational", "1\n"), ("ro", "1")]);
        symlink(&scsi, sys.join("block/sda/device")).unwrap();
        block(
            sys,
            "nvme0n1",
            &[
                ("size", "2048"),
                ("wwid", "eui.0025385191b0c8a1\n"),
                ("device/serial", "S4EV  \n"),
                ("queue/logical_block_size", "4096\n"),
            ],
        );

        let disks = inventory(sys);
        let [nvme, sda, vda] = disks.as_slice() else { panic!("{disks:?}") };
        assert_eq!(
            (vda.size, vda.serial.as_deref(), vda.vendor.as_deref()),
            (8 << 30, Some("root-1"), None)
        );
        assert_eq!(
            (sda.serial.as_deref(), sda.hctl.as_deref(), sda.vendor.as_deref()),
            (Some("S45PNA0M1234"), Some("2:0:1:0"), Some("ATA"))
        );
        assert_eq!(sda.wwn.as_deref(), Some("naa.5002538e40a1b2c3"));
        assert_eq!(sda.model.as_deref(), Some("SAMSUNG MZ7LH480HAHQ-00005"));
        for broken in [&identity[..60 + 93], &[0xff; 572][..], &[0; 572]] {
            fs::write(scsi.join("vpd_pg89"), broken).unwrap();
            assert_eq!(inventory(sys)[1].model.as_deref(), Some("SAMSUNG MZ7LH480"));
        }
        assert!(sda.rotational && sda.read_only && !sda.removable);
        assert_eq!((nvme.serial.as_deref(), nvme.logical_block_size), (Some("S4EV"), 4096));
        assert_eq!(nvme.wwn.as_deref(), Some("eui.0025385191b0c8a1"));
    }

    /// Invariant (ramdisk): A late root device is waited for; its node is given up only after a
    /// second start.
    #[tokio::test(start_paused = true)]
    async fn a_disk_that_appears_late_is_waited_for_and_then_for_those_beside_it() {
        let sys = tempfile::tempdir().unwrap();
        let first = [("size", "2048"), ("device/model", "x")];
        block(sys.path(), "sda", &first);
        let known = Inventory::read(sys.path());
        let limit = Duration::from_secs(3);
        let same = changed(sys.path(), &known, limit).await;
        assert_eq!((&same.disks, same.since.elapsed()), (&known.disks, limit), "none came");
        let appearing = async {
            for name in ["sdb", "sdc"] {
                sleep(Duration::from_secs(1)).await;
                block(sys.path(), name, &first);
            }
        };
        let (now, ()) = tokio::join!(changed(sys.path(), &known, limit), appearing);
        let names: Vec<&str> = now.disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["sda", "sdb", "sdc"]);
        assert_eq!(now.since.elapsed(), SETTLED_AFTER, "counted from the last disk");
    }

    #[tokio::test(start_paused = true)]
    async fn disks_that_are_there_from_the_start_are_counted_from_the_start() {
        let sys = tempfile::tempdir().unwrap();
        block(sys.path(), "sda", &[("size", "2048"), ("device/model", "x")]);
        let (probed, drivers) = oneshot::channel();
        let probing = async {
            sleep(Duration::from_secs(6)).await;
            probed.send(()).unwrap();
        };
        let (disks, ()) = tokio::join!(settled(sys.path(), drivers), probing);
        let waited = disks.since.elapsed();
        assert!(waited >= Duration::from_secs(6) + SETTLED_AFTER, "{waited:?}");
    }

    #[test]
    fn what_is_not_a_disk_of_the_machine_is_left_out() {
        let sys = tempfile::tempdir().unwrap();
        let sys = sys.path();
        block(sys, "loop0", &[("size", "2048")]);
        block(sys, "zram0", &[("size", "2048")]);
        block(sys, "dm-0", &[("size", "2048")]);
        block(sys, "sr0", &[("size", "2048"), ("device/model", "DVD")]);
        block(sys, "fd0", &[("size", "8"), ("device/model", "x")]);
        block(sys, "sdb", &[("size", "0"), ("device/model", "empty SD reader")]);
        block(sys, "nvme0c0n1", &[("size", "2048"), ("hidden", "1"), ("device/model", "x")]);
        assert_eq!(inventory(sys), []);
    }

    #[test]
    fn a_run_together_identifier_is_not_a_world_wide_name() {
        assert!(!is_wwn("t10.ATA     QEMU HARDDISK                           QM00001"));
    }
}
