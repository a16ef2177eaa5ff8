//! A DHCP client for IPv4 without I/O (RFC 2131, options of RFC 2132 and 3442): encodes messages,
//! decodes replies, and computes the waits.
//!
//! [`super::network`] drives it, and owns the socket and the clock. It must never do I/O, nor trust
//! a byte: the network segment may be shared. An invalid option must not hide those after it;
//! therefore the code is hostler's own (`dhcproto` 0.15 stops at a host name that is not UTF-8, and
//! cuts overloaded fields at their first zero).

use std::{net::Ipv4Addr, ops::Range, time::Duration};

use crate::model::ids::MacAddr;

/// Smallest BOOTP message, in bytes: some relays drop shorter ones (RFC 1542 §2.1).
const MESSAGE_BYTES_MIN: usize = 300;
/// Fixed part, in bytes, up to and with the magic cookie (RFC 2131 §2).
const HEADER_BYTES: usize = 240;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Asks servers to answer to 255.255.255.255: a kernel without an address drops unicast packets
/// (RFC 2131 §4.1).
const FLAG_BROADCAST: [u8; 2] = [0x80, 0];
/// The lease time that means "for ever" (RFC 2131 §3.3).
const FOREVER: u32 = u32::MAX;
/// Least time to a renewal: with a lease of no time the client would ask without pause.
const RENEW_MIN: Duration = Duration::from_secs(10);

const OPTION_PAD: u8 = 0;
const OPTION_SUBNET_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_REQUESTED_ADDRESS: u8 = 50;
const OPTION_LEASE_SECONDS: u8 = 51;
/// The option that says that options continue in the fields `file` (1), `sname` (2) or both (3).
const OPTION_OVERLOAD: u8 = 52;
const OPTION_MESSAGE_TYPE: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_PARAMETERS: u8 = 55;
const OPTION_RENEW_SECONDS: u8 = 58;
const OPTION_REBIND_SECONDS: u8 = 59;
/// The option of classless routes, which replace the router (RFC 3442).
const OPTION_ROUTES: u8 = 121;
/// Options of netboot (RFC 2132 §9, RFC 3004, RFC 4578).
const OPTION_VENDOR_CLASS: u8 = 60;
const OPTION_TFTP_SERVER: u8 = 66;
const OPTION_BOOT_FILE: u8 = 67;
const OPTION_USER_CLASS: u8 = 77;
const OPTION_ARCH: u8 = 93;
const OPTION_NETWORK_INTERFACE: u8 = 94;
const OPTION_END: u8 = 255;
const SNAME: Range<usize> = 44..108;
const FILE: Range<usize> = 108..236;

/// A leased address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the subnet mask, 0 to 32.
    pub prefix: u8,
    /// Routes to other networks.
    pub routes: Vec<Route>,
    /// The server that leases the address.
    pub server: Ipv4Addr,
    /// The time to renewal at the server (T1); `None` if the lease does not end.
    pub renew_after: Option<Duration>,
    /// The time to renewal at any server (T2).
    pub rebind_after: Option<Duration>,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network's address, without bits that its prefix does not cover.
    pub network: Ipv4Addr,
    /// Bits of its mask, 0 to 32.
    pub prefix: u8,
    /// The router; `None` for an on-link network.
    pub gateway: Option<Ipv4Addr>,
}

/// The reason why an answer is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The address is not valid for a machine.
    #[error("{0} is not an address for a machine")]
    Address(Ipv4Addr),
    /// The subnet mask is missing.
    #[error("it has no subnet mask (option 1)")]
    NoMask,
    /// The subnet mask is not contiguous.
    #[error("its subnet mask {0} is none")]
    Mask(Ipv4Addr),
    /// The server's identifier is missing, without which the client cannot accept the offer.
    #[error("it does not say which server it is from (option 54)")]
    NoServer,
}

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The server offers a lease.
    Offer(Lease),
    /// The server grants a lease.
    Ack(Lease),
    /// The server refuses: the client starts over.
    Nak,
}

/// A message of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// DHCPDISCOVER: asks all servers for an address.
    Discover,
    /// DHCPREQUEST for an offered address.
    Take {
        /// The offered address.
        address: Ipv4Addr,
        /// The offering server.
        server: Ipv4Addr,
    },
    /// DHCPREQUEST for the renewal of this address.
    Renew(Ipv4Addr),
}

