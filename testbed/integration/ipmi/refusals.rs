//! Passing and final refusals, and their distinction, at pyghmi with the habits of real BMCs.

use std::process::Command;

use hostler::bmc::BootChoice;

use super::*;
use crate::tftp::alone::alone_as;

/// The two BMC drivers with the same refusals.
const DRIVERS: [BmcDriver; 2] = [BmcDriver::Ipmi, BmcDriver::Ipmitool];
const BMC_KEY: &str = "site-bmc-key";

/// Long enough for a refusal to become final, and for a program's runs.
fn at_length() -> Instant {
    within(30.0)
}

/// Invariant (bmc): A refusal that may pass ends no attempt, and one that stays is final after few
/// tries.
#[tokio::test]
async fn a_refusal_of_the_moment_after_a_power_change_is_asked_again() {
    // Get Chassis Status and Set Session Privilege Level, with the answers of BMCs that are
    // starting.
    let habits = [
        "0001=ff*2",
        "0001=ce*1",
        "0001=d1*2",
        "0001=d3*1",
        "0001=d5*2",
        "0001=01*1",
        "0001=c1*2",
        "063b=81*1",
        "063b=ff*1",
        "063b=d4*2",
    ];
    for habit in habits {
        let simulator = pyghmi(&["--refuse-after-power", habit]);
        let bmc = bmc(simulator.port);
        bmc.reach_power(PowerState::On, soon()).await.unwrap_or_else(|e| panic!("{habit}: {e}"));
        let (pxe, once) = (BootDevice::Pxe, BootPersistence::NextBoot);
        let set = bmc.set_boot_device(pxe, once, Firmware::Uefi, soon()).await;
        set.unwrap_or_else(|e| panic!("{habit}: {e}"));
        bmc.reach_power(PowerState::Off, soon()).await.unwrap_or_else(|e| panic!("{habit}: {e}"));
        assert_eq!(simulator.chassis_commands(2), ["01", "00"], "{habit}: switched once each");
        simulator.closes_all_sessions().await;
    }
}

/// Invariant (bmc): A refusal that may pass ends no attempt, and one that stays is final after few
/// tries.
///
/// Invariant (bmc): A refusal that may pass ends no attempt, and one that stays is final after few
/// tries.
#[tokio::test]
async fn a_command_that_was_accepted_before_is_asked_again_whatever_the_refusal() {
    // Boot flags, the session's privilege and power commands, with codes that are final at first.
    let habits = [
        "000805=d5*2",
        "000805=c1*1",
        "000805=80*1",
        "063b=c1*2",
        "063b=d5*1",
        "0002=c1*1",
        "0002=d6*1",
    ];
    for habit in habits {
        let simulator = pyghmi(&["--refuse-after-power", habit]);
        let bmc = bmc(simulator.port);
        let set = async |device, persistence| {
            let set = bmc.set_boot_device(device, persistence, Firmware::Bios, at_length()).await;
            set.unwrap_or_else(|e| panic!("{habit}: {e}"));
        };
        let reach = async |state| {
            let reached = bmc.reach_power(state, at_length()).await;
            reached.unwrap_or_else(|e| panic!("{habit}: {e}"));
        };
        set(BootDevice::Pxe, BootPersistence::NextBoot).await;
        reach(PowerState::On).await;
        reach(PowerState::Off).await;
        set(BootDevice::Disk, BootPersistence::Persistent).await;
        assert_eq!(simulator.events("boot").last().unwrap()["flags"], "c008000000", "{habit}");
    }
    // A command that the BMC never accepted is not repeated.
    let simulator = pyghmi(&["--refuse", "000805=c1"]);
    let bmc = bmc(simulator.port);
    assert_eq!(bmc.power_state(soon()).await.unwrap(), PowerState::Off);
    let once = BootPersistence::NextBoot;
    let set = bmc.set_boot_device(BootDevice::Pxe, once, Firmware::Bios, soon()).await;
    let (command, completion) = ("set boot options", 0xc1);
    assert_eq!(set.unwrap_err().kind, IpmiErrorKind::CommandRefused { command, completion });
}

/// Invariant (bmc): A refusal that may pass ends no attempt, and one that stays is final after few
/// tries.
#[tokio::test]
async fn a_user_who_is_unknown_for_seconds_after_a_power_change_is_asked_for_again() {
    for driver in DRIVERS {
        let simulator = pyghmi(&["--user-gone", "1.5"]);
        let bmc = by(driver, config(simulator.port));
        for state in [PowerState::On, PowerState::Off] {
            bmc.reach_power(state, at_length()).await.unwrap();
            assert_eq!(bmc.power_state(at_length()).await.unwrap(), state);
        }
    }
}

