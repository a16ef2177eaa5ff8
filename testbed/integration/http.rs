//! The HTTP server of the netboot subsystem against curl and busybox's wget, and against clients
//! that misbehave.

#![expect(clippy::unwrap_in_result, reason = "helpers of tests may fail like tests")]

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use hostler::{
    boot_call::BootCalls,
    model::{
        boot::{BootMenu, BootStage, Fetch, Firmware},
        ids::{MacAddr, NodeName},
        secret::Secret,
    },
    netboot::{BootTable, Config, Running, Server, http},
};
use tokio::{
    runtime::Runtime,
    sync::{mpsc::Receiver, oneshot},
};

/// Time limit of each wait, on a machine that runs many tests at once.
const LIMIT: Duration = Duration::from_secs(20);
const KERNEL_BYTES: usize = 300_000;
/// Bytes of a sparse file, more than all buffers between two sockets.
const LARGE_BYTES: u64 = 1 << 30;

/// Both servers on free loopback ports, with files of their own.
struct BootServer {
    tftp: SocketAddr,
    http: SocketAddr,
    table: BootTable,
    fetched: Receiver<Fetch>,
    dir: tempfile::TempDir,
    shut_down: Option<oneshot::Sender<()>>,
    _running: Running,
    runtime: Runtime,
}

impl BootServer {
    fn new() -> Self {
        Self::with(http::HttpLimits::default())
    }

    /// `deploy/vmlinuz` and `deploy/initramfs` are fixed files; the loader directory has `ipxe.efi`
    /// and a directory.
    fn with(limits: http::HttpLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("loaders/sub")).unwrap();
        fs::write(dir.path().join("loaders/ipxe.efi"), noise(42_000)).unwrap();
        let mut config = Config::new("127.0.0.1:0".parse().unwrap());
        for name in ["vmlinuz", "initramfs"] {
            fs::write(dir.path().join(name), noise(KERNEL_BYTES)).unwrap();
            config.files.insert(format!("deploy/{name}"), dir.path().join(name));
        }
        config.loaders = Some(dir.path().join("loaders"));
        config.images = vec![dir.path().to_owned()];

        let table = BootTable::default();
        let (sender, fetched) = tokio::sync::mpsc::channel(1000);
        let server = Server::bind(config).unwrap();
        let tftp = server.local_addr();
        let running = server.start(table.clone(), sender).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let bind = http::Server::bind("127.0.0.1:0".parse().unwrap(), limits);
        let server = runtime.block_on(bind).unwrap();
        let http = server.local_addr().unwrap();
        let (shut_down, ended) = oneshot::channel();
        let (calls, _nobody) = BootCalls::channel(1);
        runtime.spawn(server.serve(running.catalog(), calls, async { drop(ended.await) }));
        let shut_down = Some(shut_down);
        Self { tftp, http, table, fetched, dir, shut_down, _running: running, runtime }
    }

    /// Sets the length of `deploy/initramfs`.
    fn set_ramdisk_bytes(&self, bytes: u64) {
        let ramdisk = File::options().write(true).open(self.dir.path().join("initramfs"));
        ramdisk.unwrap().set_len(bytes).unwrap();
    }

    /// Opens a connection and sends a request.
    fn ask(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.http).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn curl(&self, path: &str, options: &[&str]) -> Result<Vec<u8>, String> {
        let url = format!("http://{}/{path}", self.http);
        let output = Command::new("curl")
            .args(["-sSf", "--path-as-is", "--max-time", "20"])
            .args(options)
            .arg(url)
            .output()
            .unwrap();
        let failure = || String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(output.stdout.clone()) } else { Err(failure()) }
    }

    /// Runs curl; returns the status code.
    fn status(&self, path: &str, options: &[&str]) -> String {
        let url = format!("http://{}{path}", self.http);
        let output = Command::new("curl")
            .args(["-s", "--path-as-is", "--max-time", "20", "-o", "/dev/null"])
            .args(["-w", "%{http_code}"])
            .args(options)
            .arg(url)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits for the next reported fetch.
    fn reported(&mut self) -> Fetch {
        let next = async { tokio::time::timeout(LIMIT, self.fetched.recv()).await };
        self.runtime.block_on(next).expect("no fetch is reported").unwrap()
    }

    fn deploy(&self) {
        let menu = BootMenu::Deploy {
            kernel: "deploy/vmlinuz".to_owned(),
            initramfs: "deploy/initramfs".to_owned(),
            command_line: Secret::new("hostler.key=5ec2e7".to_owned()),
            with_addresses: false,
        };
        self.table.set(&node(), &[mac()], Firmware::Uefi, &menu).unwrap();
    }
}

