//! The schema of specs: every key with its default.
//!
//! Called by the reader. A key that is read nowhere here is unknown. It must never accept a
//! combination of keys that cannot be installed.

use std::collections::BTreeSet;

use crate::model::{
    attached::{AttachedContent, MetaData},
    boot::{Arch, Firmware},
    disk::{Multipath, RootDeviceHints, SizeHint},
    ids::{Digest, MacAddr, NodeName},
    ironic,
    netboot::Netboot,
    problem::ProblemKind,
    spec::{
        Attachment, Bmc, Boot, ConfigDrive, DeployRamdisk, DriveFilesystem, DriveLabel, Goal,
        Image, ImageFormat, ImageKind, Loader, NodeSpec, PartitionTable, Partitions, Retry,
        Timeouts, Verify, WantedPower,
    },
    toml_reader::{Section, duration},
};

use super::{
    ReadAttachment,
    bmc::{self, Control},
    boot_check, values,
};

/// Most primary partitions of a master boot record.
const MSDOS_PARTITIONS_MAX: usize = 4;

/// Reads a whole spec. `None` only with a problem or without a name. Without `attachment`, attached
/// files are not read.
pub(super) fn node(
    spec: &mut Section<'_>,
    name: Option<NodeName>,
    attachment: Option<&ReadAttachment<'_>>,
) -> Option<NodeSpec> {
    let goals = [
        ("deployed", Goal::Deployed),
        ("available", Goal::Available),
        ("unmanaged", Goal::Unmanaged),
    ];
    let powers =
        [("on", WantedPower::On), ("off", WantedPower::Off), ("ignore", WantedPower::Ignore)];
    let goal = spec.key("state").or("deployed").choice(&goals);
    let power = spec.key("power").or("on").choice(&powers);
    let paused = spec.key("paused").or(false).flag();
    let redeploy = spec.key("redeploy").text(values::label);
    let (boot, after) = spec.key("boot").table(boot);
    let bmc = spec.key("bmc").table(|bmc| bmc::control(bmc, name.as_ref()));
    let root_device = spec.key("root_device").table(root_device);
    let firmware = boot.as_ref().map(|boot| boot.firmware);
    // A bad value of the key is a problem by itself.
    let ramdisk = boot.as_ref().map_or(DeployRamdisk::Hostler, |boot| boot.ramdisk);
    let (mut image, kind) =
        spec.key("image").table(|image| self::image(image, firmware, ramdisk, after));
    let mut partitions = spec.key("partitions");
    if kind == Some(ImageContent::Disk) {
        partitions = partitions.idle("is of no use unless image.kind = \"partition\"");
    }
    let partitions = partitions.table(self::partitions);
    if let (Some(image), Some(ImageContent::Partition)) = (&mut image, kind) {
        image.kind = partitions.map_or(ImageKind::Disk, ImageKind::Partition);
    }
    let has_drive = spec.has("config_drive");
    let drive = spec.key("config_drive");
    let config_drive = drive.table_if_there(|drive| config_drive(drive, attachment)).flatten();
    if let (Some(boot), Some(image)) = (&boot, &image) {
        refuse_too_many_partitions(spec, image, boot.firmware, has_drive);
        if boot.ramdisk == DeployRamdisk::Ironic {
            refuse_what_ironics_ramdisk_cannot(spec, bmc.as_ref(), &root_device, image);
        }
    }
    let boot_check =
        spec.key("boot_check").table(|check| boot_check::read(check, config_drive.as_ref()));
    let has_bmc = !matches!(bmc, Some(Control::Manual));
    let timeouts = spec.key("timeouts").table(|timeouts| self::timeouts(timeouts, has_bmc));
    let retry = spec.key("retry").table(retry);
    Some(NodeSpec {
        name: name?,
        goal: goal?,
        power: power?,
        paused: paused?,
        redeploy,
        boot: boot?,
        bmc: match bmc? {
            Control::Bmc(bmc) => Some(Box::new(bmc)),
            Control::Manual => None,
        },
        root_device,
        image: image?,
        config_drive: config_drive.map(Box::new),
        boot_check: boot_check?,
        timeouts: timeouts?,
        retry: retry?,
    })
}

/// The device that the installed machine boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Disk,
    Network,
}

