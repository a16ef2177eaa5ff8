//! The IPMI subsystem against pyghmi (suites 3 and 17) and `ipmi_sim` (suite 3), on good and bad
//! networks, in process and by `ipmitool`.

mod console;
mod faulty;
mod network;
mod program;
mod refusals;
pub(crate) mod simulators;

use std::{
    fs,
    time::{Duration, Instant as Clock},
};

use hostler::{
    bmc::{
        Timing, by_ipmitool,
        ipmi::{IpmiClient, IpmiConfig, IpmiErrorKind},
    },
    model::{
        boot::Firmware,
        power::{BootDevice, BootPersistence, ChassisControl, PowerState},
        secret::Secret,
        spec::{BmcDriver, CipherSuite, HostPort, Privilege},
    },
};
use tokio::time::Instant;

use network::{Badness, GOOD, Network};
use simulators::{PASSWORD, Simulator, USER, ipmi_sim, pyghmi, pyghmi_at};

/// Loopback is fast; the simulators share two cores with all other tests.
const TIMING: Timing = Timing {
    resend_first: Duration::from_millis(200),
    resend_max: Duration::from_millis(800),
    poll: Duration::from_millis(20),
    reissue: Duration::from_millis(300),
    doubt: Duration::from_secs(3),
    flags_settle: Duration::from_secs(3),
    console_alive: Duration::from_millis(500),
    console_retry: Duration::from_millis(200),
    program_run: Duration::from_secs(5),
};

fn config(port: u16) -> IpmiConfig {
    IpmiConfig {
        address: HostPort { host: "127.0.0.1".to_owned(), port },
        username: USER.to_owned(),
        password: Secret::new(PASSWORD.to_owned()),
        kg: None,
        privilege: Privilege::Administrator,
        cipher_suite: None,
        spacing: Duration::ZERO,
    }
}

fn bmc(port: u16) -> IpmiClient {
    IpmiClient::new(config(port), TIMING)
}

fn by(driver: BmcDriver, config: IpmiConfig) -> IpmiClient {
    match driver {
        BmcDriver::Ipmi => IpmiClient::new(config, TIMING),
        BmcDriver::Ipmitool => by_ipmitool(config, TIMING),
        BmcDriver::Program => panic!("a BMC program speaks no IPMI"),
    }
}

fn within(seconds: f64) -> Instant {
    Instant::now() + Duration::from_secs_f64(seconds)
}

fn soon() -> Instant {
    within(10.0)
}

async fn goes_on_and_off(bmc: &IpmiClient) {
    assert_eq!(bmc.power_state(soon()).await.unwrap(), PowerState::Off);
    bmc.reach_power(PowerState::Off, soon()).await.unwrap();
    bmc.reach_power(PowerState::On, soon()).await.unwrap();
    assert_eq!(bmc.power_state(soon()).await.unwrap(), PowerState::On);
    bmc.reach_power(PowerState::Off, soon()).await.unwrap();
    assert_eq!(bmc.power_state(soon()).await.unwrap(), PowerState::Off);
}

#[tokio::test]
async fn power_goes_on_off_and_around_with_either_suite_and_every_session_is_closed() {
    for (suite, number) in [(CipherSuite::Sha256, 17), (CipherSuite::Sha1, 3)] {
        let simulator = pyghmi(&["--suite", "both"]);
        let cipher_suite = Some(suite);
        let bmc = IpmiClient::new(IpmiConfig { cipher_suite, ..config(simulator.port) }, TIMING);
        goes_on_and_off(&bmc).await;
        let not_now = bmc.power_cycle(soon()).await.unwrap_err().kind;
        let refused = IpmiErrorKind::CommandRefused { command: "power cycle", completion: 0xd5 };
        assert_eq!(not_now, refused);
        bmc.reach_power(PowerState::On, soon()).await.unwrap();
        bmc.power_cycle(soon()).await.unwrap();
        bmc.chassis_control(ChassisControl::HardReset, soon()).await.unwrap();
        bmc.soft_off(Duration::from_secs(5), soon()).await.unwrap();
        assert_eq!(simulator.chassis_commands(2), ["01", "00", "02", "01", "02", "03", "05"]);
        simulator.closes_all_sessions().await;
        assert!(
            simulator.events("session").iter().all(|e| e["open"] == false || e["suite"] == number)
        );
    }
}

