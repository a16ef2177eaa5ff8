//! `bmc.driver = "ipmitool"`: the real program under the rules of hostler's own client.

use super::*;

fn by_program(port: u16) -> IpmiClient {
    by(BmcDriver::Ipmitool, config(port))
}

/// A deadline for several runs, each of which takes a twentieth of a second of a busy core.
fn in_time() -> Instant {
    within(30.0)
}

/// The command lines of running `ipmitool`s for this port.
fn runs(port: u16) -> Vec<String> {
    let mut lines = Vec::new();
    for process in fs::read_dir("/proc").unwrap() {
        let line = fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.starts_with("ipmitool ") && line.contains(&format!(" -p {port} ")) {
            lines.push(line);
        }
    }
    lines
}

#[tokio::test]
async fn ipmitool_switches_on_and_off_with_either_suite_and_the_one_that_works_is_remembered() {
    for (suites, first) in [("both", 1), ("3", 2)] {
        let simulator = pyghmi(&["--suite", suites]);
        let network = Network::before(simulator.port, GOOD, 0).await;
        let bmc = by_program(network.port);
        assert_eq!(bmc.power_state(in_time()).await.unwrap(), PowerState::Off);
        assert_eq!(network.open_requests(), first);
        bmc.reach_power(PowerState::On, in_time()).await.unwrap();
        bmc.power_cycle(in_time()).await.unwrap();
        bmc.soft_off(Duration::from_secs(20), in_time()).await.unwrap();
        let refused = bmc.power_cycle(in_time()).await.unwrap_err().kind;
        let completion = 0xd5;
        assert_eq!(refused, IpmiErrorKind::CommandRefused { command: "power cycle", completion });
        assert_eq!(simulator.chassis_commands(2), ["01", "02", "05", "02"]);
        assert_eq!(network.open_requests(), simulator.sessions() + first - 1);
        simulator.closes_all_sessions().await;
    }
}

#[tokio::test]
async fn ipmitool_switches_on_and_off_at_ipmi_sim() {
    let simulator = ipmi_sim();
    let bmc = by_program(simulator.port);
    bmc.reach_power(PowerState::On, in_time()).await.unwrap();
    bmc.reach_power(PowerState::Off, in_time()).await.unwrap();
    bmc.reach_power(PowerState::Off, in_time()).await.unwrap();
    assert_eq!(fs::read_to_string(simulator.file("calls")).unwrap(), "power 1\npower 0\n");
}

#[tokio::test]
async fn ipmitool_sets_the_uefi_bit_and_persistence_together_and_reads_them_back() {
    let simulator = pyghmi(&["--refuse", "000803=80", "--manufacturer", "10876"]);
    let bmc = by_program(simulator.port);
    let (disk, always) = (BootDevice::Disk, BootPersistence::Persistent);
    bmc.set_boot_device(disk, always, Firmware::Uefi, in_time()).await.unwrap();
    assert_eq!(simulator.events("boot").last().unwrap()["flags"], "e024000000");
    assert_eq!(simulator.chassis_commands(9), ["050000"]);

    let simulator = ipmi_sim();
    fs::write(simulator.file("boot"), "cdrom").unwrap();
    fs::write(simulator.file("stuck"), "").unwrap();
    let set = by_program(simulator.port);
    let wanted = BootDevice::Pxe;
    let error = set.set_boot_device(wanted, always, Firmware::Uefi, in_time()).await.unwrap_err();
    assert_eq!(error.kind, IpmiErrorKind::BootDeviceNotKept { wanted, reported: 0x14 });
}

