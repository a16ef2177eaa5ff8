//! The menus in each boot loader's language.

use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::model::netboot::BootFile;

fn mac() -> MacAddr {
    "52:54:00:00:00:0a".parse().unwrap()
}

fn node() -> NodeName {
    "edge-07".parse().unwrap()
}

/// The menus of every boot loader.
#[derive(Clone, Debug, PartialEq)]
struct Menus {
    pxelinux: Secret,
    lpxelinux: Secret,
    grub: Secret,
    ipxe: Secret,
}

fn render(mac: MacAddr, menu: &BootMenu) -> Result<Menus, MenuError> {
    render_for(Loader::Auto, mac, menu)
}

fn render_for(loader: Loader, mac: MacAddr, menu: &BootMenu) -> Result<Menus, MenuError> {
    let http = Some(SocketAddr::from(([192, 0, 2, 1], 8069)));
    render_with(BootOptions { loader, http }, mac, menu)
}

fn render_with(options: BootOptions, mac: MacAddr, menu: &BootMenu) -> Result<Menus, MenuError> {
    render_beside(false, options, mac, menu)
}

/// With iPXE's program among the loaders, or without.
fn render_beside(
    ipxe: bool,
    options: BootOptions,
    mac: MacAddr,
    menu: &BootMenu,
) -> Result<Menus, MenuError> {
    let render = |reader: &dyn BootLoader, lpxelinux| {
        let client = MenuClient { mac, abilities: Abilities { lpxelinux, ipxe } };
        super::render(reader, &node(), client, options, menu)
    };
    Ok(Menus {
        pxelinux: render(&pxelinux::Pxelinux, false)?,
        lpxelinux: render(&pxelinux::Pxelinux, true)?,
        grub: render(&grub::Grub, false)?,
        ipxe: render(&ipxe::Ipxe, false)?,
    })
}

#[test]
fn every_value_of_boot_loader_has_one_boot_loader_whose_menus_it_finds() {
    for (name, loader) in Loader::ALL {
        let found = BOOT_LOADERS.iter().filter(|it| it.loader() == loader);
        assert_eq!(found.count(), usize::from(loader != Loader::Auto), "{name}");
    }
    for reader in BOOT_LOADERS {
        let MenuName::Nic(found, nic) = menu_name(&reader.nic_menu_name(mac())) else {
            panic!("{reader:?} does not find its own menu");
        };
        assert_eq!((found.loader(), nic), (reader.loader(), mac()));
    }
}

fn deploy(command_line: &str) -> BootMenu {
    BootMenu::Deploy {
        kernel: "deploy/vmlinuz".to_owned(),
        initramfs: "deploy/initramfs".to_owned(),
        command_line: Secret::new(command_line.to_owned()),
        with_addresses: false,
    }
}

