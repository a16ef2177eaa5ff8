//! The boot table: the menu of each network interface, and the part its files play in the boot.
//!
//! The agent writes it, and the servers read it for every request. A node's menus change all at
//! once: no client ever sees the old menu under one name and the new one under another. It never
//! touches a file or a socket.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use crate::model::{
    admin::ServedMenu,
    boot::{BootMenu, BootStage, Firmware},
    ids::{MacAddr, NodeName},
    netboot::BootFile,
    secret::Secret,
    spec::Loader,
};

use super::menu::{
    self, Abilities, BootLoader, BootOptions, MenuClient, MenuError, MenuName, OWN_DIR, menu_name,
    own_kernel, own_ramdisk,
};

/// Least time limit of a machine's fetch; its node may have a longer one.
pub(super) const FETCH_LIMIT: Duration = Duration::from_secs(30 * 60);

/// A node's settings for its boot.
#[derive(Clone, Copy, Debug)]
pub struct BootSettings {
    /// The firmware, for diagnostics: every boot loader's menu is served to any firmware.
    pub firmware: Firmware,
    /// The boot loader whose menu leads into an installation.
    pub loader: Loader,
    /// Time limit of the deploy ramdisk's start (`timeouts.ramdisk`), and of each fetch.
    pub ramdisk_limit: Duration,
}

/// The boot menus of all nodes, shared between the agent and the servers. A clone is the same
/// table.
///
/// By default there is no HTTP server, and iPXE uses TFTP.
#[derive(Clone, Default)]
pub struct BootTable(Arc<RwLock<Tables>>);

#[derive(Default)]
struct Tables {
    nodes: BTreeMap<NodeName, Node>,
    /// Each NIC's node: the last one that named it.
    nics: BTreeMap<MacAddr, NodeName>,
    /// The HTTP server's address, as machines reach it.
    http: Option<SocketAddr>,
}

/// A node's menu, rendered for each request, because few of ten thousand machines boot at once.
struct Node {
    settings: BootSettings,
    macs: Vec<MacAddr>,
    menu: BootMenu,
}

impl Node {
    fn options(&self, http: Option<SocketAddr>) -> BootOptions {
        BootOptions { loader: self.settings.loader, http }
    }

    fn menu_name(&self) -> &'static str {
        match self.menu {
            BootMenu::LocalDisk => "local disk",
            BootMenu::Deploy { .. } => "deploy",
            BootMenu::Network { .. } => "network",
        }
    }
}

/// The table's meaning of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A menu, with its node and the boot loader that reads it; `None` for a common menu.
    Menu(Option<(NodeName, Loader)>, Secret),
    /// The menu of a NIC without a node.
    Unclaimed(MacAddr),
    /// A node's own kernel or ramdisk.
    Own(NodeName, BootFile),
    /// A menu's or node's name without a NIC or node, which is never looked up among files.
    Nothing,
    /// A name that is not in the table.
    Other,
}

impl BootTable {
    /// Makes a table without nodes. iPXE fetches kernels and ramdisks from this address.
    pub fn with_http(address: SocketAddr) -> Self {
        let tables = Tables { http: Some(address), ..Tables::default() };
        Self(Arc::new(RwLock::new(tables)))
    }

    /// [`set_for`](Self::set_for) whichever boot loader asks, with the usual limit.
    pub fn set(
        &self,
        node: &NodeName,
        macs: &[MacAddr],
        firmware: Firmware,
        menu: &BootMenu,
    ) -> Result<(), MenuError> {
        let settings = BootSettings { firmware, loader: Loader::Auto, ramdisk_limit: FETCH_LIMIT };
        self.set_for(settings, node, macs, menu)
    }

    /// Sets the menus of all the node's NICs at once, and removes its earlier ones.
    ///
    /// A NIC of two nodes belongs to the last caller's. On an error nothing changes.
    pub fn set_for(
        &self,
        settings: BootSettings,
        node: &NodeName,
        macs: &[MacAddr],
        menu: &BootMenu,
    ) -> Result<(), MenuError> {
        menu::check(node, menu)?;
        let new = Node { settings, macs: macs.to_vec(), menu: menu.clone() };
        self.write(|tables| {
            tables.forget(node);
            for mac in macs {
                tables.nics.insert(*mac, node.clone());
            }
            tables.nodes.insert(node.clone(), new);
        });
        Ok(())
    }

