//! Two specs for one machine, and a machine without a spec.

use std::fs;

use hostler::model::status::Phase;

use super::{NO_RESCAN, forgotten, is_effective, observed};
use crate::agent::{DEPLOYED, NODE, ends_deployed, machine::Machine, site::Site};

#[test]
fn a_second_claim_on_an_installed_machines_bmc_blocks_both_and_touches_nothing_until_one_is_corrected()
 {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let machine = Machine::new(&site, NODE);
    let other = Machine::new(&site, "edge-08");
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    ends_deployed(&site, &machine);

    let sessions = machine.bmc.sessions();
    // A copy with an unchanged BMC address.
    let copy = other.spec(&site).with("bmc.address", &format!("127.0.0.1:{}", machine.bmc.port));
    site.write("edge-08", &copy.clone().with("redeploy", "now"));
    for (node, named) in [(NODE, "edge-08.toml"), ("edge-08", "edge-07.toml")] {
        let status = site.until_phase(node, Phase::Invalid);
        assert!(!status.spec_valid && !status.ready);
        let address = format!("127.0.0.1:{}", machine.bmc.port);
        for named in ["bmc.address", &address, named] {
            assert!(status.message.contains(named), "{}", status.message);
        }
    }
    // Another edition of the same mistake, with consent for the first.
    site.write("edge-08", &copy.with("redeploy", "now!"));
    site.write(NODE, &machine.spec(&site).with("redeploy", "now"));
    site.write("z", &observed(1, ""));
    is_effective(&site, "z", &observed(1, ""));
    assert!(machine.menu(&site).is_none_or(|menu| !menu.contains("KERNEL")));
    assert_eq!(
        (machine.story(), machine.bmc.sessions()),
        (DEPLOYED.map(str::to_owned).to_vec(), sessions)
    );
    assert_eq!(other.bmc.sessions(), 0);

    site.write(NODE, &machine.spec(&site));
    site.write("edge-08", &other.spec(&site));
    ends_deployed(&site, &machine);
    other.boot(&site, 1);
    assert_eq!(machine.story(), DEPLOYED);
}

#[test]
fn a_deleted_spec_forgets_the_node_and_a_spec_that_comes_back_does_not_reinstall_it() {
    let site = Site::new();
    site.configure(NO_RESCAN);
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    site.write("z", &observed(1, ""));
    machine.deploy(&site);
    ends_deployed(&site, &machine);

    let kept = site.path("kept.toml");
    fs::rename(site.path("nodes/edge-07.toml"), &kept).unwrap();
    forgotten(&site, NODE);
    assert_eq!(machine.menu(&site), None);
    assert!(machine.has_image(&site) && machine.is_on());
    assert_eq!(machine.story(), DEPLOYED);

    fs::rename(&kept, site.path("nodes/edge-07.toml")).unwrap();
    ends_deployed(&site, &machine);
    // The spec has another name, and the machine is the same.
    fs::rename(site.path("nodes/edge-07.toml"), site.path("nodes/renamed.toml")).unwrap();
    forgotten(&site, NODE);
    site.until("renamed", "ready", |status| status.ready);
    assert_eq!(machine.story(), DEPLOYED);
}
