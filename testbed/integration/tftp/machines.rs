//! Firmware and boot loaders fetch what they need: each in a QEMU machine with a network of its
//! own.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hostler::{
    boot_call::BootCalls,
    model::boot::{BootMenu, BootStage, Fetch, Firmware},
    netboot::{BootTable, Config, http},
};
use tokio::runtime::Runtime;

use super::{BootServer, alone::alone, deploy, hostile::Log, mac, node, noise};

const HTTP: &str = "192.0.2.1:8069";
const MENU: &str = "pxelinux.cfg/01-52-54-00-00-00-01";
const IPXE_MENU: &str = "ipxe/01-52-54-00-00-00-01.ipxe";
const GRUB_MENU: &str = "grub/grub.cfg-01-52-54-00-00-00-01";
/// The line that our kernel prints when it runs.
const KERNEL_SAYS: &str = "here is the deploy kernel";
/// The line that the boot loader of the machine's own disk prints.
const DISK_SAYS: &str = "here is the machine's own disk";
/// The line that a hanging iPXE prints.
const IPXE_SAYS: &str = "here is an iPXE that hangs";
const KERNEL_BYTES: usize = 1_000_000;
const RAMDISK_BYTES: usize = 2_000_001;
/// QEMU without KVM, on a machine that has more to do.
const BOOT_LIMIT: Duration = Duration::from_secs(150);

#[test]
fn the_roms_of_network_nics_fetch_pxelinux_and_pxelinux_fetches_the_rest() {
    in_a_network("the_roms_of_network_nics_fetch_pxelinux_and_pxelinux_fetches_the_rest", || {
        let mut site = Site::new(Firmware::Bios);
        for loader in ["/usr/lib/PXELINUX/pxelinux.0", "/usr/lib/syslinux/modules/bios/ldlinux.c32"]
        {
            site.loader(Path::new(loader));
        }
        site.power_on("pxelinux.0", &[]);
        site.boots();
        site.fetched(&[
            (BootStage::Loader, "pxelinux.0"),
            (BootStage::Loader, "ldlinux.c32"),
            (BootStage::Menu, MENU),
        ]);
    });
}

#[test]
fn ipxe_as_the_loader_fetches_what_its_script_names() {
    in_a_network("ipxe_as_the_loader_fetches_what_its_script_names", || {
        let mut site = Site::new(Firmware::Bios);
        let script = "#!ipxe
            imgfetch tftp://${next-server}/pxelinux.cfg/01-${mac:hexhyp}
            imgfree
            kernel deploy/vmlinuz
            initrd tftp://${next-server}//deploy/initramfs
            boot\n";
        site.boot_server.file("site.ipxe", script.as_bytes());
        site.power_on("site.ipxe", &[]);
        site.boots();
        site.fetched(&[(BootStage::Loader, "site.ipxe"), (BootStage::Menu, MENU)]);
    });
}

#[test]
fn grub_on_bios_fetches_itself_its_modules_and_the_rest() {
    in_a_network("grub_on_bios_fetches_itself_its_modules_and_the_rest", || {
        let mut site = Site::new(Firmware::Bios);
        site.grub("i386-pc");
        site.power_on("grub/i386-pc/core.0", &[]);
        site.boots();
        site.fetched(&[
            (BootStage::Loader, "grub/i386-pc/core.0"),
            (BootStage::Loader, "grub/i386-pc/normal.mod"),
            (BootStage::Menu, GRUB_MENU),
        ]);
    });
}

#[test]
fn uefi_fetches_grub_and_grub_fetches_its_modules_and_the_rest() {
    in_a_network("uefi_fetches_grub_and_grub_fetches_its_modules_and_the_rest", || {
        let mut site = Site::new(Firmware::Uefi);
        site.grub("x86_64-efi");
        let [code, vars] = site.uefi();
        site.power_on("grub/x86_64-efi/core.efi", &["-drive", &code, "-drive", &vars]);
        site.boots();
        site.fetched(&[
            (BootStage::Loader, "grub/x86_64-efi/core.efi"),
            (BootStage::Loader, "grub/x86_64-efi/normal.mod"),
            (BootStage::Menu, GRUB_MENU),
        ]);
    });
}