fn boot(boot: &mut Section<'_>) -> (Option<Boot>, Option<After>) {
    let mut seen = BTreeSet::new();
    let mac = boot.key("mac").of_kind(ProblemKind::BadMac).required("\"52:54:00:12:34:56\"");
    let macs = mac.one_or_list(|text| {
        let mac: MacAddr = text.parse()?;
        if seen.insert(mac) { Ok(mac) } else { Err(format!("{mac} is there twice")) }
    });
    let firmware = boot
        .key("firmware")
        .or("uefi")
        .choice(&[("uefi", Firmware::Uefi), ("bios", Firmware::Bios)]);
    let archs = [("x86_64", Arch::X86_64), ("aarch64", Arch::Aarch64)];
    let arch = boot.key("arch").or("x86_64").choice(&archs);
    if arch == Some(Arch::Aarch64) && firmware == Some(Firmware::Bios) {
        boot.refuse("firmware", "an aarch64 machine has no BIOS; use firmware = \"uefi\"");
    }
    let loader = boot.key("loader").or("auto").choice(&Loader::ALL);
    let boots = |(loader, firmware): (Loader, Firmware)| loader.boots(firmware);
    if !loader.zip(firmware).is_none_or(boots) {
        boot.refuse("loader", "pxelinux is for firmware = \"bios\"; use \"grub\" or \"ipxe\"");
    }
    let places = [("disk", After::Disk), ("network", After::Network)];
    let after = boot.key("after").or("disk").choice(&places);
    let (ramdisk, require_chap) = deploy_ramdisk(boot);
    let kernel_args = boot.key("kernel_args");
    let kernel_args = kernel_args
        .of_kind(ProblemKind::BadKernelArgument)
        .list(values::kernel_args())
        .unwrap_or_default();
    let boot = || {
        Some(Boot {
            macs: macs?,
            firmware: firmware?,
            arch: arch?,
            loader: loader?,
            ramdisk: ramdisk?,
            require_chap: require_chap?,
            kernel_args,
        })
    };
    (boot(), after)
}

fn deploy_ramdisk(boot: &mut Section<'_>) -> (Option<DeployRamdisk>, Option<bool>) {
    let ramdisks = [("hostler", DeployRamdisk::Hostler), ("ironic", DeployRamdisk::Ironic)];
    let ramdisk = boot.key("ramdisk").or("hostler").choice(&ramdisks);
    let require_chap = boot.key("require_chap").or(true).flag();
    if ramdisk == Some(DeployRamdisk::Ironic) && require_chap == Some(true) {
        let message = "Ironic's ramdisk exports its disk to everybody who can reach it; if that is \
            meant, say require_chap = false";
        boot.refuse("ramdisk", message);
    }
    (ramdisk, require_chap)
}

fn root_device(hints: &mut Section<'_>) -> RootDeviceHints {
    let mut key = |key| hints.key(key).of_kind(ProblemKind::BadHint);
    RootDeviceHints {
        name: key("name").text(values::disk_name),
        serial: key("serial").text(values::hint),
        wwn: key("wwn").text(values::hint),
        model: key("model").text(values::hint),
        vendor: key("vendor").text(values::hint),
        hctl: key("hctl").text(values::hctl),
        size: key("size").of_kind(ProblemKind::BadSize).text(SizeHint::parse),
        rotational: key("rotational").flag(),
        by_path: key("by_path").text(values::by_path),
        multipath: key("multipath").choice(&[("first", Multipath::First)]),
    }
}

/// The content of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImageContent {
    Disk,
    Partition,
}

/// Reads the image, as a disk's for the time being, and its kind.
fn image(
    image: &mut Section<'_>,
    firmware: Option<Firmware>,
    ramdisk: DeployRamdisk,
    after: Option<After>,
) -> (Option<Image>, Option<ImageContent>) {
    let source = image.key("source").of_kind(ProblemKind::BadPath);
    let source = source.required("\"debian-13.qcow2\"").text(values::place);
    let checksum = image.key("checksum").of_kind(ProblemKind::BadChecksum);
    let checksum = checksum.required("\"sha256:<64 hex digits>\"").text(values::checksum);
    let formats =
        [("auto", ImageFormat::Auto), ("raw", ImageFormat::Raw), ("qcow2", ImageFormat::Qcow2)];
    let format = image.key("format").or("auto").choice(&formats);
    let kinds = [("disk", ImageContent::Disk), ("partition", ImageContent::Partition)];
    let kind = image.key("kind").or("disk").choice(&kinds);
    let verifies = [("full", Verify::Full), ("node", Verify::Node), ("none", Verify::None)];
    let verify = image.key("verify").or(Verify::default_word(ramdisk)).choice(&verifies);
    let netboot = netboot(image, after);
    if after == Some(After::Disk)
        && kind == Some(ImageContent::Partition)
        && firmware == Some(Firmware::Bios)
    {
        let message = "a BIOS needs boot code that one file system does not bring; use a \
            whole-disk image, or boot.after = \"network\"";
        image.refuse("kind", message);
    }
    let image = source.zip(checksum).zip(format.zip(verify)).map(
        |((source, checksum), (format, verify))| Image {
            source,
            checksum,
            format,
            kind: ImageKind::Disk,
            verify,
            netboot: netboot.map(Box::new),
        },
    );
    (image, kind)
}