fn node() -> NodeName {
    "a".parse().unwrap()
}

fn mac() -> MacAddr {
    MacAddr::new([0x52, 0x54, 0, 0, 0, 1])
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..length).map(|_| random.u8(..)).collect()
}

const SCRIPT: &str = "ipxe/01-52-54-00-00-00-01.ipxe";

/// Invariant (netboot): HTTP serves the files that TFTP serves, and nothing else.
#[test]
fn what_tftp_serves_is_served_under_the_same_names_and_nothing_else_is() {
    let boot_server = BootServer::new();
    boot_server.deploy();
    let files = ["deploy/vmlinuz", "deploy/initramfs", "ipxe.efi"];
    let texts = ["boot.ipxe", SCRIPT, "pxelinux.cfg/01-52-54-00-00-00-01", "grub/grub.cfg"];
    for name in files.into_iter().chain(texts) {
        let url = format!("tftp://{}/{name}", boot_server.tftp);
        let tftp = Command::new("curl").args(["-sSf", "--max-time", "20", &url]).output().unwrap();
        assert!(tftp.status.success() && !tftp.stdout.is_empty(), "{name}: {tftp:?}");
        for name in [name.to_owned(), format!("/{name}"), format!("tftpboot/{name}")] {
            assert!(boot_server.curl(&name, &[]).as_ref() == Ok(&tftp.stdout), "{name}");
        }
    }
    for (path, status) in [
        ("/", "404"),
        ("/deploy", "404"),
        ("/deploy/", "404"),
        ("/sub", "403"),
        ("/node/a/kernel", "404"),
        ("/ipxe/01-52-54-00-00-00-02.ipxe", "404"),
        ("/deploy/vmlinuz?x=1", "404"),
        ("/%64eploy/vmlinuz", "404"),
        ("/../vmlinuz", "403"),
        ("/sub/../../vmlinuz", "403"),
        ("/vmlinuz", "404"),
    ] {
        assert_eq!(boot_server.status(path, &[]), status, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
        assert_eq!(boot_server.status("/deploy/vmlinuz", &["-X", method]), "405", "{method}");
    }
}

#[test]
fn sizes_are_told_and_one_connection_serves_one_file_after_another() {
    let mut boot_server = BootServer::new();
    boot_server.deploy();
    fs::write(boot_server.dir.path().join("loaders/empty"), "").unwrap();
    let head = String::from_utf8(boot_server.curl("deploy/vmlinuz", &["--head"]).unwrap()).unwrap();
    assert!(head.contains(&format!("Content-Length: {KERNEL_BYTES}\r\n")), "{head}");
    let urls = [SCRIPT, "empty", "deploy/vmlinuz", "boot.ipxe"]
        .map(|name| format!("http://{}/{name}", boot_server.http));
    let fetched = Command::new("curl")
        .args([
            "-sSf",
            "--max-time",
            "20",
            "-o",
            "/dev/null",
            "-w",
            "%{num_connects} %{size_download}\n",
        ])
        .args(urls.join(" -o /dev/null ").split(' '))
        .output()
        .unwrap();
    let lines = String::from_utf8(fetched.stdout).unwrap();
    let connects: Vec<&str> = lines.lines().map(|line| &line[..1]).collect();
    assert_eq!(connects, ["1", "0", "0", "0"], "{lines}");
    assert!(lines.contains("0 300000\n") && lines.contains("0 0\n"), "{lines}");

    let output = boot_server.dir.path().join("wget");
    let url = format!("http://{}/deploy/initramfs", boot_server.http);
    let wget = Command::new("busybox").args(["wget", "-q", "-O"]).arg(&output).arg(url).status();
    assert!(wget.unwrap().success() && fs::read(output).unwrap() == noise(KERNEL_BYTES));

    let stages: Vec<BootStage> = (0..3).map(|_| boot_server.reported().stage).collect();
    assert_eq!(stages, [BootStage::Menu, BootStage::Kernel, BootStage::Ramdisk]);
}

#[test]
fn a_machine_with_its_script_from_tftp_and_its_kernel_from_http_is_one_machine() {
    let mut boot_server = BootServer::new();
    boot_server.deploy();
    let url = format!("tftp://{}/{SCRIPT}", boot_server.tftp);
    let script = Command::new("curl").args(["-sSf", "--max-time", "20", &url]).output().unwrap();
    assert!(script.status.success());
    assert_eq!(boot_server.reported().stage, BootStage::Menu);
    for (name, stage) in
        [("deploy/vmlinuz", BootStage::Kernel), ("deploy/initramfs", BootStage::Ramdisk)]
    {
        boot_server.curl(name, &[]).unwrap();
        let fetch = Fetch {
            refused_times: 0,
            unknown_mac: None,
            node: node(),
            stage,
            path: name.to_owned(),
            peer: IpAddr::from([127, 0, 0, 1]),
            sent_bytes: KERNEL_BYTES as u64,
            complete: true,
        };
        assert_eq!(boot_server.reported(), fetch);
    }
}

#[test]
fn a_part_of_a_file_is_answered_as_a_part_and_told_by_how_far_it_went() {
    let mut boot_server = BootServer::new();
    boot_server.deploy();
    boot_server.curl(SCRIPT, &[]).unwrap();
    assert_eq!(boot_server.reported().stage, BootStage::Menu);
    let kernel = noise(KERNEL_BYTES);
    for (range, bytes) in
        [("299000-", 299_000..KERNEL_BYTES), ("7-9", 7..10), ("-1", 299_999..300_000)]
    {
        let expected = kernel.get(bytes.clone()).unwrap();
        let got = boot_server.curl("deploy/vmlinuz", &["--range", range]).unwrap();
        assert!(got == expected, "{range}");
        assert_eq!(boot_server.reported().sent_bytes, bytes.end as u64, "{range}");
        assert_eq!(boot_server.status("/deploy/vmlinuz", &["--range", range]), "206", "{range}");
        boot_server.reported();
    }
    assert_eq!(boot_server.status("/deploy/vmlinuz", &["--range", "300000-"]), "416");
    assert!(boot_server.curl("deploy/vmlinuz", &["--range", "1-2,5-6"]).as_ref() == Ok(&kernel));
}

#[test]
fn a_client_that_takes_nothing_is_cut_holds_no_memory_and_keeps_nobody_waiting() {
    let idle = Duration::from_secs(1);
    let mut boot_server =
        BootServer::with(http::HttpLimits { idle, ..http::HttpLimits::default() });
    boot_server.deploy();
    boot_server.set_ramdisk_bytes(LARGE_BYTES);
    boot_server.curl(SCRIPT, &[]).unwrap();
    assert_eq!(boot_server.reported().stage, BootStage::Menu);
    let began = Instant::now();
    let mut silent = boot_server.ask("GET /deploy/initramfs HTTP/1.1\r\n\r\n");
    assert!(boot_server.curl("deploy/vmlinuz", &[]) == Ok(noise(KERNEL_BYTES)));
    assert!(began.elapsed() < LIMIT);
    assert_eq!(boot_server.reported().stage, BootStage::Kernel);

    let cut = boot_server.reported();
    assert_eq!((cut.stage, cut.complete), (BootStage::Ramdisk, false));
    // At most the system's buffers between two sockets, and one piece.
    assert!(cut.sent_bytes < 32 << 20, "{cut:?}");
    assert!(began.elapsed() > idle && began.elapsed() < LIMIT, "{:?}", began.elapsed());
    let mut taken = 0;
    let mut buffer = vec![0; 1 << 20];
    while let Ok(read @ 1..) = silent.read(&mut buffer) {
        taken += read as u64;
    }
    assert!(taken < LARGE_BYTES, "{taken}");
}

#[test]
fn a_client_that_asks_slowly_or_for_nothing_is_cut() {
    let head = Duration::from_millis(500);
    let boot_server = BootServer::with(http::HttpLimits { head, ..http::HttpLimits::default() });
    for said in ["", "GET /ipxe.efi HT", "GET /ipxe.efi HTTP/1.1\r\nX: "] {
        let mut stream = boot_server.ask(said);
        let began = Instant::now();
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest));
        assert!(began.elapsed() < LIMIT, "{said:?} was not cut");
    }
    assert!(boot_server.curl("ipxe.efi", &[]).is_ok());
}

