//! Which fetch belongs to which node.
//!
//! A loader is asked for by an address nobody knows yet; the node's own menu then tells whose address it is. Called by the server when a
//! transfer begins and when it ends. Pure: time is an argument. It never guesses: a fetch that cannot be attributed is not reported.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::model::{
    boot::{BootStage, Fetch},
    ids::{MacAddr, NodeName},
};

/// Most addresses remembered. Anybody can make one up, so the one silent for longest is forgotten.
const ADDRESSES_MAX: usize = 1024;
/// Most loader files remembered for an address before it asks for a menu: pxelinux needs two, GRUB as `grub-mknetdir` installs it some
/// forty, of which the first is the one that matters.
const LOADERS_MAX: usize = 64;
/// Refusals of one boot file that are told of an address.
const REFUSALS_OF_ADDRESS_MAX: u32 = 10;
/// Refusals told in a minute, of all addresses: each is written down for every node that is waited for.
const REFUSALS_MAX: u32 = 30;
const REFUSALS_WINDOW: Duration = Duration::from_secs(60);
/// How long a network interface that no node has is not told again: a boot loader asks several times.
const UNKNOWN_MAC_PAUSE: Duration = Duration::from_secs(10);
/// How long before the menu a loader can have been fetched and still be of the same boot.
const LOADER_LIFE: Duration = Duration::from_secs(5 * 60);
/// The pxelinux that knows URLs, and how the names of what any pxelinux loads next end.
const LPXELINUX: &str = "lpxelinux.0";
const PXELINUX_MODULE: &str = ".c32";

/// What is known of the addresses that fetched something lately.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    addresses: BTreeMap<IpAddr, Address>,
    refusals: Budget,
    unknown_macs: Budget,
}

/// How much of what anybody can send is told in a minute.
#[derive(Debug, Default)]
struct Budget {
    /// Since when it is counted, and how much was told.
    told: Option<(Instant, u32)>,
}

impl Budget {
    /// Whether one more is to be told.
    fn admits(&mut self, now: Instant) -> bool {
        let (since, told) = self.told.get_or_insert((now, 0));
        if now.duration_since(*since) >= REFUSALS_WINDOW {
            (*since, *told) = (now, 0);
        }
        *told += 1;
        *told <= REFUSALS_MAX
    }
}

#[derive(Debug)]
struct Address {
    touched: Instant,
    /// Whose own menu it asked for last, and when.
    node: Option<(NodeName, Instant)>,
    /// Loaders fetched that no menu has explained yet, with the time of their request.
    loaders: Vec<(Instant, Ended)>,
    /// When it last asked for `lpxelinux.0`, and for no other boot loader's first file since.
    lpxelinux: Option<Instant>,
    /// The boot file it asked for last and was refused, and how often.
    refused: Option<(String, u32)>,
    /// The network interface that no node has and that asked for its menu from there, and when that was told.
    unknown_mac: Option<(MacAddr, Instant)>,
}

/// What a requested file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A node's own menu.
    Menu(NodeName),
    /// A file of the loader directory.
    Loader,
    /// The kernel or ramdisk that the menu of this address's node names.
    Deploy(NodeName, BootStage),
    /// Anything else: never reported.
    Nothing,
}

/// A transfer that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// The file's TFTP name.
    pub(super) path: String,
    /// Bytes sent, each counted once.
    pub(super) sent_bytes: u64,
    /// Whether the last of them was acknowledged.
    pub(super) complete: bool,
}

impl Evidence {
    /// Whose address it is, as far as a menu fetched lately tells. `life` is how long after its
    /// menu an address is still taken for the node: a large ramdisk waits for its kernel on a slow
    /// network.
    pub(super) fn node(
        &self,
        peer: IpAddr,
        now: Instant,
        life: impl Fn(&NodeName) -> Duration,
    ) -> Option<&NodeName> {
        let (node, since) = self.addresses.get(&peer)?.node.as_ref()?;
        (now.duration_since(*since) <= life(node)).then_some(node)
    }

    /// A node's own menu is asked for: from now on the address is that node's.
    pub(super) fn menu_asked(&mut self, peer: IpAddr, node: NodeName, now: Instant) {
        self.address(peer, now).node = Some((node, now));
    }

    /// A file of the loader directory is sent to this address.
    pub(super) fn loader_asked(&mut self, peer: IpAddr, path: &str, now: Instant) {
        let file = path.rsplit('/').next().unwrap_or(path);
        if file == LPXELINUX {
            self.address(peer, now).lpxelinux = Some(now);
        } else if !file.ends_with(PXELINUX_MODULE) {
            self.address(peer, now).lpxelinux = None;
        }
    }

