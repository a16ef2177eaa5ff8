//! Every key a spec may have, with its default: the whole format in one place.
//!
//! A key that is good but not acted on yet is `later`, or a choice without a value: it is refused, never ignored.

use std::collections::BTreeSet;

use crate::model::{
    boot::Firmware,
    disk::{RootDeviceHints, SizeHint},
    ids::{MacAddr, NodeName},
    spec::{
        Bmc, Boot, CipherSuite, Goal, Image, ImageFormat, NodeSpec, Privilege, Retry, Timeouts,
        WantedPower,
    },
    toml_reader::{Section, duration},
};

use super::values;

/// The whole file. `None` only with a problem, or without a name.
pub(super) fn node(spec: &mut Section<'_>, name: Option<NodeName>) -> Option<NodeSpec> {
    let goals = [
        ("deployed", Some(Goal::Deployed)),
        ("available", Some(Goal::Available)),
        ("unmanaged", Some(Goal::Unmanaged)),
    ];
    let powers = [
        ("on", Some(WantedPower::On)),
        ("off", Some(WantedPower::Off)),
        ("ignore", Some(WantedPower::Ignore)),
    ];
    let goal = spec.key("state").or("deployed").choice(&goals);
    let power = spec.key("power").or("on").choice(&powers);
    let paused = spec.key("paused").or(false).flag();
    let redeploy = spec.key("redeploy").text(values::label);
    let boot = spec.key("boot").table(boot);
    let bmc = spec.key("bmc").table(bmc);
    let root_device = spec.key("root_device").table(root_device);
    let image = spec.key("image").table(image);
    spec.key("partitions").later().table(partitions);
    spec.key("config_drive").later().table(config_drive);
    let timeouts = spec.key("timeouts").table(timeouts);
    let retry = spec.key("retry").table(retry);
    Some(NodeSpec {
        name: name?,
        goal: goal?,
        power: power?,
        paused: paused?,
        redeploy,
        boot: boot?,
        bmc: bmc?,
        root_device,
        image: image?,
        timeouts: timeouts?,
        retry: retry?,
    })
}

fn boot(boot: &mut Section<'_>) -> Option<Boot> {
    let mut seen = BTreeSet::new();
    let macs = boot.key("mac").required().one_or_list(|text| {
        let mac: MacAddr = text.parse()?;
        if seen.insert(mac) { Ok(mac) } else { Err(format!("{mac} is there twice")) }
    });
    let firmware = boot
        .key("firmware")
        .or("uefi")
        .choice(&[("uefi", Some(Firmware::Uefi)), ("bios", Some(Firmware::Bios))]);
    boot.key("arch").or("x86_64").choice(&[("x86_64", Some(())), ("aarch64", None)]);
    boot.key("after").or("disk").choice(&[("disk", Some(())), ("network", None)]);
    let kernel_args = boot.key("kernel_args").list(values::kernel_args()).unwrap_or_default();
    Some(Boot { macs: macs?, firmware: firmware?, kernel_args })
}

fn bmc(bmc: &mut Section<'_>) -> Option<Bmc> {
    let drivers = [("ipmi", Some(())), ("ipmitool", None), ("none", None)];
    if bmc.key("driver").or("ipmi").choice(&drivers).is_none() && bmc.has("driver") {
        bmc.excuse_missing();
    }
    let address = bmc.key("address").required().text(values::bmc_address);
    let username = bmc.key("username").or("").text(values::username);
    let mut password_file = bmc.key("password_file");
    // A credential stands in for the file, so that only the credential is refused and no file is missed.
    if !bmc.has("password_credential") {
        password_file = password_file.required();
    }
    let password_file = password_file.text(values::password_file);
    bmc.key("password_credential").later().text(values::credential);
    let privileges = [
        ("administrator", Some(Privilege::Administrator)),
        ("operator", Some(Privilege::Operator)),
    ];
    let privilege = bmc.key("privilege").or("administrator").choice(&privileges);
    let cipher_suite = bmc.key("cipher_suite").integer(|id| {
        u8::try_from(id)
            .map_err(|_| format!("cipher suite {id} does not exist"))
            .and_then(CipherSuite::try_from)
    });
    Some(Bmc {
        address: address?,
        username: username?,
        password_file: password_file?,
        privilege: privilege?,
        cipher_suite,
    })
}

fn root_device(hints: &mut Section<'_>) -> RootDeviceHints {
    RootDeviceHints {
        name: hints.key("name").text(values::disk_name),
        serial: hints.key("serial").text(values::hint),
        wwn: hints.key("wwn").text(values::hint),
        model: hints.key("model").text(values::hint),
        vendor: hints.key("vendor").text(values::hint),
        hctl: hints.key("hctl").text(values::hctl),
        size: hints.key("size").text(SizeHint::parse),
        rotational: hints.key("rotational").flag(),
    }
}

fn image(image: &mut Section<'_>) -> Option<Image> {
    let source = image.key("source").required().text(values::image_source);
    let checksum = image.key("checksum").required().text(values::checksum);
    let formats =
        [("auto", Some(ImageFormat::Auto)), ("raw", Some(ImageFormat::Raw)), ("qcow2", None)];
    let format = image.key("format").or("auto").choice(&formats);
    image.key("kind").or("disk").choice(&[("disk", Some(())), ("partition", None)]);
    image.key("kernel").later().text(values::path);
    image.key("ramdisk").later().text(values::path);
    image.key("kernel_args").later().list(values::kernel_args());
    Some(Image { source: source?, checksum: checksum?, format: format? })
}

fn partitions(partitions: &mut Section<'_>) {
    partitions.key("table").choice(&[("gpt", Some(())), ("msdos", Some(()))]);
    partitions.key("swap").text(values::size);
    partitions.key("ephemeral").text(values::size);
    partitions.key("root").text(values::size_or_max);
}

fn config_drive(drive: &mut Section<'_>) {
    drive.key("user_data_file").text(values::path);
    drive.key("network_config_file").text(values::path);
    drive.key("meta_data").table(meta_data);
}

/// The keys are the administrator's own.
fn meta_data(meta_data: &mut Section<'_>) {
    meta_data.any_strings();
}

fn timeouts(timeouts: &mut Section<'_>) -> Option<Timeouts> {
    let mut wait = |key, default: &str| timeouts.key(key).or(default).text(duration);
    let ramdisk = wait("ramdisk", "20m");
    let imaging_stall = wait("imaging_stall", "2m");
    let imaging = wait("imaging", "2h");
    let completed = wait("completed", "5m");
    let power = wait("power", "2m");
    Some(Timeouts {
        ramdisk: ramdisk?,
        imaging_stall: imaging_stall?,
        imaging: imaging?,
        completed: completed?,
        power: power?,
    })
}

fn retry(retry: &mut Section<'_>) -> Option<Retry> {
    let attempts = retry.key("attempts").or(3).integer(values::attempts);
    let backoff = retry.key("backoff").or("1m").text(duration);
    Some(Retry { attempts: attempts?, backoff: backoff? })
}