#[test]
fn an_old_connection_is_cut_however_lively_it_is() {
    let total = Duration::from_millis(700);
    let boot_server = BootServer::with(http::HttpLimits { total, ..http::HttpLimits::default() });
    boot_server.set_ramdisk_bytes(LARGE_BYTES);
    let url = format!("http://{}/deploy/initramfs", boot_server.http);
    let began = Instant::now();
    let curl = Command::new("curl")
        .args(["-sS", "--limit-rate", "1M", "--max-time", "20", "-o", "/dev/null", &url])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&curl.stderr).into_owned();
    assert!(said.contains("transfer closed") || said.contains("reset"), "{said}");
    assert!(began.elapsed() < LIMIT);
}

/// Invariant (netboot): A boot loader finds its node's menu from any directory, and a fetch has its
/// node's time.
#[test]
fn a_machine_may_take_as_long_for_its_ramdisk_as_its_node_says() {
    const TIMED_OUT: i32 = 28;
    let total = Duration::from_millis(700);
    let boot_server = BootServer::with(http::HttpLimits { total, ..http::HttpLimits::default() });
    boot_server.deploy();
    boot_server.set_ramdisk_bytes(LARGE_BYTES);
    boot_server.curl(SCRIPT, &[]).unwrap();
    let url = format!("http://{}/deploy/initramfs", boot_server.http);
    let curl = Command::new("curl")
        .args(["-sS", "--limit-rate", "10M", "--max-time", "5", "-o", "/dev/null", &url])
        .status()
        .unwrap();
    assert_eq!(curl.code(), Some(TIMED_OUT), "it was cut");
}

