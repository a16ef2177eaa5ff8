//! Parsers of single values. Each checks one string; its error says what would be right.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use crate::model::{
    problem::ProblemKind,
    size::parse_bytes,
    spec::{BmcAddress, Checksum, PROGRAM_SEPARATOR},
    toml_reader::Refused,
};

/// The RMCP port (IPMI 2.0 §13.1.1).
const RMCP_PORT: u16 = 623;
/// Longest IPMI user name, in bytes (IPMI 2.0 §22.28).
const USERNAME_BYTES_MAX: usize = 16;
/// Longest host name, in bytes (RFC 1035 §2.3.4, as text).
const HOST_BYTES_MAX: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;
/// Longest path, in bytes (Linux `PATH_MAX` less its NUL).
const PATH_BYTES_MAX: usize = 4095;
/// Longest free text, in bytes: hints and `redeploy` are copied into status files.
const TEXT_BYTES_MAX: usize = 256;
/// Most bytes of `kernel_args` in all: an x86 kernel accepts 2047, of which hostler's own words
/// need a part.
const KERNEL_ARGS_BYTES_MAX: usize = 1024;
/// Characters with a special meaning in GRUB or pxelinux (GRUB manual, "Quoting"; `#` begins a
/// comment).
const KERNEL_ARG_REFUSED: &str = "\"'\\`$;|&<>{}#";
const ATTEMPTS_MAX: u32 = 100;

/// Checks a free text, such as `redeploy`.
pub(super) fn label(text: &str) -> Result<String, String> {
    bounded(text, TEXT_BYTES_MAX)
}

/// Checks a text hint, which must not be empty, because an empty one never matches.
pub(super) fn hint(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("empty".to_owned()) } else { bounded(text, TEXT_BYTES_MAX) }
}

/// Checks a disk's kernel name.
pub(super) fn disk_name(text: &str) -> Result<String, String> {
    let name = hint(text)?;
    if name.strip_prefix("/dev/").unwrap_or(&name).contains('/') {
        let other = if name.starts_with("/dev/disk/by-path/") {
            "; write it as by_path"
        } else if name.starts_with("/dev/disk/by-id/") {
            "; write it as wwn if it begins with wwn- or nvme-eui., else as serial"
        } else {
            ""
        };
        Err(format!("`{text}` is not a kernel name such as sda or /dev/nvme0n1{other}"))
    } else {
        Ok(name)
    }
}

/// Checks a name in `/dev/disk/by-path`.
pub(super) fn by_path(text: &str) -> Result<String, String> {
    let path = hint(text)?;
    let bare = path.strip_prefix("/dev/disk/by-path/").unwrap_or(&path);
    let is_part = bare
        .rsplit_once("-part")
        .is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if is_part {
        Err(format!("`{text}` is a partition; leave -part and its number out"))
    } else if bare.contains('/') || !bare.contains('-') {
        Err(format!("`{text}` is not a path such as pci-0000:00:17.0-ata-1"))
    } else {
        Ok(path)
    }
}

/// Checks a SCSI host:channel:target:lun.
pub(super) fn hctl(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() == 4 && parts.iter().all(|part| part.parse::<u64>().is_ok()) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not host:channel:target:lun, such as 0:0:1:0"))
    }
}

/// Makes the parser of one list of kernel arguments, which also counts their bytes.
pub(super) fn kernel_args() -> impl FnMut(&str) -> Result<String, String> {
    let mut total_bytes = 0;
    move |word| {
        total_bytes += word.len() + 1;
        let odd = |c: &char| !c.is_ascii_graphic() || KERNEL_ARG_REFUSED.contains(*c);
        if word.is_empty() {
            Err("empty".to_owned())
        } else if let Some(odd) = word.chars().find(odd) {
            Err(format!(
                "{odd:?} in a kernel argument; each must be one word of printable ASCII without \
                 any of {KERNEL_ARG_REFUSED}"
            ))
        } else if word.starts_with("hostler.") {
            Err(format!("`{word}`: arguments that start with hostler. are hostler's own"))
        } else if total_bytes > KERNEL_ARGS_BYTES_MAX {
            Err(format!("more than {KERNEL_ARGS_BYTES_MAX} bytes of kernel arguments"))
        } else {
            Ok(word.to_owned())
        }
    }
}