/// A client that wants a boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetbootClient {
    /// A BIOS.
    Bios,
    /// UEFI on `x86_64`.
    UefiX86_64,
    /// UEFI on aarch64.
    UefiAarch64,
    /// iPXE, under a BIOS.
    Ipxe,
}

impl NetbootClient {
    /// The name for people.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Bios => "BIOS",
            Self::UefiX86_64 => "UEFI, x86_64",
            Self::UefiAarch64 => "UEFI, aarch64",
            Self::Ipxe => "iPXE",
        }
    }

    /// The number of its architecture (RFC 4578 §2.1, with IANA's registry).
    const fn arch(self) -> u16 {
        match self {
            Self::Bios | Self::Ipxe => 0,
            Self::UefiX86_64 => 7,
            Self::UefiAarch64 => 11,
        }
    }
}

/// An offer to a client that wants a boot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BootOffer {
    /// The address for the client.
    pub(crate) address: Ipv4Addr,
    /// The server that makes the offer.
    pub(crate) server: Ipv4Addr,
    /// The boot file's server, an address or a name; empty if the offer names none.
    pub(crate) next_server: String,
    /// The boot file, a name or a URL; empty if the offer names none.
    pub(crate) file: String,
}

/// A DHCP transaction: replies must carry its id and this NIC's address.
#[derive(Clone, Copy, Debug)]
pub struct Conversation {
    /// This NIC's address.
    pub mac: MacAddr,
    /// The transaction id, random for each transaction.
    pub xid: u32,
}

impl Conversation {
    /// Encodes a message. `seconds` is the transaction's duration so far.
    pub fn message(self, ask: Ask, seconds: u16) -> Vec<u8> {
        let (kind, own_address) = match ask {
            Ask::Discover => (1, Ipv4Addr::UNSPECIFIED),
            Ask::Take { .. } => (3, Ipv4Addr::UNSPECIFIED),
            Ask::Renew(address) => (3, address),
        };
        let mut bytes = Vec::with_capacity(MESSAGE_BYTES_MIN);
        bytes.extend([1, 1, 6, 0]); // request, Ethernet, 6-octet address, no hops
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend(seconds.to_be_bytes());
        bytes.extend(if own_address.is_unspecified() { FLAG_BROADCAST } else { [0, 0] });
        bytes.extend(own_address.octets());
        bytes.extend([0; 12]); // yiaddr, siaddr, giaddr
        bytes.extend(self.mac.octets());
        bytes.resize(HEADER_BYTES - MAGIC_COOKIE.len(), 0); // rest of chaddr, sname, file
        bytes.extend(MAGIC_COOKIE);
        bytes.extend([OPTION_MESSAGE_TYPE, 1, kind]);
        if let Ask::Take { address, server } = ask {
            bytes.extend([OPTION_REQUESTED_ADDRESS, 4]);
            bytes.extend(address.octets());
            bytes.extend([OPTION_SERVER, 4]);
            bytes.extend(server.octets());
        }
        // The option of routes precedes the router's, because a server may omit it otherwise (RFC
        // 3442).
        bytes.extend([OPTION_PARAMETERS, 6, OPTION_SUBNET_MASK, OPTION_ROUTES, OPTION_ROUTER]);
        bytes.extend([OPTION_LEASE_SECONDS, OPTION_RENEW_SECONDS, OPTION_REBIND_SECONDS]);
        bytes.push(OPTION_END);
        bytes.resize(bytes.len().max(MESSAGE_BYTES_MIN), OPTION_PAD);
        bytes
    }

    /// Encodes a DHCPDISCOVER as firmware or a boot loader sends it to netboot (PXE 2.1 §2.2.3, RFC
    /// 4578). `seconds` is the transaction's duration so far.
    pub(crate) fn netboot_discover(self, client: NetbootClient, seconds: u16) -> Vec<u8> {
        let mut bytes = self.message(Ask::Discover, seconds);
        bytes.truncate(HEADER_BYTES);
        bytes.extend([OPTION_MESSAGE_TYPE, 1, 1]);
        bytes.extend([OPTION_PARAMETERS, 6, OPTION_SUBNET_MASK, OPTION_ROUTER, 43, 60]);
        bytes.extend([OPTION_TFTP_SERVER, OPTION_BOOT_FILE]);
        let arch = client.arch();
        let class = format!("PXEClient:Arch:{arch:05}:UNDI:003016");
        bytes.extend([OPTION_VENDOR_CLASS, 32]);
        bytes.extend(class.as_bytes());
        bytes.extend([OPTION_ARCH, 2]);
        bytes.extend(arch.to_be_bytes());
        bytes.extend([OPTION_NETWORK_INTERFACE, 3, 1, 3, 16]);
        if client == NetbootClient::Ipxe {
            bytes.extend([OPTION_USER_CLASS, 4]);
            bytes.extend(b"iPXE");
        }
        bytes.push(OPTION_END);
        bytes.resize(bytes.len().max(MESSAGE_BYTES_MIN), OPTION_PAD);
        bytes
    }

