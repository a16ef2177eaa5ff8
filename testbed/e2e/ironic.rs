//! A machine installed by the deploy ramdisk of `OpenStack` Ironic's first years, as
//! diskimage-builder built it, unchanged.

use std::{fs, io::Write as _};

use hostler::model::status::Phase;

use crate::{
    disks::{self, Before},
    rack::repository,
    site::{BOOT_LIMIT, Site},
};

const NODE: &str = "node-1";
/// Far less than `timeouts.completed`, after which the agent would continue without an answer on
/// port 10000.
const DONE_LIMIT_MS: u64 = 60_000;

#[test]
fn the_deploy_ramdisk_of_ironics_users_installs_a_machine() {
    let mut site = Site::new("ironic", &["bios"], "1G");
    serve_ironics_ramdisk(&mut site);
    let image = site.image("disk.raw", 0);
    let machine = site.rack.machine(NODE);
    disks::fill(&machine);
    let second_disk = Before::of(&machine.disks[1].path);

    // Every spec is for this ramdisk.
    let defaults = "[boot]\nramdisk = \"ironic\"\nrequire_chap = false\n";
    fs::write(site.file("nodes/_defaults.toml"), defaults).unwrap();
    let rest = format!(
        "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
         size = \"== 1GiB\"\n",
        image.sha256
    );
    site.write_spec(&machine, &rest);

    let status = site.wait_for_phase(NODE, Phase::Deployed, BOOT_LIMIT);
    assert!(status.ready && status.attempt == 1 && status.last_error.is_none(), "{status:#?}");
    assert!(status.durations["switching_ms"] < DONE_LIMIT_MS, "{status:#?}");
    let console = machine.console();
    for said in
        ["start iSCSI target on /dev/vda", "HTTP/1.1 202 ", "Waiting for notice of complete"]
    {
        assert!(console.contains(said), "{said}");
    }
    disks::assert_holds(&machine, &image);
    second_disk.assert_untouched();
    site.assert_runs_image(&machine);
    site.assert_boots_local_disk(&machine);
    site.assert_no_target_in_use();
}

/// Configures the agent for this ramdisk, and restarts it.
fn serve_ironics_ramdisk(site: &mut Site) {
    let built = repository().join("target/testbed/ironic");
    for file in ["vmlinuz", "initramfs"] {
        fs::copy(built.join(file), site.file(&format!("ramdisk/ironic-{file}"))).unwrap_or_else(
            |error| panic!("{}: {error}; run testbed/build", built.join(file).display()),
        );
    }
    let dir = site.file("ramdisk");
    let mut config = fs::File::options().append(true).open(site.file("hostler.toml")).unwrap();
    writeln!(
        config,
        "[ironic]\nkernel = \"{0}/ironic-vmlinuz\"\ninitramfs = \"{0}/ironic-initramfs\"",
        dir.display()
    )
    .unwrap();
    site.kill_agent();
    site.start_agent();
}
