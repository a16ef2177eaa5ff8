//! The boot file catalog: the file behind a name for a machine, and the evidence of its fetch.
//!
//! The TFTP and the HTTP server share it: a machine that fetches its menu over one and its kernel
//! over the other is still one machine. It must never serve a name that is not in the table, among
//! the fixed files or in the loader directory.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt,
    fs::File,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc::Sender;

use crate::model::{
    boot::{BootStage, Fetch},
    ids::{Digest, MacAddr, NodeName},
    netboot::BootFile,
};

use super::{
    evidence::{Ended, Evidence, FetchKind},
    files::{self, Opened},
    menu::Abilities,
    refusal::Refusal,
    table::{BootTable, Named},
};

/// Most nodes that get a report of a missing boot file: with more, the report would not help.
const AWAITED_MAX: usize = 32;

/// All boot files, and the evidence of their fetches.
#[derive(Debug)]
pub struct BootFileCatalog {
    loaders: Option<PathBuf>,
    files: BTreeMap<String, PathBuf>,
    images: Vec<PathBuf>,
    cached: Option<Cached>,
    table: BootTable,
    evidence: Mutex<Evidence>,
    fetched: Sender<Fetch>,
}

/// A file to send.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) file: Opened,
    pub(super) kind: FetchKind,
    /// The file's name in the catalog.
    pub(super) name: String,
    /// The time limit of the transfer, if the file is a node's.
    pub(super) limit: Option<Duration>,
}

/// Opens the file with a digest in the cache for a node's machine, if it is there and complete.
/// Takes a while, because the file is read first.
#[derive(Clone)]
pub struct Cached(Arc<OpenCached>);

type OpenCached = dyn Fn(&NodeName, &Digest) -> io::Result<File> + Send + Sync;

impl Cached {
    /// Makes a function that opens files by `open`.
    pub fn new(
        open: impl Fn(&NodeName, &Digest) -> io::Result<File> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(open))
    }
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").finish_non_exhaustive()
    }
}

impl BootFileCatalog {
    pub(super) fn new(
        loaders: Option<PathBuf>,
        files: BTreeMap<String, PathBuf>,
        images: Vec<PathBuf>,
        cached: Option<Cached>,
        table: BootTable,
        fetched: Sender<Fetch>,
    ) -> Self {
        Self { loaders, files, images, cached, table, evidence: Mutex::default(), fetched }
    }

    /// Whether the opening of this file takes longer than a server's loop may wait.
    pub(super) fn takes_a_while(&self, name: &OsStr) -> bool {
        let named = text_of(name).map(|text| self.table.find(text));
        matches!(named, Some(Named::Own(_, BootFile::Cached(_))))
    }