    /// Decodes an offer with its boot file; `None` if it is damaged, no offer, or belongs to
    /// another transaction.
    pub(crate) fn boot_offer(self, bytes: &[u8]) -> Option<BootOffer> {
        let header = bytes.get(..HEADER_BYTES).filter(|header| self.is_ours(header))?;
        let options = Options::of(header, bytes.get(HEADER_BYTES..)?);
        if options.find(OPTION_MESSAGE_TYPE)? != [2] {
            return None;
        }
        let text = |bytes: &[u8]| {
            let end = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(end).into_owned()
        };
        // Overloaded fields hold options instead.
        let overload = options.find(OPTION_OVERLOAD).and_then(|flags| flags.first().copied());
        let is_free = |flag: u8| overload.unwrap_or(0) & flag == 0;
        let named = |option: u8, range: Range<usize>, flag: u8| {
            let field = header.get(range).filter(|_| is_free(flag)).map(text);
            let option = options.find(option).map(text);
            option.or(field).unwrap_or_default()
        };
        let at = |range| field(header, range).map(Ipv4Addr::from);
        let siaddr = at(20..24).filter(|address| !address.is_unspecified());
        let next_server = siaddr
            .map_or_else(|| named(OPTION_TFTP_SERVER, SNAME, 2), |address| address.to_string());
        let server = options.number(OPTION_SERVER).map(Ipv4Addr::from).or(siaddr);
        Some(BootOffer {
            address: at(16..20)?,
            server: server.unwrap_or(Ipv4Addr::UNSPECIFIED),
            next_server,
            file: named(OPTION_BOOT_FILE, FILE, 1),
        })
    }

    fn is_ours(self, header: &[u8]) -> bool {
        header.starts_with(&[2, 1, 6])
            && field(header, 4..8).is_some_and(|xid| xid == self.xid.to_be_bytes())
            && header.get(28..34).is_some_and(|mac| mac == self.mac.octets())
            && header.ends_with(&MAGIC_COOKIE)
    }

    /// Decodes a reply to this transaction, or the reason why it is unusable; `None` if it is
    /// damaged or belongs to another transaction.
    pub fn reply(self, bytes: &[u8]) -> Option<Result<Reply, Unusable>> {
        let header = bytes.get(..HEADER_BYTES)?;
        let options = Options::of(header, bytes.get(HEADER_BYTES..)?);
        let lease = || lease(Ipv4Addr::from(field(header, 16..20).unwrap_or_default()), &options);
        match options.find(OPTION_MESSAGE_TYPE)? {
            _ if !self.is_ours(header) => None,
            [2] => Some(lease().map(Reply::Offer)),
            [5] => Some(lease().map(Reply::Ack)),
            [6] => Some(Ok(Reply::Nak)),
            _ => None,
        }
    }
}

/// The wait for the answer to the given try (0, 1, 2 …): 1, 2, 4, then 8 seconds, each up to a
/// quarter longer by `random`, so that machines switched on together do not send together (RFC 2131
/// §4.1). Shorter than the RFC's 4 to 64 seconds, because an operator waits.
pub(super) fn patience(tries: u32, random: u8) -> Duration {
    let base = Duration::from_secs(1 << tries.min(3));
    base + base * u32::from(random) / 1024
}

fn lease(address: Ipv4Addr, options: &Options<'_>) -> Result<Lease, Unusable> {
    let usable = !address.is_unspecified()
        && !address.is_loopback()
        // A BMC leases link-local addresses at the USB network interface of its machine.
        && !address.is_link_local()
        && !address.is_multicast()
        && !address.is_broadcast();
    if !usable {
        return Err(Unusable::Address(address));
    }
    let mask = options.number(OPTION_SUBNET_MASK).ok_or(Unusable::NoMask)?;
    let prefix = prefix_of(mask).ok_or(Unusable::Mask(mask.into()))?;
    let server = options.number(OPTION_SERVER).ok_or(Unusable::NoServer)?;
    let seconds = options.number(OPTION_LEASE_SECONDS).unwrap_or(FOREVER);
    let timer = |option, default: u64| {
        (seconds != FOREVER).then(|| {
            let given = options.number(option).map(u64::from).filter(|t| *t < u64::from(seconds));
            Duration::from_secs(given.unwrap_or(default)).max(RENEW_MIN)
        })
    };
    Ok(Lease {
        address,
        prefix,
        routes: routes(options),
        server: server.into(),
        renew_after: timer(OPTION_RENEW_SECONDS, u64::from(seconds) / 2),
        rebind_after: timer(OPTION_REBIND_SECONDS, u64::from(seconds) * 7 / 8),
    })
}

