//! The agent's own configuration, `/etc/hostler/hostler.toml`.
//!
//! Called once, at start. `network.advertise`, `specs.dir` and `[ramdisk]` are required; the rest
//! has defaults. Every problem is reported with its place. This module must never guess past a
//! mistake: an agent that runs on half a configuration may serve the wrong network.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use jiff::SignedDuration;
use serde::{Serialize, Serializer};

use crate::{
    model::{
        problem::{Problem, ProblemKind},
        size::parse_bytes,
        toml_reader::{
            Declared, Document, Extent, FILE_BYTES_MAX, Section, declared, duration,
            read as read_layers,
        },
    },
    regular_file,
};

mod keys;
#[cfg(test)]
mod tests;

/// The configuration file, unless `--config` names another.
pub const DEFAULT_PATH: &str = "/etc/hostler/hostler.toml";

const STATE_DIR: &str = "/var/lib/hostler";
const SECRETS_DIR: &str = "/etc/hostler/secrets";
/// The directory of boot loaders, unless `tftp.loaders` names another.
pub const LOADERS_DIR: &str = "/usr/share/hostler/loaders";
const ADMIN_SOCKET: &str = "/run/hostler/admin.sock";
/// Four writes fill most links, and a fifth would only make each slower.
const IMAGING_MAX: usize = 4;
/// Slower than any disk that works: 4 GiB would take more than an hour.
const IMAGING_RATE_MIN_BYTES: u64 = 1 << 20;
/// Enough for a whole site of thirty at once, some of which never come up.
const WAITING_MAX: usize = 50;
/// Some ten images of a usual server system, unpacked.
const CACHE_BYTES: u64 = 20 << 30;
/// Far more than any image of a system without data.
const PUBLISHED_BYTES_MAX: u64 = 64 << 30;
/// As large as the disks that systems are installed on.
const RAW_BYTES_MAX: u64 = 1 << 40;
/// Some BMCs crash when they are asked more often.
const BMC_SPACING: Duration = Duration::from_secs(1);
const RESCAN: Duration = Duration::from_secs(60);
const TFTP_PORT: u16 = 69;
/// The range of `tftp.block_max`, in bytes: from the block size that needs no negotiation (RFC
/// 1350) to more than firmware requests.
const TFTP_BLOCK_BYTES: RangeInclusive<u64> = 512..=8192;
/// The default port of the HTTP boot server: other programs often have 80 and 8080.
const HTTP_PORT: u16 = 8069;
const CALLBACK_PORT: u16 = 8443;
/// The default port for Ironic's ramdisk, which is that of Ironic's API.
const IRONIC_PORT: u16 = 6385;
/// Longest path, in bytes (Linux `PATH_MAX` less its NUL).
const PATH_BYTES_MAX: usize = 4095;

/// The checked configuration. Every path in it is absolute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// The table `[specs]`.
    pub specs: Specs,
    /// The table `[state]`.
    pub state: State,
    /// The table `[images]`.
    pub images: Images,
    /// The table `[secrets]`.
    pub secrets: Secrets,
    /// The table `[network]`.
    pub network: Network,
    /// The table `[tftp]`.
    pub tftp: Tftp,
    /// The table `[http]`.
    pub http: Http,
    /// The table `[callback]`.
    pub callback: Callback,
    /// `[ironic]`: without it, Ironic's ramdisk installs no machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ironic: Option<Ironic>,
    /// The table `[admin]`.
    pub admin: Admin,
    /// The table `[ramdisk]`.
    pub ramdisk: Ramdisk,
    /// The table `[limits]`.
    pub limits: Limits,
    /// The table `[safety]`.
    pub safety: Safety,
    /// `[defaults]`: defaults for any key of a spec, below `_defaults.toml`. The spec reader checks
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Document>,
}

/// `[specs]`: the directories of specs and status files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Specs {
    /// The directory of specs, which may be missing for a while.
    pub dir: PathBuf,
    /// The directory of status files; `None`: beside the specs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_dir: Option<PathBuf>,
    /// The period of rescans without a file system event, one second to seven days.
    #[serde(serialize_with = "friendly")]
    pub rescan: Duration,
}

