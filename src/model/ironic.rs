//! The kernel command line of the deploy ramdisk of `OpenStack` Ironic's first years (`boot.ramdisk
//! = "ironic"`).
//!
//! Called by the spec reader, which refuses hints that this ramdisk cannot follow, and by the
//! agent, which writes the command line. Source: diskimage-builder 1.28,
//! `ramdisk-base/init.d/20-init-variables`, and `70-ironic-root-device` and `80-deploy-ironic` in
//! `deploy-ironic/init.d`. A hint must never become a word by which the ramdisk chooses another
//! disk than hostler itself would.

use std::{fmt::Write as _, net::SocketAddr};

use super::{
    boot::Firmware,
    disk::{Comparison, RootDeviceHints, SizeHint},
    ids::NodeName,
    secret::{AttemptKey, Secret},
};

/// The unit of sizes on the command line.
const GIB: u64 = 1 << 30;

/// The parameters of Ironic's ramdisk. It makes no request before it exports a disk, so that it
/// gets everything here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IronicArgs {
    /// The endpoint for its calls, in plain HTTP.
    pub api: SocketAddr,
    /// The node's name, as its `deployment_id`.
    pub node: NodeName,
    /// The attempt's key.
    pub key: AttemptKey,
    /// The iSCSI name of its target.
    pub iqn: String,
    /// The machine's firmware.
    pub firmware: Firmware,
    /// The word of [`root_device`], which chooses the disk.
    pub root_device: String,
}

impl IronicArgs {
    /// Formats the parameters as words of the kernel command line; the ramdisk reads the first of
    /// each name. `boot_server` is for boot loaders that cannot pass on their addresses.
    pub fn to_command_line(&self) -> Secret {
        let Self { api, node, key, iqn, firmware, root_device } = self;
        Secret::new(format!(
            "deployment_id={node} deployment_key={} iscsi_target_iqn={iqn} \
             ironic_api_url=http://{api} boot_server={} {root_device} boot_option=netboot \
             boot_mode={firmware} troubleshoot=0 selinux=0",
            key.expose(),
            api.ip()
        ))
    }
}

/// Translates hints into the word by which Ironic's ramdisk chooses the same disk. The error names
/// a hint that the ramdisk does not know.
pub fn root_device(hints: &RootDeviceHints) -> Result<String, String> {
    let RootDeviceHints {
        name,
        serial,
        wwn,
        model,
        vendor,
        hctl,
        size,
        rotational,
        by_path,
        multipath,
    } = hints;
    let unknown = [
        ("hctl", hctl.is_some()),
        ("rotational", rotational.is_some()),
        ("by_path", by_path.is_some()),
        ("multipath", multipath.is_some()),
    ];
    if let Some((hint, _)) = unknown.iter().find(|(_, given)| *given) {
        return Err(format!("Ironic's ramdisk does not know the hint {hint}"));
    }
    let size = size.map(whole_gib).transpose()?;
    let wwn = wwn.as_ref().map(|wwn| with_prefix(wwn));
    let hints: Vec<String> = [
        ("size", size.as_ref()),
        ("model", model.as_ref()),
        ("vendor", vendor.as_ref()),
        ("wwn", wwn.as_ref()),
        ("serial", serial.as_ref()),
    ]
    .into_iter()
    .filter_map(|(hint, value)| Some(format!("{hint}={}", encode(value?))))
    .collect();
    match name {
        None if hints.is_empty() => Err(
            "Ironic's ramdisk takes the first disk that fits, without saying which there are; give \
             a hint, such as name = \"sda\"".to_owned(),
        ),
        None => Ok(format!("root_device={}", hints.join(","))),
        Some(_) if !hints.is_empty() => {
            Err("Ironic's ramdisk follows the hint name only without others".to_owned())
        }
        Some(name) => disk(name),
    }
}

/// Translates a disk's name. The ramdisk knows these kinds of disks only, and cuts off a
/// partition's number (`whole_disk_name` in `init-func`).
fn disk(name: &str) -> Result<String, String> {
    let bare = name.strip_prefix("/dev/").unwrap_or(name);
    let letters = ["sd", "hd", "vd", "xvd"].iter().find_map(|kind| bare.strip_prefix(kind));
    match letters {
        Some(letters) if !letters.is_empty() && letters.bytes().all(|b| b.is_ascii_lowercase()) => {
            Ok(format!("disk={bare}"))
        }
        _ => Err(format!(
            "Ironic's ramdisk does not know a disk called {name}, only sda, hda, vda, xvda and the \
             like"
        )),
    }
}

/// Translates an exact size. The ramdisk rounds sizes down to GiB and knows no comparison; hostler
/// later checks the target's size to the byte.
fn whole_gib(size: SizeHint) -> Result<String, String> {
    match size.comparison {
        Comparison::Equal => Ok((size.bytes / GIB).to_string()),
        _ => Err("Ironic's ramdisk compares no sizes; give the exact one, such as size = \"== \
            500107862016\""
            .to_owned()),
    }
}

