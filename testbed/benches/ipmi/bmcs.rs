//! Many simulated BMCs, each on its own port.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::ports;

pub(crate) const USER: &str = "admin";
/// The password of every BMC; `ipmi_sim` takes at most 16 bytes.
pub(crate) const PASSWORD: &str = "correct-horse";

/// BMCs of one Python process, so that they use every core.
const BMCS_IN_A_PROCESS: usize = 50;
const START_LIMIT: Duration = Duration::from_secs(60);

/// Running BMCs; dropping it ends them.
pub(crate) struct Bmcs {
    processes: Vec<Child>,
    pub(crate) ports: Vec<u16>,
}

impl Drop for Bmcs {
    fn drop(&mut self) {
        for process in &mut self.processes {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Bmcs {
    /// Starts pyghmi's BMCs, for cipher suites 3 and 17. Writes the password to a file in `dir`,
    /// for programs that read it from one.
    pub(crate) fn pyghmi(count: usize, dir: &Path) -> Self {
        fs::write(dir.join("password"), PASSWORD).unwrap();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let ports: Vec<u16> = (0..count).map(|_| ports::free().port()).collect();
        let mut processes = Vec::new();
        for ports in ports.chunks(BMCS_IN_A_PROCESS) {
            let mut process = Command::new(repository.join("target/testbed/venv/bin/python"))
                .arg(repository.join("testbed/benches/ipmi/bmcs.py"))
                .args([USER, PASSWORD])
                .args(ports.iter().map(u16::to_string))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n", "bmcs.py does not start");
            processes.push(process);
        }
        Self { processes, ports }
    }

    /// Starts one `ipmi_sim` for each BMC; it knows cipher suite 3 only.
    pub(crate) fn ipmi_sim(count: usize, dir: &Path) -> Self {
        let commands = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\n\
                        mc_enable 0x20\n";
        fs::write(dir.join("commands"), commands).unwrap();
        let ports: Vec<u16> = (0..count).map(|_| ports::free().port()).collect();
        let processes = ports.iter().map(|port| start_ipmi_sim(*port, dir)).collect();
        let bmcs = Self { processes, ports };
        bmcs.wait_for_the_ports();
        bmcs
    }

    /// Waits until every port is bound: before that, the kernel reports "refused".
    fn wait_for_the_ports(&self) {
        let limit = Instant::now() + START_LIMIT;
        for port in &self.ports {
            let ping = UdpSocket::bind("127.0.0.1:0").unwrap();
            ping.connect(("127.0.0.1", *port)).unwrap();
            ping.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            loop {
                assert!(Instant::now() < limit, "ipmi_sim did not bind its port");
                // An RMCP presence ping (ASF 2.0 §3.2.4.2).
                let sent = ping.send(&[6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x80, 0, 0, 0]);
                if sent.and_then(|_| ping.recv(&mut [0; 64])).is_ok() {
                    break;
                }
            }
        }
    }
}

fn start_ipmi_sim(port: u16, dir: &Path) -> Child {
    let config = dir.join(format!("{port}.conf"));
    let auths = ["callback", "user", "operator", "admin"]
        .map(|level| format!("allowed_auths_{level} none md2 md5 straight\n"))
        .concat();
    let text = format!(
        "name \"sim{port}\"\nset_working_mc 0x20\nstartlan 1\naddr 127.0.0.1 {port}\n\
         priv_limit admin\n{auths}\
         guid a123456789abcdefa123456789abcdef\nendlan\n\
         user 2 true \"{USER}\" \"{PASSWORD}\" admin 60 none md2 md5 straight\n"
    );
    fs::write(&config, text).unwrap();
    let state = dir.join(format!("{port}.state"));
    fs::create_dir(&state).unwrap();
    Command::new("ipmi_sim")
        .arg("-n")
        .arg("-c")
        .arg(config)
        .arg("-f")
        .arg(dir.join("commands"))
        .arg("-s")
        .arg(state)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