/// Parses a BMC's address; a URL is refused with the address in it.
pub(super) fn bmc_address(text: &str) -> Result<BmcAddress, Refused> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(host_and_port(text)?);
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    // The port of a URL is that of the BMC's web pages.
    let (host, _) = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
        _ => (authority, ""),
    };
    let message = format!("`{text}` is a URL; hostler speaks IPMI to the BMC, not {scheme}");
    let refused = |message: &str| Refused::new(ProblemKind::BadAddress, message);
    Err(match host_and_port(host) {
        Ok(_) => refused(&format!("{message}: write \"{host}\"")).fixed_by(format!("\"{host}\"")),
        Err(_) => refused(&message),
    })
}

/// Parses `host`, `host:port`, a bare IPv6 address, `[ipv6]` or `[ipv6]:port` into a canonical
/// address.
fn host_and_port(text: &str) -> Result<BmcAddress, String> {
    let wrong = || {
        format!(
            "`{text}` is not an address; write for example 192.0.2.20, bmc.example:623 or \
             [2001:db8::1]:623"
        )
    };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
        host.parse::<Ipv6Addr>().map_err(|_| wrong())?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
        }
    } else if text.parse::<IpAddr>().is_ok() {
        (text, None)
    } else {
        // A host with a colon in it is a malformed IPv6 address, which the check of host names
        // below refuses.
        text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
    };
    let host = self::host(host)?.ok_or_else(wrong)?;
    let port = match port {
        None => RMCP_PORT,
        Some(port) => port
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("`{port}` is not a port, 1 to 65535"))?,
    };
    Ok(BmcAddress::at(host, port))
}

/// Parses a host name or address into its canonical spelling; `None` if it is neither.
fn host(text: &str) -> Result<Option<String>, String> {
    match text.parse::<IpAddr>() {
        Ok(ip) if is_no_machines(ip.to_canonical()) => {
            Err(format!("{ip} is not one machine's address"))
        }
        // An IPv4 address has one spelling, also within IPv6 (RFC 4291 section 2.5.5.2).
        Ok(ip) => Ok(Some(ip.to_canonical().to_string())),
        Err(_) => Ok(is_host_name(text).then(|| text.to_ascii_lowercase())),
    }
}

/// Checks the address of an installed system, without a port.
pub(super) fn system_address(text: &str) -> Result<String, String> {
    let wrong =
        || format!("`{text}` is no host name and no IP address; the port is boot_check.port");
    host(text)?.ok_or_else(wrong)
}

/// Checks a TCP port.
pub(super) fn port(number: i64) -> Result<u16, String> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("{number} is not a port, 1 to 65535"))
}

fn is_no_machines(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip.is_multicast()
}

/// Whether a text is a host name (RFC 1123 §2.1). A numeric last label is refused, so that a
/// mistyped IPv4 address is no host name.
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= HOST_BYTES_MAX
        && text.split('.').all(is_label)
        && !last.bytes().all(|b| b.is_ascii_digit())
}

/// Checks an IPMI user name.
pub(super) fn username(text: &str) -> Result<String, String> {
    bounded(text, USERNAME_BYTES_MAX)
}

/// Checks a plain path in the secrets directory.
pub(super) fn password_file(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Err(format!("`{text}` is absolute, must be relative to the secrets directory"))
    } else {
        path(text)
    }
}

/// Checks a plain path in the spec directory that is not a spec's or a status file's.
pub(super) fn attachment_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Err(format!("`{text}` is absolute, must be relative to the spec directory"))
    } else if Path::new(text).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("toml"))
    {
        Err(format!("`{text}` has the name of a spec; give it another ending than .toml"))
    } else {
        path(text)
    }
}

