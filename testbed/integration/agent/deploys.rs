//! Successful deploys.

use std::{
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use hostler::model::status::Phase;

use super::{
    DEPLOYED, NODE, ends_deployed,
    machine::Machine,
    site::{Site, wait},
};

#[test]
fn a_spec_becomes_an_installed_machine() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    site.until_phase(NODE, Phase::WaitingRamdisk);

    let ramdisk = machine.boot(&site, 1);
    assert!(site.record(NODE).contains(ramdisk.key()));
    ramdisk.export();
    // The ramdisk is not released before the boot menu is that of the local disk.
    site.until_phase(NODE, Phase::Switching);
    assert!(machine.boots_its_disk(&site));
    ramdisk.wait_for("release");
    ramdisk.complete();

    let status = ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
    let phases: Vec<Phase> = status.history.iter().map(|entry| entry.phase).collect();
    assert_eq!(
        phases,
        [
            Phase::Pending,
            Phase::Preparing,
            Phase::PoweringOn,
            Phase::WaitingRamdisk,
            Phase::Imaging,
            Phase::Switching,
            Phase::WaitingCompleted,
            Phase::Restarting,
            Phase::Deployed,
        ]
    );
    assert!(status.history.iter().all(|entry| !entry.message.is_empty()));
    let installed = status.installed.unwrap();
    assert_eq!(installed.image.to_string(), site.checksum());
    assert_eq!(installed.disk.name, "vda");
    assert_eq!(status.attempt, 1);
    assert!(status.durations.contains_key("imaging_ms"));
    assert!(!site.log().contains(ramdisk.key()), "the key is in the log");
    assert_eq!(site.levels(Phase::Deployed), ["INFO"]);
    // As in the README: one line for each node with any history.
    let text = std::fs::read_to_string(site.path(&format!("nodes/{NODE}.status.toml"))).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("phase")).count(), 1, "{text}");
}

#[test]
fn a_machine_whose_bmc_only_ipmitool_can_talk_to_boots_the_deploy_ramdisk() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("bmc.driver", "ipmitool"));
    // A run of the program starts a second after the last one.
    site.until_phase(NODE, Phase::WaitingRamdisk);
    assert_eq!(machine.story(), DEPLOYED[..2]);
    assert!(!site.log().contains("correct-horse"), "{}", site.log());
}

#[test]
fn a_machine_whose_bmc_forgets_the_boot_device_is_told_it_whenever_it_is_switched_on() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--forgetful"]);
    let _agent = site.start();
    let spec = machine.spec(&site);
    site.write(NODE, &spec);
    machine.deploy(&site);
    ends_deployed(&site, &machine);
    for (power, on) in [("off", false), ("on", true)] {
        site.write(NODE, &spec.clone().with("power", power));
        site.await_that(power, || machine.is_on() == on);
    }
    let again = ["shut down", "disk always", "on from hd"];
    assert_eq!(machine.story(), [&DEPLOYED[..], &again].concat());
}

#[test]
fn a_config_drive_begins_where_the_disk_would_have_it() {
    const MIB: usize = 1 << 20;
    let mut image = vec![0; 3 * MIB];
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    // A Linux partition of a MiB after the first MiB.
    image[450] = 0x83;
    image[454..462].copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
    let site = Site::of_image(image);
    let machine = Machine::new(&site, NODE);
    machine.disk.update_disk(1, "optimal_xfer_len=14336");
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site).with("config_drive.label", "config-2"));
    machine.deploy(&site);
    site.until_phase(NODE, Phase::Deployed);
    // The disk has 160 MiB, the drive 64, the optimal transfer length 7.
    let first_block: [u8; 4] = machine.disk.disk()[470..474].try_into().unwrap();
    assert_eq!(u32::from_le_bytes(first_block) as usize * 512, 91 * MIB);
}

#[test]
fn the_service_manager_hears_when_the_agent_answers_and_when_it_stops() {
    let site = Site::new();
    let socket = UnixDatagram::bind(site.path("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let hear = || {
        let mut said = [0; 256];
        let bytes = socket.recv(&mut said).unwrap();
        String::from_utf8_lossy(&said[..bytes]).into_owned()
    };
    let agent = site.start_as(site.hostler(&["run"]).env("NOTIFY_SOCKET", site.path("notify")));
    assert!(hear().contains("READY=1"));
    assert_eq!(site.fetch("pxelinux.cfg/C0000201"), None);
    let machine = Machine::new(&site, NODE);
    assert!(std::net::TcpStream::connect(site.callback).is_ok());
    site.write(NODE, &machine.spec(&site));
    site.until_phase(NODE, Phase::WaitingRamdisk);
    let (status, took) = agent.terminate();
    assert!(hear().contains("STOPPING=1"));
    assert_eq!(status.code(), Some(0), "{}", site.log());
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
#[expect(clippy::print_stdout, reason = "a measurement for people")]
fn a_spec_reaches_the_bmc_soon() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.await_that("running", || site.log().contains("running"));
    let written = Instant::now();
    site.write(NODE, &machine.spec(&site));
    wait(|| (machine.bmc.sessions() > 0).then_some(())).expect("no word to the BMC");
    let took = written.elapsed();
    println!("from spec to first BMC session: {} ms", took.as_millis());
    // About a second on an idle machine; many tests run at once here.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn two_machines_are_deployed_side_by_side() {
    let site = Site::new();
    let machines = ["rack-1", "rack-2"].map(|node| Machine::new(&site, node));
    let _agent = site.start();
    for machine in &machines {
        site.write(&machine.node, &machine.spec(&site));
    }
    std::thread::scope(|scope| {
        for machine in &machines {
            let site = &site;
            scope.spawn(move || machine.deploy(site));
        }
    });
    for machine in &machines {
        ends_deployed(&site, machine);
        assert_eq!(machine.story(), DEPLOYED);
    }
}

#[test]
fn ramdisks_are_told_the_advertised_address_though_the_agent_listens_on_all() {
    let mut site = Site::new();
    site.callback.set_ip([0, 0, 0, 0].into());
    site.configure("");
    site.callback.set_ip([127, 0, 0, 1].into());
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.write(NODE, &machine.spec(&site));
    // `boot` checks the address in the command line.
    machine.boot(&site, 1);
}