#[tokio::test]
async fn power_goes_on_and_off_at_ipmi_sim_which_knows_suite_3_only() {
    let simulator = ipmi_sim();
    let bmc = bmc(simulator.port);
    goes_on_and_off(&bmc).await;
    assert_eq!(fs::read_to_string(simulator.file("calls")).unwrap(), "power 1\npower 0\n");
}

#[tokio::test]
async fn a_boot_device_for_one_boot_is_used_up_by_it_and_a_persistent_one_is_not() {
    let simulator = pyghmi(&[]);
    let bmc = bmc(simulator.port);
    let (once, always) = (BootPersistence::NextBoot, BootPersistence::Persistent);
    bmc.set_boot_device(BootDevice::Pxe, once, Firmware::Uefi, soon()).await.unwrap();
    bmc.reach_power(PowerState::On, soon()).await.unwrap();
    bmc.power_cycle(soon()).await.unwrap();
    bmc.set_boot_device(BootDevice::Disk, always, Firmware::Bios, soon()).await.unwrap();
    bmc.power_cycle(soon()).await.unwrap();
    bmc.power_cycle(soon()).await.unwrap();
    let boots: Vec<(Option<String>, Option<bool>)> = simulator
        .events("power")
        .iter()
        .filter(|event| event["on"] == true)
        .map(|event| (event["boot"].as_str().map(str::to_owned), event["efi"].as_bool()))
        .collect();
    let disk = (Some("hd".to_owned()), Some(false));
    let network = (Some("network".to_owned()), Some(true));
    assert_eq!(boots, [network, (None, None), disk.clone(), disk]);
    let flags: Vec<_> = simulator.events("boot").iter().map(|e| e["flags"].clone()).collect();
    assert_eq!(flags, ["a004000000", "c008000000"]);
    let whole = ["0308", "0001", "040101", "05a004000000", "0002", "0000"];
    assert_eq!(simulator.chassis_commands(8)[..6], whole);
}

#[tokio::test]
async fn a_bmc_that_forgets_the_boot_flags_passes_and_one_that_keeps_another_device_does_not() {
    let simulator = ipmi_sim();
    let bmc = bmc(simulator.port);
    let set = async |device| {
        bmc.set_boot_device(device, BootPersistence::Persistent, Firmware::Uefi, soon()).await
    };
    set(BootDevice::Pxe).await.unwrap();
    set(BootDevice::Disk).await.unwrap();
    assert!(fs::read_to_string(simulator.file("calls")).unwrap().starts_with("boot pxe\nboot "));
    fs::write(simulator.file("boot"), "cdrom").unwrap();
    fs::write(simulator.file("stuck"), "").unwrap();
    let wanted = BootDevice::Pxe;
    let kind = set(wanted).await.unwrap_err().kind;
    assert_eq!(kind, IpmiErrorKind::BootDeviceNotKept { wanted, reported: 0x14 });
}

#[tokio::test]
async fn suite_17_gives_way_to_3_once_and_3_is_remembered() {
    let simulator = pyghmi(&["--suite", "3"]);
    let network = Network::before(simulator.port, GOOD, 0).await;
    let bmc = bmc(network.port);
    bmc.power_state(soon()).await.unwrap();
    assert_eq!(network.open_requests(), 2, "17, then 3");
    bmc.power_state(soon()).await.unwrap();
    assert_eq!(network.open_requests(), 3, "3 at once");
}