/// Adds the prefix of a WWN: the ramdisk compares with the output of `lsblk`, which has one.
fn with_prefix(wwn: &str) -> String {
    let wwn = wwn.to_ascii_lowercase();
    let is_whole = ["0x", "eui.", "nvme."].iter().any(|prefix| wwn.starts_with(prefix));
    if is_whole { wwn } else { format!("0x{}", wwn.strip_prefix("naa.").unwrap_or(&wwn)) }
}

/// Encodes a value in lower case and as in a URL, as the ramdisk compares it.
fn encode(value: &str) -> String {
    value.trim().to_ascii_lowercase().bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            write!(encoded, "%{byte:02x}").unwrap_or_default();
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::disk::Multipath;

    fn hints(text: &str) -> RootDeviceHints {
        let mut hints = RootDeviceHints::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(" = ")) {
            let text = Some(value.to_owned());
            match key {
                "name" => hints.name = text,
                "serial" => hints.serial = text,
                "wwn" => hints.wwn = text,
                "model" => hints.model = text,
                "vendor" => hints.vendor = text,
                "hctl" => hints.hctl = text,
                "size" => hints.size = Some(SizeHint::parse(value).unwrap()),
                "by_path" => hints.by_path = text,
                "multipath" => hints.multipath = Some(Multipath::First),
                "rotational" => hints.rotational = Some(value == "true"),
                _ => panic!("{key}"),
            }
        }
        hints
    }

    #[test]
    fn ironics_ramdisk_is_told_everything_in_its_own_words() {
        let args = IronicArgs {
            api: "192.0.2.1:6385".parse().unwrap(),
            node: "edge-07".parse().unwrap(),
            key: AttemptKey::from_bytes(&[0x1f; 32]),
            iqn: "iqn.2026-11.hostler:edge-07".to_owned(),
            firmware: Firmware::Bios,
            root_device: "disk=vda".to_owned(),
        };
        let key = "1f".repeat(32);
        assert_eq!(
            args.to_command_line().expose(),
            format!(
                "deployment_id=edge-07 deployment_key={key} \
                 iscsi_target_iqn=iqn.2026-11.hostler:edge-07 ironic_api_url=http://192.0.2.1:6385 \
                 boot_server=192.0.2.1 disk=vda boot_option=netboot boot_mode=bios troubleshoot=0 \
                 selinux=0"
            )
        );
    }

    #[test]
    fn hints_become_words_that_mean_the_same_to_ironics_ramdisk() {
        for (given, word) in [
            ("name = vda", "disk=vda"),
            ("name = /dev/sdb", "disk=sdb"),
            ("name = xvdaa", "disk=xvdaa"),
            ("serial = Root 1/A", "root_device=serial=root%201%2fa"),
            ("model = ST 50+%\nvendor = Ünix", "root_device=model=st%2050%2b%25,vendor=%c3%9cnix"),
            ("size = == 500107862016", "root_device=size=465"),
            ("size = s== 1GiB\nserial = a,b", "root_device=size=1,serial=a%2cb"),
            ("wwn = 0x5000C500AB", "root_device=wwn=0x5000c500ab"),
            ("wwn = naa.5000c500ab", "root_device=wwn=0x5000c500ab"),
            ("wwn = 5000c500ab", "root_device=wwn=0x5000c500ab"),
            ("wwn = eui.0025385b71", "root_device=wwn=eui.0025385b71"),
        ] {
            assert_eq!(root_device(&hints(given)).as_deref(), Ok(word), "{given}");
        }
    }

    #[test]
    fn hints_that_ironics_ramdisk_would_misunderstand_are_refused_by_name() {
        for (given, reported) in [
            ("", "give a hint"),
            ("hctl = 0:0:1:0\nserial = a", "hctl"),
            ("rotational = true", "rotational"),
            ("by_path = pci-0000:00:04.0", "by_path"),
            ("serial = a\nmultipath = first", "multipath"),
            ("size = 480GB", "size = \"== "),
            ("size = >= 100GiB", "compares no sizes"),
            ("name = vda\nserial = a", "name only without others"),
            ("name = nvme0n1", "nvme0n1"),
            ("name = sda1", "sda1"),
            ("name = sd", "sd"),
        ] {
            let problem = root_device(&hints(given)).unwrap_err();
            assert!(problem.contains(reported), "{given}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn any_hint_stays_one_word_that_every_boot_loader_takes(
            serial in "\\PC{1,40}", model in ".{1,40}",
        ) {
            let (serial, model) = (Some(serial), Some(model));
            let hints = RootDeviceHints { serial, model, ..RootDeviceHints::default() };
            let word = root_device(&hints).unwrap();
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._%=,".contains(&byte);
            prop_assert!(word.bytes().all(is_plain), "{}", word);
            prop_assert_eq!(word.matches(',').count(), 1);
        }
    }
}