/// `[state]`: the agent's durable state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// The state directory.
    pub dir: PathBuf,
}

/// `[images]`: the sources, cache and size limits of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Images {
    /// The directory that a relative `image.source` is relative to.
    pub dir: PathBuf,
    /// The directories, besides `dir`, in which an absolute `image.source` may lie.
    pub allowed_dirs: Vec<PathBuf>,
    /// The cache of unpacked images, which only hostler's user may read.
    pub cache_dir: PathBuf,
    /// The cache's size limit, in bytes. The image used longest ago is removed first; images in use
    /// stay, even beyond the limit.
    #[serde(serialize_with = "size")]
    pub cache_size: u64,
    /// The largest published image file, in bytes, at least 1.
    #[serde(serialize_with = "size")]
    pub published_max: u64,
    /// The largest unpacked image, in bytes with holes, at least 1. A few compressed bytes can
    /// unpack to any size.
    #[serde(serialize_with = "size")]
    pub raw_max: u64,
}

/// `[secrets]`: the files with BMC passwords.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Secrets {
    /// The directory that a relative `bmc.password_file` is relative to.
    pub dir: PathBuf,
}

/// `[network]`: the agent's address on the deploy network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    /// The address at which the machines reach this agent.
    pub advertise: IpAddr,
}

/// `[tftp]`: the TFTP server of boot files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tftp {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The directory with the boot loaders.
    pub loaders: PathBuf,
    /// The largest block size, in bytes, 512 to 8192.
    #[serde(serialize_with = "size")]
    pub block_max: u64,
}

/// `[http]`: the HTTP server of boot files, for iPXE: unencrypted, as TFTP is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Http {
    /// The address to listen on; menus name `network.advertise` with this port.
    pub listen: SocketAddr,
}

/// `[ironic]`: support for the deploy ramdisk of `OpenStack` Ironic's first years.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ironic {
    /// The address to listen on for its calls, in plain HTTP; the ramdisk calls `network.advertise`
    /// with this port.
    pub listen: SocketAddr,
    /// The kernel of Ironic's ramdisk.
    pub kernel: PathBuf,
    /// Ironic's ramdisk.
    pub initramfs: PathBuf,
}

/// `[callback]`: the HTTPS server that deploy ramdisks call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Callback {
    /// The address to listen on; deploy ramdisks call `network.advertise` with this port.
    pub listen: SocketAddr,
}

/// `[admin]`: the admin socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Admin {
    /// The Unix socket on which operators give orders.
    pub socket: PathBuf,
}

/// `[ramdisk]`: hostler's deploy kernel and ramdisk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ramdisk {
    /// The deploy kernel.
    pub kernel: PathBuf,
    /// The deploy ramdisk.
    pub initramfs: PathBuf,
    /// `[ramdisk.aarch64]`: without it, no aarch64 machine is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aarch64: Option<BootFiles>,
}

/// A deploy kernel and its ramdisk for one processor architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootFiles {
    /// The deploy kernel.
    pub kernel: PathBuf,
    /// The deploy ramdisk.
    pub initramfs: PathBuf,
}

/// `[limits]`: how much work may run at once; more of it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// The most disks written at once, at least 1.
    pub imaging: usize,
    /// The most machines brought up for imaging at once, at least 1.
    pub waiting: usize,
    /// The least rate, in bytes a second averaged over a minute, of a disk that limits its
    /// transfer; 0 allows any.
    #[serde(serialize_with = "size")]
    pub imaging_rate_min: u64,
    /// The least pause between two calls to one BMC.
    #[serde(serialize_with = "friendly")]
    pub bmc_spacing: Duration,
}

/// `[safety]`: the breaker and power enforcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Safety {
    /// Whether many reinstalls at once need an operator's consent.
    pub breaker: bool,
    /// Whether hostler corrects a machine's power when it differs from the spec.
    pub enforce_power: bool,
}