    /// Removes the node's menus.
    pub fn remove(&self, node: &NodeName) {
        self.write(|tables| tables.forget(node));
    }

    /// Renders the current menus of a NIC, for diagnostics; they hold the attempt's key. `ipxe`:
    /// whether boot loaders can hand over to iPXE.
    pub fn show(&self, mac: MacAddr, ipxe: bool) -> Option<(NodeName, Vec<ServedMenu>)> {
        self.read(|tables| {
            let (name, node) = tables.owner(mac)?;
            let options = node.options(tables.http);
            Some((name.clone(), menu::render_all(name, mac, ipxe, options, &node.menu).ok()?))
        })
    }

    /// The nodes whose machines are to boot the deploy ramdisk.
    pub(super) fn awaited(&self) -> Vec<NodeName> {
        self.read(|tables| {
            let deploys = |node: &&Node| matches!(node.menu, BootMenu::Deploy { .. });
            let awaited = tables.nodes.iter().filter(|(_, node)| deploys(node));
            awaited.map(|(name, _)| name.clone()).collect()
        })
    }

    /// The limit of a fetch of the node's machine, and of the time after its menu.
    pub(super) fn limit(&self, node: &NodeName) -> Duration {
        let limit = |tables: &Tables| Some(tables.nodes.get(node)?.settings.ramdisk_limit);
        self.read(limit).unwrap_or_default().max(FETCH_LIMIT)
    }

    /// Looks up a clean name for an unknown client.
    pub(super) fn find(&self, name: &str) -> Named {
        self.find_for(name, Abilities::default)
    }

    /// Looks up a clean name. `abilities` are the client's, if it requests a NIC's menu and is not
    /// iPXE.
    pub(super) fn find_for(&self, name: &str, abilities: impl FnOnce() -> Abilities) -> Named {
        match menu_name(name) {
            MenuName::Common(reader) => Named::Menu(None, reader.common_menu()),
            MenuName::Nic(reader, mac) => {
                let is_ipxe = reader.loader() == Loader::Ipxe;
                let abilities = if is_ipxe { Abilities::default() } else { abilities() };
                self.nic_menu(reader, MenuClient { mac, abilities })
            }
            MenuName::Unknown => Named::Nothing,
            MenuName::None if name.starts_with(OWN_DIR) => self.find_own(name),
            MenuName::None => Named::Other,
        }
    }

    fn nic_menu(&self, reader: &dyn BootLoader, client: MenuClient) -> Named {
        self.read(|tables| {
            let menu = tables.owner(client.mac).and_then(|(name, node)| {
                let options = node.options(tables.http);
                // `set_for` has checked the menu.
                let text = menu::render(reader, name, client, options, &node.menu).ok()?;
                Some(Named::Menu(Some((name.clone(), reader.loader())), text))
            });
            menu.unwrap_or(Named::Unclaimed(client.mac))
        })
    }

    fn find_own(&self, name: &str) -> Named {
        let owner =
            name.strip_prefix(OWN_DIR).and_then(|rest| rest.split('/').next()?.parse().ok());
        let Some(node) = owner else { return Named::Nothing };
        self.read(|tables| match tables.nodes.get(&node).map(|node| &node.menu) {
            Some(BootMenu::Network { kernel, .. }) if name == own_kernel(&node) => {
                Named::Own(node.clone(), kernel.clone())
            }
            Some(BootMenu::Network { ramdisk, .. }) if name == own_ramdisk(&node) => {
                Named::Own(node.clone(), ramdisk.clone())
            }
            _ => Named::Nothing,
        })
    }

    /// The stage of a node's installation that fetches a file, if its menu names the file.
    pub(super) fn stage(&self, node: &NodeName, name: &str) -> Option<BootStage> {
        self.read(|tables| match &tables.nodes.get(node)?.menu {
            BootMenu::Deploy { kernel, .. } if kernel == name => Some(BootStage::Kernel),
            BootMenu::Deploy { initramfs, .. } if initramfs == name => Some(BootStage::Ramdisk),
            BootMenu::LocalDisk | BootMenu::Deploy { .. } | BootMenu::Network { .. } => None,
        })
    }