/// Checks a `network_data.json`, the only network configuration of a `config-2` drive.
pub(super) fn network_data(content: &str) -> Result<(), String> {
    const WANTED: &str = "label = \"config-2\" takes OpenStack's network_data.json; cloud-init's \
        own format needs label = \"cidata\"";
    let json: serde_json::Value = serde_json::from_str(content)
        .map_err(|error| format!("is not JSON ({error}): {WANTED}"))?;
    let missing = ["links", "networks"]
        .into_iter()
        .find(|list| !json.get(list).is_some_and(serde_json::Value::is_array));
    match missing {
        Some(list) => Err(format!("has no list `{list}`: {WANTED}")),
        None => Ok(()),
    }
}

/// Metadata keys whose value must be one text.
pub(super) const META_DATA_TEXTS: [&str; 5] =
    ["hostname", "name", "uuid", "local-hostname", "instance-id"];

/// Checks a metadata value. Characters that YAML cannot hold reach no data source.
pub(super) fn meta_data(text: &str) -> Result<String, String> {
    let is_lost = |c: &char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    match text.chars().find(is_lost) {
        Some(lost) => Err(format!("{lost:?} is not allowed")),
        None => Ok(text.to_owned()),
    }
}

/// Checks the path of a program that controls a BMC: without `#`, which ends the path in the BMC's
/// address.
pub(super) fn program(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        Err(format!("`{text}` is not absolute; write for example /etc/hostler/pdu"))
    } else if text.contains(PROGRAM_SEPARATOR) {
        Err(format!("{PROGRAM_SEPARATOR:?} is not allowed"))
    } else {
        path(text)
    }
}

/// Checks the name of a systemd credential (systemd.exec, `LoadCredential=`).
pub(super) fn credential(text: &str) -> Result<String, String> {
    if text.contains('/') || text == "." || text == ".." {
        Err(format!("`{text}` is not a credential's name"))
    } else {
        hint(text)
    }
}

/// Checks an absolute or relative path without `..`.
pub(super) fn path(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("empty".to_owned());
    }
    let relative = text.strip_prefix('/').unwrap_or(text);
    if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("`{text}` is not a plain path: no `..`, `.`, `//` or `/` at the end"));
    }
    bounded(text, PATH_BYTES_MAX)
}

/// Checks a path or a URL.
pub(super) fn place(text: &str) -> Result<String, String> {
    if is_url(text)? { bounded(text, PATH_BYTES_MAX) } else { path(text) }
}

/// Parses a digest, or the place of a list of digests.
pub(super) fn checksum(text: &str) -> Result<Checksum, String> {
    let checksum: Checksum = text.parse()?;
    if let Checksum::Listed(place) = &checksum {
        self::place(place)?;
    }
    Ok(checksum)
}

/// Whether a text is an HTTP URL or a path. Any other URL is an error.
fn is_url(text: &str) -> Result<bool, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(false);
    };
    if !matches!(scheme, "http" | "https") {
        return Err(format!("`{scheme}` is not a known scheme; use a path, http or https"));
    }
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!("`{text}` is not a URL"));
    }
    if host.contains('@') {
        return Err(
            "a URL with a user name or password in it would be shown in status files".to_owned()
        );
    }
    Ok(true)
}

/// Parses a size into bytes, more than 0.
pub(super) fn size(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err("must be more than 0".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Parses a size, or `max` into `None`.
pub(super) fn size_or_max(text: &str) -> Result<Option<u64>, String> {
    if text == "max" { Ok(None) } else { size(text).map(Some) }
}

/// Checks the number of attempts.
pub(super) fn attempts(number: i64) -> Result<u32, String> {
    u32::try_from(number)
        .ok()
        .filter(|number| (1..=ATTEMPTS_MAX).contains(number))
        .ok_or_else(|| format!("{number} is out of range, 1 to {ATTEMPTS_MAX} is allowed"))
}

fn bounded(text: &str, bytes_max: usize) -> Result<String, String> {
    if let Some(control) = text.chars().find(|c| c.is_control()) {
        Err(format!("{control:?} is not allowed"))
    } else if text.len() > bytes_max {
        Err(format!("{} bytes, at most {bytes_max} are allowed", text.len()))
    } else {
        Ok(text.to_owned())
    }
}
