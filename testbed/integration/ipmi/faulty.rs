//! BMCs with known faults of real ones.

use std::{
    collections::VecDeque,
    net::UdpSocket,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use super::{
    network::{IN_SESSION, OPEN_REQUEST, OPEN_RESPONSE, RAKP_2, RAKP_4, Way},
    *,
};

const ONCE: BootPersistence = BootPersistence::NextBoot;
const ALWAYS: BootPersistence = BootPersistence::Persistent;

/// The device and the EFI bit with which pyghmi's machine was last switched on.
fn last_boot(simulator: &Simulator) -> (Option<String>, bool) {
    let events = simulator.events("power");
    let event = events.iter().rev().find(|event| event["on"] == true).unwrap();
    (event["boot"].as_str().map(str::to_owned), event["efi"] == true)
}

/// Sets a device and switches on; returns the device that the machine boots.
async fn boots(
    simulator: &Simulator,
    device: BootDevice,
    persistence: BootPersistence,
) -> (Option<String>, bool) {
    let bmc = bmc(simulator.port);
    bmc.set_boot_device(device, persistence, Firmware::Uefi, soon()).await.unwrap();
    bmc.reach_power(PowerState::On, soon()).await.unwrap();
    last_boot(simulator)
}

#[tokio::test]
async fn a_bmc_that_hangs_when_asked_in_haste_is_not_asked_in_haste() {
    let at_pace = |spacing: f64| {
        let simulator = pyghmi(&["--least-pause", "0.3"]);
        let spacing = Duration::from_secs_f64(spacing);
        let bmc = IpmiClient::new(IpmiConfig { spacing, ..config(simulator.port) }, TIMING);
        (simulator, bmc)
    };
    let (_simulator, patient) = at_pace(0.35);
    patient.power_state(soon()).await.unwrap();
    let set = patient.set_boot_device(BootDevice::Pxe, ONCE, Firmware::Uefi, soon());
    let (set, on) = tokio::join!(set, patient.reach_power(PowerState::On, soon()));
    set.unwrap();
    on.unwrap();
    assert_eq!(patient.power_state(soon()).await.unwrap(), PowerState::On);

    let (simulator, hasty) = at_pace(0.0);
    hasty.power_state(soon()).await.unwrap();
    let error = hasty.power_state(within(1.0)).await.unwrap_err();
    assert!(matches!(error.kind, IpmiErrorKind::NoAnswer { .. }), "{error}");
    assert_eq!(simulator.events("hung").len(), 1);
}

#[tokio::test]
async fn a_bmc_that_forgets_boot_flags_soon_is_told_to_keep_them() {
    let simulator = pyghmi(&["--flags-valid", "0.2"]);
    let bmc = bmc(simulator.port);
    bmc.set_boot_device(BootDevice::Pxe, ONCE, Firmware::Uefi, soon()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    bmc.reach_power(PowerState::On, soon()).await.unwrap();
    assert_eq!(last_boot(&simulator), (Some("network".to_owned()), true));
}

#[tokio::test]
async fn a_bmc_that_knows_nothing_around_the_boot_flags_boots_what_it_is_told() {
    // OpenBMC refuses parameter 3; others know neither 0 nor 4, nor show the set flags.
    let openbmc = ["--refuse", "000803=80"];
    let simple = ["--refuse", "000803=80", "--refuse", "000800=80", "--refuse", "000804=c9"];
    let blind = ["--refuse", "0009=c1"];
    for arguments in [&openbmc[..], &simple, &blind] {
        let simulator = pyghmi(arguments);
        let network = (Some("network".to_owned()), true);
        assert_eq!(boots(&simulator, BootDevice::Pxe, ONCE).await, network, "{arguments:?}");
    }
    let simulator = pyghmi(&["--refuse", "000805=cc"]);
    let set = bmc(simulator.port);
    let error = set.set_boot_device(BootDevice::Pxe, ONCE, Firmware::Uefi, soon()).await;
    let refused = IpmiErrorKind::CommandRefused { command: "set boot options", completion: 0xcc };
    assert_eq!(error.unwrap_err().kind, refused);
}

#[tokio::test]
async fn supermicros_uefi_disk_boots_though_it_takes_the_other_selector_without_a_word() {
    let disk = (Some("hd".to_owned()), true);
    for maker in [["--manufacturer", "10876"], ["--manufacturer", "674"], ["--refuse", "0601=c1"]] {
        let simulator = pyghmi(&maker);
        assert_eq!(boots(&simulator, BootDevice::Disk, ALWAYS).await, disk, "{maker:?}");
    }
}

#[tokio::test]
async fn a_bmc_that_cannot_ask_for_a_shutdown_cuts_the_power() {
    let simulator = pyghmi(&["--on", "--refuse", "000205=cc"]);
    bmc(simulator.port).soft_off(Duration::from_secs(60), soon()).await.unwrap();
    assert_eq!(simulator.chassis_commands(2), ["05", "00"]);
}

#[tokio::test]
async fn a_machine_that_is_off_is_not_asked_to_shut_down() {
    let simulator = pyghmi(&[]);
    bmc(simulator.port).soft_off(Duration::from_secs(60), soon()).await.unwrap();
    assert!(simulator.chassis_commands(2).is_empty());
}

#[tokio::test]
async fn the_remembered_suite_is_forgotten_when_new_firmware_does_not_even_answer_it() {
    let simulator = pyghmi(&["--suite", "both"]);
    // The authentication algorithm of the ignored suite: at first that of suite 17.
    let deaf_to: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(3)));
    let network = Network::tampered(simulator.port, move |way, datagram| {
        let asks = way == Way::There && datagram[5] == OPEN_REQUEST;
        let ignored = asks && usize::from(datagram[28]) == deaf_to.load(Ordering::Relaxed);
        if ignored { vec![] } else { vec![datagram.to_vec()] }
    })
    .await;
    let timing = Timing { resend_first: Duration::from_millis(50), ..TIMING };
    let bmc = IpmiClient::new(config(network.port), timing);
    bmc.power_state(soon()).await.unwrap();
    deaf_to.store(1, Ordering::Relaxed);
    bmc.power_state(soon()).await.unwrap();
    let suites: Vec<u64> = simulator
        .events("session")
        .iter()
        .filter(|event| event["open"] == true)
        .map(|event| event["suite"].as_u64().unwrap())
        .collect();
    assert_eq!(suites, [3, 17]);
}

