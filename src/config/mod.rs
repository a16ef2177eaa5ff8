//! The agent's own configuration, `/etc/hostler/hostler.toml`.
//!
//! Called once, at start. Three things have to be said (`network.advertise`, `specs.dir`,
//! `ramdisk`), the rest has defaults. Every problem is reported with its place. This module must
//! never guess past a mistake: an agent that runs on half a configuration may serve the wrong
//! network.

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
        problem::Problem,
        size::parse_bytes,
        toml_reader::{Document, Extent, FILE_BYTES_MAX, Section, duration, read as read_layers},
    },
    regular_file,
};

#[cfg(test)]
mod tests;

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/hostler/hostler.toml";

const STATE_DIR: &str = "/var/lib/hostler";
const SECRETS_DIR: &str = "/etc/hostler/secrets";
const LOADERS_DIR: &str = "/usr/share/hostler/loaders";
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
/// From what every client is sent without asking, in bytes (RFC 1350), to more than firmware asks
/// for.
const TFTP_BLOCK_BYTES: RangeInclusive<u64> = 512..=8192;
/// TFTP's, behind that of HTTP; what is often taken by other programs is not a good default.
const HTTP_PORT: u16 = 8069;
const CALLBACK_PORT: u16 = 8443;
/// The port of Ironic's own API.
const IRONIC_PORT: u16 = 6385;
/// Longest path, in bytes (Linux `PATH_MAX` less its NUL).
const PATH_BYTES_MAX: usize = 4095;

/// The checked configuration. Every path in it is absolute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// `[specs]`
    pub specs: Specs,
    /// `[state]`
    pub state: State,
    /// `[images]`
    pub images: Images,
    /// `[secrets]`
    pub secrets: Secrets,
    /// `[network]`
    pub network: Network,
    /// `[tftp]`
    pub tftp: Tftp,
    /// `[http]`
    pub http: Http,
    /// `[callback]`
    pub callback: Callback,
    /// `[ironic]`: unless it is there, no machine is installed by Ironic's ramdisk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ironic: Option<Ironic>,
    /// `[admin]`
    pub admin: Admin,
    /// `[ramdisk]`
    pub ramdisk: Ramdisk,
    /// `[limits]`
    pub limits: Limits,
    /// `[safety]`
    pub safety: Safety,
    /// `[defaults]`: any key of a spec, under every spec and its `_defaults.toml`. The spec reader
    /// checks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Document>,
}

/// `[specs]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Specs {
    /// The directory of specs; it may be missing for a while.
    pub dir: PathBuf,
    /// Where status files go; `None` is beside the specs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_dir: Option<PathBuf>,
    /// How often the directory is read without being told to, one second to seven days.
    #[serde(serialize_with = "friendly")]
    pub rescan: Duration,
}

/// `[state]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// The agent's own record.
    pub dir: PathBuf,
}

/// `[images]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Images {
    /// The directory that a relative `image.source` is relative to.
    pub dir: PathBuf,
    /// The directories an absolute `image.source` may be in, besides `dir`.
    pub allowed_dirs: Vec<PathBuf>,
    /// Where images are kept as raw files; its files are for hostler's user only.
    pub cache_dir: PathBuf,
    /// How many bytes of the disk the cache may take. The image used longest ago goes first; images
    /// in use stay, whatever they take.
    #[serde(serialize_with = "size")]
    pub cache_size: u64,
    /// The most bytes an image may have as it is published, at least 1.
    #[serde(serialize_with = "size")]
    pub published_max: u64,
    /// The most bytes an image may have as a disk, holes included, at least 1. A few bytes can be
    /// unpacked to any number.
    #[serde(serialize_with = "size")]
    pub raw_max: u64,
}

/// `[secrets]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Secrets {
    /// The directory that a relative `bmc.password_file` is relative to.
    pub dir: PathBuf,
}

/// `[network]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    /// The address at which the machines reach this agent.
    pub advertise: IpAddr,
}