#[test]
fn connections_are_bounded_and_their_places_come_back() {
    let limits = http::HttpLimits { connections_per_peer_max: 3, ..http::HttpLimits::default() };
    let boot_server = BootServer::with(limits);
    boot_server.set_ramdisk_bytes(LARGE_BYTES);
    let served = |stream: &mut TcpStream| stream.read(&mut [0; 12]).is_ok_and(|read| read > 0);
    let mut held: Vec<TcpStream> =
        (0..3).map(|_| boot_server.ask("GET /deploy/initramfs HTTP/1.1\r\n\r\n")).collect();
    assert!(held.iter_mut().all(served));
    let mut refused = TcpStream::connect(boot_server.http).unwrap();
    drop(refused.write_all(b"GET /ipxe.efi HTTP/1.1\r\n\r\n"));
    assert!(!served(&mut refused));
    held.clear();
    let deadline = Instant::now() + LIMIT;
    while boot_server.curl("ipxe.efi", &[]).is_err() {
        assert!(Instant::now() < deadline, "no place comes back");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Opens a connection from another loopback address.
fn connect_from(boot_server: &BootServer, from: [u8; 4]) -> tokio::net::TcpStream {
    boot_server.runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(boot_server.http).await.unwrap()
    })
}

/// Invariant (fair): Silence at the HTTP boot port keeps no machine out.
#[test]
fn silence_keeps_no_machine_out_and_ends_no_download() {
    let boot_server = BootServer::new();
    boot_server.set_ramdisk_bytes(LARGE_BYTES);
    let mut download = boot_server.ask("GET /deploy/initramfs HTTP/1.1\r\n\r\n");
    download.read_exact(&mut [0; 100]).unwrap();
    let mut crowd = Vec::new();
    for number in 0..400_u16 {
        let [high, low] = number.to_be_bytes();
        crowd.push(connect_from(&boot_server, [127, 1, high, low]));
        if number % 100 == 99 {
            assert!(boot_server.curl("ipxe.efi", &[]) == Ok(noise(42_000)), "after {number}");
        }
    }
    // As many from the machine's own address.
    crowd.extend((0..100).map(|_| connect_from(&boot_server, [127, 0, 0, 1])));
    assert!(boot_server.curl("ipxe.efi", &[]) == Ok(noise(42_000)));
    download.read_exact(&mut vec![0; 32 << 20]).unwrap();
}

