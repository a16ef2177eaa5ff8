//! The checks of the host: its address, ports, directories with their owners, clock and file system
//! watches.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{Access, access, inotify},
    process::geteuid,
};

use crate::{config::Config, regular_file};

use super::finding::Finding;

/// The user of the service, as systemd/hostler.service names it.
const SERVICE_USER: &str = "hostler";
/// The host's users. hostler is linked statically, so that `getpwnam` would not know them all.
const PASSWD: &str = "/etc/passwd";
/// Most bytes read of it.
const PASSWD_BYTES_MAX: u64 = 1 << 20;
/// How far the clock may be behind the last write of the state directory: clocks are corrected by
/// less.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

pub(super) fn check(config: &Config, runs: bool) -> Vec<Finding> {
    let mut findings = vec![address(config.network.advertise)];
    findings.extend(ports(config, runs));
    findings.extend(directories(config));
    findings.push(clock(&config.state.dir));
    findings.push(watches(&config.specs.dir));
    findings
}

fn address(advertise: IpAddr) -> Finding {
    let check = "address";
    match UdpSocket::bind((advertise, 0)) {
        Ok(_) => Finding::ok(check, format!("{advertise} (network.advertise) is this host's")),
        Err(error) => Finding::failure(
            check,
            format!("{advertise} (network.advertise): {error}"),
            "`ip address` shows this host's addresses; correct network.advertise, or set up the \
             interface of the deploy network",
        ),
    }
}

/// Whether this host has the address. Without it neither ports can be tried nor the DHCP server be
/// asked, and the reason is told once.
pub(super) fn has(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Tries every port of an address that this host has.
fn ports(config: &Config, runs: bool) -> Vec<Finding> {
    let udp = |at: SocketAddr| UdpSocket::bind(at).map(drop);
    let tcp = |at: SocketAddr| TcpListener::bind(at).map(drop);
    let mut tries = vec![
        ("TFTP", config.tftp.listen, udp(config.tftp.listen)),
        ("HTTP", config.http.listen, tcp(config.http.listen)),
        ("callback", config.callback.listen, tcp(config.callback.listen)),
    ];
    if let Some(ironic) = &config.ironic {
        tries.push(("Ironic's ramdisk", ironic.listen, tcp(ironic.listen)));
    }
    let advertise = config.network.advertise;
    let tries = tries.into_iter().filter(|(_, at, _)| at.ip() != advertise || has(advertise));
    tries.map(|(what, at, tried)| port(&format!("{what} {at}"), tried, runs)).collect()
}

fn port(place: &str, tried: io::Result<()>, runs: bool) -> Finding {
    let check = "port";
    let error = match tried {
        Ok(()) if runs => {
            let message = format!("{place}: free, although the agent runs");
            let hint = "`systemctl restart hostler`, if its configuration was changed";
            return Finding::warning(check, message, hint);
        }
        Ok(()) => return Finding::ok(check, format!("{place}: free")),
        Err(error) => error,
    };
    let message = format!("{place}: {error}");
    match error.kind() {
        io::ErrorKind::AddrInUse if runs => {
            Finding::ok(check, format!("{place}: in use, and the agent runs"))
        }
        io::ErrorKind::PermissionDenied => {
            Finding::warning(check, message, "run `hostler doctor` as root to have it tried")
        }
        io::ErrorKind::AddrInUse => {
            let hint =
                "`ss -lnptu` names the program that has it; stop that, or set another listen";
            Finding::failure(check, message, hint)
        }
        _ => Finding::failure(check, message, "correct its listen, or network.advertise"),
    }
}

/// The use that the agent makes of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Read,
    Write,
}

fn directories(config: &Config) -> Vec<Finding> {
    let user = AgentUser::of(&config.state.dir);
    let status = config.specs.status_dir.as_ref().unwrap_or(&config.specs.dir);
    let dirs = [
        ("status files", status, Need::Write),
        ("state.dir", &config.state.dir, Need::Write),
        ("images.dir", &config.images.dir, Need::Read),
        ("images.cache_dir", &config.images.cache_dir, Need::Write),
        ("secrets.dir", &config.secrets.dir, Need::Read),
        ("tftp.loaders", &config.tftp.loaders, Need::Read),
    ];
    dirs.into_iter().map(|(key, dir, need)| directory(key, dir, need, &user)).collect()
}

