//! Benchmarks of a deploy over a slow link, against a machine that fetches a compressed image by
//! itself: same image, same disk, same link, in turn.
//!
//! `./testbed/bench link` runs it in the machine's network namespace; `AGENT` names the agent's.
//! Every number is the median of all rounds: the time from the first connection until the disk is
//! written, flushed and, unless a name says otherwise, verified. After each contender's first round
//! the disk is compared with the image.
//!
//! `RUNS=` sets the number of rounds (5), `CASES=` selects cases by the beginning of their names,
//! `WHO=` contenders by their names,
//! `MIB=` sets the size of the image (4096), of which two fifths are data. `THIN=1` has a disk that
//! drops its blocks by itself. All files are in memory, in `TMPDIR`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on says why by stopping"
)]
#![allow(
    missing_docs,
    dead_code,
    reason = "a benchmark is not an interface, and shares the tests' helpers"
)]

mod contest;
mod images;
#[path = "link/machine.rs"]
mod machine;
#[path = "link/network.rs"]
mod network;
#[path = "../integration/ports.rs"]
mod ports;
#[path = "link/slow_disk.rs"]
mod slow_disk;
#[path = "../integration/iscsi/tgtd.rs"]
mod tgtd;
#[path = "link/tunnel.rs"]
mod tunnel;
mod writer;

use std::{cell::RefCell, env, fs, net::SocketAddr, path::PathBuf, process::Command};

use hostler::model::spec::Verify;
use tempfile::TempDir;

use contest::{Contender, contest};
use network::{AGENT_ADDRESS, MACHINE_ADDRESS, Moved, Server, in_agent};
use slow_disk::SlowDisk;
use tgtd::{IQN, Tgtd};

const MIB: u64 = 1 << 20;
/// The links' rates in Mbit/s.
const RATES_MBIT: [u64; 2] = [1000, 200];
/// The rate at which the slow disk reads: a SATA SSD's, in bytes per second.
const SLOW_BYTES: u64 = 500_000_000;
/// The limits of the deploy ramdisk's target, as tgtd parameters.
const TUNED: [(&str, &str); 4] = [
    ("MaxRecvDataSegmentLength", "262144"),
    ("FirstBurstLength", "262144"),
    ("MaxBurstLength", "1048576"),
    ("MaxOutstandingR2T", "8"),
];
const TUNNEL_IN_AGENT: &str = "127.0.0.1:3261";

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", verify, device, ..] => machine::write(verify_of(verify), device, &args[3..]),
        ["write-for-old-ramdisk", device, ..] => machine::write_for_old_ramdisk(device, &args[2..]),
        ["unpack", digests, device] => machine::unpack(digests, device),
        ["pack-to", listen, peer] => tunnel::serve(listen, peer, tunnel::pack),
        ["unpack-to", listen, peer] => tunnel::serve(listen, peer, tunnel::unpack),
        _ => run(),
    }
}

fn verify_of(word: &str) -> Verify {
    serde_json::from_str(&format!("\"{word}\"")).unwrap()
}

/// The files of every case.
struct Bench {
    dir: TempDir,
    image: PathBuf,
    gib: f64,
    data_bytes: u64,
    packed_bytes: u64,
    target: Tgtd,
    slow: SlowDisk,
    me: String,
}

fn run() {
    let bench = Bench::new();
    let _servers = bench.serve();
    for rate in RATES_MBIT {
        network::limit(rate);
        let case = format!("link-{rate}");
        for (what, bytes) in [("data", bench.data_bytes), ("packed", bench.packed_bytes)] {
            let seconds = network::wire_time(bytes, rate).as_secs_f64();
            println!("bench-wire {case} {what}={bytes} bytes, {seconds:.2}s");
        }
        let moved = RefCell::new(Moved::begin());
        let before = || {
            bench.target.fill_disk(0xaa);
            moved.replace(Moved::begin());
        };
        let after = |who: &str| {
            println!("bench-bytes {case} {who}: {}", moved.borrow());
            bench.compare(who);
        };
        contest(&case, bench.gib, &bench.contenders(), before, after);
    }
}

