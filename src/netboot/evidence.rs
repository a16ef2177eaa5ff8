//! Attributes fetches to nodes.
//!
//! A loader is fetched from an unknown address; the menu fetched next identifies the node. The
//! catalog calls this module at the beginning and the end of each transfer. Pure: time is an
//! argument. It never guesses: a fetch without a known node is not reported.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::menu::IPXE_PROGRAM;
use crate::model::{
    boot::{BootStage, Fetch},
    ids::{MacAddr, NodeName},
    spec::Loader,
};

/// Most remembered addresses. Addresses can be forged, so that the one silent for longest is
/// forgotten.
const ADDRESSES_MAX: usize = 1024;
/// Most remembered loader files of an address before its menu: pxelinux needs two, GRUB as
/// `grub-mknetdir` installs it some forty, of which the first one matters.
const LOADERS_MAX: usize = 64;
/// Most reported refusals of one boot file for an address.
const REFUSALS_OF_ADDRESS_MAX: u32 = 10;
/// Most reported refusals in a minute, of all addresses: each is recorded for every awaited node.
const REFUSALS_MAX: u32 = 30;
const REFUSALS_WINDOW: Duration = Duration::from_secs(60);
/// Pause between two reports of a network interface without a node: a boot loader makes several
/// requests.
const UNKNOWN_MAC_PAUSE: Duration = Duration::from_secs(10);
/// Longest time between a loader and a menu of the same boot.
const LOADER_LIFE: Duration = Duration::from_secs(5 * 60);
/// Time without another hand-over after an iPXE that did not start. The machine's next attempt
/// begins after it.
const IPXE_FAILED_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The pxelinux that knows URLs, and the endings of the files that any pxelinux loads next.
const LPXELINUX: &str = "lpxelinux.0";
const PXELINUX_MODULE: &str = ".c32";

/// The recent fetches, by address.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    addresses: BTreeMap<IpAddr, Address>,
    refusals: ReportBudget,
    unknown_macs: ReportBudget,
}

/// Limits the reports a minute of requests that anybody can send.
#[derive(Debug, Default)]
struct ReportBudget {
    /// The beginning of the current window, and the reports in it.
    reported: Option<(Instant, u32)>,
}

impl ReportBudget {
    /// Whether another report is allowed.
    fn admits(&mut self, now: Instant) -> bool {
        let (since, reported) = self.reported.get_or_insert((now, 0));
        if now.duration_since(*since) >= REFUSALS_WINDOW {
            (*since, *reported) = (now, 0);
        }
        *reported += 1;
        *reported <= REFUSALS_MAX
    }
}

#[derive(Debug)]
struct Address {
    touched: Instant,
    /// The node of the last requested menu, and the time.
    node: Option<(NodeName, Instant)>,
    /// The boot loader that requested the menu.
    reader: Loader,
    /// Time of the request for iPXE's program by a node's menu, unless iPXE has fetched the node's
    /// deploy kernel since.
    handed_over: Option<Instant>,
    /// Fetched loaders before their menu, with the time of the request.
    loaders: Vec<(Instant, Ended)>,
    /// The time of the last request for `lpxelinux.0`, unless it requested another boot loader's
    /// first file since.
    lpxelinux: Option<Instant>,
    /// The last refused boot file, and the number of refusals.
    refused: Option<(String, u32)>,
    /// The network interface without a node that requested its menu from this address, and the time
    /// of the report.
    unknown_mac: Option<(MacAddr, Instant)>,
}

/// The part of a requested file in a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FetchKind {
    /// A node's own menu.
    Menu(NodeName),
    /// A file of the loader directory.
    Loader,
    /// The kernel or ramdisk that the menu of this address's node names.
    Deploy(NodeName, BootStage),
    /// Another file, which is never reported.
    Other,
}

/// A transfer that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// The file's TFTP name.
    pub(super) path: String,
    /// Bytes sent, each counted once.
    pub(super) sent_bytes: u64,
    /// Whether the last byte was acknowledged.
    pub(super) complete: bool,
}

impl Evidence {
    /// The node with this address, by a recent menu. `life` is the time after its menu for which an
    /// address is still the node's: a large ramdisk follows its kernel late on a slow network.
    pub(super) fn node(
        &self,
        peer: IpAddr,
        now: Instant,
        life: impl Fn(&NodeName) -> Duration,
    ) -> Option<&NodeName> {
        let (node, since) = self.addresses.get(&peer)?.node.as_ref()?;
        (now.duration_since(*since) <= life(node)).then_some(node)
    }

