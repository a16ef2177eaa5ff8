//! The admin socket against the real command, and against raw sockets that misbehave.

use std::{
    fs::{self, Permissions},
    future::Future,
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    net::Shutdown,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    process::{self, Output},
    time::{Duration, Instant},
};

use hostler::{
    admin::{AdminError, AdminPeer, AdminReply, AdminRequest, Server, ask, show_boot, use_bmc},
    model::admin::{Answer, BmcCommand, Fact, NicBoot, Order, Question, Selection, ServedMenu},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// Longer than every limit of the module.
const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

#[tokio::test]
async fn an_order_gets_through_and_its_giver_is_known() {
    let mut agent = Agent::new().await;
    let mut approve = hostler(&["approve", "edge-8", "edge-07", "edge-8"], &agent.socket);
    let child = approve.spawn().unwrap();
    let pid = child.id().unwrap();
    let (order, peer, reply) = agent.order().await;
    assert_eq!(order, Order::Approve(nodes(&["edge-07", "edge-8"])));
    assert_eq!(peer, AdminPeer { uid: rustix::process::getuid().as_raw(), pid });
    reply.send(&Ok(vec![
        answer("edge-07", true, "will be wiped"),
        answer("edge-8", false, "is not held"),
    ]));
    assert_eq!(
        said(child).await,
        (1, "edge-07: will be wiped\n".to_owned(), "error: edge-8: is not held\n".to_owned())
    );

    let child = hostler(&["retry", "--all"], &agent.socket).spawn().unwrap();
    let (order, _, reply) = agent.order().await;
    assert_eq!(order, Order::Retry(Selection::All));
    reply.send(&Ok(Vec::<Answer>::new()));
    let (code, out, _) = said(child).await;
    assert_eq!((code, out.contains("nothing to retry")), (0, true), "{out}");
}

#[tokio::test]
async fn other_questions_get_through_and_their_answers_back() {
    let mut agent = Agent::new().await;
    let (socket, mac) = (agent.socket.clone(), "52:54:00:00:00:01".parse().unwrap());
    let text = hostler::model::secret::Secret::new("LOCALBOOT 0".to_owned());
    let menus = vec![ServedMenu { name: "pxelinux.cfg/01".to_owned(), text }];
    let boot = Some(NicBoot { node: "edge-07".parse().unwrap(), menus });
    for answer in [boot, None] {
        let (shown, ()) = tokio::join!(show_boot(&socket, mac, true), async {
            let AdminRequest { question, reply, .. } = agent.request().await;
            assert_eq!(question, Question::ShowBoot { mac, secrets: true });
            reply.send(&Ok(&answer));
        });
        assert_eq!(shown.unwrap(), answer);
    }
    let (node, command) = ("edge-07".parse().unwrap(), BmcCommand::Off { hard: true });
    for answer in [Ok(vec![Fact::new("power", "off")]), Err("has no BMC".to_owned())] {
        let (done, ()) = tokio::join!(use_bmc(&socket, &node, command), async {
            let AdminRequest { question, reply, .. } = agent.request().await;
            assert_eq!(question, Question::Bmc { node: node.clone(), command });
            reply.send(&answer);
        });
        match answer {
            Ok(facts) => assert_eq!(done.unwrap(), facts),
            Err(why) => {
                assert_eq!(done.unwrap_err().to_string(), format!("the agent says: {why}"));
            }
        }
    }
}

#[tokio::test]
async fn an_operator_who_goes_away_while_a_bmc_works_is_noticed() {
    let mut agent = Agent::new().await;
    let mut child = hostler(&["bmc", "edge-07", "cycle"], &agent.socket).spawn().unwrap();
    let AdminRequest { question, mut reply, .. } = agent.request().await;
    assert!(matches!(question, Question::Bmc { command: BmcCommand::Cycle, .. }), "{question:?}");
    child.kill().await.unwrap();
    let gone = Instant::now();
    within(reply.closed()).await;
    assert!(gone.elapsed() < Duration::from_secs(5), "{:?}", gone.elapsed());
}

#[tokio::test]
async fn owner_and_group_may_give_orders_and_nobody_else() {
    let mut agent = Agent::new().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&agent.socket), 0o660);
    assert_eq!(mode(agent.socket.parent().unwrap()), 0o750);

    // A directory open to every user, so that only the socket's mode protects it.
    for dir in [agent.socket.parent().unwrap(), agent.dir.path()] {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    }
    let program = agent.dir.path().join("hostler");
    fs::copy(env!("CARGO_BIN_EXE_hostler"), &program).unwrap();
    let stranger = || {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"])
            .arg(&program)
            .args(["approve", "edge-07", "--socket"])
            .arg(&agent.socket)
            .stdout(process::Stdio::piped())
            .stderr(process::Stdio::piped());
        command.spawn().unwrap()
    };
    let (code, _, errors) = said(stranger()).await;
    assert_eq!(code, 1);
    assert!(errors.contains("permission denied") && errors.contains("root"), "{errors}");
    assert!(errors.contains(agent.socket.to_str().unwrap()), "{errors}");
    assert!(agent.requests.try_recv().is_err());

    chown(&agent.socket, None, Some(NOBODY)).unwrap();
    let child = stranger();
    let (_, peer, reply) = agent.order().await;
    assert_eq!(peer, AdminPeer { uid: NOBODY, pid: child.id().unwrap() });
    reply.send(&Ok(vec![answer("edge-07", true, "will be wiped")]));
    assert_eq!(said(child).await.0, 0);
}