/// `[tftp]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tftp {
    /// Where the TFTP server listens.
    pub listen: SocketAddr,
    /// The directory with the boot loaders.
    pub loaders: PathBuf,
    /// The most bytes of a block, 512 to 8192.
    #[serde(serialize_with = "size")]
    pub block_max: u64,
}

/// `[http]`: what TFTP serves, for iPXE, which fetches kernels and ramdisks there. As plain as TFTP
/// is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Http {
    /// Where it listens; the machines are told `network.advertise` with this port.
    pub listen: SocketAddr,
}

/// `[ironic]`: what the deploy ramdisk of `OpenStack` Ironic's first years needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ironic {
    /// Where its calls are taken, in plain HTTP; it is told `network.advertise` with this port.
    pub listen: SocketAddr,
    /// Its kernel.
    pub kernel: PathBuf,
    /// The ramdisk.
    pub initramfs: PathBuf,
}

/// `[callback]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Callback {
    /// Where the deploy ramdisks call back to; they are told `network.advertise` with this port.
    pub listen: SocketAddr,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Admin {
    /// The Unix socket on which operators give orders.
    pub socket: PathBuf,
}

/// `[ramdisk]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ramdisk {
    /// The deploy kernel.
    pub kernel: PathBuf,
    /// The deploy ramdisk.
    pub initramfs: PathBuf,
    /// `[ramdisk.aarch64]`: unless it is there, no such machine is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aarch64: Option<BootFiles>,
}

/// A kernel and its ramdisk for another kind of machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootFiles {
    /// The deploy kernel.
    pub kernel: PathBuf,
    /// The deploy ramdisk.
    pub initramfs: PathBuf,
}

/// `[limits]`: how much may go on at once. Later work waits its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Disks being written, at least 1.
    pub imaging: usize,
    /// Machines being brought up to be written, at least 1.
    pub waiting: usize,
    /// Bytes a second that a disk must take or give, averaged over a minute, while it is what
    /// limits; 0: any.
    #[serde(serialize_with = "size")]
    pub imaging_rate_min: u64,
    /// The pause between two calls to one BMC.
    #[serde(serialize_with = "friendly")]
    pub bmc_spacing: Duration,
}

/// `[safety]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Safety {
    /// Whether many reinstalls at once need an operator's consent.
    pub breaker: bool,
    /// Whether a machine that is not in the wanted power state is brought there.
    pub enforce_power: bool,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {path}: {source}{}", way_out(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It can, but something in it is wrong. One problem a line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// The advice where there is none.
fn way_out(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound {
        "; the agent's configuration has to say at least network.advertise, specs.dir and \
         [ramdisk], as examples/hostler.toml does; --config names another file"
    } else {
        ""
    }
}

/// Reads the file at `path`.
pub fn read(path: &Path) -> Result<Config, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let bytes = regular_file::open(path)
        .and_then(|file| regular_file::read_start(file, FILE_BYTES_MAX as u64 + 1))
        .map_err(unreadable)?;
    parse(&path.to_string_lossy(), &bytes).map_err(ConfigError::Invalid)
}

/// Checks a file's content. `file` is the name to show. On failure: every problem.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Config, Vec<Problem>> {
    let document = Document::parse(file, bytes)?;
    let (config, problems) = read_layers(&document, &[], Extent::Whole, config);
    config.filter(|_| problems.is_empty()).ok_or(problems)
}

impl Config {
    /// The effective configuration as a file that reads back the same.
    pub fn to_toml(&self) -> String {
        // Cannot fail: every value has a TOML form.
        toml::to_string_pretty(self).unwrap_or_default()
    }
}