fn directory(key: &str, dir: &Path, need: Need, user: &AgentUser) -> Finding {
    let check = "directory";
    let place = format!("{} ({key})", dir.display());
    let is_made_by_agent = need == Need::Write && key != "status files";
    match fs::metadata(dir) {
        Ok(metadata) if !metadata.is_dir() => Finding::failure(
            check,
            format!("{place}: it is no directory"),
            format!("correct {key}"),
        ),
        Ok(_) => match user.lacks(dir, need) {
            None => Finding::ok(check, place),
            Some(lack) => Finding::failure(
                check,
                format!("{place}: {lack}"),
                format!("correct the owner and the mode (`ls -ld {}`)", dir.display()),
            ),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_made_by_agent => {
            let above = dir.ancestors().skip(1).find(|above| above.is_dir());
            match above.and_then(|above| user.lacks(above, Need::Write)) {
                None => Finding::ok(check, format!("{place}: the agent makes it")),
                // The unit's StateDirectory= and the like make it, as root.
                Some(lack) => Finding::warning(
                    check,
                    format!("{place}: missing, and {lack} in the directory above"),
                    "start the service, whose unit makes it, or make it with the right owner",
                ),
            }
        }
        Err(error) => {
            let hint = format!("make the directory {}, or correct {key}", dir.display());
            Finding::failure(check, format!("{place}: {error}"), hint)
        }
    }
}

/// The user that the agent runs as.
#[derive(Debug)]
struct AgentUser {
    name: String,
    uid: u32,
    gid: u32,
}

impl AgentUser {
    /// The service's user where it exists, or else the owner of the state directory, or else this
    /// process's user.
    fn of(state_dir: &Path) -> Self {
        let passwd = regular_file::open(Path::new(PASSWD))
            .and_then(|file| regular_file::read_start(file, PASSWD_BYTES_MAX))
            .unwrap_or_default();
        let passwd = String::from_utf8_lossy(&passwd);
        let users: Vec<(&str, u32, u32)> = passwd
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                Some((name, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
            })
            .collect();
        let owner = || fs::metadata(state_dir).ok().map(|metadata| metadata.uid());
        let service = users.iter().find(|(name, ..)| *name == SERVICE_USER);
        let uid = service.map(|(_, uid, _)| *uid).or_else(owner);
        let uid = uid.unwrap_or_else(|| geteuid().as_raw());
        let known = users.iter().find(|(_, known, _)| *known == uid);
        let name = known.map_or_else(|| uid.to_string(), |(name, ..)| (*name).to_owned());
        Self { name, uid, gid: known.map_or(uid, |(_, _, gid)| *gid) }
    }

    /// The permission that the user lacks for a directory, by its mode and those above it; access
    /// control lists are not read.
    fn lacks(&self, dir: &Path, need: Need) -> Option<String> {
        let wanted = match need {
            Need::Read => 0o5,
            Need::Write => 0o7,
        };
        if geteuid().as_raw() == self.uid {
            let modes = if need == Need::Read { Access::READ_OK } else { Access::WRITE_OK };
            let error = access(dir, modes | Access::EXEC_OK).err()?;
            return Some(format!("{}: {}", self.name, io::Error::from(error)));
        }
        if self.uid == 0 {
            return None;
        }
        let closed = dir.ancestors().skip(1).find(|above| !self.may(above, 0o1));
        let closed =
            closed.map(|above| format!("user {} may not enter {}", self.name, above.display()));
        let verb = if need == Need::Read { "read" } else { "write" };
        closed.or_else(|| {
            (!self.may(dir, wanted)).then(|| format!("user {} may not {verb} it", self.name))
        })
    }

    fn may(&self, dir: &Path, wanted: u32) -> bool {
        fs::metadata(dir).is_ok_and(|metadata| {
            let mode = metadata.mode();
            let bits = if metadata.uid() == self.uid {
                mode >> 6
            } else if metadata.gid() == self.gid {
                mode >> 3
            } else {
                mode
            };
            bits & wanted == wanted
        })
    }
}

/// Compares the clock with the last write of the state directory. A clock that was set back makes
/// certificates invalid, and confuses histories.
fn clock(state_dir: &Path) -> Finding {
    let check = "clock";
    let last = newest(state_dir).unwrap_or(SystemTime::UNIX_EPOCH);
    match last.duration_since(SystemTime::now()) {
        Ok(behind) if behind > CLOCK_SLACK => Finding::failure(
            check,
            format!(
                "it is {} minutes behind the newest file in {}",
                behind.as_secs() / 60,
                state_dir.display()
            ),
            "set it, for example with systemd-timesyncd or chrony",
        ),
        _ => Finding::ok(check, jiff::Timestamp::now().strftime("%F %T UTC").to_string()),
    }
}

fn newest(dir: &Path) -> Option<SystemTime> {
    let files = fs::read_dir(dir).ok()?.filter_map(Result::ok);
    files.filter_map(|file| file.metadata().ok()?.modified().ok()).max()
}

/// Sets up a watch as the agent does: without one it sees changes only at each rescan.
fn watches(specs: &Path) -> Finding {
    let check = "inotify";
    let created = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC);
    let watched = created.and_then(|watches| {
        let dir = if specs.is_dir() { specs.to_owned() } else { PathBuf::from("/") };
        inotify::add_watch(&watches, &dir, inotify::WatchFlags::CREATE).map(drop)
    });
    match watched {
        Ok(()) => Finding::ok(check, format!("{} can be watched", specs.display())),
        Err(error) => Finding::failure(
            check,
            format!("{} cannot be watched: {}", specs.display(), io::Error::from(error)),
            "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches with `sysctl`",
        ),
    }
}
