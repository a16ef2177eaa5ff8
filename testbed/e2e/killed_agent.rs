//! An agent that is killed twice in one deploy, and then stopped, and continues each time.

use std::fs;

use hostler::model::{boot::BootStage, status::Phase};

use crate::{
    disks,
    site::{BOOT_LIMIT, Site},
};

/// Enough that the machine's write takes several seconds.
const NOISE_MIB: usize = 300;

#[test]
fn an_agent_killed_while_waiting_and_killed_and_stopped_while_writing_finishes_the_deploy() {
    let mut site = Site::new("killed_agent", &["uefi"], "1G");
    let image = site.image("large.raw", NOISE_MIB);
    let machine = site.rack.machine("node-1");
    disks::fill(&machine);
    let rest = format!(
        "[image]\nsource = \"large.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
         serial = \"root-1\"\n\
         [retry]\nbackoff = \"1s\"\n",
        image.sha256
    );
    site.write_spec(&machine, &rest);
    let key = |site: &Site| site.record("node-1").unwrap().state.attempt().unwrap().key.clone();

    // In the middle of a transfer: the machine has its kernel, is fetching the ramdisk, and then
    // repeats the request.
    site.wait_for_fetch("node-1", BootStage::Kernel, BOOT_LIMIT);
    site.kill_agent();
    let first_key = key(&site);
    site.start_agent();

    site.wait_for_the_middle_of_the_write("node-1");
    assert!(key(&site) == first_key, "another attempt was begun");
    site.kill_agent();
    // The old agent's last status is not the next one's.
    fs::remove_file(site.status_path("node-1")).unwrap();
    site.start_agent();

    site.wait_for_the_middle_of_the_write("node-1");
    assert!(site.stop_agent().success());
    disks::assert_wiped(&machine);
    fs::remove_file(site.status_path("node-1")).unwrap();
    site.start_agent();

    let status = site.wait_for_phase("node-1", Phase::Deployed, BOOT_LIMIT);
    assert!(status.ready && status.last_error.is_none(), "{status:#?}");
    disks::assert_holds(&machine, &image);
    site.assert_boots_local_disk(&machine);
    assert!(site.rack.machine("node-1").is_on);
    site.assert_no_target_in_use();
}