#[test]
fn the_deploy_menu_names_kernel_ramdisk_command_line_and_nic() {
    let menu = deploy("hostler.api=192.0.2.1:8443 hostler.key=00ff console=ttyS1,115200n8");
    let menus = render(mac(), &menu).unwrap();
    expect![[r"
        SERIAL 0 115200
        SAY hostler: booting the deploy ramdisk
        DEFAULT linux
        PROMPT 0
        NOESCAPE 1
        TIMEOUT 100
        LABEL linux
          KERNEL ::deploy/vmlinuz
          INITRD ::deploy/initramfs
          APPEND hostler.api=192.0.2.1:8443 hostler.key=00ff console=ttyS1,115200n8
          IPAPPEND 2
    "]]
    .assert_eq(menus.pxelinux.expose());
    expect![[r#"
        echo "hostler: booting the deploy ramdisk"
        for try in 1 2 3 4 5 6 7 8 9 10; do
          for from in '(http,192.0.2.1:8069)' '(tftp)'; do
            if linux $from/deploy/vmlinuz 'hostler.api=192.0.2.1:8443' 'hostler.key=00ff' 'console=ttyS1,115200n8' BOOTIF=01-52-54-00-00-00-0a; then
              for try in 1 2 3 4 5 6 7 8 9 10; do
                for from in '(http,192.0.2.1:8069)' '(tftp)'; do
                  if initrd $from/deploy/initramfs; then
                    boot
                  fi
                done
              done
              exit
            fi
          done
        done
        exit
    "#]]
    .assert_eq(menus.grub.expose());
    expect![[r"
        #!ipxe
        echo hostler: booting the deploy ramdisk
        set nic:int32 0
        set try:int32 0
        isset ${ip} && goto kernel ||
        :nic
        isset ${net${nic}/mac} || goto any
        iseq ${net${nic}/mac} 52:54:00:00:00:0a && dhcp net${nic} && goto own ||
        inc nic
        goto nic
        :any
        dhcp || exit 1
        :own
        chain --replace http://192.0.2.1:8069/ipxe/01-52-54-00-00-00-0a.ipxe ||
        :kernel
        kernel --timeout 30000 http://192.0.2.1:8069/deploy/vmlinuz initrd=ramdisk hostler.api=192.0.2.1:8443 hostler.key=00ff console=ttyS1,115200n8 BOOTIF=01-${mac:hexhyp} && goto ramdisk ||
        inc try
        iseq ${try} 10 && exit 1 ||
        sleep 1
        goto kernel
        :ramdisk
        initrd --timeout 30000 --name ramdisk http://192.0.2.1:8069/deploy/initramfs && goto boot ||
        inc try
        iseq ${try} 10 && exit 1 ||
        sleep 1
        goto ramdisk
        :boot
        boot || exit 1
    "]]
    .assert_eq(menus.ipxe.expose());
}

#[test]
fn one_boot_loader_leads_into_an_installation_if_the_spec_says_so_and_the_others_never_see_its_key()
{
    let menu = deploy("hostler.key=00ff");
    let all = render(mac(), &menu).unwrap();
    let local = render(mac(), &BootMenu::LocalDisk).unwrap();
    let pxelinux = render_for(Loader::Pxelinux, mac(), &menu).unwrap();
    let Menus { lpxelinux, .. } = all.clone();
    assert_eq!(pxelinux, Menus { pxelinux: all.pxelinux, lpxelinux, ..local.clone() });
    let grub = render_for(Loader::Grub, mac(), &menu).unwrap();
    assert_eq!(grub, Menus { grub: all.grub, ..local });
    let ipxe = render_for(Loader::Ipxe, mac(), &menu).unwrap();
    assert_eq!(ipxe.ipxe, all.ipxe);
    expect![[r"
        SERIAL 0 115200
        SAY hostler: handing over to iPXE
        DEFAULT ipxe
        PROMPT 0
        NOESCAPE 1
        TIMEOUT 100
        LABEL ipxe
          KERNEL ::ipxe.lkrn
          INITRD ::ipxe/01-52-54-00-00-00-0a.ipxe
    "]]
    .assert_eq(ipxe.pxelinux.expose());
    expect![[r#"
        echo "hostler: handing over to iPXE"
        if [ "$grub_platform" = efi ]; then
          if chainloader (tftp)/snponly.efi; then
            boot
          fi
        fi
        if [ "$grub_platform" = pc ]; then
          if linux16 (tftp)/ipxe.lkrn; then
            if initrd16 (tftp)/ipxe/01-52-54-00-00-00-0a.ipxe; then
              boot
            fi
          fi
        fi
        exit
    "#]]
    .assert_eq(ipxe.grub.expose());
}

/// Invariant (netboot): A boot loader hands the deploy ramdisk over to iPXE where its program is
/// among the loaders, and fetches it itself where that fails.
#[test]
fn boot_loaders_hand_over_to_ipxe_first_and_go_on_themselves_where_that_fails() {
    let http = Some(SocketAddr::from(([192, 0, 2, 1], 8069)));
    let menu = deploy("hostler.key=00ff");
    let beside = |ipxe, loader, http, menu: &BootMenu| {
        render_beside(ipxe, BootOptions { loader, http }, mac(), menu).unwrap()
    };
    let without = beside(false, Loader::Auto, http, &menu);
    let with = beside(true, Loader::Auto, http, &menu);
    expect![[r"
        SERIAL 0 115200
        SAY hostler: booting the deploy ramdisk
        DEFAULT ipxe
        PROMPT 0
        NOESCAPE 1
        TIMEOUT 100
        ONERROR tftp
        LABEL ipxe
          KERNEL ::ipxe.lkrn
          INITRD ::ipxe/01-52-54-00-00-00-0a.ipxe
        LABEL tftp
          KERNEL ::deploy/vmlinuz
          INITRD ::deploy/initramfs
          APPEND hostler.key=00ff
          IPAPPEND 2
    "]]
    .assert_eq(with.pxelinux.expose());
    assert_eq!(with.lpxelinux, with.pxelinux);
    let title = "echo \"hostler: booting the deploy ramdisk\"\n";
    let direct = without.grub.expose().strip_prefix(title).unwrap();
    let hand_over = with.grub.expose().strip_prefix(title).unwrap();
    expect![[r#"
        if [ "$grub_platform" = pc ]; then
          if linux16 (tftp)/ipxe.lkrn; then
            if initrd16 (tftp)/ipxe/01-52-54-00-00-00-0a.ipxe; then
              boot
            fi
          fi
        fi
    "#]]
    .assert_eq(hand_over.strip_suffix(direct).unwrap());
    assert_eq!(with.ipxe, without.ipxe);

    for http in [None, Some("[2001:db8::1]:8069".parse().unwrap())] {
        let plain = beside(false, Loader::Auto, http, &menu);
        assert_eq!(beside(true, Loader::Auto, http, &menu), plain, "{http:?}");
    }
    let chosen = beside(true, Loader::Grub, http, &menu);
    assert_eq!(chosen.grub, without.grub, "the spec names the boot loader");
}

/// Invariant (netboot): A boot loader hands the deploy ramdisk over to iPXE where its program is
/// among the loaders, and fetches it itself where that fails.
#[test]
fn an_installed_machine_needs_no_ipxe() {
    let files = ["vmlinuz", "initrd.img"].map(|path| BootFile::Path(path.to_owned()));
    let [kernel, ramdisk] = files;
    let own = BootMenu::Network { kernel, ramdisk, command_line: "root=UUID=0a ro".to_owned() };
    let http = Some(SocketAddr::from(([192, 0, 2, 1], 8069)));
    for menu in [own, BootMenu::LocalDisk] {
        let options = BootOptions { loader: Loader::Auto, http };
        let with = render_beside(true, options, mac(), &menu);
        assert_eq!(with, render(mac(), &menu), "{menu:?}");
    }
}

#[test]
fn lpxelinux_is_sent_to_the_http_server_and_back_to_tftp_where_that_fails() {
    let menus = render(mac(), &deploy("hostler.key=00ff")).unwrap();
    expect![[r"
        SERIAL 0 115200
        SAY hostler: booting the deploy ramdisk
        DEFAULT linux
        PROMPT 0
        NOESCAPE 1
        TIMEOUT 100
        ONERROR tftp
        LABEL linux
          KERNEL http://192.0.2.1:8069/deploy/vmlinuz
          INITRD http://192.0.2.1:8069/deploy/initramfs
          APPEND hostler.key=00ff
          IPAPPEND 2
        LABEL tftp
          KERNEL ::deploy/vmlinuz
          INITRD ::deploy/initramfs
          APPEND hostler.key=00ff
          IPAPPEND 2
    "]]
    .assert_eq(menus.lpxelinux.expose());
    let http = Some("[2001:db8::1]:8069".parse().unwrap());
    let options = BootOptions { loader: Loader::Auto, http };
    let menus = render_with(options, mac(), &deploy("quiet")).unwrap();
    assert_eq!(menus.lpxelinux, menus.pxelinux);
    assert!(!menus.grub.expose().contains("http"));
}

#[test]
fn without_an_http_server_ipxe_is_sent_to_tftp() {
    let options = BootOptions { loader: Loader::Auto, http: None };
    let menus = render_with(options, mac(), &deploy("quiet")).unwrap();
    assert!(menus.ipxe.expose().contains(" tftp://${next-server}/deploy/vmlinuz "));
    for text in [&menus.ipxe, &menus.grub, &menus.lpxelinux].map(Secret::expose) {
        assert!(!text.contains("http"), "{text}");
    }
}

#[test]
fn a_ramdisk_that_needs_its_addresses_is_told_them_by_a_boot_loader_that_can() {
    let BootMenu::Deploy { kernel, initramfs, command_line, .. } = deploy("quiet") else {
        unreachable!()
    };
    let menu = BootMenu::Deploy { kernel, initramfs, command_line, with_addresses: true };
    let menus = render(mac(), &menu).unwrap();
    assert!(menus.pxelinux.expose().ends_with("  APPEND quiet\n  IPAPPEND 3\n"));
    let addresses = " ip=${ip}:${next-server}:${gateway}:${netmask} ";
    assert!(menus.ipxe.expose().contains(addresses));
    assert_eq!(menus.grub, render(mac(), &deploy("quiet")).unwrap().grub);
}

#[test]
fn a_machines_own_kernel_has_a_name_of_its_own_and_no_path_of_the_server() {
    let [kernel, ramdisk] =
        ["/srv/images/vmlinuz", "initrd.img"].map(|path| BootFile::Path(path.to_owned()));
    let command_line = "root=UUID=0a ro".to_owned();
    let menus = render(mac(), &BootMenu::Network { kernel, ramdisk, command_line }).unwrap();
    expect![[r"
        SERIAL 0 115200
        SAY hostler: booting the installed system's own kernel
        DEFAULT linux
        PROMPT 0
        NOESCAPE 1
        TIMEOUT 100
        LABEL linux
          KERNEL ::node/edge-07/kernel
          INITRD ::node/edge-07/ramdisk
          APPEND root=UUID=0a ro
          IPAPPEND 2
    "]]
    .assert_eq(menus.pxelinux.expose());
    let linux = "linux $from/node/edge-07/kernel 'root=UUID=0a' 'ro' BOOTIF=01-52-54-00-00-00-0a;";
    assert!(menus.grub.expose().contains(linux));
    assert!(menus.grub.expose().contains("initrd $from/node/edge-07/ramdisk;"));
    for file in ["kernel", "ramdisk"] {
        let url = format!(" http://192.0.2.1:8069/node/edge-07/{file} ");
        assert!(menus.ipxe.expose().contains(&url), "{url}");
    }
}

#[test]
fn the_local_disk_menu_has_no_network_in_it() {
    let menus = render(mac(), &BootMenu::LocalDisk).unwrap();
    assert!(menus.pxelinux.expose().contains("LOCALBOOT 0"));
    assert!(menus.grub.expose().contains("chainloader"));
    expect![[r"
        #!ipxe
        echo hostler: booting the local disk
        iseq ${platform} efi && exit 1 ||
        sanboot --no-describe --drive 0x80 || exit 1
    "]]
    .assert_eq(menus.ipxe.expose());
    for text in [&menus.pxelinux, &menus.grub, &menus.ipxe].map(Secret::expose) {
        assert!(!text.contains("tftp") && !text.contains("KERNEL"), "{text}");
    }
}

#[test]
fn ipxe_asks_for_the_script_of_each_of_its_nics_before_anything_else() {
    expect![[r"
        #!ipxe
        set nic:int32 0
        :nic
        isset ${net${nic}/mac} || goto none
        chain --replace ipxe/01-${net${nic}/mac:hexhyp}.ipxe ||
        inc nic
        goto nic
        :none
        echo hostler: booting the local disk
        iseq ${platform} efi && exit 1 ||
        sanboot --no-describe --drive 0x80 || exit 1
    "]]
    .assert_eq(ipxe::Ipxe.common_menu().expose());
}

#[test]
fn grub_asks_for_its_nics_menu_before_anything_else() {
    expect![[r#"
        configfile (tftp)/grub/grub.cfg-01-${net_default_mac}
        echo "hostler: booting the local disk"
        if [ "$grub_platform" = efi ]; then
          for loader in /EFI/BOOT/BOOTX64.EFI /EFI/BOOT/BOOTAA64.EFI; do
            if search --no-floppy --file --set=root $loader; then
              if chainloader $loader; then
                boot
              fi
            fi
          done
          for loader in (hd*,*)/EFI/*/shim*.efi (hd*,*)/EFI/*/grub*.efi (hd*,*)/EFI/*/*/bootmgfw.efi; do
            if regexp --set=1:root '^\((hd[0-9]+,[^)]+)\)' $loader; then
              if chainloader $loader; then
                boot
              fi
            fi
          done
        fi
        exit
    "#]]
    .assert_eq(grub::Grub.common_menu().expose());
}

#[test]
fn a_command_line_cannot_add_a_line_or_a_command_to_a_menu() {
    for (line, expected) in [
        ("quiet\nLABEL evil", MenuError::Character('\n', 1)),
        ("a b\rreboot", MenuError::Character('\r', 2)),
        ("a\tb", MenuError::Character('\t', 1)),
        ("a 'b", MenuError::Character('\'', 2)),
        ("a=\"b\"", MenuError::Character('"', 1)),
        ("`reboot`", MenuError::Character('`', 1)),
        ("a\\", MenuError::Character('\\', 1)),
        ("grün", MenuError::Character('ü', 1)),
        ("a\0b", MenuError::Character('\0', 1)),
        ("a=${root}", MenuError::Character('$', 1)),
        ("quiet ; reboot", MenuError::Character(';', 2)),
        ("quiet || shell", MenuError::Character('|', 2)),
        ("quiet && shell", MenuError::Character('&', 2)),
        ("#quiet", MenuError::Character('#', 1)),
    ] {
        assert_eq!(render(mac(), &deploy(line)), Err(expected), "{line:?}");
    }
    let menus = render(mac(), &deploy("a=(root) {x} <y>")).unwrap();
    let linux = menus.grub.expose().lines().find(|l| l.contains("linux")).unwrap();
    assert!(linux.contains(" 'a=(root)' '{x}' '<y>' BOOTIF="), "{linux}");
}

#[test]
fn a_command_line_the_kernel_would_cut_is_refused() {
    let line = "x".repeat(COMMAND_LINE_BYTES_MAX + 1);
    assert_eq!(render(mac(), &deploy(&line)), Err(MenuError::TooLong(line.len())));
}

#[test]
fn a_boot_file_name_is_a_plain_relative_path() {
    for (name, odd) in [("", '/'), ("/x", '/'), ("a b", ' '), ("a;b", ';'), ("a\nb", '\n')] {
        let menu = BootMenu::Deploy {
            kernel: name.to_owned(),
            initramfs: "i".to_owned(),
            command_line: Secret::new(String::new()),
            with_addresses: false,
        };
        assert_eq!(render(mac(), &menu), Err(MenuError::FileName(odd)), "{name:?}");
    }
}

proptest! {
    #[test]
    fn any_accepted_command_line_leaves_the_shape_of_the_menus_alone(line in ".{0,80}") {
        if let Ok(menus) = render(mac(), &deploy(&line)) {
            let plain = render(mac(), &deploy("quiet")).unwrap();
            let texts = |menus: Menus| [menus.pxelinux, menus.grub, menus.ipxe];
            for (text, expected) in texts(menus.clone()).iter().zip(&texts(plain)) {
                let (text, expected) = (text.expose(), expected.expose());
                prop_assert_eq!(text.lines().count(), expected.lines().count());
                let differing = text.lines().zip(expected.lines()).filter(|(a, b)| a != b).count();
                prop_assert!(differing <= 1);
            }
            let kernel = menus.ipxe.expose().lines().find(|l| l.starts_with("kernel")).unwrap();
            prop_assert_eq!(kernel.matches("${").count(), 1);
            let ends = |word: &&str| word.starts_with('#') || matches!(*word, ";" | "||" | "&&");
            let ends: Vec<&str> = kernel.split_whitespace().filter(ends).collect();
            prop_assert_eq!(ends, ["&&", "||"]);
            let linux = menus.grub.expose().lines().find(|l| l.contains("if linux")).unwrap();
            prop_assert_eq!(linux.matches('\'').count() % 2, 0);
            let outside: String = linux.split('\'').step_by(2).collect();
            let outside = outside.replacen("$from/", "", 1);
            let outside = outside.strip_suffix("; then").unwrap();
            let inert = |c: char| c.is_ascii_alphanumeric() || " ()/=-".contains(c);
            prop_assert!(outside.chars().all(inert), "{}", outside);
        }
    }
}