impl Bench {
    fn new() -> Self {
        let mib: u32 = env::var("MIB").map_or(4096, |mib| mib.parse().unwrap());
        let (gib, mib) = (f64::from(mib) / 1024.0, u64::from(mib));
        let dir = TempDir::new().unwrap();
        let data_bytes = mib * 2 / 5 * MIB;
        let image = images::system(dir.path(), mib * MIB, data_bytes);
        let packed = dir.path().join("system.raw.zst");
        let pack = ["-q", "-3", "-T0", "-o", packed.to_str().unwrap(), image.to_str().unwrap()];
        assert!(Command::new("zstd").args(pack).status().unwrap().success());
        let ranges = machine::digests(&image);
        let digests = serde_json::to_vec(&ranges).unwrap();
        fs::write(dir.path().join("digests.json"), digests).unwrap();
        let portal = SocketAddr::new(MACHINE_ADDRESS.parse().unwrap(), 3260);
        let target = Tgtd::serve_at(portal, IQN, mib * MIB);
        for (name, value) in TUNED {
            target.set(name, value);
        }
        if env::var("THIN").is_ok_and(|thin| thin == "1") {
            target.update_disk(1, "thin_provisioning=1");
        }
        let slow = SlowDisk::new(&target.disk_file(), SLOW_BYTES);
        let packed_bytes = fs::metadata(packed).unwrap().len();
        let me = env::current_exe().unwrap().display().to_string();
        Self { dir, image, gib, data_bytes, packed_bytes, target, slow, me }
    }

    /// Starts the web server with the compressed image, and the two ends of the tunnel.
    fn serve(&self) -> Vec<Server> {
        let (me, portal) = (&self.me, self.target.portal);
        let tunnel = format!("{MACHINE_ADDRESS}:3261");
        vec![
            Server::web(self.dir.path()),
            Server::start(&format!("{me} unpack-to {tunnel} {portal}")),
            Server::start(&in_agent(&format!("{me} pack-to {TUNNEL_IN_AGENT} {tunnel}"))),
        ]
    }

    /// The default of `image.verify` comes first.
    fn contenders(&self) -> Vec<Contender> {
        let disk = self.target.disk_file().display().to_string();
        let digests = self.dir.path().join("digests.json").display().to_string();
        let (me, slow) = (&self.me, &self.slow.device);
        let portal = self.target.portal.to_string();
        let write = |how: &str, portal: &str| {
            let image = self.image.display();
            in_agent(&format!("{me} {how} {image} {portal} {IQN}/1"))
        };
        let slowly = |command: String| self.slow.wrap(&command);
        let fetch = format!("curl -sf http://{AGENT_ADDRESS}/system.raw.zst | zstd -dc");
        let contender = |name, command| Contender { name, command };
        vec![
            contender("hostler", write(&format!("write node {disk}"), &portal)),
            contender("hostler-none", write(&format!("write none {disk}"), &portal)),
            contender("hostler-full", write(&format!("write full {disk}"), &portal)),
            contender("hostler-ssd", slowly(write(&format!("write node {slow}"), &portal))),
            contender(
                "hostler-ssd-old-ramdisk",
                slowly(write(&format!("write-for-old-ramdisk {slow}"), &portal)),
            ),
            contender(
                "hostler-tunnel-prototype",
                write(&format!("write node {disk}"), TUNNEL_IN_AGENT),
            ),
            contender("hostler-pull-prototype", format!("{fetch} | {me} unpack {digests} {disk}")),
            contender(
                "curl-zstd-dd",
                format!("{fetch} | dd of={disk} bs=1M iflag=fullblock conv=notrunc,fsync"),
            ),
        ]
    }

    /// Compares the disk with the image, byte by byte.
    fn compare(&self, who: &str) {
        let same = Command::new("cmp").args([&self.image, &self.target.disk_file()]).status();
        assert!(same.unwrap().success(), "{who} left another disk");
    }
}
