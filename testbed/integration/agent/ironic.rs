//! `boot.ramdisk = "ironic"`, with curl called as diskimage-builder's `80-deploy-ironic` calls it:
//! once, with the key in the body, and a listener on port 10000 when the script gets there. Every
//! machine has its own loopback address, with its usual ports.

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
};

use hostler::model::{fault::Step, status::Phase};

use super::{
    DEPLOYED, NODE, SWITCHED_OFF, ends_deployed, ends_failed,
    faults::waits_for,
    machine::{Machine, iqn},
    site::{Agent, Site, Spec, wait},
};
use crate::{iscsi::tgtd::Tgtd, ports};

const DISK_BYTES: u64 = 160 << 20;
/// The ports of Ironic's target, and of the waiting script.
const ISCSI_PORT: u16 = 3260;
const DONE_PORT: u16 = 10000;

/// Makes a site with a listener for Ironic's ramdisk; returns its address.
fn site() -> (Site, SocketAddr) {
    let site = Site::new();
    let listen = ports::free();
    for file in ["ironic-vmlinuz", "ironic-initramfs"] {
        fs::write(site.path(file), format!("{file} of Ironic")).unwrap();
    }
    site.configure_more(&format!(
        "[ironic]\nlisten = \"{listen}\"\nkernel = \"{}\"\ninitramfs = \"{}\"",
        site.path("ironic-vmlinuz").display(),
        site.path("ironic-initramfs").display()
    ));
    (site, listen)
}

/// An address that no other test uses, in this run or another.
fn own_address(n: u8) -> IpAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | (high & 63), low, n).into()
}

fn machine(site: &Site, node: &str, address: IpAddr, disk_bytes: u64) -> Machine {
    let portal = SocketAddr::new(address, ISCSI_PORT);
    Machine::with_disk(site, node, &[], Tgtd::serve_at(portal, &iqn(node), disk_bytes))
}

fn spec(site: &Site, machine: &Machine) -> Spec {
    machine
        .spec(site)
        .with("boot.ramdisk", "ironic")
        .with_flag("boot.require_chap", false)
        .with("root_device.name", "vda")
}

/// The parts of the script that call the agent.
struct Script {
    address: IpAddr,
    /// The kernel command line in the boot menu.
    command_line: String,
}

impl Script {
    /// Boots the machine from its menu.
    fn boot(site: &Site, machine: &Machine, address: IpAddr, times: usize) -> Self {
        site.await_that("on from the network", || {
            machine.story().iter().filter(|line| *line == "on from network").count() >= times
        });
        let menu = machine.menu(site).unwrap();
        for (key, file) in [("KERNEL", "vmlinuz"), ("INITRD", "initramfs")] {
            assert!(menu.contains(&format!("{key} ::ironic/{file}\n")), "{menu}");
            let served = site.fetch(&format!("ironic/{file}")).unwrap();
            assert_eq!(served, fs::read(site.path(&format!("ironic-{file}"))).unwrap());
        }
        assert!(menu.contains("IPAPPEND 3\n"), "{menu}");
        let append = menu.lines().find_map(|line| line.trim().strip_prefix("APPEND ")).unwrap();
        let script = Self { address, command_line: append.to_owned() };
        let token = format!("token-{}", script.parameter("deployment_id"));
        assert_eq!(site.fetch(&token), None, "there is no token to be fetched");
        script
    }

    /// The first kernel argument with this name.
    fn parameter(&self, name: &str) -> &str {
        let mut words = self.command_line.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).unwrap()
    }

    /// The report of the target.
    fn target(&self, error: &str) -> String {
        let (address, key) = (self.address, self.parameter("deployment_key"));
        let iqn = self.parameter("iscsi_target_iqn");
        format!(r#"{{"address":"{address}","key":"{key}","iqn":"{iqn}","error":"{error}"}}"#)
    }

    /// Makes the script's call; returns the answer without its date.
    fn call(&self, api: &str, name: &str, body: &str) -> String {
        let id = self.parameter("deployment_id");
        post(self.address, body, &format!("{api}/nodes/{id}/vendor_passthru/{name}"))
    }

    fn pass_deploy_info(&self, body: &str) -> String {
        let api = format!("{}/v1", self.parameter("ironic_api_url"));
        self.call(&api, "pass_deploy_info", body)
    }
}

