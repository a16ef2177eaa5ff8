//! What went wrong in a subsystem, flattened for the core: whether trying again may help, and what an administrator can do.

use std::{io, time::Duration};

use crate::{
    drive::DriveError,
    image::{DecodeError, FetchError, ImageError},
    imaging::{DISK_HINT, ImagingError, LayoutError},
    ipmi::{self, IpmiError, IpmiErrorKind},
    iscsi::IscsiErrorKind,
    model::{
        fault::{Fault, RetryAdvice, Step},
        spec::NodeSpec,
    },
};

/// For a target that answers and is not what the ramdisk said it was.
pub(super) const OTHER_MACHINE: &str = "another machine may answer under this address: look for a double address, and at the machine's console";

/// The code of what was told to stop, and did.
pub(super) const CANCELLED: &str = "Cancelled";
/// The code of a poll that was told to stop before its BMC answered.
pub(super) const POLL_CUT: &str = "PollCut";

/// A BMC call failed.
pub(super) fn of_bmc(step: Step, spec: &NodeSpec, error: &IpmiError) -> Fault {
    use RetryAdvice::{Backoff, Never, Wait};
    let (code, retry, hint) = match &error.kind {
        IpmiErrorKind::Unresolved { .. } => {
            ("BmcUnresolved", Backoff, "look at bmc.address and at this machine's name service")
        }
        IpmiErrorKind::NoAnswer { network, .. } => {
            let (code, hint) = of_silence(*network);
            (code, Backoff, hint)
        }
        IpmiErrorKind::WrongPassword
        | IpmiErrorKind::PasswordTooLong { .. }
        | IpmiErrorKind::Doubted { .. }
        | IpmiErrorKind::WrongKey { .. }
        | IpmiErrorKind::KeyNotCarried
        | IpmiErrorKind::PrivilegeRefused { .. }
        | IpmiErrorKind::SuitesRefused { .. } => of_login(&error.kind),
        IpmiErrorKind::ProgramNotRun { .. } => (
            "IpmitoolMissing",
            Wait,
            "install ipmitool on hostler's machine, or set bmc.driver = \"ipmi\"",
        ),
        IpmiErrorKind::Unclear { .. } => (
            "IpmitoolFailed",
            Backoff,
            "run ipmitool by hand as hostler's user, and look at what it says",
        ),
        IpmiErrorKind::NoSession { status, .. } if !ipmi::is_short_of_sessions(*status) => (
            "BmcRefusesSession",
            Backoff,
            "look at the BMC's user and LAN channel settings, and at what `ipmitool -v` says of \
             it; if it stays so, reset the BMC",
        ),
        IpmiErrorKind::NoSession { .. }
        | IpmiErrorKind::Busy { .. }
        | IpmiErrorKind::InUse { .. } => (
            "BmcBusy",
            Backoff,
            "other programs may hold the BMC's sessions; if it stays so, reset the BMC",
        ),
        IpmiErrorKind::CommandRefused { .. }
        | IpmiErrorKind::BadAnswer { .. }
        | IpmiErrorKind::NoConsole { .. } => (
            "BmcRefused",
            Backoff,
            "look at the BMC's event log and firmware; if it stays so, reset the BMC",
        ),
        IpmiErrorKind::NoSystemGuid => (
            "NoSystemUuid",
            Never,
            "set bmc.match_system_uuid = false: this BMC cannot tell which machine it belongs to",
        ),
        IpmiErrorKind::StateNotReached { .. } => (
            "PowerNotReached",
            Backoff,
            "the BMC accepts power commands and nothing happens: look at the machine, or raise timeouts.power",
        ),
        IpmiErrorKind::BootDeviceNotKept { .. } => (
            "BootDeviceNotKept",
            Backoff,
            "the BMC does not keep the boot device: look at its firmware and at the machine's boot order",
        ),
    };
    let user = spec.bmc.as_ref().map_or("", |bmc| &bmc.username);
    let message = format!("{error} (user {user:?})");
    Fault { step, code: code.into(), retry, message, hint: hint.into() }
}