#[tokio::test]
async fn the_remembered_suite_is_forgotten_when_the_bmc_changes_its_mind() {
    let simulator = pyghmi(&["--suite", "3"]);
    let network = Network::before(simulator.port, GOOD, 0).await;
    let bmc = bmc(network.port);
    bmc.power_state(soon()).await.unwrap();
    let port = simulator.port;
    drop(simulator);
    let simulator = pyghmi_at(port, &["--suite", "17"]);
    bmc.power_state(soon()).await.unwrap();
    assert_eq!(simulator.sessions(), 1);
}

#[tokio::test]
async fn a_bmc_that_answers_with_a_weaker_suite_than_asked_for_is_refused() {
    let simulator = pyghmi(&["--suite", "downgrade"]);
    let bmc_with = |cipher_suite| {
        IpmiClient::new(IpmiConfig { cipher_suite, ..config(simulator.port) }, TIMING)
    };
    let error = bmc_with(Some(CipherSuite::Sha256)).power_state(soon()).await.unwrap_err();
    assert_eq!(error.kind, IpmiErrorKind::SuitesRefused { suites: vec![CipherSuite::Sha256] });
    bmc_with(None).power_state(soon()).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_or_user_is_told_at_once_and_not_tried_for_ever() {
    let (one, other) = (pyghmi(&[]), ipmi_sim());
    for port in [one.port, other.port] {
        let network = Network::before(port, GOOD, 0).await;
        let password = Secret::new("wrong".to_owned());
        let wrong = IpmiClient::new(IpmiConfig { password, ..config(network.port) }, TIMING);
        let begun = Clock::now();
        let error = wrong.power_state(within(30.0)).await.unwrap_err();
        assert_eq!(error.kind, IpmiErrorKind::WrongPassword);
        let (tries, took) = (network.open_requests(), begun.elapsed());
        assert!(tries <= 5 && took < Duration::from_secs(5), "{tries} tries, {took:?}");
        let username = "nobody".to_owned();
        let unknown = IpmiClient::new(IpmiConfig { username, ..config(network.port) }, TIMING);
        let error = unknown.power_state(within(30.0)).await.unwrap_err();
        assert_eq!(error.kind, IpmiErrorKind::WrongPassword);
    }
}

#[tokio::test]
async fn a_user_without_the_privilege_is_not_called_a_wrong_password() {
    for place in ["handshake", "session", "command"] {
        let simulator = pyghmi(&["--privilege", "operator", "--privilege-check", place]);
        let reach_power = async |privilege| {
            let bmc = IpmiConfig { privilege, ..config(simulator.port) };
            IpmiClient::new(bmc, TIMING).reach_power(PowerState::On, within(30.0)).await
        };
        let privilege = Privilege::Administrator;
        let error = reach_power(privilege).await.unwrap_err();
        let username = USER.to_owned();
        assert_eq!(error.kind, IpmiErrorKind::PrivilegeRefused { username, privilege }, "{place}");
        reach_power(Privilege::Operator).await.unwrap();
        simulator.closes_all_sessions().await;
    }
}

#[tokio::test]
async fn a_silent_bmc_costs_the_deadline_and_no_more() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = crate::ports::free().port();
    let refused = Some(std::io::ErrorKind::ConnectionRefused);
    for (port, network) in [(silent.local_addr().unwrap().port(), None), (nobody, refused)] {
        let begun = Clock::now();
        let error = bmc(port).reach_power(PowerState::On, within(1.0)).await.unwrap_err();
        assert!((1.0..1.5).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
        let IpmiErrorKind::NoAnswer { network: said, .. } = error.kind else {
            panic!("{error}");
        };
        assert_eq!(said, network);
    }
}

/// Invariant (bmc): A power command counts when its effect was seen.
#[tokio::test]
async fn a_bmc_that_accepts_but_does_nothing_is_asked_again_and_then_reported() {
    let simulator = pyghmi(&["--deaf-power"]);
    let error = bmc(simulator.port).reach_power(PowerState::On, within(2.0)).await.unwrap_err();
    let IpmiErrorKind::StateNotReached { wanted: PowerState::On, waited } = error.kind else {
        panic!("{error}");
    };
    assert!(waited > Duration::from_secs(1));
    assert!(simulator.chassis_commands(2).len() > 2, "given again now and then");
    simulator.closes_all_sessions().await;
}

#[tokio::test]
async fn a_slow_bmc_is_waited_for() {
    let simulator = pyghmi(&["--slow-power", "1"]);
    let bmc = bmc(simulator.port);
    bmc.reach_power(PowerState::On, soon()).await.unwrap();
    assert_eq!(bmc.power_state(soon()).await.unwrap(), PowerState::On);
}

#[tokio::test]
async fn a_bmc_that_restarts_during_a_call_is_found_again() {
    let simulator = pyghmi(&["--deaf-power"]);
    let port = simulator.port;
    let bmc = bmc(port);
    let restart = async {
        while simulator.chassis_commands(2).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(simulator);
        pyghmi_at(port, &[])
    };
    let (reached, simulator) = tokio::join!(bmc.reach_power(PowerState::On, within(20.0)), restart);
    reached.unwrap();
    simulator.closes_all_sessions().await;
}

#[tokio::test]
async fn a_password_no_bmc_can_hold_is_not_even_tried() {
    let password = Secret::new("x".repeat(21));
    let bmc = IpmiClient::new(
        IpmiConfig { password, ..config(crate::ports::free().port()) },
        Timing::default(),
    );
    let error = bmc.power_state(soon()).await.unwrap_err();
    assert_eq!(error.kind, IpmiErrorKind::PasswordTooLong { bytes: 21 });
}

#[tokio::test]
async fn a_system_that_ignores_the_soft_shutdown_loses_its_power() {
    let simulator = pyghmi(&["--on", "--deaf-shutdown"]);
    let bmc = bmc(simulator.port);
    bmc.soft_off(Duration::from_millis(300), soon()).await.unwrap();
    assert_eq!(bmc.power_state(soon()).await.unwrap(), PowerState::Off);
    assert_eq!(simulator.chassis_commands(2), ["05", "00"]);
}

#[tokio::test]
async fn a_busy_bmc_is_asked_again_until_the_deadline() {
    let simulator = pyghmi(&["--refuse", "00=c0*3"]);
    bmc(simulator.port).reach_power(PowerState::On, soon()).await.unwrap();
    let simulator = pyghmi(&["--refuse", "00=c0"]);
    let error = bmc(simulator.port).power_state(within(1.0)).await.unwrap_err();
    assert!(matches!(error.kind, IpmiErrorKind::Busy { completion: 0xc0, .. }), "{error}");
}

#[tokio::test]
async fn a_call_that_is_dropped_closes_its_session() {
    let simulator = pyghmi(&["--deaf-power"]);
    let bmc = bmc(simulator.port);
    let call = bmc.reach_power(PowerState::On, within(30.0));
    assert!(tokio::time::timeout(Duration::from_millis(700), call).await.is_err());
    assert_eq!(simulator.sessions(), 1);
    simulator.closes_all_sessions().await;
}

#[tokio::test]
async fn calls_take_turns_with_a_pause_between_them() {
    let simulator = pyghmi(&[]);
    let spacing = Duration::from_millis(400);
    let bmc = IpmiClient::new(IpmiConfig { spacing, ..config(simulator.port) }, TIMING);
    let (a, b) = tokio::join!(bmc.power_state(soon()), bmc.power_state(soon()));
    assert_eq!((a.unwrap(), b.unwrap()), (PowerState::Off, PowerState::Off));
    simulator.closes_all_sessions().await;
    let times: Vec<(bool, f64)> = simulator
        .events("session")
        .iter()
        .map(|event| (event["open"] == true, event["time"].as_f64().unwrap()))
        .collect();
    let [(true, _), (false, closed), (true, opened), (false, _)] = times[..] else {
        panic!("{times:?}");
    };
    assert!(opened - closed >= 0.39, "{}", opened - closed);
    let held = bmc.power_state(soon());
    let error = async { bmc.power_state(within(0.1)).await.unwrap_err() };
    let (held, error) = tokio::join!(held, error);
    held.unwrap();
    assert!(matches!(error.kind, IpmiErrorKind::InUse { .. }), "{error}");
}

#[tokio::test]
async fn a_host_name_is_resolved_and_ipv6_works() {
    for (listen, host) in [("::1", "::1"), ("127.0.0.1", "localhost")] {
        let simulator = pyghmi(&["--listen", listen]);
        let address = HostPort { host: host.to_owned(), port: simulator.port };
        let bmc = IpmiClient::new(IpmiConfig { address, ..config(0) }, TIMING);
        bmc.power_state(soon()).await.unwrap();
    }
    let address = HostPort { host: "no-such-host.invalid".to_owned(), port: 623 };
    let bmc = IpmiClient::new(IpmiConfig { address, ..config(0) }, TIMING);
    let error = bmc.power_state(within(0.5)).await.unwrap_err();
    assert!(matches!(error.kind, IpmiErrorKind::Unresolved { .. }), "{error}");
}

/// Runs 40 sessions, 8 at a time, each with one power status.
async fn survives(simulator: &Simulator, cipher_suite: Option<CipherSuite>, seed: u64) {
    let badness = Badness { loss: 15, repeat: 30, late: Duration::from_millis(10), damage: 0 };
    let network = Network::before(simulator.port, badness, seed).await;
    let timing = Timing {
        resend_first: Duration::from_millis(40),
        resend_max: Duration::from_millis(160),
        ..TIMING
    };
    for _ in 0..5 {
        let mut sessions = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let bmc = IpmiConfig { cipher_suite, ..config(network.port) };
            let bmc = IpmiClient::new(bmc, timing);
            sessions.spawn(async move { bmc.power_state(within(20.0)).await });
        }
        for state in sessions.join_all().await {
            assert_eq!(state.map_err(|e| e.to_string()), Ok(PowerState::Off), "seed {seed}");
        }
    }
}

