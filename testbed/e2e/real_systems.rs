//! Real operating systems on the machines: `deployed` says that their own system is up.
//!
//! The images are those of `examples/images/debian`, made by `testbed/real/build`.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    process::Command,
    time::Duration,
};

use hostler::model::{
    fault::Step,
    status::{Booted, Phase},
};

use crate::{
    disks,
    rack::{Machine, repository},
    site::{BOOT_LIMIT, Image, Site},
};

/// From the spec to the call of a system of 3 GiB on a machine without virtualisation.
pub(crate) const REAL_LIMIT: Duration = Duration::from_secs(2400);
/// Memory for a system's own ramdisk.
pub(crate) const MEMORY: [&str; 2] = ["--memory", "1024"];
/// The marker that cloud-init has the system print, with the size of its root in MiB.
const MARKER: &str = "HOSTLER-REAL root_mib=";
/// The root of the image has 2900 MiB.
const GROWN_MIB: u64 = 3500;
/// The config drive lies at the end of the disk.
const DRIVE_IS_WITHIN_BYTES: usize = 128 << 20;

/// Invariant (attempt): A real operating system is deployed once it has called, by BIOS and by
/// UEFI.
#[test]
fn debian_is_installed_by_bios_and_by_uefi_and_deployed_once_it_has_called() {
    let mut site = Site::with("real_systems", &["bios", "uefi"], "4G", &MEMORY);
    let image = real_image(&site, "debian.qcow2");
    let machines = site.rack.machines();
    for (machine, host) in machines.iter().zip(51..) {
        write_debian(&site, machine, &image, &format!("192.0.2.{host}"));
    }
    for (machine, host) in machines.iter().zip(51..) {
        let status = site.wait_for_phase(&machine.name, Phase::Deployed, REAL_LIMIT);
        let installed = status.installed.unwrap();
        assert_eq!(installed.booted, Some(Booted::Up));
        let system = installed.system.unwrap();
        assert_eq!(system.hostname.as_deref(), Some(&*machine.name));
        assert_eq!(system.address.unwrap().to_string(), format!("192.0.2.{host}"));
        assert!(system.ssh_host_keys.iter().any(|key| key.contains("SHA256:")), "{system:?}");
        let console = machine.console();
        let root_mib: u64 = console
            .split(MARKER)
            .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
            .last()
            .unwrap_or_else(|| panic!("no {MARKER} on the console of {}", machine.name));
        assert!(root_mib > GROWN_MIB, "the root has {root_mib} MiB");
        assert_eq!(machine.times_switched_on(), 2);
    }
    assert!(site.stop_agent().success());
}

