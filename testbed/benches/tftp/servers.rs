//! The servers: hostler's in a separate process like the others, tftpd-hpa and dnsmasq.

use std::{
    env,
    io::Read as _,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hostler::netboot;

/// The servers, hostler first.
pub(crate) const ALL: [&str; 3] = ["hostler", "tftpd-hpa", "dnsmasq"];

/// The address of every server, one at a time: dnsmasq's port cannot be changed.
const ADDRESS: &str = "127.0.0.1:69";
const START_LIMIT: Duration = Duration::from_secs(10);

/// A server that runs until this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    process: Child,
}

pub(crate) fn start(name: &str, root: &Path) -> Server {
    let mut command = match name {
        "hostler" => {
            let mut command = Command::new(env::current_exe().unwrap());
            command.arg("serve").arg(root).arg(ADDRESS);
            command
        }
        "tftpd-hpa" => {
            let mut command = Command::new("in.tftpd");
            command.args(["--foreground", "--user", "root", "--address", ADDRESS, "--secure"]);
            command.arg(root);
            command
        }
        _ => {
            let mut command = Command::new("dnsmasq");
            command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]);
            command.args(["--port=0", "--user=root", "--interface=lo", "--bind-interfaces"]);
            command.args(["--enable-tftp", "--tftp-max=1000", "--log-facility=/dev/null"]);
            // dnsmasq's blocks are no larger than its DNS packets.
            command.arg("--edns-packet-max=16384");
            command.arg(format!("--tftp-root={}", root.display()));
            command
        }
    };
    let process = command.stdin(Stdio::piped()).spawn().unwrap();
    let server = Server { address: ADDRESS.parse().unwrap(), process };
    server.await_answer();
    server
}

impl Server {
    /// Waits until the server answers that a file does not exist.
    fn await_answer(&self) {
        let deadline = Instant::now() + START_LIMIT;
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        loop {
            socket.send_to(b"\0\x01none\0octet\0", self.address).unwrap();
            if socket.recv(&mut [0; 600]).is_ok() {
                return;
            }
            assert!(Instant::now() < deadline, "the server does not start");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // in.tftpd's usage includes its children's only if it ends in order.
        let pid = self.process.id().to_string();
        let ended = Command::new("kill").arg(pid).status();
        if ended.is_ok_and(|status| status.success()) {
            self.process.wait().unwrap();
        }
    }
}

/// hostler's server: serves a directory until its standard input ends.
pub(crate) fn serve(root: &Path, listen: SocketAddr) {
    let mut config = netboot::Config::new(listen);
    config.loaders = Some(root.to_owned());
    let (fetched, _nobody_asks) = tokio::sync::mpsc::channel(1);
    let server = netboot::Server::bind(config).unwrap();
    let running = server.start(netboot::BootTable::default(), fetched).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    running.stop();
}
