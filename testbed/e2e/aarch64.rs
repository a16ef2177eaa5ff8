//! A machine with 64-bit Arm processors, from its firmware to the end of what can be shown without a hostler-ramdisk for it: GRUB, the
//! kernel and hostler's modules are Arm's, the program in the ramdisk is a script that repeats its command line.

use std::{
    fs::{self, File},
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use hostler::model::{boot::BootStage, fault::Step, status::Phase};

use crate::{
    rack::{Machine, repository},
    site::{BOOT_LIMIT, SOON, Site},
};

const LOOK_INTERVAL: Duration = Duration::from_millis(50);

#[test]
fn an_aarch64_machine_netboots_grub_kernel_and_ramdisk_of_its_own_kind() {
    let mut site = Site::new("aarch64", &["uefi+aarch64"], "128M");
    let image = site.image("disk.raw", 0);
    let machine = site.rack.machines().remove(0);
    site.write_spec(
        &machine,
        &format!(
            "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[retry]\nattempts = 1\n",
            image.sha256
        ),
    );
    fs::write(site.file("nodes/_defaults.toml"), "boot.arch = \"aarch64\"\n").unwrap();
    let error = site.wait_for_failure(&machine.name, SOON);
    assert_eq!((error.fault.step, &*error.fault.code), (Step::Preflight, "BootFilesMissing"));
    assert!(error.fault.message.contains("[ramdisk.aarch64]"), "{error:#?}");
    assert_eq!(machine.times_switched_on(), 0);

    give_boot_files(&mut site);
    fs::write(site.file("nodes/_defaults.toml"), "boot.arch = \"aarch64\"\nredeploy = \"now\"\n")
        .unwrap();
    site.wait(&machine.name, "its ramdisk", BOOT_LIMIT, |status| {
        let fetched = status.last_seen.as_ref().and_then(|seen| seen.fetched);
        status.phase == Phase::WaitingRamdisk && fetched == Some(BootStage::Ramdisk)
    });
    let attempt = site.record(&machine.name).unwrap().state.attempt().unwrap().clone();
    let said = wait_for_line(&machine, "HOSTLER-AARCH64 machine=aarch64 ");
    for word in [
        format!("hostler.node={}", machine.name),
        format!("hostler.key={}", attempt.key.expose()),
        format!("BOOTIF=01-{}", machine.mac.replace(':', "-")),
    ] {
        assert!(said.split_whitespace().any(|said| said == word), "{word} is not in {said}");
    }
    wait_for_line(&machine, "HOSTLER-AARCH64 modules fit");
}

/// The boot loader and `[ramdisk.aarch64]`.
fn give_boot_files(site: &mut Site) {
    assert!(site.stop_agent().success());
    let built = repository().join("target/testbed/aarch64");
    for (name, to) in [
        ("grubaa64.efi", "tftp/grubaa64.efi"),
        ("vmlinuz", "ramdisk/vmlinuz-aarch64"),
        ("initramfs", "ramdisk/initramfs-aarch64"),
    ] {
        fs::copy(built.join(name), site.file(to))
            .unwrap_or_else(|error| panic!("{name}: {error}; run testbed/build"));
    }
    let [kernel, initramfs] =
        ["vmlinuz", "initramfs"].map(|name| site.file(&format!("ramdisk/{name}-aarch64")));
    let mut config = File::options().append(true).open(site.file("hostler.toml")).unwrap();
    writeln!(config, "[ramdisk.aarch64]\nkernel = {kernel:?}\ninitramfs = {initramfs:?}").unwrap();
    site.start_agent();
}

/// A line of the machine's console with this in it.
fn wait_for_line(machine: &Machine, wanted: &str) -> String {
    let deadline = Instant::now() + BOOT_LIMIT;
    loop {
        if let Some(line) = machine.console().lines().find(|line| line.contains(wanted)) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "{} does not say {wanted}", machine.name);
        thread::sleep(LOOK_INTERVAL);
    }
}