/// Invariant (netboot): A boot loader that can do HTTP fetches by HTTP, or by TFTP where that
/// fails.
#[test]
fn lpxelinux_fetches_kernel_and_ramdisk_over_http() {
    in_a_network("lpxelinux_fetches_kernel_and_ramdisk_over_http", || {
        let log = Log::start();
        let mut site = Site::with_http(Firmware::Bios);
        for loader in
            ["/usr/lib/PXELINUX/lpxelinux.0", "/usr/lib/syslinux/modules/bios/ldlinux.c32"]
        {
            site.loader(Path::new(loader));
        }
        site.power_on("lpxelinux.0", &[]);
        site.boots();
        site.fetched(&[(BootStage::Loader, "lpxelinux.0"), (BootStage::Menu, MENU)]);
        assert_over("HTTP", &log);
    });
}

/// Invariant (netboot): A boot loader that can do HTTP fetches by HTTP, or by TFTP where that
/// fails.
#[test]
fn grub_on_bios_fetches_kernel_and_ramdisk_over_http() {
    in_a_network("grub_on_bios_fetches_kernel_and_ramdisk_over_http", || {
        let log = Log::start();
        let mut site = Site::with_http(Firmware::Bios);
        site.grub("i386-pc");
        site.power_on("grub/i386-pc/core.0", &[]);
        site.boots();
        site.fetched(&[(BootStage::Loader, "grub/i386-pc/core.0"), (BootStage::Menu, GRUB_MENU)]);
        assert_over("HTTP", &log);
    });
}

/// Invariant (netboot): A boot loader that can do HTTP fetches by HTTP, or by TFTP where that
/// fails.
#[test]
fn grub_on_uefi_fetches_kernel_and_ramdisk_over_http() {
    in_a_network("grub_on_uefi_fetches_kernel_and_ramdisk_over_http", || {
        let log = Log::start();
        let mut site = Site::with_http(Firmware::Uefi);
        site.grub("x86_64-efi");
        let [code, vars] = site.uefi();
        site.power_on("grub/x86_64-efi/core.efi", &["-drive", &code, "-drive", &vars]);
        site.boots();
        site.fetched(&[(BootStage::Menu, GRUB_MENU)]);
        assert_over("HTTP", &log);
    });
}

/// Invariant (netboot): A boot loader that can do HTTP fetches by HTTP, or by TFTP where that
/// fails.
#[test]
fn boot_loaders_that_cannot_reach_the_http_server_go_back_to_tftp() {
    in_a_network("boot_loaders_that_cannot_reach_the_http_server_go_back_to_tftp", || {
        let log = Log::start();
        // Nobody listens.
        let mut site = Site::with(BootTable::with_http(HTTP.parse().unwrap()), Firmware::Bios);
        for loader in
            ["/usr/lib/PXELINUX/lpxelinux.0", "/usr/lib/syslinux/modules/bios/ldlinux.c32"]
        {
            site.loader(Path::new(loader));
        }
        site.grub("i386-pc");
        for boot_file in ["lpxelinux.0", "grub/i386-pc/core.0"] {
            site.power_on(boot_file, &[]);
            site.boots();
            site.power_off();
        }
        site.fetched(&[(BootStage::Menu, MENU), (BootStage::Menu, GRUB_MENU)]);
        assert_over("TFTP", &log);
    });
}

