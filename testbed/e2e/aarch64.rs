//! A machine with 64-bit Arm processors, as far as it gets without a hostler-ramdisk for it: GRUB,
//! the kernel and hostler's modules are Arm's; the program in the ramdisk is a script that prints
//! its command line. `arm.rs` installs such machines.

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

/// The boot limit for emulated Arm processors, on which GRUB fetches a kernel in small pieces.
const ARM_LIMIT: Duration = BOOT_LIMIT.saturating_mul(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[test]
fn an_aarch64_machine_netboots_grub_kernel_and_ramdisk_of_its_own_kind() {
    let mut site = Site::new("aarch64", &["uefi+aarch64"], "128M");
    let image = site.image("disk.raw", 0);
    let machine = site.rack.machines().remove(0);
    fs::write(site.file("nodes/_defaults.toml"), "boot.arch = \"aarch64\"\n").unwrap();
    let rest = format!(
        "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[retry]\nattempts = 99\n\
         backoff = \"5s\"\n",
        image.sha256
    );
    site.write_spec(&machine, &rest);
    let refused = site.wait(&machine.name, "a fault", SOON, |status| status.last_error.is_some());
    let fault = refused.last_error.unwrap().fault;
    assert_eq!((fault.step, &*fault.code), (Step::Preflight, "BootFilesMissing"));
    assert!(fault.message.contains("[ramdisk.aarch64]"), "{fault:?}");
    assert_eq!(machine.times_switched_on(), 0);

    assert!(site.stop_agent().success());
    give_boot_files(&mut site, &[("grubaa64.efi", "grubaa64.efi")], ".");
    site.wait(&machine.name, "its ramdisk", ARM_LIMIT, |status| {
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

/// Adds boot loaders by the names that DHCP gives them, and `[ramdisk.aarch64]` from a directory,
/// all of them built, and starts the agent again.
pub(crate) fn give_boot_files(site: &mut Site, loaders: &[(&str, &str)], ramdisk: &str) {
    let loaders = loaders.iter().map(|(from, to)| ((*from).to_owned(), format!("tftp/{to}")));
    let ramdisk = [("vmlinuz", "kernel"), ("initramfs", "initramfs")]
        .map(|(name, to)| (format!("{ramdisk}/{name}"), format!("ramdisk/{to}-aarch64")));
    for (from, to) in loaders.chain(ramdisk) {
        let from = repository().join("target/testbed/aarch64").join(from);
        fs::copy(&from, site.file(&to))
            .unwrap_or_else(|error| panic!("{}: {error}; run testbed/build", from.display()));
    }
    let mut config = File::options().append(true).open(site.file("hostler.toml")).unwrap();
    writeln!(config, "[ramdisk.aarch64]").unwrap();
    for name in ["kernel", "initramfs"] {
        let path = site.file(&format!("ramdisk/{name}-aarch64"));
        writeln!(config, "{name} = \"{}\"", path.display()).unwrap();
    }
    site.start_agent();
}

/// Waits for a complete console line with this text.
fn wait_for_line(machine: &Machine, wanted: &str) -> String {
    let deadline = Instant::now() + ARM_LIMIT;
    loop {
        let console = machine.console();
        let mut lines = console.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        if let Some(line) = lines.find(|line| line.contains(wanted)) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "{} does not say {wanted}", machine.name);
        thread::sleep(POLL_INTERVAL);
    }
}