/// Invariant (fair): A living agent's socket is not taken, and misbehaving clients stop nobody.
#[tokio::test]
async fn a_living_agents_socket_is_not_taken_and_a_dead_ones_is() {
    let mut agent = Agent::new().await;
    let error = Server::bind(&agent.socket).await.unwrap_err();
    assert!(matches!(&error, AdminError::InUse(path) if *path == agent.socket), "{error}");
    // It still listens.
    agent.answers(&agent.socket.clone()).await;
    agent.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("admin.sock");
    drop(StdListener::bind(&left).unwrap());
    assert!(fs::symlink_metadata(&left).unwrap().file_type().is_socket());
    let mut agent = Agent::at(dir, left).await;
    agent.answers(&agent.socket.clone()).await;
}

#[tokio::test]
async fn what_is_no_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, "precious").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [&file, &link, &dir.path().to_owned()] {
        let error = Server::bind(path).await.unwrap_err();
        assert!(matches!(error, AdminError::NotASocket(_)), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let below = file.join("admin.sock");
    let error = Server::bind(&below).await.unwrap_err();
    assert!(error.to_string().contains(below.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn the_socket_goes_with_the_agent() {
    let agent = Agent::new().await;
    let socket = agent.socket.clone();
    let dir = agent.stop().await;
    assert!(!socket.exists());
    let error = ask(&socket, &Order::Retry(Selection::All)).await.unwrap_err();
    assert!(matches!(&error, AdminError::NoAgent(path) if *path == socket), "{error}");
    // A killed agent's socket is taken, too.
    drop(StdListener::bind(&socket).unwrap());
    let error = ask(&socket, &Order::Retry(Selection::All)).await.unwrap_err();
    assert!(matches!(&error, AdminError::NoAgent(path) if *path == socket), "{error}");
    drop(dir);
}

#[tokio::test]
async fn whoever_says_nothing_is_dropped_and_keeps_nobody_waiting_long() {
    let mut agent = Agent::new().await;
    let connected = Instant::now();
    let mut silent = Vec::new();
    // More clients than allowed: one sends half an order, the others nothing.
    for _ in 0..40 {
        let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
        if silent.is_empty() {
            stream.write_all(b"{\"version\":2,").await.unwrap();
        }
        silent.push(stream);
    }
    agent.answers(&agent.socket.clone()).await;
    assert!(connected.elapsed() < Duration::from_secs(15), "{:?}", connected.elapsed());
    // Closed without an answer, after at most 5 s.
    for mut stream in silent {
        assert_eq!(received(&mut stream).await, "");
    }
    assert!(connected.elapsed() < Duration::from_secs(25), "{:?}", connected.elapsed());
}

/// Invariant (fair): Silence at the admin socket keeps no operator away.
#[tokio::test]
async fn the_oldest_that_says_nothing_makes_room_for_an_operator_and_who_has_asked_does_not() {
    let mut agent = Agent::new().await;
    let mut waits = hostler(&["retry", "edge-07"], &agent.socket).spawn().unwrap();
    let (_, _, reply) = agent.order().await;
    let mut silent = Vec::new();
    // With the waiting operator, as many clients as allowed.
    for _ in 0..31 {
        silent.push(UnixStream::connect(&agent.socket).await.unwrap());
    }
    agent.answers(&agent.socket.clone()).await;
    assert_eq!(received(&mut silent[0]).await, "");
    let is_open = |stream: &UnixStream| {
        let read = stream.try_read(&mut [0; 1]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    assert!(silent[1..].iter().all(is_open), "more than the oldest made room");
    assert!(waits.try_wait().unwrap().is_none());
    reply.send(&Ok(vec![answer("edge-07", true, "is so")]));
    assert_eq!(said(waits).await.1, "edge-07: is so\n");
}

/// A socket whose agent is too busy to accept, with its backlog full.
async fn busy(socket: &Path) -> (StdListener, Vec<UnixStream>) {
    let listener = StdListener::bind(socket).unwrap();
    let mut others = Vec::new();
    while let Ok(other) = UnixStream::connect(socket).await {
        others.push(other);
    }
    (listener, others)
}

/// Invariant (fair): Silence at the admin socket keeps no operator away.
#[tokio::test]
async fn an_operator_waits_for_a_place_at_a_busy_agent() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let (listener, others) = busy(&socket).await;
    let order = Order::Retry(nodes(&["edge-07"]));
    let asking = tokio::spawn({
        let socket = socket.clone();
        async move { ask(&socket, &order).await }
    });
    let accepting = tokio::task::spawn_blocking(move || {
        for _ in 0..=others.len() {
            let mut requested = String::new();
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            drop(BufReader::new(&stream).read_line(&mut requested));
            if requested.contains("edge-07") {
                return;
            }
        }
        // The last client may not have written yet.
    });
    accepting.await.unwrap();
    let error = within(asking).await.unwrap().unwrap_err();
    assert!(matches!(error, AdminError::HungUp(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_operator_for_whom_no_place_becomes_free_is_told_that_nothing_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let _busy = busy(&socket).await;
    let error = ask(&socket, &Order::Retry(Selection::All)).await.unwrap_err();
    let said = "is busy with others, and accepted no connection in 25 s; nothing was asked of it";
    assert!(error.to_string().contains(said), "{error}");
}

#[tokio::test]
async fn what_is_no_order_is_refused_and_never_handed_over() {
    let mut agent = Agent::new().await;
    for (line, why) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), "not a message"),
        (b"{\"version\":7,\"body\":{\"order\":{\"approve\":\"all\"}}}\n".to_vec(), "version 7"),
        (b"{\"version\":2,\"body\":{\"wipe\":\"all\"}}\n".to_vec(), "unknown variant"),
        (b"\xff\xfe\x00\n".to_vec(), "not a message"),
        (vec![b'['; 60_000].into_iter().chain(*b"\n").collect(), "not a message"),
    ] {
        let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
        stream.write_all(&line).await.unwrap();
        let received = received(&mut stream).await;
        assert!(received.contains("\"Err\"") && received.contains(why), "{received}");
    }
    // The end of an order is missing.
    let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
    stream.write_all(b"{\"version\":2,\"body\":{\"order\":{\"approve\":\"all\"}}}").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(received(&mut stream).await.contains("cut off"));
    assert!(agent.requests.try_recv().is_err());
}

#[tokio::test]
async fn an_order_whose_giver_has_gone_is_not_handed_over() {
    let mut agent = Agent::new().await;
    // The whole order arrives before the server reads its beginning.
    let mut gone = StdStream::connect(&agent.socket).unwrap();
    gone.write_all(b"{\"version\":2,\"body\":{\"order\":{\"approve\":\"all\"}}}\n").unwrap();
    drop(gone);
    // A client that only shuts down its sending side is still there.
    let mut there = StdStream::connect(&agent.socket).unwrap();
    there.write_all(b"{\"version\":2,\"body\":{\"order\":{\"retry\":\"all\"}}}\n").unwrap();
    there.shutdown(Shutdown::Write).unwrap();
    assert_eq!(agent.order().await.0, Order::Retry(Selection::All));
    agent.answers(&agent.socket.clone()).await;
}

#[tokio::test]
async fn an_endless_order_is_cut_off() {
    let agent = Agent::new().await;
    let mut stream = UnixStream::connect(&agent.socket).await.unwrap();
    let mut sent = 0_usize;
    let endless = async {
        while stream.write_all(&[b' '; 4096]).await.is_ok() {
            sent += 4096;
        }
    };
    timeout(LIMIT, endless).await.unwrap();
    // The kernel's buffers add to the limit of 64 KiB.
    assert!(sent < 1 << 20, "{sent} bytes were taken");
}

#[tokio::test]
async fn an_order_too_long_for_an_agent_is_not_sent() {
    let mut agent = Agent::new().await;
    let names: Vec<String> = (0..1100).map(|at| format!("{at:060}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let error = ask(&agent.socket, &Order::Approve(nodes(&names))).await.unwrap_err();
    assert!(error.to_string().contains("--all"), "{error}");
    assert!(agent.requests.try_recv().is_err());
    let order = Order::Approve(nodes(&names[..1000]));
    let (socket, given) = (agent.socket.clone(), order.clone());
    let requested = tokio::spawn(async move { ask(&socket, &given).await });
    let (given, _, reply) = agent.order().await;
    assert_eq!(given, order);
    let many: Vec<Answer> =
        names[..1000].iter().map(|name| answer(name, true, &"x".repeat(300))).collect();
    reply.send(&Ok(many));
    assert_eq!(requested.await.unwrap().unwrap().len(), 1000);
}

#[tokio::test]
async fn a_driver_without_time_is_told_of_and_sees_that_nobody_waits() {
    let mut agent = Agent::new().await;
    let patient = hostler(&["bmc", "edge-07", "on"], &agent.socket).spawn().unwrap();
    let bmc = agent.request().await.reply;
    let child = hostler(&["approve", "edge-07"], &agent.socket).spawn().unwrap();
    let (_, _, reply) = agent.order().await;
    let (code, _, errors) = said(child).await;
    assert_eq!(code, 1);
    assert!(errors.contains("10 s") && errors.contains("hostler status"), "{errors}");
    assert!(reply.is_closed());
    // A BMC may take longer.
    bmc.send(&Ok(vec![Fact::new("power", "on")]));
    assert_eq!(said(patient).await, (0, "power  on\n".to_owned(), String::new()));
}

#[tokio::test]
async fn an_agent_that_stops_or_is_another_program_is_told_of() {
    let mut agent = Agent::new().await;
    let child = hostler(&["approve", "edge-07"], &agent.socket).spawn().unwrap();
    let request = agent.request().await;
    let Agent { ended, serving, dir, socket, .. } = agent;
    ended.send(()).unwrap();
    let (code, _, errors) = said(child).await;
    assert_eq!((code, errors.contains("hung up before it answered")), (1, true), "{errors}");
    serving.await.unwrap();
    drop(request);

    let other = tokio::net::UnixListener::bind(&socket).unwrap();
    let requested = tokio::spawn(async move { ask(&socket, &Order::Retry(Selection::All)).await });
    let (mut stream, _) = other.accept().await.unwrap();
    stream.write_all(b"220 mail.example.org ESMTP\n").await.unwrap();
    let error = requested.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("is not this version's agent"), "{error}");
    drop(dir);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_says_nothing_is_not_waited_for_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let _listener = StdListener::bind(&socket).unwrap();
    let error = ask(&socket, &Order::Retry(Selection::All)).await.unwrap_err();
    let said = format!("the agent at {} did not answer in 25 s; ", socket.display());
    assert!(error.to_string().starts_with(&said), "{error}");
}

/// An admin server whose requests the test answers.
struct Agent {
    requests: mpsc::Receiver<AdminRequest>,
    ended: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    dir: TempDir,
    socket: PathBuf,
}

impl Agent {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/admin.sock");
        Self::at(dir, socket).await
    }

    async fn at(dir: TempDir, socket: PathBuf) -> Self {
        let server = Server::bind(&socket).await.unwrap();
        let (sender, requests) = mpsc::channel(4);
        let (ended, end) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.serve(sender, async move { drop(end.await) }));
        Self { requests, ended, serving, dir, socket }
    }

    async fn request(&mut self) -> AdminRequest {
        within(self.requests.recv()).await.unwrap()
    }

    async fn order(&mut self) -> (Order, AdminPeer, AdminReply) {
        let AdminRequest { question, peer, reply } = self.request().await;
        let Question::Order(order) = question else { panic!("no order: {question:?}") };
        (order, peer, reply)
    }

    /// Answers one order, as a running agent does.
    async fn answers(&mut self, socket: &Path) {
        let order = Order::Approve(nodes(&["edge-07"]));
        let (requested, ()) = tokio::join!(ask(socket, &order), async {
            let (_, _, reply) = self.order().await;
            reply.send(&Ok(vec![answer("edge-07", true, "is so")]));
        });
        assert_eq!(requested.unwrap(), [answer("edge-07", true, "is so")]);
    }

    async fn stop(self) -> TempDir {
        self.ended.send(()).unwrap();
        self.serving.await.unwrap();
        self.dir
    }
}

fn hostler(arguments: &[&str], socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostler"));
    command.args(arguments).arg("--socket").arg(socket).kill_on_drop(true);
    command.stdout(process::Stdio::piped()).stderr(process::Stdio::piped());
    command
}

async fn said(child: Child) -> (i32, String, String) {
    let Output { status, stdout, stderr } = within(child.wait_with_output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Reads until the other end closes the stream.
async fn received(stream: &mut UnixStream) -> String {
    let mut received = String::new();
    within(stream.read_to_string(&mut received)).await.unwrap();
    received
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(LIMIT, what).await.expect("not within the limit")
}

fn nodes(names: &[&str]) -> Selection {
    Selection::Nodes(names.iter().map(|name| name.parse().unwrap()).collect())
}

fn answer(node: &str, counted: bool, message: &str) -> Answer {
    Answer::new(node.parse().unwrap(), counted, message)
}