fn prefix_of(mask: u32) -> Option<u8> {
    let ones = mask.leading_ones();
    // A mask without ones would make every address on-link.
    (ones > 0 && mask.count_ones() == ones).then(|| u8::try_from(ones).ok())?
}

/// The classless routes, or else the router; with both, a client ignores the router (RFC 3442).
fn routes(options: &Options<'_>) -> Vec<Route> {
    let given = classless(&options.joined(OPTION_ROUTES)).unwrap_or_default();
    if !given.is_empty() {
        return given;
    }
    // A router list: the first is preferred (RFC 2132 §3.5).
    let router = options.find(OPTION_ROUTER).and_then(|routers| field(routers, 0..4));
    let gateway = router.map(Ipv4Addr::from).filter(|router| !router.is_unspecified());
    let default = Route { network: Ipv4Addr::UNSPECIFIED, prefix: 0, gateway };
    gateway.map(|_| default).into_iter().collect()
}

/// Decodes classless routes (RFC 3442): prefix length, the octets of the network that it covers,
/// router. `None` if one is cut short or invalid.
fn classless(mut bytes: &[u8]) -> Option<Vec<Route>> {
    let mut routes = Vec::new();
    while let [prefix @ 0..=32, rest @ ..] = bytes {
        let (significant, rest) = rest.split_at_checked(usize::from(prefix.div_ceil(8)))?;
        let (gateway, rest) = rest.split_first_chunk::<4>()?;
        let mut octets = [0; 4];
        octets.get_mut(..significant.len())?.copy_from_slice(significant);
        let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
        let gateway = Some(Ipv4Addr::from(*gateway)).filter(|router| !router.is_unspecified());
        let network = Ipv4Addr::from(u32::from_be_bytes(octets) & mask);
        routes.push(Route { network, prefix: *prefix, gateway });
        bytes = rest;
    }
    bytes.is_empty().then_some(routes)
}

fn field(bytes: &[u8], range: Range<usize>) -> Option<[u8; 4]> {
    bytes.get(range)?.try_into().ok()
}

/// The options of a message: code, length, value, with padding; the first option of a code counts.
struct Options<'a> {
    /// The fields with options, in the order of precedence (RFC 2131 §4.1).
    places: [&'a [u8]; 3],
}

impl<'a> Options<'a> {
    fn of(header: &'a [u8], options: &'a [u8]) -> Self {
        let alone = Self { places: [options, &[], &[]] };
        let Some([fields @ 1..=3]) = alone.find(OPTION_OVERLOAD) else { return alone };
        let place = |flag, range: Range<usize>| {
            header.get(range).filter(|_| fields & flag != 0).unwrap_or_default()
        };
        Self { places: [options, place(1, FILE), place(2, SNAME)] }
    }

    fn all(&self) -> impl Iterator<Item = (u8, &'a [u8])> {
        self.places.into_iter().flat_map(|mut rest| {
            std::iter::from_fn(move || {
                loop {
                    match rest {
                        [OPTION_PAD, tail @ ..] => rest = tail,
                        [] | [OPTION_END, ..] | [_] => return None,
                        [code, length, tail @ ..] => {
                            let (value, tail) = tail.split_at_checked(usize::from(*length))?;
                            rest = tail;
                            return Some((*code, value));
                        }
                    }
                }
            })
        })
    }

    fn find(&self, wanted: u8) -> Option<&'a [u8]> {
        self.all().find(|(code, _)| *code == wanted).map(|(_, value)| value)
    }

    /// Joins the pieces of an option that may be longer than 255 octets (RFC 3396).
    fn joined(&self, wanted: u8) -> Vec<u8> {
        self.all()
            .filter(|(code, _)| *code == wanted)
            .flat_map(|(_, value)| value)
            .copied()
            .collect()
    }

    fn number(&self, wanted: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(wanted)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests;
