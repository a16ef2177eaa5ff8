//! The drivers of an initramfs, by the kernel's names, and Debian's packages of their firmware.
//!
//! [`super::select`] uses it. The list is for all machines: the running ramdisk loads the drivers
//! for its hardware.

use crate::model::boot::Arch;

/// Drivers of machines of any kind that are loaded for their hardware: those of servers and edge
/// machines of the last ten years.
#[rustfmt::skip]
const DRIVERS: &[&str] = &[
    // Virtual machines
    "virtio_pci", "virtio_mmio", "virtio_net", "virtio_blk", "virtio_scsi", "vmxnet3",
    "hv_vmbus", "hv_netvsc", "hv_storvsc", "pci_hyperv", "gve", "ena", "mana", "iavf", "igbvf",
    "ixgbevf", "cxgb4vf", "virtio_rng",
    // Network interfaces
    "e1000", "e1000e", "igb", "igc", "ixgbe", "i40e", "ice", "idpf", "tg3", "bnx2", "bnx2x",
    "bnxt_en", "mlx4_core", "mlx4_en", "mlx5_core", "r8169", "atlantic", "be2net", "qede", "cxgb4",
    "enic",
    "hns3", "hclge", "sfc", "nfp", "ionic", "hinic", "alx", "amd_xgbe", "lan743x",
    // USB network interfaces, and USB controllers.
    "xhci_pci", "ehci_pci", "r8152", "r8153_ecm", "ax88179_178a", "asix", "aqc111", "cdc_ether",
    "cdc_ncm", "lan78xx", "smsc75xx", "smsc95xx", "ch9200", "dm9601", "rtl8150", "sr9800",
    // Disk controllers
    "ahci", "ata_piix", "ata_generic", "nvme", "megaraid_sas", "mpt3sas", "mpi3mr", "mptsas",
    "mptspi", "hpsa", "smartpqi", "aacraid", "arcmsr", "pm80xx", "mvsas", "hptiop",
    "mtip32xx", "hisi_sas_v3_hw", "sdhci_pci", "sdhci_acpi",
    // Disks on them
    "sd_mod", "mmc_block",
];

/// Drivers of parts that only a PC has.
const DRIVERS_X86_64: &[&str] = &["vmw_pvscsi", "dwmac_intel", "vmd", "isci"];

/// Drivers of parts that only 64-bit Arm has, and that its firmware names by PCI or ACPI: servers
/// and boards with UEFI. Machines whose firmware describes them by a device tree alone need drivers
/// of clocks and supplies, too, for which the builder has `--module`.
#[rustfmt::skip]
const DRIVERS_AARCH64: &[&str] = &[
    // Network interfaces
    "thunder_bgx", "nicpf", "nicvf", "xgene_enet", "hns_enet_drv", "hns_dsaf", "genet", "mvpp2",
    "netsec", "qcom_emac", "fsl_enetc",
    // Random numbers, without which the ramdisk waits before it can talk to anybody
    "arm_smccc_trng", "xgene_rng", "cavium_rng_vf", "cn10k_rng",
    // USB and disk controllers
    "xhci_plat_hcd", "ehci_platform", "ahci_platform", "ahci_xgene", "hisi_sas_v2_hw",
    "sdhci_iproc",
];

/// The drivers of every initramfs for these processors.
pub(super) fn drivers(arch: Option<Arch>) -> impl Iterator<Item = &'static str> {
    let own = match arch {
        Some(Arch::Aarch64) => DRIVERS_AARCH64,
        Some(Arch::X86_64) | None => DRIVERS_X86_64,
    };
    DRIVERS.iter().chain(own).copied()
}

/// Directories of drivers of network interfaces and disk controllers beneath `kernel/drivers`. USB
/// storage is not among them: neither a stick nor a BMC's virtual disk must be chosen by mistake.
pub(super) const DIRECTORIES: &[&str] = &[
    "ata",
    "block/mtip32xx",
    "message/fusion",
    "mmc/host",
    "net/ethernet",
    "net/hyperv",
    "net/usb",
    "net/vmxnet3",
    "nvme/host",
    "pci/controller",
    "scsi",
    "usb/host",
];

/// Buses whose devices name their drivers. A driver for no such bus is for devices behind a disk
/// controller, such as streamers, or for old computers.
pub(super) const BUSES: &[&str] = &["acpi", "of", "pci", "platform", "usb", "virtio", "vmbus"];

/// Drivers of the chips that connect a network interface to its cable.
#[rustfmt::skip]
const PHYS: &[&str] = &[
    "marvell", "marvell10g", "mxl_gpy", "realtek", "micrel", "microchip", "smsc", "dp83867",
    "dp83822", "at803x", "broadcom", "motorcomm", "intel_xway", "aquantia", "ax88796b",
];

/// Modules that the kernel would request from `modprobe`, which the ramdisk lacks, when such a
/// driver starts.
pub(super) fn companions(driver: &str) -> &'static [&'static str] {
    match driver {
        "dwmac_intel" | "lan743x" | "lan78xx" | "asix" | "smsc95xx" | "ax88179_178a" | "mvpp2"
        | "netsec" | "hns_dsaf" | "xgene_enet" | "thunder_bgx" | "fsl_enetc" => PHYS,
        "genet" => &["broadcom", "mdio_bcm_unimac"],
        "tg3" => &["broadcom"],
        "r8169" => &["realtek"],
        _ => &[],
    }
}

/// Debian's package of a firmware file. All but `firmware-linux-free` are in the component
/// `non-free-firmware`.
pub(super) fn debian_package(file: &str) -> Option<&'static str> {
    const PACKAGES: [(&str, &str); 16] = [
        ("bnx2/", "firmware-bnx2"),
        ("bnx2x", "firmware-bnx2x"),
        ("rtl_nic/", "firmware-realtek"),
        ("qed/", "firmware-qlogic"),
        ("ql2", "firmware-qlogic"),
        ("ql8", "firmware-qlogic"),
        ("phanfw", "firmware-qlogic"),
        ("netronome/", "firmware-netronome"),
        ("liquidio/", "firmware-cavium"),
        ("isci/", "firmware-linux-free"),
        ("intel/ice/", "firmware-misc-nonfree"),
        ("tigon/", "firmware-misc-nonfree"),
        ("cxgb3/", "firmware-misc-nonfree"),
        ("cxgb4/", "firmware-misc-nonfree"),
        ("e100/", "firmware-misc-nonfree"),
        ("myri10ge_", "firmware-myricom"),
    ];
    PACKAGES.iter().find(|(start, _)| file.starts_with(start)).map(|(_, package)| *package)
}
