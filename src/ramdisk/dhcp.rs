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

    /// Decodes a reply to this transaction, or the reason why it is unusable; `None` if it is
    /// damaged or belongs to another transaction.
    pub fn reply(self, bytes: &[u8]) -> Option<Result<Reply, Unusable>> {
        let header = bytes.get(..HEADER_BYTES)?;
        let ours = header.starts_with(&[2, 1, 6])
            && field(header, 4..8)? == self.xid.to_be_bytes()
            && header.get(28..34)? == self.mac.octets()
            && header.ends_with(&MAGIC_COOKIE);
        let options = Options::of(header, bytes.get(HEADER_BYTES..)?);
        let lease = || lease(Ipv4Addr::from(field(header, 16..20).unwrap_or_default()), &options);
        match options.find(OPTION_MESSAGE_TYPE)? {
            _ if !ours => None,
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TALK: Conversation =
        Conversation { mac: MacAddr::new([0x52, 0x54, 0, 0, 0, 1]), xid: 0x1234_5678 };

    /// Makes an answer with dnsmasq's layout: type, server, times, mask, router, with padding as
    /// from relays.
    fn answer(kind: u8, extra: &[u8]) -> Vec<u8> {
        let mut bytes = TALK.message(Ask::Discover, 0)[..HEADER_BYTES].to_vec();
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&[192, 0, 2, 50]);
        bytes.extend([53, 1, kind, 0, 0, 54, 4, 192, 0, 2, 1, 51, 4, 0, 0, 0x0e, 0x10]);
        bytes.extend_from_slice(extra);
        bytes.push(255);
        bytes
    }

    const MASK_AND_ROUTERS: [u8; 16] = [1, 4, 255, 255, 255, 0, 3, 8, 192, 0, 2, 1, 192, 0, 2, 2];

    #[test]
    fn an_offer_is_read_with_its_mask_router_and_times() {
        let lease = Lease {
            address: Ipv4Addr::new(192, 0, 2, 50),
            prefix: 24,
            routes: vec![Route {
                network: Ipv4Addr::UNSPECIFIED,
                prefix: 0,
                gateway: Some(Ipv4Addr::new(192, 0, 2, 1)),
            }],
            server: Ipv4Addr::new(192, 0, 2, 1),
            renew_after: Some(Duration::from_secs(1800)),
            rebind_after: Some(Duration::from_secs(3150)),
        };
        let reply = |kind| TALK.reply(&answer(kind, &MASK_AND_ROUTERS)).unwrap();
        assert_eq!(reply(2), Ok(Reply::Offer(lease.clone())));
        assert_eq!(reply(5), Ok(Reply::Ack(lease)));
        assert_eq!(TALK.reply(&answer(6, &[])), Some(Ok(Reply::Nak)));
    }

    #[test]
    fn what_is_not_for_this_conversation_is_ignored() {
        let good = answer(2, &MASK_AND_ROUTERS);
        for (at, why) in
            [(0, "a request"), (7, "other number"), (33, "other nic"), (239, "no cookie")]
        {
            let mut other = good.clone();
            other[at] ^= 1;
            assert_eq!(TALK.reply(&other), None, "{why}");
        }
    }

    /// Invariant (ramdisk): The ramdisk takes its routes from any DHCP server, and says why it
    /// ignores an answer.
    #[test]
    fn an_offer_that_is_of_no_use_says_why() {
        let reported = |bytes: &[u8]| TALK.reply(bytes).unwrap().unwrap_err().to_string();
        let good = answer(2, &MASK_AND_ROUTERS);
        assert!(reported(&answer(2, &[])).contains("no subnet mask"));
        assert!(reported(&answer(2, &[1, 4, 255, 0, 255, 0])).contains("255.0.255.0"));
        assert!(reported(&answer(2, &[1, 4, 0, 0, 0, 0])).contains("mask 0.0.0.0 is none"));
        for (address, shown) in [([0; 4], "0.0.0.0"), ([169, 254, 3, 1], "169.254.3.1")] {
            let mut nobody = good.clone();
            nobody[16..20].copy_from_slice(&address);
            assert!(reported(&nobody).starts_with(shown));
        }
        let mut nameless = good;
        let at = HEADER_BYTES + 5;
        assert_eq!(nameless[at], OPTION_SERVER);
        nameless[at] = 43;
        assert!(reported(&nameless).contains("option 54"));
    }

    fn lease_of(extra: &[u8]) -> Lease {
        let Some(Ok(Reply::Offer(lease))) = TALK.reply(&answer(2, extra)) else { panic!() };
        lease
    }

    fn routes_of(option: &[u8]) -> Vec<String> {
        let mut extra = MASK_AND_ROUTERS.to_vec();
        extra.extend_from_slice(option);
        let show = |route: &Route| {
            let via = route.gateway.map_or("the wire".to_owned(), |router| router.to_string());
            format!("{}/{} by {via}", route.network, route.prefix)
        };
        lease_of(&extra).routes.iter().map(show).collect()
    }

    #[test]
    fn routes_of_rfc_3442_stand_in_for_the_router() {
        let default = [121, 5, 0, 192, 0, 2, 9];
        assert_eq!(routes_of(&default), ["0.0.0.0/0 by 192.0.2.9"]);
        let several = [&[121, 20, 8, 10, 192, 0, 2, 7][..], &[32, 198, 51, 100, 1, 0, 0, 0, 0]];
        let several = [&several.concat()[..], &[0, 192, 0, 2, 9]].concat();
        let all = ["10.0.0.0/8 by 192.0.2.7", "198.51.100.1/32 by the wire"];
        assert_eq!(routes_of(&several), [&all[..], &["0.0.0.0/0 by 192.0.2.9"]].concat());
        // A prefix narrower than its octets, and an option in two pieces (RFC 3396).
        assert_eq!(routes_of(&[121, 6, 7, 0xff, 192, 0, 2, 7]), ["254.0.0.0/7 by 192.0.2.7"]);
        let pieces = [121, 2, 0, 192, 121, 3, 0, 2, 9];
        assert_eq!(routes_of(&pieces), ["0.0.0.0/0 by 192.0.2.9"]);
        for senseless in [&[121, 4, 0, 192, 0, 2][..], &[121, 5, 33, 1, 2, 3, 4], &[121, 0]] {
            assert_eq!(routes_of(senseless), ["0.0.0.0/0 by 192.0.2.1"], "the router is left");
        }
    }

    #[test]
    fn options_go_on_in_the_fields_for_names_and_files() {
        let mut bytes = answer(2, &[OPTION_OVERLOAD, 1, 3]);
        bytes[FILE][..7].copy_from_slice(&[1, 4, 255, 255, 255, 0, 255]);
        bytes[SNAME][..6].copy_from_slice(&[3, 4, 192, 0, 2, 1]);
        let Some(Ok(Reply::Offer(lease))) = TALK.reply(&bytes) else { panic!() };
        assert_eq!((lease.prefix, lease.routes.len()), (24, 1));
        // Without the overload option, the fields hold names.
        let mut names = answer(2, &[]);
        names[FILE][..7].copy_from_slice(&[1, 4, 255, 255, 255, 0, 255]);
        assert_eq!(TALK.reply(&names), Some(Err(Unusable::NoMask)));
    }

    /// Invariant (ramdisk): The ramdisk takes its routes from any DHCP server, and says why it
    /// ignores an answer.
    #[test]
    fn an_option_that_makes_no_sense_hides_no_other() {
        let odd = [12, 2, 0xfc, 0x41, 42, 5, 1, 2, 3, 4, 5, 26, 0];
        assert_eq!(lease_of(&[&odd[..], &MASK_AND_ROUTERS].concat()).prefix, 24);
    }

    #[test]
    fn the_servers_own_timers_count_unless_they_lie_after_the_end() {
        let timers = |t1: u8, t2: u8| {
            let mut extra = MASK_AND_ROUTERS.to_vec();
            extra.extend([58, 4, 0, 0, t1, 0, 59, 4, 0, 0, t2, 0]);
            let Some(Ok(Reply::Ack(lease))) = TALK.reply(&answer(5, &extra)) else { panic!() };
            (lease.renew_after.unwrap().as_secs(), lease.rebind_after.unwrap().as_secs())
        };
        assert_eq!(timers(1, 2), (256, 512));
        assert_eq!(timers(200, 201), (1800, 3150));
    }

    #[test]
    fn a_lease_for_no_time_is_not_renewed_without_a_pause() {
        let mut extra = MASK_AND_ROUTERS.to_vec();
        extra.extend([58, 4, 0, 0, 0, 0, 59, 4, 0, 0, 0, 0]);
        let Some(Ok(Reply::Ack(lease))) = TALK.reply(&answer(5, &extra)) else { panic!() };
        assert_eq!((lease.renew_after, lease.rebind_after), (Some(RENEW_MIN), Some(RENEW_MIN)));
    }

    #[test]
    fn a_first_message_asks_for_a_broadcast_answer_and_a_renewal_does_not() {
        let discover = TALK.message(Ask::Discover, 3);
        assert_eq!((discover.len(), &discover[8..12]), (300, &[0, 3, 0x80, 0][..]));
        let renew = TALK.message(Ask::Renew(Ipv4Addr::new(192, 0, 2, 50)), 0);
        assert_eq!(&renew[10..16], &[0, 0, 192, 0, 2, 50]);
        let options = Options::of(&renew[..HEADER_BYTES], &renew[HEADER_BYTES..]);
        assert_eq!(options.find(OPTION_REQUESTED_ADDRESS), None);
        assert_eq!(options.find(OPTION_PARAMETERS).unwrap()[..3], [1, 121, 3]);
    }

    #[test]
    fn waiting_grows_to_eight_seconds_and_a_quarter() {
        assert_eq!(patience(0, 0), Duration::from_secs(1));
        assert_eq!(patience(2, 0), Duration::from_secs(4));
        assert!(patience(u32::MAX, 255) < Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn never_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            TALK.reply(&bytes);
        }

        #[test]
        fn never_panics_on_any_options(extra in proptest::collection::vec(any::<u8>(), 0..300)) {
            TALK.reply(&answer(2, &extra));
        }
    }
}
