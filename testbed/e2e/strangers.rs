//! Machines that never netboot, callers with wrong keys, and machines in use.

use std::{thread, time::Duration};

use hostler::model::{
    fault::Step,
    status::{Phase, Status},
};

use crate::{
    disks::{self, Before},
    rack::{HOST, Rack},
    site::{SOON, Site},
};

const WRONG_KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";
/// The limit for the machine that cannot netboot: long enough for a call with a wrong key.
const RAMDISK_LIMIT: &str = "30s";
/// Long enough for a poll of a held machine's power state, once a minute.
const OBSERVED: Duration = Duration::from_secs(100);

#[test]
fn a_machine_that_does_not_come_a_wrong_key_and_a_machine_that_is_on_change_nothing() {
    let mut site = Site::new("strangers", &["bios", "bios"], "128M");
    let image = site.image("disk.raw", 0);
    let machines = site.rack.machines();
    let before = disks::fill_and_note(&machines);
    let [unplugged, powered_on] = machines.try_into().unwrap();
    let spec = |number: usize| {
        format!(
            "[image]\nsource = \"disk.raw\"\nchecksum = \"sha256:{}\"\n[root_device]\n\
             serial = \"root-{number}\"\n\
             [timeouts]\nramdisk = \"{RAMDISK_LIMIT}\"\n[retry]\nattempts = 1\n",
            image.sha256
        )
    };

    // The second machine is already in use.
    site.rack.ipmitool(&powered_on, &["chassis", "power", "on"]);
    site.write_spec(&powered_on, &spec(2));
    site.rack.tell(&["unplug", &unplugged.name]);
    site.write_spec(&unplugged, &spec(1));
    let held = site.wait_for_phase(&powered_on.name, Phase::Held, SOON);
    assert_held(&held);

    let waiting = site.wait_for_phase(&unplugged.name, Phase::WaitingRamdisk, SOON);
    assert_wrong_key_is_refused(&mut site, &waiting);
    let error = site.wait_for_failure(&unplugged.name, SOON);
    assert_eq!((error.fault.step, &*error.fault.code), (Step::Ramdisk, "RamdiskTimeout"));
    assert!(error.fault.message.contains("never fetched anything"), "{error:#?}");
    assert!(!site.rack.machine(&unplugged.name).is_on);

    // The machine that is on was left untouched until its user switches it off.
    assert_eq!(site.status(&powered_on.name).unwrap().phase, Phase::Held);
    assert!(site.rack.machine(&powered_on.name).is_on);
    assert!(powered_on.events().iter().all(|event| event.event != "boot"));
    assert_eq!(powered_on.times_switched_on(), 1);
    site.assert_boots_local_disk(&powered_on);
    before.iter().for_each(Before::assert_untouched);
    site.rack.ipmitool(&powered_on, &["chassis", "power", "off"]);
    site.wait(&powered_on.name, "its turn", OBSERVED, |status| {
        status.attempt == 1 && status.phase == Phase::PoweringOn
    });
}

fn assert_held(status: &Status) {
    assert!(!status.ready && status.attempt == 0, "{status:#?}");
    assert!(status.message.contains("switch it off"), "{status:#?}");
    let condition = status.conditions.iter().find(|condition| condition.kind == "Held").unwrap();
    assert_eq!((&*condition.status, &*condition.reason), ("True", "PoweredOn"));
}

/// Asserts that a caller with a wrong key learns nothing, not even whether the node exists; the
/// agent only counts the call.
fn assert_wrong_key_is_refused(site: &mut Site, before: &Status) {
    let node = before.node.as_str();
    let refused = [node, "no-such-node"].map(|node| call(&site.rack, node, "lookup"));
    assert!(refused[0].starts_with("HTTP/1.1 404"), "{refused:?}");
    assert_eq!(refused[0], refused[1]);
    let info = call(&site.rack, node, "pass_deploy_info");
    assert_eq!(info, refused[0]);

    let refusals = |status: &Status| status.last_seen.as_ref().map_or(0, |seen| seen.refused);
    let after = site.wait(node, "the refusals to be counted", SOON, |status| refusals(status) == 2);
    let reason = after.last_seen.as_ref().and_then(|seen| seen.refused_reason.clone()).unwrap();
    assert!(reason.contains("wrong key") && reason.contains(HOST), "{reason}");
    let without =
        |status: &Status| Status { updated: before.updated, last_seen: None, ..status.clone() };
    assert_eq!(without(&after), without(before));
}

/// The whole answer without its time.
fn call(rack: &Rack, node: &str, name: &str) -> String {
    let body = match name {
        "lookup" => {
            r#"{"macs":["52:54:00:00:00:01"],"disks":[{"name":"vda","size":134217728,"serial":"root-1"}]}"#
        }
        _ => {
            r#"{"address":"192.0.2.1","iqn":"iqn.2026-11.hostler:node-1","chap_username":"u","chap_password":"p"}"#
        }
    };
    let url = format!("https://{HOST}:8443/v1/nodes/{node}/vendor_passthru/{name}");
    let output = rack
        .inside(&["curl", "-sSki", "--max-time", "20", "-H", "Content-Type: application/json"])
        .args(["-H", &format!("Authorization: Bearer {WRONG_KEY}"), "-d", body, &url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    // Keeps below the limit of calls from one address.
    thread::sleep(Duration::from_millis(100));
    let answer = String::from_utf8(output.stdout).unwrap();
    answer.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n")
}