/// Invariant (netboot): A boot loader hands the deploy ramdisk over to iPXE where its program is
/// among the loaders, and fetches it itself where that fails.
#[test]
fn pxelinux_and_grub_on_bios_hand_over_to_ipxe_which_fetches_the_rest_over_http() {
    in_a_network(
        "pxelinux_and_grub_on_bios_hand_over_to_ipxe_which_fetches_the_rest_over_http",
        || {
            let log = Log::start();
            let mut site = Site::with_http(Firmware::Bios);
            for loader in [
                "/usr/lib/PXELINUX/pxelinux.0",
                "/usr/lib/syslinux/modules/bios/ldlinux.c32",
                "/usr/lib/ipxe/ipxe.lkrn",
            ] {
                site.loader(Path::new(loader));
            }
            site.grub("i386-pc");
            for boot_file in ["pxelinux.0", "grub/i386-pc/core.0"] {
                site.power_on(boot_file, &[]);
                site.boots();
                site.power_off();
            }
            site.fetched(&[
                (BootStage::Loader, "pxelinux.0"),
                (BootStage::Menu, MENU),
                (BootStage::Loader, "ipxe.lkrn"),
                (BootStage::Menu, IPXE_MENU),
                (BootStage::Loader, "grub/i386-pc/core.0"),
                (BootStage::Menu, GRUB_MENU),
            ]);
            assert_over("HTTP", &log);
        },
    );
}

/// Invariant (netboot): A machine on which iPXE did not come up is installed without it.
#[test]
fn a_machine_on_which_ipxe_hangs_is_installed_by_pxelinux_when_it_comes_again() {
    in_a_network(
        "a_machine_on_which_ipxe_hangs_is_installed_by_pxelinux_when_it_comes_again",
        || {
            let log = Log::start();
            let mut site = Site::with_http(Firmware::Bios);
            for loader in
                ["/usr/lib/PXELINUX/pxelinux.0", "/usr/lib/syslinux/modules/bios/ldlinux.c32"]
            {
                site.loader(Path::new(loader));
            }
            site.boot_server.file("ipxe.lkrn", &kernel_that_says(IPXE_SAYS));
            site.power_on("pxelinux.0", &[]);
            site.says(IPXE_SAYS);
            site.power_off();
            site.power_on("pxelinux.0", &[]);
            site.boots();
            site.fetched(&[(BootStage::Loader, "ipxe.lkrn"), (BootStage::Menu, MENU)]);
            assert_over("TFTP", &log);
        },
    );
}

/// Requires that kernel and ramdisk were sent over this protocol.
fn assert_over(way: &str, log: &Log) {
    let log = log.text();
    for file in ["deploy/vmlinuz", "deploy/initramfs"] {
        let path = format!("path=\"{file}\"");
        let sent = log.lines().filter(|line| line.contains(" sent ") && line.contains(&path));
        let over = |line: &str| line.contains(&format!("{way} file sent"));
        assert!(sent.clone().any(over) && sent.clone().all(over), "{file}: {log}");
    }
}

#[test]
fn u_boot_fetches_with_one_block_in_flight_and_with_sixteen() {
    in_a_network("u_boot_fetches_with_one_block_in_flight_and_with_sixteen", || {
        let mut site = Site::new(Firmware::Bios);
        site.power_on("boot.scr", &["-bios", "/usr/lib/u-boot/qemu-x86/u-boot.rom"]);
        site.says("Hit any key to stop autoboot");
        site.types("");
        for command in ["setenv autoload no", "setenv pxefile_addr_r 0x1000000", "dhcp"] {
            site.types(command);
        }
        site.says("DHCP client bound");
        site.types("pxe get");
        site.says("Config file 'boot.scr' found");
        for (window, file, bytes) in
            [(1, "deploy/vmlinuz", KERNEL_BYTES), (16, "/tftpboot/deploy/initramfs", RAMDISK_BYTES)]
        {
            site.types(&format!("setenv tftpwindowsize {window}"));
            site.types(&format!("tftpboot 0x2000000 {file}"));
            site.says(&format!("Bytes transferred = {bytes}"));
            let name = file.rsplit('/').next().unwrap();
            let content = fs::read(site.boot_server.dir.path().join(name)).unwrap();
            site.types("crc32 0x2000000 ${filesize}");
            site.says(&format!("==> {:08x}", crc32fast::hash(&content)));
        }
        site.fetched(&[(BootStage::Menu, MENU)]);
    });
}