/// Invariant (bmc): A refusal that may pass ends no attempt, and one that stays is final after few
/// tries.
#[tokio::test]
async fn credentials_that_worked_are_refused_for_good_after_repeated_refusals_only() {
    for driver in DRIVERS {
        let simulator = pyghmi(&["--user-gone", "1000"]);
        let network = Network::before(simulator.port, GOOD, 0).await;
        let bmc = by(driver, config(network.port));
        assert_eq!(bmc.power_state(at_length()).await.unwrap(), PowerState::Off);
        bmc.chassis_control(ChassisControl::PowerUp, at_length()).await.unwrap();
        let before = network.open_requests();
        // A deadline before the end of that time is a fault that may pass.
        let error = bmc.power_state(within(1.0)).await.unwrap_err();
        let IpmiErrorKind::Doubted { refusal, .. } = &error.kind else { panic!("{error}") };
        assert_eq!(**refusal, IpmiErrorKind::WrongPassword);
        let begun = Clock::now();
        let error = bmc.power_state(at_length()).await.unwrap_err();
        assert_eq!(error.kind, IpmiErrorKind::WrongPassword, "{error}");
        assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
        let tries = network.open_requests() - before;
        assert!((3..=6).contains(&tries), "{tries}: BMCs lock users out");
        // Later calls fail at once.
        let error = bmc.power_state(at_length()).await.unwrap_err();
        assert_eq!(
            (error.kind, network.open_requests() - before),
            (IpmiErrorKind::WrongPassword, tries + 1)
        );
    }
}

/// Invariant (bmc): A refusal that may pass ends no attempt, and one that stays is final after few
/// tries.
#[tokio::test]
async fn credentials_that_an_attempt_has_used_are_not_given_up_for_one_refusal_of_a_new_client() {
    let simulator = pyghmi(&["--privilege", "operator", "--privilege-check", "handshake"]);
    let bmc = IpmiClient::new(config(simulator.port), Timing::default()).trusted();
    let error = bmc.power_state(within(1.0)).await.unwrap_err();
    let IpmiErrorKind::Doubted { refusal, .. } = &error.kind else { panic!("{error}") };
    assert!(matches!(**refusal, IpmiErrorKind::PrivilegeRefused { .. }), "{error}");
}

#[tokio::test]
async fn a_command_that_is_refused_without_a_clear_reason_is_a_refusal_at_the_deadline() {
    let simulator = pyghmi(&["--refuse", "00=ff"]);
    let error = bmc(simulator.port).power_state(within(1.0)).await.unwrap_err();
    let (command, completion) = ("get chassis status", 0xff);
    assert_eq!(error.kind, IpmiErrorKind::CommandRefused { command, completion });
    assert!(error.to_string().contains("unspecified error"), "{error}");
}

#[tokio::test]
async fn a_power_command_refused_without_a_clear_reason_is_given_again_and_then_told() {
    let once = pyghmi(&["--refuse", "0002=ff*1"]);
    bmc(once.port).reach_power(PowerState::On, soon()).await.unwrap();
    assert_eq!(once.chassis_commands(2), ["01", "01"]);
    let always = pyghmi(&["--refuse", "0002=ff"]);
    let error = bmc(always.port).reach_power(PowerState::On, within(2.0)).await.unwrap_err();
    let (command, completion) = ("power on", 0xff);
    assert_eq!(error.kind, IpmiErrorKind::CommandRefused { command, completion });
}

/// Invariant (bmc): A refusal that may pass ends no attempt, and one that stays is final after few
/// tries.
#[tokio::test]
async fn what_a_bmc_may_do_without_keeps_nobody_long_whatever_it_answers() {
    // Parameters 0, 3 and 4, the boot flags' reading, and a soft shutdown.
    let refuse = ["000800=ff", "000803=ff", "000804=ce", "0009=d3", "000205=ff"];
    let arguments: Vec<&str> = refuse.iter().flat_map(|each| ["--refuse", *each]).collect();
    let simulator = pyghmi(&[&arguments[..], &["--on"]].concat());
    let bmc = bmc(simulator.port);
    let (disk, always) = (BootDevice::Disk, BootPersistence::Persistent);
    bmc.set_boot_device(disk, always, Firmware::Uefi, soon()).await.unwrap();
    bmc.soft_off(Duration::from_millis(300), soon()).await.unwrap();
    assert_eq!(bmc.power_state(soon()).await.unwrap(), PowerState::Off);
}

/// Invariant (bmc): Refusal, missing BMC key, silence, closed port and missing route are told
/// apart.
#[tokio::test]
async fn a_refusal_in_the_name_of_session_0_is_a_refusal_and_is_not_asked_for_at_full_pace() {
    let simulator = pyghmi(&["--session-0-status", "18"]);
    let error = bmc(simulator.port).power_state(within(6.0)).await.unwrap_err();
    let IpmiErrorKind::NoSession { status: 0x12, .. } = error.kind else { panic!("{error}") };
    assert!(error.to_string().contains("illegal parameter"), "{error}");
    let refusals = simulator.events("refused").len();
    assert!((1..=3).contains(&refusals), "{refusals}: BMCs lock users out");
    // An unknown user is one under any session id.
    let simulator = pyghmi(&["--session-0-status", "13"]);
    let error = bmc(simulator.port).power_state(within(6.0)).await.unwrap_err();
    assert_eq!(error.kind, IpmiErrorKind::WrongPassword);
    assert_eq!(simulator.events("refused").len(), 1);
}

