//! QEMU's BIOS on a disk that hostler has laid out around a file system.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hostler::{
    imaging::{Parts, partitioned},
    model::spec::{PartitionTable, Partitions},
};

use super::disk::{Bench, MIB, geometry, guids, image};

/// The line that the next boot device prints on the serial line.
const NEXT_SAYS: &str = "here is the next boot device";
/// Time limit of a boot without KVM, on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(100);

/// Invariant (netboot): A BIOS goes on from a disk without a boot loader to its next boot device.
#[test]
fn a_bios_goes_on_from_a_disk_without_a_boot_loader_to_its_next_device() {
    let bench = Bench::new();
    let root = bench.filesystem("root", 8 * MIB, "mkfs.ext4", &["-L", "root"]);
    for table in [PartitionTable::Gpt, PartitionTable::Msdos] {
        let wanted =
            Partitions { table, swap_bytes: None, ephemeral_bytes: None, root_bytes: None };
        let disk = geometry(64 * MIB);
        let layout =
            partitioned(&image(&root), disk, &wanted, Parts::default(), &mut guids()).unwrap();
        let disk = bench.disk(&layout, disk);
        let next = bench.file("next", 0);
        let mut floppy = boot_sector();
        floppy.resize(1_474_560, 0);
        fs::write(&next, floppy).unwrap();
        let mut machine = Machine::start(&disk, &next);
        let deadline = Instant::now() + BOOT_LIMIT;
        while !machine.console().contains(NEXT_SAYS) {
            let ended = machine.qemu.try_wait().unwrap();
            assert!(ended.is_none(), "QEMU ended: {}", machine.console());
            assert!(Instant::now() < deadline, "{table:?}: it stays at the disk");
            thread::sleep(Duration::from_millis(50));
        }
        drop(machine);
        fs::remove_file(disk).unwrap();
    }
}

/// A machine with a BIOS that tries the disk first, and then a floppy.
struct Machine {
    qemu: Child,
    log: std::path::PathBuf,
}

impl Machine {
    fn start(disk: &Path, next: &Path) -> Self {
        let log = next.with_extension("log");
        let console = File::create(&log).unwrap();
        let drive =
            |id: &str, file: &Path| format!("if=none,id={id},format=raw,file={}", file.display());
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"])
            .args(["-serial", "stdio", "-drive", &drive("disk", disk)])
            .args(["-device", "virtio-blk-pci,drive=disk,bootindex=1"])
            .args(["-drive", &drive("next", next), "-device", "floppy,drive=next,drive-type=144"])
            .args(["-global", "isa-fdc.bootindexA=2"])
            .stdin(Stdio::null())
            .stderr(console.try_clone().unwrap())
            .stdout(console)
            .spawn()
            .unwrap();
        Self { qemu, log }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
    }
}

/// A boot sector that prints one line on the serial port and halts.
fn boot_sector() -> Vec<u8> {
    let letters: Vec<u8> = NEXT_SAYS.bytes().flat_map(|byte| [0xb0, byte, 0xee]).collect();
    let mut sector = [&[0xba, 0xf8, 0x03][..], &letters, &[0xfa, 0xf4, 0xeb, 0xfd]].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}