/// The reason why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {path}: {source}{}", way_out(source))]
    Unreadable { path: PathBuf, source: io::Error },
    /// The file has these problems, shown one a line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// The advice for a missing file.
fn way_out(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound {
        "; the agent's configuration has to say at least network.advertise, specs.dir and \
         [ramdisk], as examples/hostler.toml does; --config names another file"
    } else {
        ""
    }
}

/// Reads and checks the configuration at `path`.
pub fn read(path: &Path) -> Result<Config, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let bytes = regular_file::open(path)
        .and_then(|file| regular_file::read_start(file, FILE_BYTES_MAX as u64 + 1))
        .map_err(unreadable)?;
    parse(&path.to_string_lossy(), &bytes).map_err(ConfigError::Invalid)
}

/// Checks a file's content. `file` is the name for problems. The error has every problem.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Config, Vec<Problem>> {
    let document = Document::parse(file, bytes)?;
    let (config, problems) = read_layers(&document, &[], Extent::Whole, config);
    config.filter(|_| problems.is_empty()).ok_or(problems)
}

/// Every key of the configuration, in the order of the reader. A default is there if it depends on
/// no other key.
pub fn keys() -> Vec<Declared> {
    let mut keys = declared(&Document::empty(), config, keys::KEYS);
    let [one, other] = [("192.0.2.1", "/a"), ("192.0.2.2", "/b")].map(smallest);
    for key in &mut keys {
        let value =
            value_of(&one, &key.key).filter(|value| value_of(&other, &key.key) == Some(value));
        let value = value.filter(|_| !key.is_required).map(ToString::to_string);
        key.default = key.default.take().or(value);
    }
    keys
}

/// The effective configuration with little more than the required keys.
fn smallest((advertise, state_dir): (&str, &str)) -> toml::Table {
    let text = format!(
        "network.advertise = \"{advertise}\"\nspecs.dir = \"/s\"\n\
         state.dir = \"{state_dir}\"\n\
         ramdisk = {{ kernel = \"/k\", initramfs = \"/r\" }}"
    );
    let config = parse("", text.as_bytes()).ok();
    config.and_then(|config| config.to_toml().parse().ok()).unwrap_or_default()
}

/// A value that is no table, by its dotted key.
fn value_of<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    let (first, rest) = key.split_once('.').unwrap_or((key, ""));
    match table.get(first)? {
        toml::Value::Table(inner) => value_of(inner, rest),
        value => Some(value),
    }
}

impl Config {
    /// Renders the effective configuration as a file that reads back the same.
    pub fn to_toml(&self) -> String {
        // Cannot fail: every value has a TOML form.
        toml::to_string_pretty(self).unwrap_or_default()
    }
}