/// The BMC answers, and lets nobody in with what the spec says.
const fn of_login(kind: &IpmiErrorKind) -> (&'static str, RetryAdvice, &'static str) {
    use RetryAdvice::{Backoff, Never};
    match kind {
        IpmiErrorKind::WrongPassword | IpmiErrorKind::PasswordTooLong { .. } => (
            "BmcPasswordWrong",
            Never,
            "correct bmc.username or the password file, then run `hostler retry` for this node; hostler does not go on trying, because \
             BMCs lock users out",
        ),
        IpmiErrorKind::Doubted { .. } => (
            "BmcRefusesForNow",
            Backoff,
            "BMCs do so for seconds after a power change; hostler asks again, and takes the \
             refusal for final after a minute",
        ),
        IpmiErrorKind::WrongKey { given: true } => (
            "BmcKeyWrong",
            Never,
            "correct the file that bmc.kg_file names, or leave it out if the BMC has no BMC \
             key; then run `hostler retry` for this node",
        ),
        IpmiErrorKind::WrongKey { given: false } => (
            "BmcKeyWrong",
            Never,
            "set bmc.kg_file to a file with the BMC key (K_g), or clear the key in the BMC's \
             settings; then run `hostler retry` for this node",
        ),
        IpmiErrorKind::KeyNotCarried => (
            "BmcKeyWrong",
            Never,
            "set bmc.driver = \"ipmi\", or give the BMC a key without zero bytes",
        ),
        IpmiErrorKind::PrivilegeRefused { .. } => (
            "BmcPrivilegeRefused",
            Never,
            "give the BMC user that privilege, or set bmc.privilege = \"operator\"",
        ),
        _ => (
            "BmcCipherRefused",
            Never,
            "allow cipher suite 17 or 3 in the BMC's settings, or set bmc.cipher_suite",
        ),
    }
}

/// What the network says of a BMC that does not answer, and where to look.
const fn of_silence(network: Option<io::ErrorKind>) -> (&'static str, &'static str) {
    match network {
        Some(io::ErrorKind::ConnectionRefused) => (
            "BmcPortClosed",
            "a host answers at bmc.address, and nothing listens at its port: switch on IPMI \
             over LAN in the BMC's settings, and look whether bmc.address and its port are the \
             BMC's",
        ),
        Some(io::ErrorKind::NetworkUnreachable) => (
            "BmcNoRoute",
            "this machine, or a router, has no route to the BMC's network: look at \
             `ip route get` with bmc.address",
        ),
        Some(io::ErrorKind::HostUnreachable) => (
            "BmcHostUnreachable",
            "nothing has bmc.address in the BMC's network, or a firewall rejects it: look at \
             the BMC's cable, power and address, and at `ip neigh`",
        ),
        _ => (
            "BmcSilent",
            "look at bmc.address, the BMC's cable and power, its IPMI-over-LAN setting, and \
             firewalls for UDP port 623",
        ),
    }
}

/// A poll of the power state was cut, `waited` after it began and `asked` after the BMC was first asked.
pub(super) fn of_cut_poll(spec: &NodeSpec, waited: Duration, asked: Option<Duration>) -> Fault {
    let bmc = spec.bmc_address().map_or_else(String::new, |address| format!("bmc {address}: "));
    let (waited, asked) = (waited.as_secs(), asked.map(|asked| asked.as_secs()));
    let message = match asked {
        Some(asked) => format!(
            "{bmc}the poll of its power state was cut after {waited} s, because it had not ended: no answer in {asked} s"
        ),
        None => format!(
            "{bmc}the poll of its power state was cut after {waited} s, because another use of this BMC, by an operator or an \
             attempt, was not over; it was not asked"
        ),
    };
    let hint = "look at the BMC; hostler polls it again by itself, or run \"hostler retry\"";
    Fault::passing(Step::Preflight, POLL_CUT, message, hint)
}

/// The core wanted something of a BMC that is not there.
pub(super) fn no_bmc(step: Step) -> Fault {
    Fault::lasting(step, "NoBmc", "the spec names no BMC", "set [bmc]")
}

/// There is no image.
pub(super) fn of_image(error: &ImageError) -> Fault {
    let message = error.to_string();
    let passing = |code, hint| Fault::passing(Step::Image, code, message.clone(), hint);
    let lasting = |code, hint| Fault::lasting(Step::Image, code, message.clone(), hint);
    match error {
        ImageError::Fetch(error) | ImageError::List(error @ FetchError::NotListed { .. }) => {
            of_fetch(error, message)
        }
        ImageError::List(error) => Fault {
            hint: "look at image.checksum, and at the list it names".into(),
            ..of_fetch(error, message)
        },
        ImageError::Decode { error: DecodeError::Unusable(_), .. } => {
            lasting("ImageUnusable", "correct image.source or the file it names")
        }
        ImageError::Decode { error: DecodeError::TooLarge { .. }, .. } => {
            lasting("ImageUnusable", "correct image.source, or raise images.raw_max")
        }
        ImageError::Decode { .. } => {
            passing("CacheUnusable", "look at the disk the image cache lies on")
        }
        ImageError::NoSpace { .. } => {
            passing("CacheFull", "make space there, or lower images.cache_size")
        }
        ImageError::Cache { .. } => {
            passing("CacheUnusable", "look at the disk the image cache lies on, and at its owner")
        }
        ImageError::Stalled { .. } => passing(
            "ImageStalled",
            "look at the way to image.source, or raise timeouts.imaging_stall",
        ),
        ImageError::Cancelled => cancelled(Step::Image),
    }
}

