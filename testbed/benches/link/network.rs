//! The link between the agent's network namespace and the machine's, which is this process's.

use std::{
    env, fmt, fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

pub(crate) const MACHINE_ADDRESS: &str = "192.0.2.1";
pub(crate) const AGENT_ADDRESS: &str = "192.0.2.2";
/// The machine's network interface and the agent's.
const INTERFACES: [&str; 2] = ["machine", "agent"];
/// Bytes of a full Ethernet frame without its checksum, which is what the rate limit counts, and
/// the bytes of TCP's data in it.
const FRAME_BYTES: (u64, u64) = (1514, 1448);

/// A command that runs in the agent's namespace.
pub(crate) fn in_agent(command: &str) -> String {
    let agent = env::var("AGENT").expect("AGENT: run testbed/bench link");
    format!("ip netns exec {agent} {command}")
}

/// Limits both directions of the link.
pub(crate) fn limit(rate_mbit: u64) {
    let limit = |interface: &str| {
        format!(
            "tc qdisc replace dev {interface} root tbf rate {rate_mbit}mbit burst 256k latency 50ms"
        )
    };
    run(&limit(INTERFACES[0]));
    run(&in_agent(&limit(INTERFACES[1])));
}

/// The time that the link takes for so many bytes over TCP, without any pause.
pub(crate) fn wire_time(bytes: u64, rate_mbit: u64) -> Duration {
    let (frame, data) = FRAME_BYTES;
    let bits = bytes.div_ceil(data) * frame * 8;
    Duration::from_micros(bits / rate_mbit)
}

/// Bytes that the machine has received and sent since the count began.
pub(crate) struct Moved([u64; 2]);

impl Moved {
    pub(crate) fn begin() -> Self {
        Self(counts())
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, [received, sent]) = (self.0, counts());
        write!(formatter, "received={} sent={}", received - before[0], sent - before[1])
    }
}

fn counts() -> [u64; 2] {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("machine:")).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
    [numbers[0], numbers[8]]
}

/// A running program that others use; killed on drop.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(command: &str) -> Self {
        let mut words = command.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        Self(command.args(words).stdin(Stdio::null()).spawn().unwrap())
    }

    /// A web server in the agent's namespace that serves the directory's files.
    pub(crate) fn web(dir: &Path) -> Self {
        let shown = dir.display();
        let conf = dir.join("nginx.conf");
        let text = format!(
            "daemon off; master_process off; pid {shown}/nginx.pid; error_log stderr;\n\
             events {{}}\n\
             http {{ access_log off; sendfile on; client_body_temp_path {shown}/body;\n\
             server {{ listen {AGENT_ADDRESS}:80; root {shown}; }} }}\n"
        );
        fs::write(&conf, text).unwrap();
        Self::start(&in_agent(&format!("nginx -p {shown} -c {}", conf.display())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn run(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}