#[tokio::test]
async fn a_bmc_key_opens_sessions_with_either_driver_and_suite() {
    for driver in DRIVERS {
        for suite in ["3", "17"] {
            let simulator = pyghmi(&["--suite", suite, "--kg", BMC_KEY]);
            let kg = Some(BMC_KEY.parse().unwrap());
            let bmc = IpmiConfig { kg, ..config(simulator.port) };
            let bmc = by(driver, bmc);
            bmc.reach_power(PowerState::On, at_length()).await.unwrap();
            assert_eq!(bmc.power_state(at_length()).await.unwrap(), PowerState::On);
            simulator.closes_all_sessions().await;
        }
    }
}

/// Invariant (bmc): Refusal, missing BMC key, silence, closed port and missing route are told
/// apart.
#[tokio::test]
async fn a_bmc_key_that_is_missing_wrong_or_too_much_is_named_and_the_password_is_not() {
    for driver in DRIVERS {
        for (kept, given) in
            [(Some(BMC_KEY), None), (Some(BMC_KEY), Some("other")), (None, Some("x"))]
        {
            let arguments = kept.map_or(vec![], |kg| vec!["--kg", kg]);
            let simulator = pyghmi(&arguments);
            let network = Network::before(simulator.port, GOOD, 0).await;
            let kg = given.map(|given| given.parse().unwrap());
            let bmc = IpmiConfig { kg, ..config(network.port) };
            let error = by(driver, bmc).power_state(at_length()).await.unwrap_err();
            let given = given.is_some();
            assert_eq!(error.kind, IpmiErrorKind::WrongKey { given }, "{error}");
            assert!(error.to_string().contains("BMC key (K_g)"), "{error}");
            assert!(network.open_requests() <= 5, "each may be a session that the BMC holds");
        }
    }
}

#[tokio::test]
async fn boot_flags_that_a_bmc_shows_late_are_waited_for_and_no_longer_than_a_while() {
    let always = BootPersistence::Persistent;
    let simulator = pyghmi(&["--late-flags", "1.5"]);
    let bmc = bmc(simulator.port);
    let shown = async || bmc.chassis(soon()).await.unwrap().boot;
    let known = |device| Some(BootChoice::Known(device, always));
    bmc.set_boot_device(BootDevice::Disk, always, Firmware::Uefi, soon()).await.unwrap();
    while shown().await != known(BootDevice::Disk) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The BMC shows the old device for a while.
    let wanted = BootDevice::Pxe;
    bmc.set_boot_device(wanted, always, Firmware::Uefi, soon()).await.unwrap();
    assert_eq!(shown().await, known(wanted));
    assert_eq!(simulator.events("boot").len(), 2, "set once each");
    let wanted = BootDevice::Disk;
    let error = bmc.set_boot_device(wanted, always, Firmware::Uefi, within(0.7)).await;
    let kind = error.unwrap_err().kind;
    assert_eq!(kind, IpmiErrorKind::BootDeviceNotKept { wanted, reported: 0x04 });
}

/// Invariant (bmc): Refusal, missing BMC key, silence, closed port and missing route are told
/// apart.
#[test]
fn a_closed_port_a_missing_route_an_unreachable_host_and_silence_are_told_apart() {
    let name = "ipmi::refusals::\
        a_closed_port_a_missing_route_an_unreachable_host_and_silence_are_told_apart";
    alone_as(name, &["unshare", "--net"], || {
        for command in [
            "link set lo up",
            "link add site type veth peer name bmcs",
            "address add 192.0.2.1/24 dev site",
            "link set site up",
            "link set bmcs up",
        ] {
            assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
        }
        // The kernel gives up on a neighbor after three requests.
        fs::write("/proc/sys/net/ipv4/neigh/site/retrans_time_ms", "300").unwrap();
        tokio::runtime::Runtime::new().unwrap().block_on(each_is_told_apart());
    });
}

async fn each_is_told_apart() {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let cases = [
        ("127.0.0.1", silent.local_addr().unwrap().port(), None, "no answer in"),
        ("127.0.0.1", 623, Some(ConnectionRefused), "connection refused"),
        ("198.51.100.1", 623, Some(NetworkUnreachable), "no route"),
        ("192.0.2.2", 623, Some(HostUnreachable), "host unreachable"),
    ];
    for driver in DRIVERS {
        let ask = |(host, port, expected, word): (
            &str,
            u16,
            Option<std::io::ErrorKind>,
            &'static str,
        )| {
            let address = HostPort { host: host.to_owned(), port };
            let bmc = by(driver, IpmiConfig { address, ..config(port) });
            async move {
                // A silent run of ipmitool and the ping after it take almost ten seconds.
                let error = bmc.power_state(within(12.0)).await.unwrap_err();
                let IpmiErrorKind::NoAnswer { network, .. } = error.kind else { panic!("{error}") };
                assert_eq!(network, expected, "{driver:?}: {error}");
                assert!(error.to_string().contains(word), "{driver:?}: {error}");
            }
        };
        let [silence, closed, route, host] = cases.map(ask);
        tokio::join!(silence, closed, route, host);
    }
}