    /// Records a request for a node's own menu: from now on the address is that node's.
    pub(super) fn menu_requested(
        &mut self,
        peer: IpAddr,
        node: NodeName,
        reader: Loader,
        now: Instant,
    ) {
        let address = self.address(peer, now);
        (address.node, address.reader) = (Some((node, now)), reader);
    }

    /// Records a request for a node's deploy kernel or ramdisk. One by iPXE proves that the
    /// hand-over works, even if iPXE has another address than the loader before it.
    pub(super) fn deploy_requested(&mut self, peer: IpAddr, node: &NodeName) {
        if !self.addresses.get(&peer).is_some_and(|address| address.reader == Loader::Ipxe) {
            return;
        }
        for address in self.addresses.values_mut() {
            if address.node.as_ref().is_some_and(|(its, _)| its == node) {
                address.handed_over = None;
            }
        }
    }

    /// Whether iPXE was sent to this address and did not fetch the deploy kernel.
    pub(super) fn ipxe_failed(&self, peer: IpAddr, now: Instant) -> bool {
        let since = self.addresses.get(&peer).and_then(|address| address.handed_over);
        since.is_some_and(|since| now.duration_since(since) <= IPXE_FAILED_LIFE)
    }

    /// Records a request for a file of the loader directory.
    pub(super) fn loader_requested(&mut self, peer: IpAddr, path: &str, now: Instant) {
        let file = path.rsplit('/').next().unwrap_or(path);
        let address = self.address(peer, now);
        if file == IPXE_PROGRAM && address.node.is_some() {
            address.handed_over = Some(now);
        }
        if file == LPXELINUX {
            address.lpxelinux = Some(now);
        } else if !file.ends_with(PXELINUX_MODULE) {
            address.lpxelinux = None;
        }
    }

    /// Whether this address runs the pxelinux with HTTP.
    pub(super) fn runs_lpxelinux(&self, peer: IpAddr, now: Instant) -> bool {
        let since = self.addresses.get(&peer).and_then(|address| address.lpxelinux);
        since.is_some_and(|since| now.duration_since(since) <= LOADER_LIFE)
    }

    /// Records a request for a missing boot file. If the machine may be at the beginning of its
    /// boot, its firmware was given this name: then the result is the number of requests. Only few
    /// are reported, because anybody can send requests.
    pub(super) fn refused(&mut self, peer: IpAddr, path: &str, now: Instant) -> Option<u32> {
        let address = self.address(peer, now);
        // A boot loader tries many optional files.
        if address.node.is_some() || !address.loaders.is_empty() {
            return None;
        }
        let times = match &mut address.refused {
            Some((before, times)) if before == path => {
                *times = times.saturating_add(1);
                *times
            }
            refused => {
                *refused = Some((path.to_owned(), 1));
                1
            }
        };
        (self.refusals.admits(now) && times <= REFUSALS_OF_ADDRESS_MAX).then_some(times)
    }

    /// Records a menu request of a network interface without a node. Returns whether to report it:
    /// it may be an awaited machine whose spec has another address.
    pub(super) fn unknown_mac(&mut self, peer: IpAddr, mac: MacAddr, now: Instant) -> bool {
        let last = &mut self.address(peer, now).unknown_mac;
        if last
            .is_some_and(|(before, at)| before == mac && now.duration_since(at) < UNKNOWN_MAC_PAUSE)
        {
            return false;
        }
        *last = Some((mac, now));
        self.unknown_macs.admits(now)
    }

    /// Records the end of a transfer that was requested at `began`, and returns the fetches that
    /// can be reported now, in their order.
    pub(super) fn ended(
        &mut self,
        peer: IpAddr,
        kind: FetchKind,
        ended: Ended,
        began: Instant,
        now: Instant,
    ) -> Vec<Fetch> {
        match kind {
            FetchKind::Other => Vec::new(),
            FetchKind::Deploy(node, stage) => vec![fetch(node, stage, peer, ended)],
            FetchKind::Menu(node) => {
                let loaders = std::mem::take(&mut self.address(peer, now).loaders);
                let recent = |at: &Instant| now.duration_since(*at) <= LOADER_LIFE;
                loaders
                    .into_iter()
                    .filter(|(at, _)| recent(at))
                    .map(|(_, loader)| fetch(node.clone(), BootStage::Loader, peer, loader))
                    .chain([fetch(node.clone(), BootStage::Menu, peer, ended)])
                    .collect()
            }
            FetchKind::Loader => self.loader_ended(peer, ended, began, now),
        }
    }

