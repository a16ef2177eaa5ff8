//! The keys of `[boot_check]`.
//!
//! Called by the schema, with the config drive, which may have the system's address. It must never
//! guess an address: a probe of a wrong one restarts the machine in vain.

use std::net::IpAddr;

use serde_json::Value;

use crate::model::{
    problem::ProblemKind,
    spec::{BootCheck, ConfigDrive, DriveLabel, SSH_PORT},
    toml_reader::Section,
};

use super::values;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    None,
    Call,
    Tcp,
}

/// Reads the table, which may be absent.
pub(super) fn read(check: &mut Section<'_>, drive: Option<&ConfigDrive>) -> Option<BootCheck> {
    let ways = [("none", By::None), ("call", By::Call), ("tcp", By::Tcp)];
    let by = check.key("by").or("none").choice(&ways);
    let (mut port, mut address) = (check.key("port").or(i64::from(SSH_PORT)), check.key("address"));
    if matches!(by, Some(By::None | By::Call)) {
        let why = "is of no use unless boot_check.by = \"tcp\"";
        (port, address) = (port.idle(why), address.idle(why));
    }
    let port = port.integer(values::port);
    let address = address.of_kind(ProblemKind::BadAddress).text(values::system_address);
    match by? {
        By::None => Some(BootCheck::None),
        By::Call => {
            if drive.is_none() {
                check.refuse(
                    "by",
                    "a system finds what it calls with on its config drive: write [config_drive], \
                     which may be empty, or by = \"tcp\"",
                );
            }
            Some(BootCheck::Call)
        }
        By::Tcp => {
            let network =
                drive.and_then(|drive| Some((drive.label, drive.network_config.as_ref()?)));
            let address = match (address, network) {
                (None, Some((DriveLabel::Cidata, _))) => {
                    check.refuse(
                        "by",
                        "hostler does not read cloud-init's network configuration: write \
                         boot_check.address, where the installed system answers",
                    );
                    None
                }
                (None, Some((DriveLabel::Config2, network))) => {
                    static_address(network.content.as_bytes()).map(|ip| ip.to_string())
                }
                (address, _) => address,
            };
            Some(BootCheck::Tcp { port: port?, address })
        }
    }
}

/// The first static address in `OpenStack`'s `network_data.json`, an IPv4 one if there is one.
fn static_address(network_data: &[u8]) -> Option<IpAddr> {
    let data: Value = serde_json::from_slice(network_data).ok()?;
    let networks = data.get("networks")?.as_array()?;
    let address = |network: &Value| -> Option<IpAddr> {
        let text = network.get("ip_address")?.as_str()?;
        text.split('/').next()?.parse().ok()
    };
    let addresses: Vec<IpAddr> = networks.iter().filter_map(address).collect();
    let is_v4 = |ip: &&IpAddr| ip.is_ipv4();
    addresses.iter().find(is_v4).or_else(|| addresses.first()).copied()
}