fn post(from: IpAddr, body: &str, url: &str) -> String {
    let output = Command::new("curl")
        .args(["-s", "--noproxy", "*", "--interface", &from.to_string()])
        .args(["-i", "-X", "POST", "-H", "Accept: application/json"])
        .args(["-H", "Content-Type: application/json", "-d", body, url])
        .output()
        .unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    answer.lines().filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n")
}

fn is_accepted(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 202 ") && answer.contains("content-length: 0\n")
}

/// Listens on the script's port; returns all received bytes.
fn wait_for_done(address: IpAddr) -> String {
    let listener = TcpListener::bind((address, DONE_PORT)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (mut stream, _) = wait(|| listener.accept().ok()).expect("nobody says done");
    stream.set_nonblocking(false).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

/// Makes a machine whose script is about to call.
fn booted(n: u8) -> (Site, Machine, Agent, Script) {
    let (site, _) = site();
    let address = own_address(n);
    let machine = machine(&site, NODE, address, DISK_BYTES);
    let agent = site.start();
    site.write(NODE, &spec(&site, &machine));
    let script = Script::boot(&site, &machine, address, 1);
    (site, machine, agent, script)
}

#[test]
fn ironics_ramdisk_is_imaged_told_and_restarted_whether_it_knows_v1_or_not() {
    let (site, listen) = site();
    let _agent = site.start();
    for (n, node, version) in [(1, "edge-07", "/v1"), (2, "edge-08", "")] {
        let address = own_address(n);
        let machine = machine(&site, node, address, DISK_BYTES);
        site.write(node, &spec(&site, &machine));
        let script = Script::boot(&site, &machine, address, 1);
        assert_eq!(script.parameter("ironic_api_url"), format!("http://{listen}"));
        assert_eq!((script.parameter("disk"), script.parameter("boot_option")), ("vda", "netboot"));

        let api = format!("http://{listen}{version}");
        let answer = script.call(&api, "pass_deploy_info", &script.target(""));
        assert!(is_accepted(&answer), "{answer}");
        // From here on the script may be slow.
        site.until_phase(node, Phase::Switching);
        assert!(machine.boots_its_disk(&site), "the menu is not local before it is told");
        assert!(machine.disk.sessions().is_empty(), "the target is still in use");
        assert_eq!(wait_for_done(address), "done");
        let status = ends_deployed(&site, &machine);
        assert_eq!(machine.story(), DEPLOYED);
        let disk = status.installed.unwrap().disk;
        assert_eq!((disk.name.as_str(), disk.size), ("vda", DISK_BYTES));
    }
}

/// Invariant (ramdisk): The two ramdisks' listeners cannot be mixed.
#[test]
fn whatever_ironics_listener_refuses_looks_the_same_and_changes_nothing() {
    let (site, machine, _agent, script) = booted(3);
    let api = script.parameter("ironic_api_url").to_owned();
    let (good, key) = (script.target(""), script.parameter("deployment_key").to_owned());
    let replaced = |from: &str, to: &str| good.replace(from, to);
    let mut answers: Vec<String> = [
        ("pass_deploy_info", replaced(&key, &"00".repeat(32))),
        ("pass_deploy_info", replaced(&key, "short")),
        ("pass_deploy_info", replaced(&script.address.to_string(), "192.0.2.66")),
        ("pass_deploy_info", replaced(&iqn(NODE), "iqn.2008-10.org.openstack:x")),
        ("pass_deploy_info", "{not json".to_owned()),
        ("pass_deploy_info", String::new()),
        ("pass_bootloader_install_info", replaced("\"iqn\"", "\"status\"")),
        ("lookup", good.clone()),
        ("completed", good.clone()),
        ("heartbeat", good.clone()),
    ]
    .iter()
    .map(|(call, body)| script.call(&format!("{api}/v1"), call, body))
    .collect();
    let other_node = "/v1/nodes/edge-99/vendor_passthru/pass_deploy_info";
    let no_text = "/v1/nodes/%ff/vendor_passthru/pass_deploy_info";
    for path in
        [other_node, no_text, "/v2/nodes/edge-07/vendor_passthru/pass_deploy_info", "/", "/v1"]
    {
        answers.push(post(script.address, &good, &format!("{api}{path}")));
    }
    // From another address, after the machine itself has used its key.
    answers.push(post(own_address(33), &good, &format!("{api}{other_node}").replace("99", "07")));
    answers.sort();
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:#?}");
    assert!(answers[0].starts_with("HTTP/1.1 404 "), "{answers:?}");
    assert!(machine.disk.disk().iter().all(|byte| *byte == 0));

    let answer = script.pass_deploy_info(&good);
    assert!(is_accepted(&answer), "{answer}");
    assert_eq!(wait_for_done(script.address), "done");
    ends_deployed(&site, &machine);
    let log = site.log();
    assert!(!log.contains(&key), "the key is in the log:\n{log}");
}

#[test]
fn a_machine_with_hostlers_own_ramdisk_has_nothing_at_ironics_listener() {
    let (site, listen) = site();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    let (key, iqn) = (ramdisk.key(), iqn(NODE));
    for error in ["", "oh"] {
        let body =
            format!(r#"{{"address":"127.0.0.1","key":"{key}","iqn":"{iqn}","error":"{error}"}}"#);
        let path = format!("http://{listen}/v1/nodes/{NODE}/vendor_passthru/pass_deploy_info");
        let answer = post(Ipv4Addr::LOCALHOST.into(), &body, &path);
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
    ramdisk.export();
    ramdisk.finish();
    ends_deployed(&site, &machine);
}

#[test]
fn the_reason_that_ironics_ramdisk_gives_is_shown_in_its_words() {
    let (site, machine, _agent, script) = booted(4);
    let answer = script.pass_deploy_info(&script.target("Could+not+find+disk+to+use."));
    assert!(is_accepted(&answer), "{answer}");
    let status = ends_failed(&site, &machine, Step::Ramdisk, "RamdiskFailed");
    assert!(status.message.contains("Could not find disk to use."), "{}", status.message);
    assert_eq!(machine.story(), SWITCHED_OFF);
}

#[test]
fn a_disk_that_ironics_ramdisk_chose_and_that_is_too_small_is_not_written() {
    const SMALL_BYTES: u64 = 1 << 20;
    let (site, _) = site();
    let address = own_address(5);
    let machine = machine(&site, NODE, address, SMALL_BYTES);
    let _agent = site.start();
    site.write(NODE, &spec(&site, &machine));
    let script = Script::boot(&site, &machine, address, 1);
    assert!(is_accepted(&script.pass_deploy_info(&script.target(""))));
    ends_failed(&site, &machine, Step::Imaging, "DiskTooSmall");
    assert!(machine.disk.disk().iter().all(|byte| *byte == 0));
}

#[test]
fn without_its_configuration_no_machine_is_switched_on_for_ironics_ramdisk() {
    let site = Site::new();
    let machine = machine(&site, NODE, own_address(6), DISK_BYTES);
    let _agent = site.start();
    site.write(NODE, &spec(&site, &machine));
    let status = waits_for(&site, "IronicNotConfigured");
    assert!(status.last_error.unwrap().fault.hint.contains("set [ironic] in hostler.toml"));
    assert!(machine.story().is_empty());
}
