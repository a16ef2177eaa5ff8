//! The TFTP server against curl, tftp-hpa and busybox, and against a client that does what those
//! cannot: lose, repeat, attack.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_in_result,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests may fail like tests"
)]

pub(crate) mod alone;
mod boots;
mod crowds;
pub(crate) mod flood;
mod hostile;
mod losses;
mod machines;
mod narrow;
mod raw;
mod serving;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use hostler::{
    model::{
        boot::{BootMenu, Fetch},
        ids::{MacAddr, NodeName},
        netboot::BootFile,
        secret::Secret,
    },
    netboot::{BootTable, Config, Running, Server},
};
use tokio::sync::mpsc::{Receiver, channel, error::TryRecvError};

/// A server on a free loopback port, with files of its own.
struct BootServer {
    address: SocketAddr,
    table: BootTable,
    fetched: Receiver<Fetch>,
    loaders: PathBuf,
    running: Option<Running>,
    dir: tempfile::TempDir,
}

impl BootServer {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// `deploy/vmlinuz` (300,000 bytes) and `deploy/initramfs` (70,000) are fixed files; the loader
    /// directory has `pxelinux.0` (42,000).
    fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        Self::with_table(BootTable::default(), adjust)
    }

    /// Starts the server of [`Self::with`] with menus in this table.
    fn with_table(table: BootTable, adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let loaders = dir.path().join("loaders");
        fs::create_dir(&loaders).unwrap();
        fs::write(loaders.join("pxelinux.0"), noise(42_000)).unwrap();
        let mut config = Config::new("127.0.0.1:0".parse().unwrap());
        for (name, bytes) in [("vmlinuz", 300_000), ("initramfs", 70_000)] {
            fs::write(dir.path().join(name), noise(bytes)).unwrap();
            config.files.insert(format!("deploy/{name}"), dir.path().join(name));
        }
        fs::create_dir(dir.path().join("images")).unwrap();
        config.images = vec![dir.path().join("images")];
        config.loaders = Some(loaders.clone());
        adjust(&mut config);

        let (sender, fetched) = channel(1000);
        let server = Server::bind(config).unwrap();
        let address = server.local_addr();
        let running = Some(server.start(table.clone(), sender).unwrap());
        Self { address, table, fetched, loaders, running, dir }
    }

    /// A file in the loader directory.
    fn file(&self, name: &str, bytes: &[u8]) {
        fs::write(self.loaders.join(name), bytes).unwrap();
    }

    /// A file in the images directory.
    fn image(&self, name: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join("images").join(name), bytes).unwrap();
    }

    /// The menu of the first NIC under names that begin so.
    fn menu(&self, prefix: &str) -> String {
        let (_, menus) = self.table.show(mac(1), false).unwrap();
        let menu = menus.into_iter().find(|menu| menu.name.starts_with(prefix));
        menu.unwrap().text.expose().to_owned()
    }

    /// Waits for the next fetch reported.
    fn reported(&mut self) -> Fetch {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match self.fetched.try_recv() {
                Ok(fetch) => return fetch,
                Err(TryRecvError::Empty) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => panic!("no fetch is reported: {error}"),
            }
        }
    }
}

fn deploy(key: &str) -> BootMenu {
    BootMenu::Deploy {
        kernel: "deploy/vmlinuz".to_owned(),
        initramfs: "deploy/initramfs".to_owned(),
        command_line: Secret::new(format!("hostler.key={key}")),
        with_addresses: false,
    }
}

/// The machine's own kernel, as its spec names it.
fn own(kernel: &str) -> BootMenu {
    BootMenu::Network {
        kernel: BootFile::Path(kernel.to_owned()),
        ramdisk: BootFile::Path("initrd".to_owned()),
        command_line: "root=UUID=0a".to_owned(),
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr::new([0x52, 0x54, 0, 0, 0, last])
}

/// Bytes in which no two blocks are alike.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