/// Invariant (fair): A client that takes nothing of its file keeps no machine out.
#[test]
fn clients_that_take_nothing_of_their_files_keep_no_machine_out() {
    let idle = Duration::from_mins(10);
    let limits = http::HttpLimits { connections_max: 8, idle, ..http::HttpLimits::default() };
    let boot_server = BootServer::with(limits);
    boot_server.set_ramdisk_bytes(LARGE_BYTES);
    let mut crowd = Vec::new();
    for number in 1..=8 {
        let mut greedy = connect_from(&boot_server, [127, 2, 0, number]).into_std().unwrap();
        greedy.set_nonblocking(false).unwrap();
        greedy.write_all(b"GET /deploy/initramfs HTTP/1.1\r\n\r\n").unwrap();
        greedy.read_exact(&mut [0; 100]).unwrap();
        crowd.push(greedy);
    }
    let began = Instant::now();
    while boot_server.curl("ipxe.efi", &[]) != Ok(noise(42_000)) {
        assert!(began.elapsed() < LIMIT, "all places are held");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_file_that_shrinks_under_its_reader_is_no_whole_file() {
    let mut boot_server = BootServer::new();
    boot_server.deploy();
    boot_server.set_ramdisk_bytes(LARGE_BYTES);
    boot_server.curl(SCRIPT, &[]).unwrap();
    assert_eq!(boot_server.reported().stage, BootStage::Menu);
    let mut stream = boot_server.ask("GET /deploy/initramfs HTTP/1.1\r\n\r\n");
    stream.read_exact(&mut [0; 100]).unwrap();
    boot_server.set_ramdisk_bytes(1000);
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest));
    assert!((rest.len() as u64) < LARGE_BYTES);
    assert!(!boot_server.reported().complete);
}

#[test]
fn nonsense_stops_nobody() {
    let boot_server = BootServer::new();
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..50 {
        let length = random.usize(..40_000);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        if random.bool() {
            bytes.splice(..0, *b"GET /ipxe.efi HTTP/1.1\r\n");
        }
        let mut stream = TcpStream::connect(boot_server.http).unwrap();
        drop(stream.write_all(&bytes));
    }
    assert!(boot_server.curl("ipxe.efi", &[]) == Ok(noise(42_000)));
}

#[test]
fn the_end_of_the_agent_cuts_what_is_open() {
    let mut boot_server = BootServer::new();
    boot_server.set_ramdisk_bytes(LARGE_BYTES);
    let mut stream = boot_server.ask("GET /deploy/initramfs HTTP/1.1\r\n\r\n");
    stream.read_exact(&mut [0; 100]).unwrap();
    boot_server.shut_down.take().unwrap().send(()).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut taken = 0;
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        taken += read as u64;
    }
    assert!(taken < LARGE_BYTES, "{taken}");
    let deadline = Instant::now() + LIMIT;
    while TcpStream::connect(boot_server.http).is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
        thread::sleep(Duration::from_millis(20));
    }
}
