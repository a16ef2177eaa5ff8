//! A machine's console by serial over LAN: pyghmi's server at the other end, and `ipmi_sim`.

use std::{
    fs::File,
    io::Write as _,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use hostler::bmc::{BmcError, ConsoleEvent};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, net::TcpListener, sync::oneshot, task::JoinHandle};

use super::{simulators::ipmi_sim_with, *};

/// Application commands (IPMI 2.0 §24).
const DEACTIVATE_PAYLOAD: u8 = 0x49;
const GET_PAYLOAD_INSTANCE: u8 = 0x4b;
const OPEN_LIMIT: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);

/// A machine's serial line, whose text the BMC passes on.
struct Line {
    dir: TempDir,
}

impl Line {
    fn new() -> Self {
        let line = Self { dir: tempfile::tempdir().unwrap() };
        File::create(line.path()).unwrap();
        line
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("console")
    }

    fn print(&self, text: &str) {
        let mut file = File::options().append(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Starts pyghmi with this line.
    fn simulator(&self, arguments: &[&str]) -> Simulator {
        pyghmi(&[arguments, &["--console", self.path().to_str().unwrap()]].concat())
    }
}

/// A console client; dropped, it ends without a message.
struct Listener {
    received: Arc<Mutex<String>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    fn new(bmc: Arc<IpmiClient>) -> Self {
        let received = Arc::new(Mutex::new(String::new()));
        let (stop, stopped) = oneshot::channel::<()>();
        let ear = Arc::clone(&received);
        let tell = move |event: ConsoleEvent<'_>| {
            let text = match event {
                ConsoleEvent::Opened => "<begun>".to_owned(),
                ConsoleEvent::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                ConsoleEvent::Gap => "<gap>".to_owned(),
                ConsoleEvent::Trouble(BmcError::Ipmi(error)) => format!("<{}>", error.kind),
                ConsoleEvent::Trouble(other) => panic!("{other}"),
            };
            ear.lock().unwrap().push_str(&text);
        };
        let task = tokio::spawn(async move {
            bmc.console(OPEN_LIMIT, tell, async { drop(stopped.await) }).await;
        });
        Self { received, stop: Some(stop), task }
    }

    fn at(port: u16) -> Self {
        Self::new(Arc::new(bmc(port)))
    }

    fn received(&self) -> String {
        self.received.lock().unwrap().clone()
    }

    async fn until_received(&self, text: &str) {
        until(|| self.received().ends_with(text), || format!("{text:?} in {:?}", self.received()))
            .await;
    }

    /// Stops the client, and waits for its end.
    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(LIMIT, &mut self.task).await.unwrap().unwrap();
    }

    /// Waits until the client gives up by itself.
    async fn gives_up(mut self) -> String {
        tokio::time::timeout(LIMIT, &mut self.task).await.unwrap().unwrap();
        self.received()
    }
}