    /// Records the end of a loader's transfer, whose last acknowledgement may arrive after the
    /// menu's request.
    fn loader_ended(
        &mut self,
        peer: IpAddr,
        ended: Ended,
        began: Instant,
        now: Instant,
    ) -> Vec<Fetch> {
        let address = self.address(peer, now);
        match &address.node {
            Some((node, since)) if *since >= began => {
                vec![fetch(node.clone(), BootStage::Loader, peer, ended)]
            }
            Some(_) | None => {
                // A request for the size and one for the file count as one fetch.
                address.loaders.retain(|(_, earlier)| earlier.path != ended.path);
                if address.loaders.len() == LOADERS_MAX {
                    address.loaders.remove(0);
                }
                address.loaders.push((began, ended));
                Vec::new()
            }
        }
    }

    fn address(&mut self, peer: IpAddr, now: Instant) -> &mut Address {
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&peer) {
            let oldest = self.addresses.iter().min_by_key(|(_, a)| a.touched).map(|(ip, _)| *ip);
            oldest.and_then(|ip| self.addresses.remove(&ip));
        }
        let address = self.addresses.entry(peer).or_insert_with(|| Address {
            touched: now,
            node: None,
            reader: Loader::Auto,
            handed_over: None,
            loaders: Vec::new(),
            refused: None,
            unknown_mac: None,
            lpxelinux: None,
        });
        address.touched = now;
        address
    }
}