#[tokio::test]
async fn forty_of_forty_sessions_survive_loss_repetition_and_reordering_at_pyghmi() {
    let simulator = pyghmi(&["--suite", "both"]);
    survives(&simulator, Some(CipherSuite::Sha1), 3).await;
    survives(&simulator, Some(CipherSuite::Sha256), 17).await;
}

#[tokio::test]
async fn forty_of_forty_sessions_survive_loss_repetition_and_reordering_at_ipmi_sim() {
    survives(&ipmi_sim(), None, 5).await;
}

#[test]
fn calls_can_be_spawned_on_any_thread() {
    fn is_send(_: impl Send) {}
    let bmc = bmc(9);
    is_send(bmc.power_state(Instant::now()));
    is_send(bmc.reach_power(PowerState::On, Instant::now()));
    is_send(bmc.soft_off(Duration::ZERO, Instant::now()));
    is_send(bmc.set_boot_device(
        BootDevice::Pxe,
        BootPersistence::NextBoot,
        Firmware::Uefi,
        Instant::now(),
    ));
}

#[tokio::test]
async fn a_bmc_says_its_systems_uuid_or_is_known_not_to() {
    let guid = "33221100554477668899aabbccddeeff";
    for suite in ["3", "17"] {
        let simulator = pyghmi(&["--suite", suite, "--guid", guid]);
        let said = bmc(simulator.port).system_guid(soon()).await.unwrap();
        assert_eq!(said.to_string(), guid);
        simulator.closes_all_sessions().await;
    }
    let blank = "0".repeat(32);
    for arguments in [&[][..], &["--guid", &blank]] {
        let simulator = pyghmi(arguments);
        let error = bmc(simulator.port).system_guid(soon()).await.unwrap_err();
        assert_eq!(error.kind, IpmiErrorKind::NoSystemGuid);
        simulator.closes_all_sessions().await;
    }
    let simulator = ipmi_sim();
    let said = bmc(simulator.port).system_guid(soon()).await.unwrap();
    assert_eq!(said.to_string(), "a123456789abcdefa123456789abcdef");
}