/// It cannot be got from where it is. What an administrator may still put right there is tried again.
fn of_fetch(error: &FetchError, message: String) -> Fault {
    use RetryAdvice::{Backoff, Never};
    let (code, retry, hint) = match error {
        FetchError::Unusable { .. } | FetchError::Url(_) => {
            ("ImageUnusable", Never, "correct image.source or the file it names")
        }
        FetchError::TooLarge { .. } => {
            ("ImageUnusable", Never, "correct image.source, or raise images.published_max")
        }
        FetchError::NotListed { .. } => (
            "ChecksumNotListed",
            Never,
            "correct image.checksum, or put the image's line into that list",
        ),
        FetchError::Checksum { .. } => (
            "ChecksumMismatch",
            Backoff,
            "copy the image again, or correct image.checksum; nothing was written",
        ),
        FetchError::File { .. } => (
            "ImageUnreadable",
            Backoff,
            "put the file where image.source says, readable for hostler's user",
        ),
        FetchError::Status { .. } => {
            ("ImageNotServed", Backoff, "look at image.source, and at the server's log")
        }
        FetchError::Certificate { is_early: true, .. } => (
            "CertificateRefused",
            Backoff,
            "set this machine's clock, and look at what sets it (`timedatectl status`); if the clock is right, the server's \
             certificate is of no use yet",
        ),
        FetchError::Certificate { .. } => (
            "CertificateRefused",
            Backoff,
            "renew the server's certificate, or name its authority in the agent's SSL_CERT_FILE",
        ),
        FetchError::Connection { .. } | FetchError::Answer { .. } | FetchError::Length { .. } => (
            "ServerTrouble",
            Backoff,
            "look at the way to image.source, the proxy, and the server's log",
        ),
        FetchError::Keep(_) => {
            ("CacheFull", Backoff, "make space in the image cache's file system")
        }
        FetchError::Interrupted(_) => (
            "ImageStalled",
            Backoff,
            "look at the way to image.source, or raise timeouts.imaging_stall",
        ),
    };
    Fault { step: Step::Image, code: code.into(), retry, message, hint: hint.into() }
}

/// A file system cannot be made or read.
pub(super) fn of_drive(error: &DriveError) -> Fault {
    let message = error.to_string();
    let lasting = |code, hint| Fault::lasting(Step::Image, code, message.clone(), hint);
    match error {
        DriveError::Blocks { .. } | DriveError::TooSmall { .. } => lasting(
            "LayoutImpossible",
            "correct [partitions] or [config_drive], or choose another disk",
        ),
        DriveError::NoBootFiles { .. } | DriveError::BootFiles { .. } => lasting(
            "NotBootable",
            "use a whole-disk image, or boot.after = \"network\" with image.kernel and image.ramdisk",
        ),
        DriveError::NotDisk { .. } => lasting(
            "ImageUnusable",
            "correct image.source; an image of one file system wants image.kind = \"partition\"",
        ),
        DriveError::NotRoot { .. } => {
            lasting("ImageUnusable", "correct image.source, or image.kind if it is a whole disk")
        }
        DriveError::NoMke2fs => Fault::missing(
            Step::Image,
            "NoMke2fs",
            message,
            "install e2fsprogs on hostler's machine, or leave out partitions.ephemeral",
        ),
        DriveError::Make { .. } | DriveError::Read { .. } => Fault::passing(
            Step::Image,
            "CacheUnusable",
            message,
            "look at the disk the image cache lies on, and whether it is full",
        ),
    }
}

/// The disk cannot be laid out as the spec wants it. Nothing was written.
pub(super) fn of_layout(error: &LayoutError) -> Fault {
    let message = error.to_string();
    match error {
        LayoutError::File { .. } => Fault::passing(
            Step::Imaging,
            "ImageUnreadable",
            message,
            "look at the disk the image cache lies on",
        ),
        LayoutError::TooBig { .. } => Fault::lasting(
            Step::Imaging,
            "DiskTooSmall",
            message,
            "choose a larger disk with [root_device], a smaller image or smaller [partitions]",
        ),
        _ => Fault::lasting(
            Step::Imaging,
            "LayoutImpossible",
            message,
            "correct the image, [partitions] or [config_drive], or choose another disk",
        ),
    }
}