    /// Whether it is pxelinux with HTTP that runs at this address.
    pub(super) fn runs_lpxelinux(&self, peer: IpAddr, now: Instant) -> bool {
        let since = self.addresses.get(&peer).and_then(|address| address.lpxelinux);
        since.is_some_and(|since| now.duration_since(since) <= LOADER_LIFE)
    }

    /// A file that should be among the loaders is not. If a machine could be at the beginning of its boot, this is the name that its
    /// firmware was given: how often it has asked for it. What anybody can send is told a few times only.
    pub(super) fn refused(&mut self, peer: IpAddr, path: &str, now: Instant) -> Option<u32> {
        let address = self.address(peer, now);
        // Who has a boot loader tries many files that need not be there.
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

    /// A network interface that no node has asks for its menu. Whether that is to be told: it may be the machine that is waited for, under
    /// another address than its spec says.
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

    /// A transfer asked for at `began` has ended: what can be said now, in the order it happened.
    pub(super) fn ended(
        &mut self,
        peer: IpAddr,
        asked: Asked,
        ended: Ended,
        began: Instant,
        now: Instant,
    ) -> Vec<Fetch> {
        match asked {
            Asked::Nothing => Vec::new(),
            Asked::Deploy(node, stage) => vec![fetch(node, stage, peer, ended)],
            Asked::Menu(node) => {
                let loaders = std::mem::take(&mut self.address(peer, now).loaders);
                let recent = |at: &Instant| now.duration_since(*at) <= LOADER_LIFE;
                loaders
                    .into_iter()
                    .filter(|(at, _)| recent(at))
                    .map(|(_, loader)| fetch(node.clone(), BootStage::Loader, peer, loader))
                    .chain([fetch(node.clone(), BootStage::Menu, peer, ended)])
                    .collect()
            }
            Asked::Loader => self.loader_ended(peer, ended, began, now),
        }
    }

    /// The last acknowledgement of a loader may be looked at only after the menu has been asked for.
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
                // Asking for the size first, then for the file, is one fetch.
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

    fn told(fetches: Vec<Fetch>) -> Vec<(String, BootStage, String)> {
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
            assert_eq!(evidence.ended(ip(1), Asked::Loader, ended(path), at(1), at(2)), []);
        }
        evidence.menu_asked(ip(1), node("a"), at(3));
        let fetches = evidence.ended(ip(1), Asked::Menu(node("a")), ended("menu"), at(3), at(4));
        let loader = |path: &str| ("a".to_owned(), BootStage::Loader, path.to_owned());
        let menu = ("a".to_owned(), BootStage::Menu, "menu".to_owned());
        assert_eq!(told(fetches), [loader("ldlinux.c32"), loader("pxelinux.0"), menu.clone()]);
        let again = evidence.ended(ip(1), Asked::Menu(node("a")), ended("menu"), at(5), at(6));
        assert_eq!(told(again), [menu]);
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
            evidence.loader_asked(ip(1), path, at(1));
            assert_eq!(evidence.runs_lpxelinux(ip(1), at(2)), known, "{path}");
            assert!(!evidence.runs_lpxelinux(ip(2), at(2)));
        }
        assert!(!evidence.runs_lpxelinux(ip(1), at(2 + 300)));
    }

    #[test]
    fn a_loader_is_not_forgotten_over_all_its_modules() {
        let (at, mut evidence) = (clock(), Evidence::default());
        for number in 0..50 {
            evidence.ended(ip(1), Asked::Loader, ended(&format!("{number}.mod")), at(1), at(2));
        }
        evidence.menu_asked(ip(1), node("a"), at(3));
        let fetches = evidence.ended(ip(1), Asked::Menu(node("a")), ended("menu"), at(3), at(4));
        assert_eq!((fetches.len(), fetches[0].path.as_str()), (51, "0.mod"));
    }

    #[test]
    fn a_loader_that_ends_after_its_menu_was_asked_for_is_not_lost() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.menu_asked(ip(1), node("a"), at(3));
        let fetches = evidence.ended(ip(1), Asked::Loader, ended("pxelinux.0"), at(2), at(4));
        assert_eq!(told(fetches), [("a".to_owned(), BootStage::Loader, "pxelinux.0".to_owned())]);
    }

    #[test]
    fn an_address_handed_to_another_machine_is_that_machines_from_its_menu_on() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.menu_asked(ip(1), node("a"), at(0));
        assert_eq!(evidence.ended(ip(1), Asked::Loader, ended("x"), at(60), at(61)), []);
        evidence.menu_asked(ip(1), node("b"), at(62));
        let fetches = evidence.ended(ip(1), Asked::Menu(node("b")), ended("m"), at(62), at(63));
        assert!(fetches.iter().all(|f| f.node == node("b")) && fetches.len() == 2, "{fetches:?}");
        assert_eq!(evidence.node(ip(1), at(64), |_| LIFE), Some(&node("b")));
    }

    #[test]
    fn two_nodes_booting_at_once_never_mix() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.ended(ip(1), Asked::Loader, ended("one"), at(0), at(1));
        evidence.ended(ip(2), Asked::Loader, ended("two"), at(0), at(1));
        evidence.menu_asked(ip(2), node("b"), at(2));
        evidence.menu_asked(ip(1), node("a"), at(2));
        for (peer, name, path) in [(1, "a", "one"), (2, "b", "two")] {
            let asked = Asked::Menu(node(name));
            let fetches = told(evidence.ended(ip(peer), asked, ended("m"), at(2), at(3)));
            assert_eq!(fetches[0], (name.to_owned(), BootStage::Loader, path.to_owned()));
        }
    }

    #[test]
    fn old_traces_are_not_taken_for_this_boot() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.ended(ip(1), Asked::Loader, ended("yesterday"), at(0), at(1));
        evidence.menu_asked(ip(1), node("a"), at(301));
        let fetches = evidence.ended(ip(1), Asked::Menu(node("a")), ended("m"), at(301), at(302));
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
        assert_eq!(evidence.refused(ip(1), "lpxelinux.0", at(1)), None, "it was told often enough");
        assert_eq!(evidence.refused(ip(1), "bootx64.efi", at(2)), Some(1));
        evidence.ended(ip(1), Asked::Loader, ended("pxelinux.0"), at(3), at(3));
        assert_eq!(evidence.refused(ip(1), "optional.c32", at(4)), None);
        evidence.menu_asked(ip(2), node("a"), at(4));
        assert_eq!(evidence.refused(ip(2), "grub/optional.lst", at(5)), None);
    }

    /// Invariant (netboot): A missing boot file that a machine asks for is named where its node's
    /// time is over.
    #[test]
    fn refusals_of_many_addresses_are_told_a_few_times_in_a_minute() {
        let (at, mut evidence) = (clock(), Evidence::default());
        for minute in 0..2 {
            let told = (0..500)
                .filter(|number| evidence.refused(ip(*number), "x", at(minute * 60)).is_some());
            assert_eq!(told.count(), REFUSALS_MAX as usize);
        }
    }

    /// Invariant (netboot): A network interface in no spec is named at the nodes that wait, a few
    /// times only.
    #[test]
    fn an_unknown_network_interface_is_told_once_for_each_boot_and_a_few_times_in_a_minute() {
        let (at, mut evidence) = (clock(), Evidence::default());
        let mac = |last| MacAddr::new([0x52, 0x54, 0, 0, 0, last]);
        assert!(evidence.unknown_mac(ip(1), mac(1), at(0)));
        assert!(!evidence.unknown_mac(ip(1), mac(1), at(1)), "GRUB asks for several names");
        assert!(evidence.unknown_mac(ip(2), mac(2), at(1)), "another machine");
        assert!(evidence.unknown_mac(ip(1), mac(1), at(90)), "the next boot");
        let told = (0..200).filter(|last| evidence.unknown_mac(ip(3), mac(*last), at(200)));
        assert_eq!(told.count(), REFUSALS_MAX as usize);
        assert_eq!(evidence.refused(ip(4), "x", at(200)), Some(1), "what is refused has its own");
    }

    #[test]
    fn strangers_cannot_fill_the_memory() {
        let (at, mut evidence) = (clock(), Evidence::default());
        evidence.menu_asked(ip(1), node("a"), at(1));
        for number in 2..1200 {
            for file in 0..2 * LOADERS_MAX {
                let path = ended(&file.to_string());
                evidence.ended(ip(number), Asked::Loader, path, at(1), at(number.into()));
            }
            let now = at(number.into());
            assert_eq!(
                evidence.node(ip(1), now, |_| LIFE),
                Some(&node("a")),
                "a busy address is kept"
            );
            evidence.menu_asked(ip(1), node("a"), now);
        }
        assert_eq!(evidence.addresses.len(), ADDRESSES_MAX);
        let strangers = evidence.addresses.values().filter(|a| a.node.is_none());
        assert!(strangers.map(|a| a.loaders.len()).eq([LOADERS_MAX; ADDRESSES_MAX - 1]));
        let known = |number| evidence.addresses.contains_key(&ip(number));
        assert!(!known(2) && known(1199), "the one silent for longest is forgotten");
    }
}