/// The kernel and ramdisk that the installed machine boots over the network.
fn netboot(image: &mut Section<'_>, after: Option<After>) -> Option<Netboot> {
    let mut files = ["kernel", "ramdisk"].map(|key| image.key(key).of_kind(ProblemKind::BadPath));
    let mut rest = ["kernel_checksum", "ramdisk_checksum", "kernel_args"].map(|key| image.key(key));
    match after {
        Some(After::Network) => {
            let reason = "boot.after = \"network\"";
            let [kernel, ramdisk] = files;
            files = [
                kernel.required_because(reason, "\"debian-13/vmlinuz\""),
                ramdisk.required_because(reason, "\"debian-13/initrd.img\""),
            ];
        }
        Some(After::Disk) => {
            let why = "is of no use unless boot.after = \"network\"";
            files = files.map(|key| key.idle(why));
            rest = rest.map(|key| key.idle(why));
        }
        None => {}
    }
    let [kernel, ramdisk] = files.map(|key| key.text(values::path));
    let [kernel_checksum, ramdisk_checksum, kernel_args] = rest;
    let [kernel_checksum, ramdisk_checksum] = [kernel_checksum, ramdisk_checksum]
        .map(|key| key.of_kind(ProblemKind::BadChecksum).text(str::parse::<Digest>));
    let kernel_args = kernel_args.of_kind(ProblemKind::BadKernelArgument);
    let kernel_args = kernel_args.list(values::kernel_args()).unwrap_or_default();
    let files = kernel.zip(ramdisk).filter(|_| after == Some(After::Network));
    files.map(|(kernel, ramdisk)| Netboot {
        kernel,
        kernel_checksum,
        ramdisk,
        ramdisk_checksum,
        kernel_args,
    })
}

fn partitions(partitions: &mut Section<'_>) -> Option<Partitions> {
    let tables = [("gpt", PartitionTable::Gpt), ("msdos", PartitionTable::Msdos)];
    let table = partitions.key("table").or("gpt").choice(&tables);
    let mut size = |key| partitions.key(key).of_kind(ProblemKind::BadSize);
    let swap_bytes = size("swap").text(values::size);
    let ephemeral_bytes = size("ephemeral").text(values::size);
    let root = size("root").or("max").text(values::size_or_max);
    Some(Partitions { table: table?, swap_bytes, ephemeral_bytes, root_bytes: root? })
}

/// Refuses more partitions than an msdos table has: hostler makes no logical ones.
fn refuse_too_many_partitions(
    spec: &Section<'_>,
    image: &Image,
    firmware: Firmware,
    has_drive: bool,
) {
    let ImageKind::Partition(Partitions {
        table: PartitionTable::Msdos,
        swap_bytes,
        ephemeral_bytes,
        ..
    }) = image.kind
    else {
        return;
    };
    let parts = [
        ("ESP", firmware == Firmware::Uefi && image.netboot.is_none()),
        ("swap", swap_bytes.is_some()),
        ("ephemeral", ephemeral_bytes.is_some()),
        ("config drive", has_drive),
        ("root", true),
    ];
    let all: Vec<&str> =
        parts.iter().filter(|(_, is_there)| *is_there).map(|(part, _)| *part).collect();
    if all.len() > MSDOS_PARTITIONS_MAX {
        let message = format!(
            "an msdos table has {MSDOS_PARTITIONS_MAX} partitions at most, these are {}: {}; use \
             table = \"gpt\"",
            all.len(),
            all.join(", ")
        );
        spec.refuse("partitions", &message);
    }
}

