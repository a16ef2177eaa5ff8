//! The agent is killed and started again: it continues from its record.

use std::{env, fs::File, io::Read as _};

use hostler::model::status::Phase;

use super::{
    DEPLOYED, NODE,
    disk_faults::caught_in_the_middle,
    ends_deployed,
    machine::{Machine, iqn},
    site::{Site, allocated_bytes, answer},
};
use crate::iscsi::tgtd::Tgtd;

/// Most bytes written again after a kill: those between two flushes, twice.
const LOST_BYTES_MAX: u64 = 48 << 20;
/// Bytes allowed for both ends of a disk and for the sockets.
const SPARE_BYTES: u64 = 8 << 20;

#[test]
fn killed_while_it_waits_for_the_ramdisk() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    site.until_phase(NODE, Phase::WaitingRamdisk);
    agent.kill();
    let _again = site.start();
    // The machine's key is still the attempt's.
    site.await_that("listening", || std::net::TcpStream::connect(site.callback).is_ok());
    ramdisk.export();
    ramdisk.finish();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
}

#[test]
fn killed_while_it_writes() {
    let (site, machine, agent, ramdisk) = caught_in_the_middle(NODE, &[]);
    agent.kill();
    let _again = site.start();
    ramdisk.finish();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
}

/// With `WRITE_KILLS=20 WRITE_KILLS_MIB=4096` the test kills the agent at 20 places of 4 GiB.
///
/// Invariant (attempt): A write is gone on with from its last flush, however often the agent is
/// killed.
#[test]
fn killed_again_and_again_while_it_writes_it_does_not_begin_anew() {
    let number = |name, default| env::var(name).map_or(default, |value| value.parse().unwrap());
    let (kills, bytes) = (number("WRITE_KILLS", 3), number("WRITE_KILLS_MIB", 320) << 20);
    let site = Site::with_image(usize::try_from(bytes).unwrap());
    let disk = Tgtd::serve(&iqn(NODE), bytes + (64 << 20));
    let machine = Machine::with_disk(&site, NODE, &[], disk).demanding_chap();
    let mut agent = site.start();
    site.write(NODE, &machine.spec(&site).with("image.verify", "none"));
    let ramdisk = machine.boot(&site, 1);
    let wrote_before = machine.disk.written_bytes();
    ramdisk.export();
    let file = machine.disk.disk_file();
    for kill in 1..=kills {
        let place = bytes / (kills + 1) * kill;
        site.await_that("written so far", || allocated_bytes(&file) > place);
        agent.kill();
        agent = site.start();
    }
    ramdisk.finish();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
    let wrote = machine.disk.written_bytes() - wrote_before;
    assert!(
        wrote < bytes + kills * LOST_BYTES_MAX + SPARE_BYTES,
        "{wrote} bytes were written of an image of {bytes}, with {kills} kills"
    );
    let mut written = vec![0; site.image.len()];
    File::open(&file).unwrap().read_exact(&mut written).unwrap();
    assert!(written == site.image, "the disk does not hold the image");
    assert!(!site.path("state/edge-07.checkpoint").exists());
    let went_on = site.log().matches("goes on where it was flushed").count();
    assert!(went_on > 0, "no write went on");
}

#[test]
fn killed_while_it_waits_for_completed() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let agent = site.start();
    site.write(NODE, &machine.spec(&site));
    let ramdisk = machine.boot(&site, 1);
    ramdisk.export();
    ramdisk.wait_for("release");
    site.until_phase(NODE, Phase::WaitingCompleted);
    agent.kill();
    let _again = site.start();
    ramdisk.complete();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
}

#[test]
fn killed_while_the_bmc_restarts_the_machine() {
    let site = Site::new();
    let machine = Machine::with_bmc(&site, NODE, &["--slow-power", "1"]);
    let agent = site.start();
    site.write(NODE, &machine.spec(&site));
    machine.deploy(&site);
    site.until_phase(NODE, Phase::Restarting);
    agent.kill();
    let _again = site.start();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story().last().unwrap(), "on from hd");
}

#[test]
fn a_second_agent_on_one_state_directory_says_who_has_it() {
    let site = Site::new();
    let agent = site.start();
    site.await_that("running", || site.log().contains("running"));

    let mut other = Site::new();
    let config = std::fs::read_to_string(other.path("hostler.toml")).unwrap();
    let state = |site: &Site| site.path("state").display().to_string();
    let config = config.replace(&state(&other), &state(&site));
    std::fs::write(other.path("hostler.toml"), config).unwrap();
    other.image.clear();
    let (code, _, said) = answer(&mut other.hostler(&["run"]));
    assert_eq!(code, 1);
    let holder = format!("in use by process {};", agent.id());
    assert!(said.contains(&holder) && said.contains(&state(&site)), "{said}");

    // A second agent on the same state is refused, too.
    let (code, _, said) = answer(&mut site.hostler(&["run"]));
    assert_eq!(code, 1);
    assert!(said.contains(&holder), "{said}");

    // Another agent with the same ports reports the first socket that is in use.
    other.http = site.http;
    other.callback = site.callback;
    other.tftp = site.tftp;
    other.configure("");
    let (code, _, said) = answer(&mut other.hostler(&["run"]));
    assert_eq!(code, 1);
    assert!(said.contains(&format!("TFTP listener {}", site.tftp)), "{said}");
}

#[test]
fn nothing_is_started_before_its_record_can_be_written() {
    let site = Site::new();
    let machine = Machine::new(&site, NODE);
    let _agent = site.start();
    site.await_that("running", || site.log().contains("running"));
    // A directory in the record's place stops root too.
    let record = site.path("state/edge-07.json");
    std::fs::create_dir(&record).unwrap();
    site.write(NODE, &machine.spec(&site));
    let status = site.until(NODE, "stuck", |status| status.message.contains("nothing is started"));
    assert!(status.message.contains(record.to_str().unwrap()), "{}", status.message);
    assert_eq!(machine.bmc.sessions(), 0);
    assert!(!status.ready);

    std::fs::remove_dir(&record).unwrap();
    let ramdisk = machine.boot(&site, 1);
    assert!(site.record(NODE).contains(ramdisk.key()));

    // In the middle of an attempt, the target is not touched before the record is written.
    site.until_phase(NODE, Phase::WaitingRamdisk);
    let kept = site.path("kept.json");
    std::fs::rename(&record, &kept).unwrap();
    std::fs::create_dir(&record).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| ramdisk.export());
        site.until(NODE, "stuck", |status| status.message.contains("nothing is started"));
        assert!(machine.disk.sessions().is_empty());
        std::fs::remove_dir(&record).unwrap();
    });
    ramdisk.finish();
    ends_deployed(&site, &machine);
    assert_eq!(machine.story(), DEPLOYED);
}
