//! Benchmarks of TFTP transfers, against other servers: same file, same client, same machine, in
//! turn.
//!
//! `./testbed/bench tftp` runs it. Every number is the median of all rounds. A run starts a server,
//! fetches, compares every byte, and ends the server; its time is that of the transfers alone, its
//! processor time that of server and clients. The client is hostler's own and requests all options;
//! tftpd-hpa and dnsmasq know no windowsize (RFC 7440) and answer without it, so that they have one
//! block in flight where hostler has sixteen.
//!
//! `RUNS=` sets the number of rounds (5), `CASES=` selects cases by the beginning of their names:
//! `one-` or `fifty-` (clients), block size, window.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on says why by stopping"
)]
#![allow(missing_docs, reason = "a benchmark is not an interface")]

#[path = "tftp/client.rs"]
mod client;
mod contest;
#[path = "tftp/servers.rs"]
mod servers;

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use contest::{Contender, contest};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", root, address] => servers::serve(Path::new(root), address.parse().unwrap()),
        ["run", server, file, clients, block, window] => {
            run(server, Path::new(file), clients.parse().unwrap(), block, window);
        }
        _ => cases(),
    }
}

fn cases() {
    let me = env::current_exe().unwrap();
    for (name, clients, mib) in [("one", 1, 64), ("fifty", 50, 4_u32)] {
        let dir = TempDir::new().unwrap();
        let file = noise(dir.path(), mib as usize * MIB);
        for block in [1468, 8192] {
            for window in [1, 16] {
                let contender = |name| Contender {
                    name,
                    command: format!(
                        "{} run {name} {} {clients} {block} {window}",
                        me.display(),
                        file.display()
                    ),
                };
                let contenders = servers::ALL.map(contender);
                let case = format!("{name}-{block}-{window}");
                let gib = f64::from(mib * clients) / 1024.0;
                contest(&case, gib, &contenders, || {}, |_| {});
            }
        }
    }
}

/// One contender's run: prints the duration of the transfers.
fn run(server: &str, file: &Path, clients: usize, block: &str, window: &str) {
    let (root, name) = (file.parent().unwrap(), file.file_name().unwrap().to_str().unwrap());
    let content = fs::read(file).unwrap();
    let server = servers::start(server, root);
    let fetch = |address: SocketAddr| client::compare(address, name, block, window, &content);
    // The first fetch brings the file and the server's code into memory.
    fetch(server.address);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| fetch(server.address));
        }
    });
    println!("took_s={:.6}", began.elapsed().as_secs_f64());
}

fn noise(dir: &Path, bytes: usize) -> PathBuf {
    let path = dir.join("file");
    let mut content = vec![0; bytes + 1];
    fastrand::Rng::with_seed(1).fill(&mut content);
    fs::write(&path, content).unwrap();
    // Servers that do not run as root read it.
    let permissions = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(dir, permissions).unwrap();
    path
}