    /// Reads the tables, which are consistent between any two statements, so that a panic elsewhere
    /// does no harm.
    fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut Tables)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Tables {
    fn forget(&mut self, node: &NodeName) {
        let Some(old) = self.nodes.remove(node) else { return };
        for mac in &old.macs {
            // Another node may have this NIC by now.
            if self.nics.get(mac) == Some(node) {
                self.nics.remove(mac);
            }
        }
    }

    /// The node with this NIC.
    fn owner(&self, mac: MacAddr) -> Option<(&NodeName, &Node)> {
        self.nodes.get_key_value(self.nics.get(&mac)?)
    }
}

/// Shows the names of the nodes, never a menu.
impl fmt::Debug for BootTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read(|tables| {
            f.debug_map()
                .entries(tables.nodes.iter().map(|(name, node)| {
                    (name.as_str(), (node.settings.firmware, node.menu_name(), &node.macs))
                }))
                .finish()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([0x52, 0x54, 0, 0, 0, last])
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn deploy(kernel: &str) -> BootMenu {
        BootMenu::Deploy {
            kernel: kernel.to_owned(),
            initramfs: "deploy/initramfs".to_owned(),
            command_line: Secret::new("hostler.key=5ec2e7".to_owned()),
            with_addresses: false,
        }
    }

    fn text(table: &BootTable, name: &str) -> Option<String> {
        match table.find(name) {
            Named::Menu(_, text) => Some(text.expose().to_owned()),
            Named::Unclaimed(_) | Named::Own(..) | Named::Nothing | Named::Other => None,
        }
    }

    #[test]
    fn every_boot_loader_finds_a_nodes_menu_under_each_of_its_nics() {
        let table = BootTable::default();
        table.set(&node("a"), &[mac(1), mac(2)], Firmware::Uefi, &deploy("k")).unwrap();
        for name in [
            "pxelinux.cfg/01-52-54-00-00-00-01",
            "pxelinux.cfg/01-52-54-00-00-00-02",
            "grub.cfg-01-52:54:00:00:00:01",
            "grub/grub.cfg-01-52:54:00:00:00:02",
            "grub/grub.cfg-01-52-54-00-00-00-02",
            "ipxe/01-52-54-00-00-00-01.ipxe",
        ] {
            assert!(text(&table, name).unwrap().contains("hostler.key"), "{name}");
        }
        assert!(text(&table, "grub/grub.cfg").unwrap().contains("configfile"));
        assert_eq!(text(&table, "grub.cfg"), text(&table, "grub/grub.cfg"));
        assert!(text(&table, "boot.ipxe").unwrap().contains("chain"));
        assert_eq!(text(&table, "autoexec.ipxe"), text(&table, "boot.ipxe"));
    }

    /// Invariant (netboot): A boot loader finds its node's menu from any directory, and a fetch has
    /// its node's time.
    #[test]
    fn a_boot_loader_finds_its_menus_whatever_directory_it_lies_in() {
        let table = BootTable::default();
        table.set(&node("a"), &[mac(1)], Firmware::Uefi, &deploy("k")).unwrap();
        for directory in
            ["bios/", "EFI/BOOT/", "EFI/redhat/", "debian-installer/amd64/grub/", "a/b/c/"]
        {
            for name in [
                "pxelinux.cfg/01-52-54-00-00-00-01",
                "grub.cfg-01-52:54:00:00:00:01",
                "grub/grub.cfg-01-52-54-00-00-00-01",
                "ipxe/01-52-54-00-00-00-01.ipxe",
                "pxelinux.cfg/default",
                "grub.cfg",
                "grub/grub.cfg",
                "boot.ipxe",
                "autoexec.ipxe",
            ] {
                let there = text(&table, &format!("{directory}{name}"));
                assert!(there.is_some() && there == text(&table, name), "{directory}{name}");
            }
            for other in ["pxelinux.0", "grubx64.efi", "ipxe/ipxe.efi", "x86_64-efi/normal.mod"] {
                let name = format!("{directory}{other}");
                assert_eq!(table.find(&name), Named::Other, "{name}");
            }
        }
        assert_eq!(table.find("EFI/BOOT/grub.cfg-C0A80001"), Named::Nothing);
        assert_eq!(table.find("EFI/BOOT/grub.cfg-01-52-54-00-00-00-02"), Named::Unclaimed(mac(2)));
    }

    /// Invariant (netboot): A boot loader finds its node's menu from any directory, and a fetch has
    /// its node's time.
    #[test]
    fn a_fetch_may_take_as_long_as_its_nodes_ramdisk_and_never_less_than_usual() {
        let table = BootTable::default();
        for (name, hours, expected) in [("slow", 2, 2), ("quick", 0, 0)] {
            let ramdisk_limit = Duration::from_secs(hours * 3600);
            let settings =
                BootSettings { firmware: Firmware::Bios, loader: Loader::Auto, ramdisk_limit };
            table.set_for(settings, &node(name), &[mac(1)], &deploy("k")).unwrap();
            let expected = Duration::from_secs(expected * 3600).max(FETCH_LIMIT);
            assert_eq!(table.limit(&node(name)), expected);
        }
    }

    #[test]
    fn ipxe_is_sent_to_the_http_server_and_other_boot_loaders_without_the_key_if_the_node_is_ipxes()
    {
        let table = BootTable::with_http("192.0.2.1:8069".parse().unwrap());
        let settings = BootSettings {
            firmware: Firmware::Uefi,
            loader: Loader::Ipxe,
            ramdisk_limit: Duration::from_secs(1),
        };
        table.set_for(settings, &node("a"), &[mac(1)], &deploy("k")).unwrap();
        let script = text(&table, "ipxe/01-52-54-00-00-00-01.ipxe").unwrap();
        assert!(script.contains(" http://192.0.2.1:8069/k ") && script.contains("hostler.key"));
        for other in ["pxelinux.cfg/01-52-54-00-00-00-01", "grub.cfg-01-52-54-00-00-00-01"] {
            assert!(!text(&table, other).unwrap().contains("hostler.key"), "{other}");
        }
    }

    #[test]
    fn menu_names_without_an_owner_are_not_looked_for_among_files() {
        let table = BootTable::default();
        table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("k")).unwrap();
        for name in [
            "pxelinux.cfg/default/x",
            "pxelinux.cfg/C0A80001",
            "pxelinux.cfg/b8945908-d6a6-41a9-611d-74a6ab80b83d",
            "pxelinux.cfg/01-nonsense",
            "grub.cfg-C0A80001",
            "ipxe/01-52-54-00-00-00-01",
            "ipxe/52-54-00-00-00-01.ipxe",
            "ipxe/default.ipxe",
        ] {
            assert_eq!(table.find(name), Named::Nothing, "{name}");
        }
        for name in [
            "pxelinux.cfg/01-52-54-00-00-00-09",
            "grub/grub.cfg-01-52:54:00:00:00:09",
            "ipxe/01-52-54-00-00-00-09.ipxe",
        ] {
            assert_eq!(table.find(name), Named::Unclaimed(mac(9)), "{name}");
        }
        assert_eq!(table.find("pxelinux.0"), Named::Other);
    }

    #[test]
    fn an_unclaimed_machine_boots_its_own_disk() {
        let table = BootTable::default();
        table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("k")).unwrap();
        for name in ["pxelinux.cfg/default", "grub/grub.cfg"] {
            let text = text(&table, name).unwrap();
            assert!(text.contains("booting the local disk"), "{text}");
            assert!(!text.contains("hostler.key"), "{text}");
        }
    }

    #[test]
    fn a_switch_replaces_everything_and_a_removal_leaves_nothing() {
        let table = BootTable::default();
        let show = |last| table.show(mac(last), false);
        table.set(&node("a"), &[mac(1), mac(2)], Firmware::Bios, &deploy("k")).unwrap();
        assert_eq!(table.stage(&node("a"), "k"), Some(BootStage::Kernel));
        assert_eq!(table.stage(&node("a"), "deploy/initramfs"), Some(BootStage::Ramdisk));
        table.set(&node("a"), &[mac(1)], Firmware::Bios, &BootMenu::LocalDisk).unwrap();
        assert_eq!(table.stage(&node("a"), "k"), None);
        assert!(show(1).unwrap().1[0].text.expose().contains("LOCALBOOT"));
        assert_eq!(show(2), None);
        table.remove(&node("a"));
        assert_eq!(show(1), None);
        table.read(|tables| assert!(tables.nodes.is_empty() && tables.nics.is_empty()));
    }

    #[test]
    fn a_nic_that_moved_to_another_node_stays_there_when_the_first_goes() {
        let table = BootTable::default();
        let show = |last| table.show(mac(last), false);
        table.set(&node("a"), &[mac(1), mac(2)], Firmware::Bios, &deploy("a")).unwrap();
        table.set(&node("b"), &[mac(2)], Firmware::Bios, &deploy("b")).unwrap();
        table.remove(&node("a"));
        assert_eq!(show(1), None);
        assert_eq!(show(2).unwrap().0, node("b"));
        table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("a")).unwrap();
        table.set(&node("a"), &[mac(3)], Firmware::Bios, &deploy("a")).unwrap();
        assert_eq!(show(1), None);
        assert_eq!(show(2).unwrap().0, node("b"));
    }

    #[test]
    fn a_nodes_own_files_are_there_while_its_menu_names_them_and_are_no_evidence() {
        let table = BootTable::default();
        let show = |last| table.show(mac(last), false);
        let own = |name: &str| table.find(name);
        let menu = BootMenu::Network {
            kernel: BootFile::Path("vmlinuz".to_owned()),
            ramdisk: BootFile::Path("/srv/initrd".to_owned()),
            command_line: "root=/dev/sda2".to_owned(),
        };
        table.set(&node("a"), &[mac(1)], Firmware::Uefi, &menu).unwrap();
        table.set(&node("b"), &[mac(2)], Firmware::Uefi, &deploy("k")).unwrap();
        let file = |path: &str| Named::Own(node("a"), BootFile::Path(path.to_owned()));
        assert_eq!(own("node/a/kernel"), file("vmlinuz"));
        assert_eq!(own("node/a/ramdisk"), file("/srv/initrd"));
        for nothing in
            ["node/b/kernel", "node/c/kernel", "node/a", "node/a/", "node/a/x", "node/A/k"]
        {
            assert_eq!(own(nothing), Named::Nothing, "{nothing}");
        }
        assert_eq!(show(2).unwrap().0, node("b"));
        assert_eq!(show(3), None);
        for name in ["node/a/kernel", "vmlinuz", "k"] {
            assert_eq!(table.stage(&node("a"), name), None, "{name}");
        }
        table.set(&node("a"), &[mac(1)], Firmware::Uefi, &BootMenu::LocalDisk).unwrap();
        assert_eq!(own("node/a/kernel"), Named::Nothing);
    }

    #[test]
    fn a_nic_belongs_to_the_node_that_named_it_last() {
        let table = BootTable::default();
        let show = |last| table.show(mac(last), false);
        table.set(&node("old"), &[mac(1)], Firmware::Bios, &deploy("k")).unwrap();
        table.set(&node("new"), &[mac(1)], Firmware::Bios, &BootMenu::LocalDisk).unwrap();
        table.remove(&node("old"));
        assert_eq!(show(1).unwrap().0, node("new"));
    }

    #[test]
    fn a_refused_menu_changes_nothing() {
        let table = BootTable::default();
        let show = |last| table.show(mac(last), false);
        table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("k")).unwrap();
        let before = show(1);
        assert!(table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("k\nk")).is_err());
        assert_eq!(show(1), before);
    }

    #[test]
    fn debug_output_never_shows_a_menu() {
        let table = BootTable::default();
        table.set(&node("a"), &[mac(1)], Firmware::Bios, &deploy("k")).unwrap();
        let shown = format!("{table:?}");
        assert!(shown.contains('a') && !shown.contains("5ec2e7"), "{shown}");
    }
}