fn config(config: &mut Section<'_>) -> Option<Config> {
    let specs = config.key("specs").table(specs);
    let outside = |text: &str| outside(specs.as_ref(), text);
    let state_dir = config.key("state").table(|state| state.key("dir").or(STATE_DIR).text(outside));
    let state = State { dir: state_dir.unwrap_or_else(|| STATE_DIR.into()) };
    let images = config.key("images").table(|table| images(table, &state, outside));
    let secrets_dir = config.key("secrets").table(|secrets| secrets.key("dir").text(absolute));
    let advertise = config.key("network").table(|network| {
        let address = network.key("advertise").of_kind(ProblemKind::BadAddress);
        address.required("\"192.0.2.1\"").text(advertised)
    });
    let tftp = config.key("tftp").table(|table| tftp(table, advertise));
    let http_listen = config.key("http").table(|table| table.key("listen").text(socket));
    let callback_listen = config.key("callback").table(|table| table.key("listen").text(socket));
    let ramdisk = config.key("ramdisk").table(ramdisk);
    let ironic = config.key("ironic").table_if_there(ironic_ramdisk);
    let admin_socket = config.key("admin").table(|admin| admin.key("socket").text(absolute));
    let limits = config.key("limits").table(limits);
    let safety = config.key("safety").table(safety);
    let defaults = config.key("defaults").document();
    let advertise = advertise?;
    Some(Config {
        specs: specs?,
        state,
        images,
        secrets: Secrets { dir: secrets_dir.unwrap_or_else(|| SECRETS_DIR.into()) },
        network: Network { advertise },
        tftp: tftp?,
        http: Http { listen: http_listen.unwrap_or(SocketAddr::new(advertise, HTTP_PORT)) },
        ironic: match ironic {
            None => None,
            Some((listen, files)) => {
                let BootFiles { kernel, initramfs } = files?;
                let listen = listen.unwrap_or(SocketAddr::new(advertise, IRONIC_PORT));
                Some(Ironic { listen, kernel, initramfs })
            }
        },
        callback: Callback {
            listen: callback_listen.unwrap_or(SocketAddr::new(advertise, CALLBACK_PORT)),
        },
        admin: Admin { socket: admin_socket.unwrap_or_else(|| ADMIN_SOCKET.into()) },
        ramdisk: ramdisk?,
        limits,
        safety,
        defaults,
    })
}

fn specs(specs: &mut Section<'_>) -> Option<Specs> {
    let dir = specs.key("dir").required("\"/etc/hostler/nodes\"").text(absolute);
    let status_dir = specs.key("status_dir").text(absolute);
    let rescan =
        specs.key("rescan").of_kind(ProblemKind::BadDuration).text(duration).unwrap_or(RESCAN);
    Some(Specs { dir: dir?, status_dir, rescan })
}

fn images(
    images: &mut Section<'_>,
    state: &State,
    outside: impl Fn(&str) -> Result<PathBuf, String>,
) -> Images {
    Images {
        dir: images.key("dir").text(absolute).unwrap_or_else(|| state.dir.join("images")),
        allowed_dirs: images.key("allowed_dirs").list(absolute).unwrap_or_default(),
        cache_dir: images.key("cache_dir").text(outside).unwrap_or_else(|| state.dir.join("cache")),
        cache_size: images
            .key("cache_size")
            .of_kind(ProblemKind::BadSize)
            .text(parse_bytes)
            .unwrap_or(CACHE_BYTES),
        published_max: images
            .key("published_max")
            .of_kind(ProblemKind::BadSize)
            .text(limit)
            .unwrap_or(PUBLISHED_BYTES_MAX),
        raw_max: images
            .key("raw_max")
            .of_kind(ProblemKind::BadSize)
            .text(limit)
            .unwrap_or(RAW_BYTES_MAX),
    }
}

/// `None` without an address to listen on, for which `network.advertise` is the default.
fn tftp(tftp: &mut Section<'_>, advertise: Option<IpAddr>) -> Option<Tftp> {
    let listen = tftp.key("listen").text(socket);
    let loaders = tftp.key("loaders").text(absolute);
    let block_max = tftp.key("block_max").of_kind(ProblemKind::BadSize).text(block);
    Some(Tftp {
        listen: listen.or_else(|| Some(SocketAddr::new(advertise?, TFTP_PORT)))?,
        loaders: loaders.unwrap_or_else(|| LOADERS_DIR.into()),
        block_max: block_max.unwrap_or(*TFTP_BLOCK_BYTES.end()),
    })
}

fn ramdisk(ramdisk: &mut Section<'_>) -> Option<Ramdisk> {
    let files = boot_files(ramdisk);
    let aarch64 = match ramdisk.key("aarch64").table_if_there(boot_files) {
        Some(files) => Some(files?),
        None => None,
    };
    let BootFiles { kernel, initramfs } = files?;
    Some(Ramdisk { kernel, initramfs, aarch64 })
}

fn boot_files(section: &mut Section<'_>) -> Option<BootFiles> {
    let kernel = section.key("kernel").required("\"/usr/share/hostler/vmlinuz\"").text(absolute);
    let initramfs =
        section.key("initramfs").required("\"/usr/share/hostler/initramfs\"").text(absolute);
    Some(BootFiles { kernel: kernel?, initramfs: initramfs? })
}