    /// Opens the file with a clean name for the machine at this address.
    pub(super) fn open(&self, name: &OsStr, peer: IpAddr, now: Instant) -> Result<Served, Refusal> {
        // A name that is no text can only be a loader's, and precedes its reading as text.
        if let (None, Some(root)) = (name.to_str(), &self.loaders) {
            match files::open_beneath(root, name) {
                Ok(file) => {
                    let name = name.to_string_lossy().into_owned();
                    return Ok(Served { file, kind: FetchKind::Loader, name, limit: None });
                }
                Err(Refusal::NotFound) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        let Some(text) = text_of(name) else {
            self.report_refused(peer, &name.to_string_lossy(), now);
            return Err(Refusal::NotFound);
        };
        let (file, kind, node) = self.open_text(text, peer, now)?;
        let limit = node.map(|node| self.table.limit(&node));
        Ok(Served { file, kind, name: text.to_owned(), limit })
    }

    /// Opens the file with a name; returns its part in the machine's boot, and its node.
    fn open_text(
        &self,
        name: &str,
        peer: IpAddr,
        now: Instant,
    ) -> Result<(Opened, FetchKind, Option<NodeName>), Refusal> {
        match self.table.find_for(name, || self.abilities(peer, now)) {
            Named::Menu(Some((node, reader)), text) => {
                self.evidence().menu_requested(peer, node.clone(), reader, now);
                Ok((files::in_memory(text.expose())?, FetchKind::Menu(node.clone()), Some(node)))
            }
            Named::Menu(None, text) => {
                Ok((files::in_memory(text.expose())?, FetchKind::Other, None))
            }
            Named::Unclaimed(mac) => {
                tracing::info!(%peer, %mac, "an unclaimed machine asks for a boot menu");
                if self.evidence().unknown_mac(peer, mac, now) {
                    self.report_to_awaited(peer, name, BootStage::Menu, 1, Some(mac));
                }
                Err(Refusal::NotFound)
            }
            // The boot of an installed machine is no evidence of an installation.
            Named::Own(node, file) => {
                Ok((self.open_own(&node, &file)?, FetchKind::Other, Some(node)))
            }
            Named::Nothing => Err(Refusal::NotFound),
            Named::Other => {
                let life = |node: &NodeName| self.table.limit(node);
                let node = self.evidence().node(peer, now, life).cloned();
                let deploy = node.and_then(|node| {
                    let stage = self.table.stage(&node, name)?;
                    Some((node, stage))
                });
                let fixed = self.files.get(name);
                let file = match (fixed, &self.loaders) {
                    (Some(path), _) => files::open_fixed(path)?,
                    (None, Some(root)) => {
                        files::open_beneath(root, name.as_ref()).inspect_err(|refusal| {
                            if matches!(refusal, Refusal::NotFound | Refusal::NotAllowed) {
                                self.report_refused(peer, name, now);
                            }
                        })?
                    }
                    (None, None) => {
                        self.report_refused(peer, name, now);
                        return Err(Refusal::NotFound);
                    }
                };
                Ok(match deploy {
                    Some((node, stage)) => {
                        self.evidence().deploy_requested(peer, &node);
                        (file, FetchKind::Deploy(node.clone(), stage), Some(node))
                    }
                    None if fixed.is_some() => (file, FetchKind::Other, None),
                    None => {
                        self.evidence().loader_requested(peer, name, now);
                        (file, FetchKind::Loader, None)
                    }
                })
            }
        }
    }

    /// How the machine at this address may fetch a kernel: by iPXE, or by its own loader.
    fn abilities(&self, peer: IpAddr, now: Instant) -> Abilities {
        let (lpxelinux, ipxe_failed) = {
            let evidence = self.evidence();
            (evidence.runs_lpxelinux(peer, now), evidence.ipxe_failed(peer, now))
        };
        let ipxe = !ipxe_failed && self.loaders.as_deref().is_some_and(files::has_ipxe);
        if ipxe_failed {
            tracing::info!(
                %peer,
                "iPXE was started there and did not fetch the deploy kernel; this time another \
                 boot loader fetches it"
            );
        }
        Abilities { lpxelinux, ipxe }
    }

    fn open_own(&self, node: &NodeName, file: &BootFile) -> Result<Opened, Refusal> {
        let opened = match (file, &self.cached) {
            (BootFile::Path(path), _) => files::open_own(&self.images, path),
            (BootFile::Cached(digest), Some(Cached(open))) => {
                open(node, digest).and_then(files::regular)
            }
            (BootFile::Cached(_), None) => Err(io::ErrorKind::NotFound.into()),
        };
        opened.map_err(|error| {
            tracing::warn!(%node, ?file, %error, "a machine's own boot file cannot be opened");
            match error.kind() {
                io::ErrorKind::NotFound => Refusal::NotFound,
                _ if files::exhausted(&error) => Refusal::Busy,
                // A decayed file counts as missing.
                _ if matches!(file, BootFile::Cached(_)) => Refusal::NotFound,
                _ => Refusal::NotAllowed,
            }
        })
    }

    fn report_refused(&self, peer: IpAddr, name: &str, now: Instant) {
        let Some(times) = self.evidence().refused(peer, name, now) else { return };
        tracing::info!(
            %peer,
            name,
            times,
            "a machine asks for a boot file that is not among the loaders"
        );
        self.report_to_awaited(peer, name, BootStage::Loader, times, None);
    }

    /// Reports to every awaited node, because the machine's node is unknown until its request for a
    /// menu.
    fn report_to_awaited(
        &self,
        peer: IpAddr,
        path: &str,
        stage: BootStage,
        refused_times: u32,
        unknown_mac: Option<MacAddr>,
    ) {
        for node in self.table.awaited().into_iter().take(AWAITED_MAX) {
            let path = path.to_owned();
            let (sent_bytes, complete) = (0, false);
            self.report(Fetch {
                node,
                stage,
                path,
                peer,
                sent_bytes,
                complete,
                refused_times,
                unknown_mac,
            });
        }
    }

    fn report(&self, fetch: Fetch) {
        if let Err(error) = self.fetched.try_send(fetch) {
            tracing::debug!(%error, "a fetch is not reported");
        }
    }

    /// Records the end of a transfer that was requested at `began`.
    pub(super) fn ended(&self, peer: IpAddr, kind: FetchKind, ended: Ended, began: Instant) {
        let fetches = self.evidence().ended(peer, kind, ended, began, Instant::now());
        for fetch in fetches {
            self.report(fetch);
        }
    }

    /// No panic can occur between two changes of the locked data.
    fn evidence(&self) -> MutexGuard<'_, Evidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name as text, without the end mark of DHCP's options (RFC 2132 §3.2), which old network
/// interfaces append to a boot file's name.
fn text_of(name: &OsStr) -> Option<&str> {
    let mut bytes = name.as_encoded_bytes();
    while let Some(rest) = bytes.strip_suffix(b"\xff") {
        bytes = rest;
    }
    str::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::mpsc::channel;

    use super::*;
    use crate::model::{
        boot::{BootMenu, Firmware},
        secret::Secret,
    };

    /// Invariant (netboot): A machine on which iPXE did not come up is installed without it.
    #[test]
    fn a_machine_that_was_handed_to_ipxe_and_comes_again_is_not_handed_over_again() {
        let (root, now) = (tempfile::tempdir().unwrap(), Instant::now());
        let table = BootTable::with_http("192.0.2.1:8069".parse().unwrap());
        let menu = BootMenu::Deploy {
            kernel: "k".to_owned(),
            initramfs: "i".to_owned(),
            command_line: Secret::new("hostler.key=5ec2e7".to_owned()),
            with_addresses: false,
        };
        let macs = ["52:54:00:00:00:01".parse().unwrap()];
        table.set(&"a".parse().unwrap(), &macs, Firmware::Bios, &menu).unwrap();
        let files = BTreeMap::from([("k".to_owned(), root.path().join("ipxe.lkrn"))]);
        let loaders = Some(root.path().to_owned());
        let catalog = BootFileCatalog::new(loaders, files, Vec::new(), None, table, channel(1).0);
        let open = |name: &str| {
            let served = catalog.open(name.as_ref(), [192, 0, 2, 11].into(), now).unwrap();
            fs::read_to_string(served.file.path()).unwrap()
        };
        let (pxelinux, ipxe) =
            ("pxelinux.cfg/01-52-54-00-00-00-01", "ipxe/01-52-54-00-00-00-01.ipxe");
        let hands_over = || {
            let menu = open(pxelinux);
            assert!(menu.contains("hostler.key=5ec2e7"), "its own way stays: {menu}");
            menu.contains("ipxe")
        };

        assert!(!hands_over(), "there is no iPXE");
        fs::write(root.path().join("ipxe.lkrn"), "iPXE").unwrap();
        assert!(hands_over() && hands_over());
        open("ipxe.lkrn");
        open(ipxe);
        assert!(!hands_over());
        open("k");
        assert!(!hands_over(), "pxelinux came for the kernel");
        open(ipxe);
        open("k");
        assert!(hands_over(), "iPXE came for the kernel");
    }

    #[test]
    fn a_transfer_ends_whether_or_not_anybody_reads_what_was_fetched() {
        let (sender, mut fetched) = channel(1);
        let catalog = BootFileCatalog::new(
            None,
            BTreeMap::new(),
            Vec::new(),
            None,
            BootTable::default(),
            sender,
        );
        for path in ["first", "second"] {
            let ended = Ended { path: path.to_owned(), sent_bytes: 1, complete: true };
            let (peer, menu) = ([127, 0, 0, 1].into(), FetchKind::Menu("a".parse().unwrap()));
            catalog.ended(peer, menu, ended, Instant::now());
        }
        assert_eq!(fetched.try_recv().unwrap().path, "first");
        fetched.try_recv().unwrap_err();
    }
}