/// Invariant (netboot): A machine that netboots unasked comes to its own disk and is not installed
/// again.
#[test]
fn ipxe_on_bios_goes_on_to_the_own_disk_of_a_machine_that_is_not_to_be_installed() {
    in_a_network(
        "ipxe_on_bios_goes_on_to_the_own_disk_of_a_machine_that_is_not_to_be_installed",
        || {
            let mut site = Site::new(Firmware::Bios);
            let disk = site.boot_server.dir.path().join("disk");
            fs::write(&disk, boot_sector()).unwrap();
            let table = &site.boot_server.table;
            table.set(&node("a"), &[mac(1)], Firmware::Bios, &BootMenu::LocalDisk).unwrap();
            let disk = format!("if=virtio,format=raw,file={}", disk.display());
            site.power_on("boot.ipxe", &["-drive", &disk]);
            site.says(DISK_SAYS);
            assert!(site.reported(BootStage::Menu, IPXE_MENU).is_some(), "{:#?}", site.reported);
        },
    );
}

/// Invariant (netboot): A machine that netboots unasked comes to its own disk and is not installed
/// again.
#[test]
fn ipxe_on_uefi_leaves_a_machine_that_is_not_to_be_installed_to_its_firmwares_next_device() {
    in_a_network(
        "ipxe_on_uefi_leaves_a_machine_that_is_not_to_be_installed_to_its_firmwares_next_device",
        || {
            let mut site = Site::new(Firmware::Uefi);
            let table = &site.boot_server.table;
            table.set(&node("a"), &[mac(1)], Firmware::Uefi, &BootMenu::LocalDisk).unwrap();
            // From a disk: after a failed netboot the firmware would first try all other ways to
            // netboot, for minutes.
            let ipxe = fs::read("/usr/lib/ipxe/ipxe.efi").unwrap();
            let disks = [site.efi_disk("ipxe", &ipxe), site.efi_disk("own", &own_loader())];
            let [code, vars] = site.uefi();
            let hardware = [
                ["-drive", &code],
                ["-drive", &vars],
                ["-drive", &disks[0]],
                ["-drive", &disks[1]],
                ["-device", "virtio-blk-pci,drive=ipxe,bootindex=1"],
                ["-device", "virtio-blk-pci,drive=own,bootindex=2"],
            ];
            site.power_on("boot.ipxe", hardware.as_flattened());
            site.says(DISK_SAYS);
            assert!(site.reported(BootStage::Menu, IPXE_MENU).is_some(), "{:#?}", site.reported);
        },
    );
}

/// Runs a test alone, with a network of its own.
fn in_a_network(name: &str, test: impl FnOnce()) {
    alone(&format!("machines::{name}"), &["unshare", "--net"], test);
}

/// A network with hostler's server, a DHCP server and a machine, whose node is to be deployed.
struct Site {
    boot_server: BootServer,
    reported: Vec<Fetch>,
    running: Vec<Child>,
    keyboard: Option<ChildStdin>,
    http: Option<Runtime>,
}

impl Site {
    fn new(firmware: Firmware) -> Self {
        Self::with(BootTable::default(), firmware)
    }

    /// A site with an HTTP server, too.
    fn with_http(firmware: Firmware) -> Self {
        let address = HTTP.parse().unwrap();
        let mut site = Self::with(BootTable::with_http(address), firmware);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let bind = http::Server::bind(address, http::HttpLimits::default());
        let server = runtime.block_on(bind).unwrap();
        let catalog = site.boot_server.running.as_ref().unwrap().catalog();
        let (calls, _nobody) = BootCalls::channel(1);
        runtime.spawn(server.serve(catalog, calls, std::future::pending()));
        site.http = Some(runtime);
        site
    }

    fn with(table: BootTable, firmware: Firmware) -> Self {
        for command in [
            "link set lo up",
            "tuntap add tap0 mode tap",
            "address add 192.0.2.1/24 dev tap0",
            "link set tap0 up",
        ] {
            assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
        }
        let listen = |config: &mut Config| config.listen = "192.0.2.1:69".parse().unwrap();
        let boot_server = BootServer::with_table(table, listen);
        fs::write(boot_server.dir.path().join("vmlinuz"), kernel_that_says(KERNEL_SAYS)).unwrap();
        fs::write(boot_server.dir.path().join("initramfs"), noise(RAMDISK_BYTES)).unwrap();
        boot_server.table.set(&node("a"), &[mac(1)], firmware, &deploy("5ec2e7")).unwrap();
        Self { boot_server, reported: Vec::new(), running: Vec::new(), keyboard: None, http: None }
    }