#[tokio::test]
async fn a_bmc_that_stays_silent_is_polled_with_few_datagrams_of_each_suite_and_found_again() {
    let simulator = pyghmi(&[]);
    let is_deaf: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
    let requested: &'static Mutex<Vec<u8>> = Box::leak(Box::default());
    let network = Network::tampered(simulator.port, move |way, datagram| {
        let is_lost = is_deaf.load(Ordering::Relaxed);
        if is_lost && way == Way::There {
            // The authentication algorithm, which identifies the suite.
            requested.lock().unwrap().push(datagram[28]);
        }
        if is_lost { vec![] } else { vec![datagram.to_vec()] }
    })
    .await;
    let bmc = bmc(network.port);
    for seconds in [0.3, 0.3, 3.0] {
        requested.lock().unwrap().clear();
        let error = bmc.poll_power_state(within(seconds)).await.unwrap_err();
        assert!(matches!(error.kind, IpmiErrorKind::NoAnswer { network: None, .. }), "{error}");
    }
    assert_eq!(*requested.lock().unwrap(), [3, 3, 1, 1]);
    is_deaf.store(false, Ordering::Relaxed);
    assert_eq!(bmc.poll_power_state(soon()).await.unwrap(), PowerState::Off);
}

#[tokio::test]
async fn a_bmc_without_a_free_session_is_asked_again_until_the_deadline() {
    let simulator = pyghmi(&[]);
    let full = |times: usize| {
        let left = AtomicUsize::new(times);
        Network::tampered(simulator.port, move |way, datagram| {
            let opens = way == Way::There && datagram[5] == OPEN_REQUEST;
            let mut answer = datagram.to_vec();
            if way == Way::Back && datagram[5] == OPEN_RESPONSE && left.load(Ordering::Relaxed) > 0
            {
                // Status: insufficient resources to create a session; the later fields are then
                // missing.
                left.fetch_sub(1, Ordering::Relaxed);
                answer[17] = 0x01;
            }
            if opens { vec![datagram.to_vec()] } else { vec![answer] }
        })
    };
    let network = full(2).await;
    assert_eq!(bmc(network.port).power_state(soon()).await.unwrap(), PowerState::Off);
    let network = full(usize::MAX).await;
    let error = bmc(network.port).power_state(within(1.0)).await.unwrap_err();
    assert!(matches!(error.kind, IpmiErrorKind::NoSession { status: 1, .. }), "{error}");
}

/// Invariant (bmc): A damaged, repeated or forged answer of a BMC never makes another state.
#[tokio::test]
async fn damaged_datagrams_never_make_another_state() {
    let simulator = pyghmi(&["--on"]);
    let badness = Badness { damage: 25, ..GOOD };
    let timing = Timing {
        resend_first: Duration::from_millis(30),
        resend_max: Duration::from_millis(60),
        ..TIMING
    };
    for seed in 0..4 {
        let network = Network::before(simulator.port, badness, seed).await;
        for _ in 0..10 {
            let bmc = IpmiClient::new(config(network.port), timing);
            match bmc.power_state(within(10.0)).await {
                Ok(state) => assert_eq!(state, PowerState::On, "seed {seed}"),
                // Before there are keys, a forged refusal is indistinguishable: it may cost a call,
                // and no more.
                Err(error) => assert!(is_refusal(&error.kind), "seed {seed}: {error}"),
            }
        }
    }
}