/// Invariant (attempt): A system that does not come up costs no disk: it is restarted once, given
/// up, and a late call still counts.
#[test]
fn a_system_that_does_not_call_is_restarted_once_and_a_late_call_counts_without_a_write() {
    let mut site = Site::new("first_boot", &["uefi"], "1G");
    let image = site.image("disk.raw", 0);
    let machine = site.rack.machine("node-1");
    disks::fill(&machine);
    let rest = format!(
        "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
         serial = \"root-1\"\n[config_drive]\nlabel = \"cidata\"\n[boot_check]\nby = \"call\"\n\
         [timeouts]\nfirst_boot = \"40s\"\n",
        image.sha256
    );
    site.write_spec(&machine, &rest);
    site.wait_for_phase("node-1", Phase::Booting, BOOT_LIMIT);
    let status = loop {
        let Some(status) = site.status("node-1") else { continue };
        if status.phase == Phase::Failed {
            break status;
        }
        assert!(matches!(status.phase, Phase::Booting), "{status:#?}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let error = status.last_error.unwrap();
    assert_eq!(error.fault.step, Step::FirstBoot, "{error:#?}");
    assert_eq!(status.installed.unwrap().booted, Some(Booted::Missed));
    // The ramdisk, the installed system, and that once more.
    assert_eq!(machine.times_switched_on(), 3);
    disks::assert_holds(&machine, &image);

    let url = boot_call_url(&machine);
    let call = ["curl", "-sS", "--fail", "--max-time", "20", "--data", "hostname=late", &url];
    let called = site.rack.inside(&call).output().unwrap();
    assert!(called.status.success(), "{called:?}");
    let status = site.wait_until_deployed_again("node-1", BOOT_LIMIT);
    let installed = status.installed.unwrap();
    assert_eq!((installed.booted, status.last_error), (Some(Booted::Up), None));
    assert_eq!(installed.system.unwrap().hostname.as_deref(), Some("late"));
    assert_eq!(machine.times_switched_on(), 3, "it was installed or restarted again");
    assert!(site.rack.machine("node-1").is_on);
}

/// Invariant (attempt): A real system without cloud-init is deployed once its SSH server answers,
/// and one whose root is broken fails at its first boot: its disk stays whole, and its last words
/// are kept.
#[test]
fn a_debian_without_cloud_init_is_up_by_its_ssh_server_and_one_with_a_broken_root_fails() {
    let mut site = Site::with("plain_systems", &["uefi", "uefi"], "2G", &MEMORY);
    let [plain, broken] = <[Machine; 2]>::try_from(site.rack.machines()).unwrap();
    let plain_image = real_image(&site, "plain.ext4");
    let broken_image = real_image(&site, "broken.ext4");
    site.write_spec(&plain, &file_system(&plain_image, &plain, "first_boot = \"20m\""));
    site.write_spec(&broken, &file_system(&broken_image, &broken, "first_boot = \"60s\""));

    let status = site.wait_for_phase(&broken.name, Phase::Failed, REAL_LIMIT);
    let error = status.last_error.unwrap();
    assert_eq!((error.fault.step, &*error.fault.code), (Step::FirstBoot, "NotBooted"), "{error:?}");
    // The ramdisk, the installed system, and that once more.
    assert_eq!(broken.times_switched_on(), 3);
    let kept = fs::read_to_string(site.file("nodes/node-2.console.log")).unwrap();
    let (_, last_words) = kept.rsplit_once("Linux version").unwrap();
    assert!(last_words.contains("No init found"), "{kept}");
    assert!(site.rack.machine(&broken.name).is_on);
    disks::assert_root_is(&broken, &broken_image);

    let status = site.wait_for_phase(&plain.name, Phase::Deployed, REAL_LIMIT);
    let installed = status.installed.unwrap();
    assert_eq!(installed.booted, Some(Booted::Up));
    let system = installed.system.unwrap();
    let banner = system.ssh_banner.unwrap();
    assert!(banner.starts_with("SSH-2.0-OpenSSH") && banner.ends_with(" plain"), "{banner}");
    assert_eq!(system.address.unwrap().to_string(), plain.address);
    // The entry of systemd-boot, which lies beside EFI/.
    assert!(plain.console().contains("initrd=\\debian\\"), "another loader's kernel");
    assert!(site.stop_agent().success());
}

/// Reads the URL of the system's call from the config drive at the end of the machine's disk.
fn boot_call_url(machine: &Machine) -> String {
    let disk = File::open(&machine.disks[0].path).unwrap();
    let mut end = vec![0; DRIVE_IS_WITHIN_BYTES];
    let bytes = disk.metadata().unwrap().len();
    disk.read_exact_at(&mut end, bytes - DRIVE_IS_WITHIN_BYTES as u64).unwrap();
    let text = String::from_utf8_lossy(&end);
    let mut lines = text.split(|c: char| !c.is_ascii_graphic());
    let is_url = |text: &&str| {
        let token = text.strip_prefix("http://").and_then(|rest| rest.rsplit_once("/booted/"));
        token.is_some_and(|(_, token)| token.len() == 64)
    };
    lines.find(is_url).expect("the drive has a URL").to_owned()
}

pub(crate) fn real_image(site: &Site, name: &str) -> Image {
    let path = site.file(&format!("images/{name}"));
    let made = repository().join("target/testbed/real").join(name);
    let copied = Command::new("cp").arg("--sparse=always").args([&made, &path]).status();
    assert!(copied.unwrap().success(), "{}: run testbed/real/build", made.display());
    Image::at(path)
}

/// A file system that hostler makes the partitions for, with a check by SSH.
fn file_system(image: &Image, machine: &Machine, timeouts: &str) -> String {
    format!(
        "console = true\n[image]\nsource = \"{}\"\nchecksum = \"sha256:{}\"\n\
         kind = \"partition\"\nverify = \"node\"\n[root_device]\nserial = \"{}\"\n\
         [boot_check]\nby = \"tcp\"\n[timeouts]\n{timeouts}\n",
        image.path.file_name().unwrap().display(),
        image.sha256,
        machine.disks[0].serial
    )
}

fn write_debian(site: &Site, machine: &Machine, image: &Image, address: &str) {
    let command = format!("echo {MARKER}$(($(findmnt -bno SIZE /) >> 20)) >/dev/ttyS0");
    let rest = format!(
        "[image]\nsource = \"debian.qcow2\"\nchecksum = \"sha256:{}\"\nverify = \"node\"\n{}",
        image.sha256,
        cloud_init(site, machine, address, &command)
    );
    site.write_spec(machine, &rest);
}

/// The tables of a spec for a system with cloud-init, which gets an address of its own, runs a
/// command, and calls.
pub(crate) fn cloud_init(site: &Site, machine: &Machine, address: &str, command: &str) -> String {
    let Machine { name, mac, .. } = machine;
    let user_data = format!("#cloud-config\nruncmd:\n  - {command}\n");
    let network = format!(
        "version: 2\nethernets:\n  lan:\n    match: {{ macaddress: \"{mac}\" }}\n    \
         addresses: [{address}/24]\n"
    );
    fs::write(site.file(&format!("nodes/{name}.user-data")), user_data).unwrap();
    fs::write(site.file(&format!("nodes/{name}.network")), network).unwrap();
    format!(
        "[root_device]\nserial = \"{}\"\n[config_drive]\nlabel = \"cidata\"\n\
         user_data_file = \"{name}.user-data\"\nnetwork_config_file = \"{name}.network\"\n\
         [boot_check]\nby = \"call\"\n",
        machine.disks[0].serial
    )
}