async fn until(is: impl Fn() -> bool, what: impl Fn() -> String) {
    let begun = Clock::now();
    while !is() {
        assert!(begun.elapsed() < LIMIT, "no {}", what());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn lines(count: usize) -> String {
    "[    0.000000] a line of a kernel\r\n".repeat(count)
}

/// The number of opened consoles.
fn consoles(simulator: &Simulator) -> usize {
    simulator.events("console").iter().filter(|event| event["open"] == true).count()
}

#[tokio::test]
async fn what_a_machine_prints_is_heard_and_the_session_closed_at_the_end_with_either_suite() {
    for suite in ["3", "17"] {
        let line = Line::new();
        let simulator = line.simulator(&["--suite", suite]);
        let listener = Listener::at(simulator.port);
        listener.until_received("<begun>").await;
        let text = lines(200);
        line.print(&text);
        listener.until_received(&text).await;
        assert_eq!(listener.received(), format!("<begun>{text}"));
        // Longer than several signs of life.
        until(
            || simulator.application_commands(GET_PAYLOAD_INSTANCE) > 2,
            || "sign of life".into(),
        )
        .await;
        line.print("login: ");
        listener.until_received("login: ").await;
        listener.stop().await;
        simulator.closes_all_sessions().await;
        assert_eq!((simulator.sessions(), consoles(&simulator)), (1, 1));
        assert_eq!(simulator.application_commands(DEACTIVATE_PAYLOAD), 1);
        assert!(simulator.events("typed").is_empty(), "{:?}", simulator.events("typed"));
    }
}

#[tokio::test]
async fn what_a_machine_prints_is_heard_from_ipmi_sim_and_the_console_left_free() {
    let line = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let device = format!("sol \"tcp:{}\" 115200\n", line.local_addr().unwrap());
    let simulator = ipmi_sim_with(&device);
    let (mut line, _) = tokio::time::timeout(LIMIT, line.accept()).await.unwrap().unwrap();
    for _ in 0..2 {
        let listener = Listener::at(simulator.port);
        listener.until_received("<begun>").await;
        let text = lines(100);
        line.write_all(text.as_bytes()).await.unwrap();
        listener.until_received(&text).await;
        assert_eq!(listener.received(), format!("<begun>{text}"));
        listener.stop().await;
    }
}

#[tokio::test]
async fn nothing_is_lost_or_heard_twice_on_a_bad_network() {
    let line = Line::new();
    let simulator = line.simulator(&[]);
    let badness = Badness { loss: 8, repeat: 40, late: Duration::from_millis(10), damage: 5 };
    let network = Network::before(simulator.port, badness, 11).await;
    let listener = Listener::at(network.port);
    listener.until_received("<begun>").await;
    let text = lines(100);
    line.print(&text);
    listener.until_received(&text).await;
    assert!(!listener.received().contains("<gap>"), "{}", listener.received());
    listener.stop().await;
}

/// Invariant (bmc): A console changes nothing about an attempt, delays no power command, and is
/// closed.
#[tokio::test]
async fn the_machine_is_switched_while_somebody_listens() {
    let line = Line::new();
    let simulator = line.simulator(&[]);
    let bmc = Arc::new(bmc(simulator.port));
    let listener = Listener::new(Arc::clone(&bmc));
    listener.until_received("<begun>").await;
    for round in ["one", "two"] {
        bmc.reach_power(PowerState::On, soon()).await.unwrap();
        line.print(round);
        listener.until_received(round).await;
        bmc.reach_power(PowerState::Off, soon()).await.unwrap();
    }
    assert_eq!(listener.received(), "<begun>onetwo");
    listener.stop().await;
    simulator.closes_all_sessions().await;
    assert_eq!(consoles(&simulator), 1);
}

#[tokio::test]
async fn a_console_that_nobody_closed_is_taken_over() {
    let line = Line::new();
    let simulator = line.simulator(&[]);
    let dead: &'static AtomicBool = Box::leak(Box::default());
    let network = Network::tampered(simulator.port, |_, datagram| {
        if dead.load(Ordering::Relaxed) { vec![] } else { vec![datagram.to_vec()] }
    })
    .await;
    let killed = Listener::at(network.port);
    killed.until_received("<begun>").await;
    dead.store(true, Ordering::Relaxed);
    drop(killed);
    let listener = Listener::at(simulator.port);
    listener.until_received("<begun>").await;
    line.print("here");
    listener.until_received("here").await;
    assert_eq!(listener.received(), "<begun>here");
}

/// Invariant (bmc): Somebody's console is taken over once in an attempt.
#[tokio::test]
async fn a_console_that_somebody_took_is_not_taken_back_but_asked_for_until_it_is_free() {
    let line = Line::new();
    let simulator = line.simulator(&[]);
    let robbed = Listener::at(simulator.port);
    robbed.until_received("<begun>").await;
    let robber = Listener::at(simulator.port);
    robber.until_received("<begun>").await;
    let refused = "<no serial console: somebody else has it (completion code 0x80)>";
    robbed.until_received(&refused.repeat(3)).await;
    line.print("mine");
    robber.until_received("mine").await;
    assert_eq!(robber.received(), "<begun>mine");
    let taken = simulator.application_commands(DEACTIVATE_PAYLOAD);
    robber.stop().await;
    robbed.until_received("<begun>").await;
    line.print("again");
    robbed.until_received("again").await;
    assert!(robbed.received().starts_with("<begun><gap><no"), "{}", robbed.received());
    // One deactivation to take the console, one to close it; none to take it back.
    assert_eq!((taken, simulator.application_commands(DEACTIVATE_PAYLOAD)), (1, 2));
}

#[tokio::test]
async fn a_bmc_that_restarts_is_listened_to_again_and_a_spent_session_replaced() {
    let line = Line::new();
    let simulator = line.simulator(&[]);
    let port = simulator.port;
    // A session carries at most 62 signs of life.
    let hasty = Timing { console_alive: Duration::from_millis(15), ..TIMING };
    let listener = Listener::new(Arc::new(IpmiClient::new(config(port), hasty)));
    listener.until_received("<begun><gap><begun>").await;
    assert_eq!(simulator.open_sessions().len(), 1);
    drop(simulator);
    let simulator = pyghmi_at(port, &["--console", line.path().to_str().unwrap()]);
    until(|| consoles(&simulator) > 0, || "console".into()).await;
    line.print("back");
    until(|| listener.received().contains("back"), || listener.received()).await;
    listener.stop().await;
    simulator.closes_all_sessions().await;
}

#[tokio::test]
async fn where_there_is_no_console_to_be_had_it_is_said_once() {
    let simulator = pyghmi(&["--refuse", "0648=83"]);
    let received = Listener::at(simulator.port).gives_up().await;
    assert_eq!(received, "<no serial console: it cannot encipher it (completion code 0x83)>");
    let password = Secret::new("wrong".to_owned());
    let wrong = IpmiClient::new(IpmiConfig { password, ..config(simulator.port) }, TIMING);
    let received = Listener::new(Arc::new(wrong)).gives_up().await;
    assert_eq!(received, "<wrong user name or password>");
    simulator.closes_all_sessions().await;
    let simulator = pyghmi(&["--refuse", "0648=c1"]);
    let received = Listener::at(simulator.port).gives_up().await;
    assert!(
        received.contains("refused to open the serial console: command not supported"),
        "{received}"
    );
    simulator.closes_all_sessions().await;
}

#[tokio::test]
async fn a_console_that_is_not_there_yet_is_asked_for_until_it_is() {
    for (code, why) in [("81", "the machine is off"), ("d5", "not in this state")] {
        let line = Line::new();
        let simulator = line.simulator(&["--refuse", &format!("0648={code}*2")]);
        let listener = Listener::at(simulator.port);
        listener.until_received("<begun>").await;
        line.print("booting");
        listener.until_received("booting").await;
        let received = listener.received();
        assert_eq!(received.matches(why).count(), 2, "{received}");
        assert!(!received.contains("<gap>"), "{received}");
    }
}

/// Invariant (bmc): A console changes nothing about an attempt, delays no power command, and is
/// closed.
#[tokio::test]
async fn a_listener_that_is_dropped_closes_its_session() {
    let line = Line::new();
    let simulator = line.simulator(&[]);
    let listener = Listener::at(simulator.port);
    listener.until_received("<begun>").await;
    drop(listener);
    simulator.closes_all_sessions().await;
}

#[tokio::test]
async fn a_silent_bmc_is_asked_again_and_left_when_nobody_listens_any_more() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let bmc = Arc::new(bmc(silent.local_addr().unwrap().port()));
    let received: Arc<Mutex<Vec<String>>> = Arc::default();
    let ear = Arc::clone(&received);
    let tell = move |event: ConsoleEvent<'_>| ear.lock().unwrap().push(format!("{event:?}"));
    let enough = async {
        until(|| received.lock().unwrap().len() > 1, || "second trouble".into()).await;
    };
    bmc.console(Duration::from_millis(300), tell, enough).await;
    assert!(
        received.lock().unwrap().iter().all(|event| event.contains("NoAnswer")),
        "{received:?}"
    );
    // The BMC's lock is free: no error says otherwise.
    let error = bmc.power_state(within(0.1)).await.unwrap_err();
    assert!(matches!(error.kind, IpmiErrorKind::NoAnswer { .. }), "{error}");
}