/// Refuses the keys that Ironic's ramdisk lacks: it knows few hints and only exports its disk.
fn refuse_what_ironics_ramdisk_cannot(
    spec: &Section<'_>,
    bmc: Option<&Control>,
    hints: &RootDeviceHints,
    image: &Image,
) {
    if let Err(problem) = ironic::root_device(hints) {
        spec.refuse("root_device", &problem);
    }
    if image.verify == Verify::Node {
        spec.refuse(
            "image",
            "Ironic's ramdisk cannot verify its disk; leave verify = \"node\" out",
        );
    }
    if let Some(Control::Bmc(Bmc { match_system_uuid: true, .. })) = bmc {
        let problem =
            "Ironic's ramdisk does not say what machine it runs on; leave match_system_uuid out";
        spec.refuse("bmc", problem);
    }
}

fn config_drive(
    drive: &mut Section<'_>,
    attachment: Option<&ReadAttachment<'_>>,
) -> Option<ConfigDrive> {
    let labels = [("config-2", DriveLabel::Config2), ("cidata", DriveLabel::Cidata)];
    let label = drive.key("label").or("config-2").choice(&labels);
    let filesystems = [("vfat", DriveFilesystem::Vfat), ("iso9660", DriveFilesystem::Iso9660)];
    let filesystem = drive.key("filesystem").or("vfat").choice(&filesystems);
    let attach =
        |path: &str, check: &dyn Fn(&AttachedContent) -> Result<(), String>| -> Result<_, String> {
            let path = values::attachment_path(path)?;
            let Some(read) = attachment else { return Ok(None) };
            let content = read(&path)?;
            check(&content).map_err(|message| format!("`{path}` {message}"))?;
            Ok(Some(Attachment { path, content }))
        };
    let mut file = |key| drive.key(key).of_kind(ProblemKind::BadAttachment);
    let user_data = file("user_data_file").text(|path| attach(path, &|_| Ok(())));
    let network_config = file("network_config_file").text(|path| {
        attach(path, &|content| match label {
            Some(DriveLabel::Config2) => values::network_data(content.as_text()?),
            Some(DriveLabel::Cidata) | None => content.as_text().map(|_| ()),
        })
    });
    let vendor_data = file("vendor_data_file").text(|path| {
        attach(path, &|content| match label {
            // Vendor data become a part of a JSON file.
            Some(DriveLabel::Config2) => content.as_text().map(|_| ()),
            Some(DriveLabel::Cidata) | None => Ok(()),
        })
    });
    let meta_data = drive.key("meta_data").table(|meta_data| {
        meta_data.each(|key, field| {
            if values::META_DATA_TEXTS.contains(&key) {
                field.text(values::meta_data).map(MetaData::Text)
            } else {
                field.text_or_list(values::meta_data, MetaData::Text, MetaData::List)
            }
        })
    });
    Some(ConfigDrive {
        label: label?,
        filesystem: filesystem?,
        user_data: user_data.flatten(),
        network_config: network_config.flatten(),
        vendor_data: vendor_data.flatten(),
        meta_data,
    })
}

fn timeouts(timeouts: &mut Section<'_>, has_bmc: bool) -> Option<Timeouts> {
    let mut wait = |key, default: &str| {
        timeouts.key(key).of_kind(ProblemKind::BadDuration).or(default).text(duration)
    };
    let ramdisk = wait("ramdisk", "20m");
    let root_device = wait("root_device", "60s");
    let imaging_stall = wait("imaging_stall", "2m");
    let imaging = wait("imaging", "2h");
    let completed = wait("completed", "5m");
    // A week: an operator may have to travel.
    let power = wait("power", if has_bmc { "2m" } else { "168h" });
    let first_boot = wait("first_boot", "20m");
    Some(Timeouts {
        ramdisk: ramdisk?,
        root_device: root_device?,
        imaging_stall: imaging_stall?,
        imaging: imaging?,
        completed: completed?,
        power: power?,
        first_boot: first_boot?,
    })
}

fn retry(retry: &mut Section<'_>) -> Option<Retry> {
    let attempts = retry.key("attempts").or(3).integer(values::attempts);
    let backoff = retry.key("backoff").of_kind(ProblemKind::BadDuration).or("1m").text(duration);
    Some(Retry { attempts: attempts?, backoff: backoff? })
}