fn is_refusal(kind: &IpmiErrorKind) -> bool {
    matches!(
        kind,
        IpmiErrorKind::WrongPassword
            | IpmiErrorKind::PrivilegeRefused { .. }
            | IpmiErrorKind::SuitesRefused { .. }
            | IpmiErrorKind::NoAnswer { .. }
            | IpmiErrorKind::NoSession { .. }
    )
}

/// Invariant (bmc): A damaged, repeated or forged answer of a BMC never makes another state.
#[tokio::test]
async fn answers_of_another_time_are_not_believed() {
    let simulator = pyghmi(&[]);
    let received: Mutex<VecDeque<Vec<u8>>> = Mutex::default();
    // All earlier answers precede each answer, newest first.
    let network = Network::tampered(simulator.port, move |way, datagram| {
        if way == Way::There {
            return vec![datagram.to_vec()];
        }
        let mut received = received.lock().unwrap();
        let before: Vec<Vec<u8>> = received.iter().cloned().collect();
        received.push_front(datagram.to_vec());
        before.into_iter().chain([datagram.to_vec()]).collect()
    })
    .await;
    goes_on_and_off(&bmc(network.port)).await;
    goes_on_and_off(&bmc(network.port)).await;
    assert_eq!(simulator.chassis_commands(2), ["01", "00", "01", "00"]);
}

#[tokio::test]
async fn a_bmc_that_answers_with_floods_of_anything_costs_the_deadline_and_no_more() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let port = socket.local_addr().unwrap().port();
    let over = std::sync::Arc::new(AtomicBool::new(false));
    let ends = std::sync::Arc::clone(&over);
    let flood = std::thread::spawn(move || {
        let (mut buffer, mut client, mut noise) = ([0; 2048], None, fastrand::Rng::with_seed(7));
        let mut echo = Vec::new();
        while !ends.load(Ordering::Relaxed) {
            if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                client = Some(peer);
                echo = buffer[..length].to_vec();
            }
            let Some(client) = client else { continue };
            for length in [0, 1, 15, 16, 17, 60, 1024, 1025, 60_000] {
                let garbage: Vec<u8> = (0..length).map(|_| noise.u8(..)).collect();
                // Disguised as an answer of each kind, with wrong lengths.
                let mut dressed = echo.clone();
                dressed.extend(&garbage);
                dressed[5] = *[0xc0, 0x11, 0x13, 0x15].get(length % 4).unwrap();
                let at = 6 + noise.usize(..dressed.len() - 6);
                dressed[at] = noise.u8(..);
                for datagram in [&garbage, &dressed, &echo] {
                    drop(socket.send_to(datagram, client));
                }
            }
        }
    });
    let begun = Clock::now();
    let error = bmc(port).reach_power(PowerState::On, within(1.0)).await.unwrap_err();
    over.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    assert!(is_refusal(&error.kind), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
}

/// Invariant (bmc): A damaged, repeated or forged answer of a BMC never makes another state.
#[tokio::test]
async fn an_answer_that_was_turned_on_its_way_is_not_believed() {
    let simulator = pyghmi(&["--on"]);
    let network = Network::tampered(simulator.port, |way, datagram| {
        let mut arrive = Vec::new();
        if way == Way::Back && datagram[5] == IN_SESSION {
            // A flipped bit of the initialisation vector flips the same bit of the first sixteen
            // bytes of text: here "on", and then its checksum.
            for carry in 1..=8 {
                let mut turned = datagram.to_vec();
                turned[16 + 7] ^= 1;
                turned[16 + 10] ^= u8::MAX >> (8 - carry);
                arrive.push(turned);
            }
        }
        arrive.push(datagram.to_vec());
        arrive
    })
    .await;
    assert_eq!(bmc(network.port).power_state(soon()).await.unwrap(), PowerState::On);
}

#[tokio::test]
async fn handshakes_given_up_halfway_use_up_no_sessions() {
    // ipmi_sim has 63 sessions, and frees none by itself for a minute.
    let simulator = ipmi_sim();
    for lost in [RAKP_2, RAKP_4] {
        let reached = std::sync::Arc::new(tokio::sync::Notify::new());
        let answered = std::sync::Arc::clone(&reached);
        let network = Network::tampered(simulator.port, move |way, datagram| {
            if way == Way::Back && datagram[5] == lost {
                answered.notify_one();
                return vec![];
            }
            vec![datagram.to_vec()]
        })
        .await;
        for _ in 0..70 {
            let bmc = bmc(network.port);
            tokio::select! {
                answer = bmc.power_state(soon()) => panic!("{answer:?}"),
                () = reached.notified() => {}
            }
        }
        assert_eq!(bmc(simulator.port).power_state(within(5.0)).await.unwrap(), PowerState::Off);
    }
}