fn config(config: &mut Section<'_>) -> Option<Config> {
    let specs = config.key("specs").table(specs);
    let outside = |text: &str| outside(specs.as_ref(), text);
    let state_dir = config.key("state").table(|state| state.key("dir").text(outside));
    let state = State { dir: state_dir.unwrap_or_else(|| STATE_DIR.into()) };
    let images = config.key("images").table(|table| images(table, &state, outside));
    let secrets_dir = config.key("secrets").table(|secrets| secrets.key("dir").text(absolute));
    let advertise =
        config.key("network").table(|network| network.key("advertise").required().text(advertised));
    let tftp = config.key("tftp").table(|table| tftp(table, advertise));
    let http_listen = config.key("http").table(|table| table.key("listen").text(socket));
    let callback_listen = config.key("callback").table(|table| table.key("listen").text(socket));
    let ramdisk = config.key("ramdisk").table(ramdisk);
    let has_ironic = config.has("ironic");
    let ironic = config.key("ironic");
    let ironic = if has_ironic { Some(ironic.table(ironic_ramdisk)) } else { None };
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
    let dir = specs.key("dir").required().text(absolute);
    let status_dir = specs.key("status_dir").text(absolute);
    let rescan = specs.key("rescan").text(duration).unwrap_or(RESCAN);
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
        cache_size: images.key("cache_size").text(parse_bytes).unwrap_or(CACHE_BYTES),
        published_max: images.key("published_max").text(limit).unwrap_or(PUBLISHED_BYTES_MAX),
        raw_max: images.key("raw_max").text(limit).unwrap_or(RAW_BYTES_MAX),
    }
}

/// `None`: without `network.advertise` there is no address to listen on.
fn tftp(tftp: &mut Section<'_>, advertise: Option<IpAddr>) -> Option<Tftp> {
    let listen = tftp.key("listen").text(socket);
    let loaders = tftp.key("loaders").text(absolute);
    let block_max = tftp.key("block_max").text(block);
    Some(Tftp {
        listen: listen.or_else(|| Some(SocketAddr::new(advertise?, TFTP_PORT)))?,
        loaders: loaders.unwrap_or_else(|| LOADERS_DIR.into()),
        block_max: block_max.unwrap_or(*TFTP_BLOCK_BYTES.end()),
    })
}

fn ramdisk(ramdisk: &mut Section<'_>) -> Option<Ramdisk> {
    let files = boot_files(ramdisk);
    let has_aarch64 = ramdisk.has("aarch64");
    let aarch64 = ramdisk.key("aarch64");
    let aarch64 = if has_aarch64 { Some(aarch64.table(boot_files)?) } else { None };
    let BootFiles { kernel, initramfs } = files?;
    Some(Ramdisk { kernel, initramfs, aarch64 })
}

fn boot_files(section: &mut Section<'_>) -> Option<BootFiles> {
    let kernel = section.key("kernel").required().text(absolute);
    let initramfs = section.key("initramfs").required().text(absolute);
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
            .text(parse_bytes)
            .unwrap_or(IMAGING_RATE_MIN_BYTES),
        bmc_spacing: limits.key("bmc_spacing").text(duration).unwrap_or(BMC_SPACING),
    }
}

fn safety(safety: &mut Section<'_>) -> Safety {
    Safety {
        breaker: safety.key("breaker").flag().unwrap_or(true),
        enforce_power: safety.key("enforce_power").flag().unwrap_or(false),
    }
}

/// A path for what hostler itself writes all the time: beneath the specs every write would wake it.
fn outside(specs: Option<&Specs>, text: &str) -> Result<PathBuf, String> {
    let path = absolute(text)?;
    match specs {
        Some(specs) if path.starts_with(&specs.dir) => {
            Err(format!("`{text}` lies in specs.dir; hostler would be woken by its own writes"))
        }
        _ => Ok(path),
    }
}

/// An absolute path that never climbs.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if text.len() > PATH_BYTES_MAX {
        Err(format!("{} bytes, a path has at most {PATH_BYTES_MAX}", text.len()))
    } else if !path.is_absolute() || text.chars().any(char::is_control) {
        Err(format!("`{text}` is not an absolute path"))
    } else if path.components().any(|part| part == Component::ParentDir) {
        Err(format!("`{text}` has a `..` in it"))
    } else {
        // Normal form: without a slash at the end.
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

/// A limit that lets something through.
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

/// As the reader takes it, in the largest unit that is exact: `20GiB`.
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

/// As the reader takes it: `1m 30s`.
fn friendly<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let signed = SignedDuration::try_from(*duration).unwrap_or(SignedDuration::MAX);
    serializer.collect_str(&format_args!("{signed:#}"))
}