    fn loader(&self, path: &Path) {
        fs::copy(path, self.boot_server.loaders.join(path.file_name().unwrap())).unwrap();
    }

    /// GRUB as its own tool installs it for netbooting: a small core and all the modules.
    fn grub(&self, platform: &str) {
        let made = Command::new("grub-mknetdir")
            .arg(format!("--net-directory={}", self.boot_server.loaders.display()))
            .args(["--subdir=grub", "--directory", &format!("/usr/lib/grub/{platform}")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }

    /// The firmware's drives.
    fn uefi(&self) -> [String; 2] {
        let vars = self.boot_server.dir.path().join("vars.fd");
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars).unwrap();
        [
            "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd".to_owned(),
            format!("if=pflash,format=raw,file={}", vars.display()),
        ]
    }

    /// A disk of this name with a boot loader for UEFI.
    fn efi_disk(&self, name: &str, loader: &[u8]) -> String {
        let disk = self.boot_server.dir.path().join(name);
        let boot = disk.join("EFI/BOOT");
        fs::create_dir_all(&boot).unwrap();
        fs::write(boot.join("BOOTX64.EFI"), loader).unwrap();
        format!("if=none,id={name},format=raw,file=fat:rw:{}", disk.display())
    }

    /// Starts the DHCP server, which names the boot file, and the machine.
    fn power_on(&mut self, boot_file: &str, hardware: &[&str]) {
        let leases = self.boot_server.dir.path().join("leases");
        let mut dhcp = Command::new("dnsmasq");
        dhcp.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root"])
            .args(["--port=0", "--interface=tap0", "--bind-interfaces", "--dhcp-authoritative"])
            .args(["--no-ping", "--dhcp-range=192.0.2.10,192.0.2.20", "--log-facility=-"])
            .arg(format!("--dhcp-boot={boot_file},,192.0.2.1"))
            .arg(format!("--dhcp-leasefile={}", leases.display()));
        let nic = if hardware.contains(&"-bios") { "e1000" } else { "virtio-net-pci" };
        let first = if hardware.concat().contains("bootindex=1") { "" } else { ",bootindex=1" };
        let mut machine = Command::new("qemu-system-x86_64");
        machine
            .args(["-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .args(["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no", "-device"])
            .arg(format!("{nic},netdev=net,mac=52:54:00:00:00:01{first}"))
            .args(hardware);
        for mut command in [dhcp, machine] {
            let log = File::create(self.log_file(command.get_program().to_str().unwrap())).unwrap();
            command.stdin(Stdio::piped()).stderr(log.try_clone().unwrap()).stdout(log);
            let mut child = command.spawn().unwrap();
            self.keyboard = child.stdin.take();
            self.running.push(child);
        }
    }

    fn power_off(&mut self) {
        for mut child in self.running.drain(..) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn log_file(&self, program: &str) -> std::path::PathBuf {
        self.boot_server.dir.path().join(format!("{program}.log"))
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file("qemu-system-x86_64")).unwrap())
            .into_owned()
    }

    fn types(&mut self, line: &str) {
        writeln!(self.keyboard.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits until the machine's console shows this.
    fn says(&mut self, text: &str) {
        let deadline = Instant::now() + BOOT_LIMIT;
        while !self.console().contains(text) {
            while let Ok(fetch) = self.boot_server.fetched.try_recv() {
                self.reported.push(fetch);
            }
            assert!(
                Instant::now() < deadline,
                "{text:?} is missing\n{}\n{:#?}",
                self.console(),
                self.reported
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the kernel runs.
    fn boots(&mut self) {
        self.says(KERNEL_SAYS);
    }

    /// The node's evidence, once all transfers have ended: these stages, and kernel and ramdisk in
    /// full.
    fn fetched(mut self, stages: &[(BootStage, &str)]) {
        self.boot_server.running.take().unwrap().stop();
        for (stage, path) in stages {
            assert!(
                self.reported(*stage, path).is_some(),
                "{path} is missing: {:#?}",
                self.reported
            );
        }
        for (stage, path, bytes) in [
            (BootStage::Kernel, "deploy/vmlinuz", KERNEL_BYTES),
            (BootStage::Ramdisk, "deploy/initramfs", RAMDISK_BYTES),
        ] {
            let sent = self.reported(stage, path).map(|fetch| fetch.sent_bytes);
            assert_eq!(sent, Some(bytes as u64), "{path}: {:#?}", self.reported);
        }
    }

    /// Waits for the report of a whole fetch.
    fn reported(&mut self, stage: BootStage, path: &str) -> Option<&Fetch> {
        while let Ok(fetch) = self.boot_server.fetched.try_recv() {
            self.reported.push(fetch);
        }
        let same = |fetch: &&Fetch| (fetch.stage, fetch.path.as_str()) == (stage, path);
        self.reported.iter().filter(same).find(|fetch| fetch.complete)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// A Linux kernel as far as boot loaders can tell (Linux, arch/x86/boot: version 2.12 of the
/// protocol). It says one sentence on the serial line, whether entered in 16 or in 32 bits, and
/// halts.
fn kernel_that_says(sentence: &str) -> Vec<u8> {
    let mut kernel = noise(KERNEL_BYTES);
    let real_mode = says(sentence);
    let protected_mode = [&[0x66][..], &real_mode].concat();
    let paragraphs = u32::try_from((KERNEL_BYTES - 0x400) / 16).unwrap();
    kernel[..0x400].fill(0);
    for (at, field) in [
        (0x1f1, &[1][..]),                  // sectors of setup
        (0x1f4, &paragraphs.to_le_bytes()), // size of the rest
        (0x1fe, b"\x55\xaa\xeb\x66HdrS"),   // magic, a jump to 0x268, magic
        (0x206, &0x020c_u16.to_le_bytes()),
        (0x211, &[1]),                           // loaded high
        (0x214, &0x10_0000_u32.to_le_bytes()),   // where to
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()), // highest address of a ramdisk
        (0x230, &0x20_0000_u32.to_le_bytes()),   // alignment
        (0x234, &[1, 21]),                       // relocatable, to multiples of 2 MiB
        (0x238, &2047_u32.to_le_bytes()),        // longest command line
        (0x258, &0x100_0000_u64.to_le_bytes()),  // best address
        (0x260, &0x20_0000_u32.to_le_bytes()),   // memory needed
        (0x268, &real_mode),
        (0x400, &protected_mode),
    ] {
        kernel[at..at + field.len()].copy_from_slice(field);
    }
    kernel
}

/// A disk for a BIOS. It says one sentence on the serial line and halts.
fn boot_sector() -> Vec<u8> {
    let mut disk = says(DISK_SAYS);
    disk.resize(510, 0);
    disk.extend([0x55, 0xaa]);
    disk.resize(1 << 20, 0);
    disk
}

/// The program that UEFI starts from a disk. It prints the same line.
fn own_loader() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let [config, loader] = ["config", "loader"].map(|name| dir.path().join(name));
    let says = format!("serial\nterminal_output serial\necho \"{DISK_SAYS}\"\nhalt\n");
    fs::write(&config, says).unwrap();
    let mut made = Command::new("grub-mkimage");
    made.args(["-O", "x86_64-efi", "-p", "/", "-c"]).arg(&config).arg("-o").arg(&loader);
    assert!(made.args(["serial", "terminal", "echo", "halt"]).status().unwrap().success());
    fs::read(loader).unwrap()
}

/// Instructions of 16 bits that write to the serial line and halt.
fn says(sentence: &str) -> Vec<u8> {
    let letters: Vec<u8> = sentence.bytes().flat_map(|byte| [0xb0, byte, 0xee]).collect();
    [&[0xba, 0xf8, 0x03][..], &letters, &[0xfa, 0xf4, 0xeb, 0xfd]].concat()
}