#[tokio::test]
async fn what_ipmitool_cannot_log_in_with_is_told_apart() {
    let (one, other) = (pyghmi(&[]), ipmi_sim());
    for port in [one.port, other.port] {
        let network = Network::before(port, GOOD, 0).await;
        let with = |username: &str, password: &str| IpmiConfig {
            username: username.to_owned(),
            password: Secret::new(password.to_owned()),
            ..config(network.port)
        };
        for wrong in [with(USER, "wrong"), with(USER, ""), with("nobody", PASSWORD), with("", "x")]
        {
            let shown = format!("{wrong:?}");
            let wrong = by(BmcDriver::Ipmitool, wrong);
            let error = wrong.power_state(in_time()).await.unwrap_err();
            assert_eq!(error.kind, IpmiErrorKind::WrongPassword, "{shown}");
        }
        assert!(network.open_requests() <= 4 * 3, "BMCs lock users out");
    }
    for place in ["handshake", "session", "command"] {
        let simulator = pyghmi(&["--privilege", "operator", "--privilege-check", place]);
        let on = async |privilege| {
            let config = IpmiConfig { privilege, ..config(simulator.port) };
            let bmc = by(BmcDriver::Ipmitool, config);
            bmc.reach_power(PowerState::On, in_time()).await
        };
        let privilege = Privilege::Administrator;
        let username = USER.to_owned();
        let error = on(privilege).await.unwrap_err();
        assert_eq!(error.kind, IpmiErrorKind::PrivilegeRefused { username, privilege }, "{place}");
        on(Privilege::Operator).await.unwrap();
    }
    let simulator = pyghmi(&["--suite", "downgrade"]);
    let cipher_suite = Some(CipherSuite::Sha256);
    let bmc = IpmiConfig { cipher_suite, ..config(simulator.port) };
    let error = by(BmcDriver::Ipmitool, bmc).power_state(in_time()).await.unwrap_err();
    assert_eq!(error.kind, IpmiErrorKind::SuitesRefused { suites: vec![CipherSuite::Sha256] });
}

/// Invariant (bmc): ipmitool never outlives its deadline, and its arguments hold no password.
#[tokio::test]
async fn an_ipmitool_that_waits_shows_no_password_and_is_gone_with_the_deadline() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let bmc = by_program(port);
    let look = async {
        loop {
            let lines = runs(port);
            if let [line] = &lines[..] {
                return line.clone();
            }
            assert!(lines.is_empty(), "two at once: {lines:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let begun = Clock::now();
    let (error, line) = tokio::join!(bmc.power_state(within(2.0)), look);
    let error = error.unwrap_err();
    assert!((2.0..2.5).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    assert!(matches!(error.kind, IpmiErrorKind::NoAnswer { .. }), "{error}");
    assert!(line.contains(" -U admin ") && !line.contains(PASSWORD), "{line}");
    until_none_runs(port).await;

    // A dropped call also ends its program.
    let call = async { drop(bmc.power_state(in_time()).await) };
    let begun = async {
        while runs(port).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = call => panic!("a silent BMC answered"),
        () = begun => {}
    }
    until_none_runs(port).await;
}

async fn until_none_runs(port: u16) {
    let limit = Clock::now() + Duration::from_secs(1);
    while !runs(port).is_empty() {
        assert!(Clock::now() < limit, "it runs on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn runs_of_ipmitool_take_turns_with_a_pause_between_them() {
    let simulator = pyghmi(&["--least-pause", "0.2"]);
    let spacing = Duration::from_millis(250);
    let config = IpmiConfig { spacing, ..config(simulator.port) };
    let bmc = by(BmcDriver::Ipmitool, config);
    let (pxe, once) = (BootDevice::Pxe, BootPersistence::NextBoot);
    let set = bmc.set_boot_device(pxe, once, Firmware::Uefi, in_time());
    let (set, on) = tokio::join!(set, bmc.reach_power(PowerState::On, in_time()));
    set.unwrap();
    on.unwrap();
    assert_eq!(simulator.events("power").last().unwrap()["boot"], "network");
}

#[tokio::test]
async fn a_bmc_that_says_yes_and_does_nothing_or_is_busy_is_the_same_to_ipmitool() {
    let deaf = pyghmi(&["--deaf-power"]);
    let error = by_program(deaf.port).reach_power(PowerState::On, within(4.0)).await.unwrap_err();
    let wanted = PowerState::On;
    assert!(
        matches!(error.kind, IpmiErrorKind::StateNotReached { wanted: w, .. } if w == wanted),
        "{error}"
    );
    assert!(deaf.chassis_commands(2).len() > 1, "given again now and then");
    let busy = pyghmi(&["--refuse", "00=c0*2"]);
    assert_eq!(by_program(busy.port).power_state(in_time()).await.unwrap(), PowerState::Off);
    let busy = pyghmi(&["--refuse", "00=c0"]);
    let error = by_program(busy.port).power_state(within(2.0)).await.unwrap_err();
    assert!(matches!(error.kind, IpmiErrorKind::Busy { completion: 0xc0, .. }), "{error}");
}

#[tokio::test]
async fn ipmitool_is_given_addresses_it_understands() {
    for (listen, host) in [("::1", "::1"), ("127.0.0.1", "localhost")] {
        let simulator = pyghmi(&["--listen", listen]);
        let address = HostPort { host: host.to_owned(), port: simulator.port };
        let bmc = IpmiConfig { address, ..config(0) };
        by(BmcDriver::Ipmitool, bmc).power_state(in_time()).await.unwrap();
    }
}