fn ironic_ramdisk(ironic: &mut Section<'_>) -> (Option<SocketAddr>, Option<BootFiles>) {
    (ironic.key("listen").text(socket), boot_files(ironic))
}

fn limits(limits: &mut Section<'_>) -> Limits {
    Limits {
        imaging: limits.key("imaging").integer(at_least_one).unwrap_or(IMAGING_MAX),
        waiting: limits.key("waiting").integer(at_least_one).unwrap_or(WAITING_MAX),
        imaging_rate_min: limits
            .key("imaging_rate_min")
            .of_kind(ProblemKind::BadSize)
            .text(parse_bytes)
            .unwrap_or(IMAGING_RATE_MIN_BYTES),
        bmc_spacing: limits
            .key("bmc_spacing")
            .of_kind(ProblemKind::BadDuration)
            .text(duration)
            .unwrap_or(BMC_SPACING),
    }
}

fn safety(safety: &mut Section<'_>) -> Safety {
    Safety {
        breaker: safety.key("breaker").flag().unwrap_or(true),
        enforce_power: safety.key("enforce_power").flag().unwrap_or(false),
    }
}

/// Checks a path that hostler writes to all the time: in the spec directory each write would wake
/// it.
fn outside(specs: Option<&Specs>, text: &str) -> Result<PathBuf, String> {
    let path = absolute(text)?;
    match specs {
        Some(specs) if path.starts_with(&specs.dir) => {
            Err(format!("`{text}` lies in specs.dir; hostler would be woken by its own writes"))
        }
        _ => Ok(path),
    }
}

/// Checks that a path is absolute and has no `..`.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if text.len() > PATH_BYTES_MAX {
        Err(format!("{} bytes, a path has at most {PATH_BYTES_MAX}", text.len()))
    } else if !path.is_absolute() || text.chars().any(char::is_control) {
        Err(format!("`{text}` is not an absolute path"))
    } else if path.components().any(|part| part == Component::ParentDir) {
        Err(format!("`{text}` has a `..` in it"))
    } else {
        // The normal form has no slash at the end.
        Ok(path.components().collect())
    }
}

fn advertised(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
            Err(format!("{ip} is no address that a machine could call back"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(format!("`{text}` is not an IPv4 or IPv6 address")),
    }
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("`{text}` is not address:port; write for example 192.0.2.1:69 or [::]:69")
    })
}

fn at_least_one(number: i64) -> Result<usize, String> {
    match usize::try_from(number) {
        Ok(0) | Err(_) => Err(format!("{number}, must be at least 1")),
        Ok(number) => Ok(number),
    }
}

/// Parses a limit in bytes, which must not be 0.
fn limit(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err(format!("`{text}`, must be at least 1 byte")),
        bytes => Ok(bytes),
    }
}

fn block(text: &str) -> Result<u64, String> {
    let (least, most) = (TFTP_BLOCK_BYTES.start(), TFTP_BLOCK_BYTES.end());
    let bytes = parse_bytes(text)?;
    if TFTP_BLOCK_BYTES.contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("`{text}`, must be {least} to {most} bytes"))
    }
}

/// Serializes bytes in the largest exact unit, as the reader parses it: `20GiB`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn size<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let exact = UNITS.iter().find(|(_, scale)| *bytes >= *scale && bytes.is_multiple_of(*scale));
    match exact {
        Some((unit, scale)) => serializer.collect_str(&format_args!("{}{unit}", bytes / scale)),
        None => serializer.collect_str(&format_args!("{bytes}B")),
    }
}

/// Serializes a duration as the reader parses it: `1m 30s`.
fn friendly<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let signed = SignedDuration::try_from(*duration).unwrap_or(SignedDuration::MAX);
    serializer.collect_str(&format_args!("{signed:#}"))
}