/// A task of the agent's own failed.
pub(super) fn internal(error: &tokio::task::JoinError) -> Fault {
    let message = format!("hostler itself failed: {error}");
    Fault::passing(Step::Cleanup, "Internal", message, "report this with the agent's log")
}

/// There is nothing to make keys of.
pub(super) fn no_randomness(error: getrandom::Error) -> Fault {
    Fault::passing(
        Step::Preflight,
        "NoRandomness",
        format!("the system gives no random bytes: {error}"),
        "look at this machine's kernel log, and whether /dev/urandom is there",
    )
}

/// The image cannot be written.
pub(super) fn of_imaging(step: Step, error: &ImagingError) -> Fault {
    let message = error.to_string();
    match error {
        ImagingError::File { .. } => Fault::passing(
            step,
            "ImageUnreadable",
            message,
            "look at the disk the image cache lies on",
        ),
        ImagingError::TooBig { .. } => Fault::lasting(
            step,
            "DiskTooSmall",
            message,
            "choose a larger disk with [root_device] or a smaller image",
        ),
        ImagingError::Misplaced { .. } => Fault::lasting(
            step,
            "LayoutImpossible",
            message,
            "this is a mistake in hostler: report it with the spec",
        ),
        ImagingError::OtherDisk { .. } => Fault::passing(step, "WrongDisk", message, OTHER_MACHINE),
        ImagingError::Blocks(_) => {
            Fault::lasting(step, "DiskUnusable", message, "choose another disk with [root_device]")
        }
        ImagingError::Volume { source, .. }
        | ImagingError::Connection(source)
        | ImagingError::Lost { last: source, .. } => {
            Fault::passing(step, source.code, message, DISK_HINT)
        }
        ImagingError::Stalled { .. } => Fault::passing(
            step,
            "ImagingStalled",
            message,
            "look at the network between hostler and the machine, or raise timeouts.imaging_stall",
        ),
        ImagingError::TooSlow { .. } => Fault::passing(
            step,
            "TargetTooSlow",
            message,
            "look at the machine's disk and the network to it, or lower limits.imaging_rate_min",
        ),
        ImagingError::Differs { .. } => Fault::passing(
            step,
            "DiskLies",
            message,
            "the disk acknowledged writes and does not hold them: replace it, or choose another with [root_device]",
        ),
        ImagingError::Cancelled => cancelled(step),
        ImagingError::NotWiped { cause, .. } => {
            let fault = of_imaging(step, cause);
            Fault { message, ..fault }
        }
    }
}

/// The target's disk cannot be opened.
pub(super) fn of_opening(error: &ImagingError) -> Fault {
    match error {
        ImagingError::Connection(error) => {
            Fault::passing(Step::Imaging, error.code, error.message.clone(), error.hint)
        }
        error => of_imaging(Step::Imaging, error),
    }
}

/// The operation was told to stop. The core looks at this only if that was because the operation took too long.
pub(super) fn cancelled(step: Step) -> Fault {
    Fault::passing(
        step,
        CANCELLED,
        "it was told to stop, because it took too long",
        "look at the BMC and the machine, or raise [timeouts]",
    )
}

pub(super) fn iscsi_hint(kind: &IscsiErrorKind) -> &'static str {
    match kind {
        IscsiErrorKind::Unreachable(_) => {
            "look at the network between hostler and the machine, and at firewalls for TCP port 3260"
        }
        IscsiErrorKind::LoginRefused(_) => OTHER_MACHINE,
        _ => "look at the machine's console and the network to it",
    }
}

pub(super) fn iscsi_code(kind: &IscsiErrorKind) -> &'static str {
    match kind {
        IscsiErrorKind::Unreachable(_) => "TargetUnreachable",
        IscsiErrorKind::LoginRefused(_) => "LoginRefused",
        IscsiErrorKind::TargetGone(_) => "TargetGone",
        IscsiErrorKind::TimedOut(_) => "TargetSilent",
        IscsiErrorKind::Scsi(_) => "DiskError",
        IscsiErrorKind::NoDisk(_) => "TargetHasNoDisk",
        IscsiErrorKind::Digest(_) => "DigestMismatch",
        _ => "TargetBrokeProtocol",
    }
}