fn fetch(node: NodeName, stage: BootStage, peer: IpAddr, ended: Ended) -> Fetch {
    let Ended { path, sent_bytes, complete } = ended;
    Fetch { node, stage, path, peer, sent_bytes, complete, refused_times: 0, unknown_mac: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(1800);

    fn ip(last: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + last).into()
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn ended(path: &str) -> Ended {
        Ended { path: path.to_owned(), sent_bytes: 9, complete: true }
    }

    fn reported(fetches: Vec<Fetch>) -> Vec<(String, BootStage, String)> {
        fetches.into_iter().map(|f| (f.node.to_string(), f.stage, f.path)).collect()
    }

    /// Seconds after some moment.
    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |seconds| start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_loader_is_reported_once_the_menu_tells_whose_it_was() {
        let (at, mut evidence) = (clock(), Evidence::default());
        for path in ["pxelinux.0", "ldlinux.c32", "pxelinux.0"] {
            assert_eq!(evidence.ended(ip(1), FetchKind::Loader, ended(path), at(1), at(2)), []);
        }
        evidence.menu_requested(ip(1), node("a"), Loader::Grub, at(3));
        let fetches =
            evidence.ended(ip(1), FetchKind::Menu(node("a")), ended("menu"), at(3), at(4));
        let loader = |path: &str| ("a".to_owned(), BootStage::Loader, path.to_owned());
        let menu = ("a".to_owned(), BootStage::Menu, "menu".to_owned());
        assert_eq!(reported(fetches), [loader("ldlinux.c32"), loader("pxelinux.0"), menu.clone()]);
        let again = evidence.ended(ip(1), FetchKind::Menu(node("a")), ended("menu"), at(5), at(6));
        assert_eq!(reported(again), [menu]);
    }

    /// Invariant (netboot): A boot loader that can do HTTP fetches by HTTP, or by TFTP where that
    /// fails.
    #[test]
    fn lpxelinux_is_known_by_its_name_until_another_loader_is_asked_for() {
        let (at, mut evidence) = (clock(), Evidence::default());
        for (path, known) in [
            ("pxelinux.0", false),
            ("bios/lpxelinux.0", true),
            ("bios/ldlinux.c32", true),
            ("pxelinux.0", false),
            ("lpxelinux.0", true),
            ("grubx64.efi", false),
            ("lpxelinux.0", true),
        ] {
            evidence.loader_requested(ip(1), path, at(1));
            assert_eq!(evidence.runs_lpxelinux(ip(1), at(2)), known, "{path}");
            assert!(!evidence.runs_lpxelinux(ip(2), at(2)));
        }
        assert!(!evidence.runs_lpxelinux(ip(1), at(2 + 300)));
    }

    /// Invariant (netboot): A machine on which iPXE did not come up is installed without it.
    #[test]
    fn ipxe_is_taken_for_failed_until_it_fetches_the_kernel_from_whichever_address() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.loader_requested(ip(1), "ipxe.lkrn", at(0));
        assert!(!evidence.ipxe_failed(ip(1), at(0)), "the firmware itself asks for it");
        evidence.menu_requested(ip(1), node("a"), Loader::Pxelinux, at(1));
        assert!(!evidence.ipxe_failed(ip(1), at(1)));
        evidence.loader_requested(ip(1), "bios/ipxe.lkrn", at(2));
        // pxelinux fetches iPXE's script for it.
        evidence.menu_requested(ip(1), node("a"), Loader::Ipxe, at(2));
        assert!(evidence.ipxe_failed(ip(1), at(3)) && !evidence.ipxe_failed(ip(2), at(3)));

        evidence.menu_requested(ip(1), node("a"), Loader::Pxelinux, at(1300));
        evidence.deploy_requested(ip(1), &node("a"));
        assert!(evidence.ipxe_failed(ip(1), at(1301)), "pxelinux fetched the kernel itself");
        evidence.menu_requested(ip(2), node("b"), Loader::Ipxe, at(1302));
        evidence.deploy_requested(ip(2), &node("b"));
        assert!(evidence.ipxe_failed(ip(1), at(1303)), "that was another machine");
        evidence.menu_requested(ip(3), node("a"), Loader::Ipxe, at(1304));
        evidence.deploy_requested(ip(3), &node("a"));
        assert!(!evidence.ipxe_failed(ip(1), at(1305)));

        evidence.loader_requested(ip(1), "ipxe.lkrn", at(2000));
        assert!(evidence.ipxe_failed(ip(1), at(2000 + 24 * 3600)));
        assert!(!evidence.ipxe_failed(ip(1), at(2001 + 24 * 3600)), "it is tried again");
    }

    #[test]
    fn a_loader_is_not_forgotten_over_all_its_modules() {
        let (at, mut evidence) = (clock(), Evidence::default());
        for number in 0..50 {
            evidence.ended(ip(1), FetchKind::Loader, ended(&format!("{number}.mod")), at(1), at(2));
        }
        evidence.menu_requested(ip(1), node("a"), Loader::Grub, at(3));
        let fetches =
            evidence.ended(ip(1), FetchKind::Menu(node("a")), ended("menu"), at(3), at(4));
        assert_eq!((fetches.len(), fetches[0].path.as_str()), (51, "0.mod"));
    }

    #[test]
    fn a_loader_that_ends_after_its_menu_was_asked_for_is_not_lost() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.menu_requested(ip(1), node("a"), Loader::Grub, at(3));
        let fetches = evidence.ended(ip(1), FetchKind::Loader, ended("pxelinux.0"), at(2), at(4));
        assert_eq!(
            reported(fetches),
            [("a".to_owned(), BootStage::Loader, "pxelinux.0".to_owned())]
        );
    }

    #[test]
    fn an_address_handed_to_another_machine_is_that_machines_from_its_menu_on() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.menu_requested(ip(1), node("a"), Loader::Grub, at(0));
        assert_eq!(evidence.ended(ip(1), FetchKind::Loader, ended("x"), at(60), at(61)), []);
        evidence.menu_requested(ip(1), node("b"), Loader::Grub, at(62));
        let fetches = evidence.ended(ip(1), FetchKind::Menu(node("b")), ended("m"), at(62), at(63));
        assert!(fetches.iter().all(|f| f.node == node("b")) && fetches.len() == 2, "{fetches:?}");
        assert_eq!(evidence.node(ip(1), at(64), |_| LIFE), Some(&node("b")));
    }

    #[test]
    fn two_nodes_booting_at_once_never_mix() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.ended(ip(1), FetchKind::Loader, ended("one"), at(0), at(1));
        evidence.ended(ip(2), FetchKind::Loader, ended("two"), at(0), at(1));
        evidence.menu_requested(ip(2), node("b"), Loader::Grub, at(2));
        evidence.menu_requested(ip(1), node("a"), Loader::Grub, at(2));
        for (peer, name, path) in [(1, "a", "one"), (2, "b", "two")] {
            let kind = FetchKind::Menu(node(name));
            let fetches = reported(evidence.ended(ip(peer), kind, ended("m"), at(2), at(3)));
            assert_eq!(fetches[0], (name.to_owned(), BootStage::Loader, path.to_owned()));
        }
    }

    #[test]
    fn old_traces_are_not_taken_for_this_boot() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.ended(ip(1), FetchKind::Loader, ended("yesterday"), at(0), at(1));
        evidence.menu_requested(ip(1), node("a"), Loader::Grub, at(301));
        let fetches =
            evidence.ended(ip(1), FetchKind::Menu(node("a")), ended("m"), at(301), at(302));
        assert_eq!(fetches.len(), 1);
        assert_eq!(evidence.node(ip(1), at(301 + 1800), |_| LIFE), Some(&node("a")));
        assert_eq!(evidence.node(ip(1), at(301 + 1801), |_| LIFE), None);
    }

    #[test]
    fn a_boot_file_that_is_refused_is_counted_until_the_machine_has_a_loader() {
        let (at, mut evidence) = (clock(), Evidence::default());
        for times in 1..=REFUSALS_OF_ADDRESS_MAX {
            assert_eq!(evidence.refused(ip(1), "lpxelinux.0", at(1)), Some(times));
        }
        assert_eq!(
            evidence.refused(ip(1), "lpxelinux.0", at(1)),
            None,
            "it was reported often enough"
        );
        assert_eq!(evidence.refused(ip(1), "bootx64.efi", at(2)), Some(1));
        evidence.ended(ip(1), FetchKind::Loader, ended("pxelinux.0"), at(3), at(3));
        assert_eq!(evidence.refused(ip(1), "optional.c32", at(4)), None);
        evidence.menu_requested(ip(2), node("a"), Loader::Grub, at(4));
        assert_eq!(evidence.refused(ip(2), "grub/optional.lst", at(5)), None);
    }

    /// Invariant (netboot): A missing boot file that a machine asks for is named where its node's
    /// time is over.
    #[test]
    fn refusals_of_many_addresses_are_reported_a_few_times_in_a_minute() {
        let (at, mut evidence) = (clock(), Evidence::default());
        for minute in 0..2 {
            let reported = (0..500)
                .filter(|number| evidence.refused(ip(*number), "x", at(minute * 60)).is_some());
            assert_eq!(reported.count(), REFUSALS_MAX as usize);
        }
    }

    /// Invariant (netboot): A network interface in no spec is named at the nodes that wait, a few
    /// times only.
    #[test]
    fn an_unknown_network_interface_is_reported_once_for_each_boot_and_a_few_times_in_a_minute() {
        let (at, mut evidence) = (clock(), Evidence::default());
        let mac = |last| MacAddr::new([0x52, 0x54, 0, 0, 0, last]);
        assert!(evidence.unknown_mac(ip(1), mac(1), at(0)));
        assert!(!evidence.unknown_mac(ip(1), mac(1), at(1)), "GRUB asks for several names");
        assert!(evidence.unknown_mac(ip(2), mac(2), at(1)), "another machine");
        assert!(evidence.unknown_mac(ip(1), mac(1), at(90)), "the next boot");
        let reported = (0..200).filter(|last| evidence.unknown_mac(ip(3), mac(*last), at(200)));
        assert_eq!(reported.count(), REFUSALS_MAX as usize);
        assert_eq!(evidence.refused(ip(4), "x", at(200)), Some(1), "refusals have their own");
    }

    #[test]
    fn strangers_cannot_fill_the_memory() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.menu_requested(ip(1), node("a"), Loader::Grub, at(1));
        for number in 2..1200 {
            for file in 0..2 * LOADERS_MAX {
                let path = ended(&file.to_string());
                evidence.ended(ip(number), FetchKind::Loader, path, at(1), at(number.into()));
            }
            let now = at(number.into());
            assert_eq!(
                evidence.node(ip(1), now, |_| LIFE),
                Some(&node("a")),
                "a busy address is kept"
            );
            evidence.menu_requested(ip(1), node("a"), Loader::Grub, now);
        }
        assert_eq!(evidence.addresses.len(), ADDRESSES_MAX);
        let strangers = evidence.addresses.values().filter(|a| a.node.is_none());
        assert!(strangers.map(|a| a.loaders.len()).eq([LOADERS_MAX; ADDRESSES_MAX - 1]));
        let known = |number| evidence.addresses.contains_key(&ip(number));
        assert!(!known(2) && known(1199), "the one silent for longest is forgotten");
    }
}
