//! DHCP for IPv4 as a client needs it (RFC 2131, options of RFC 2132): the messages to send, what a reply means, when to ask again.
//!
//! Called by [`super::network`], which owns the socket and the clock. It must never do I/O, and never trust a byte: the segment a
//! machine netboots on is not its own.

use std::{net::Ipv4Addr, ops::Range, time::Duration};

use crate::model::ids::MacAddr;

/// Smallest BOOTP message, in bytes: some relays drop shorter ones (RFC 1542 §2.1).
const MESSAGE_BYTES_MIN: usize = 300;
/// Fixed part, in bytes, up to and with the magic cookie (RFC 2131 §2).
const HEADER_BYTES: usize = 240;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Asks servers to answer to 255.255.255.255: without an address the kernel drops what is sent to one (RFC 2131 §4.1).
const FLAG_BROADCAST: [u8; 2] = [0x80, 0];
/// The lease time that means "for ever" (RFC 2131 §3.3).
const FOREVER: u32 = u32::MAX;
/// The server is not asked for more time sooner than this: one that lends for no time would be asked without a pause.
const RENEW_MIN: Duration = Duration::from_secs(10);

const OPTION_PAD: u8 = 0;
const OPTION_SUBNET_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_REQUESTED_ADDRESS: u8 = 50;
const OPTION_LEASE_SECONDS: u8 = 51;
const OPTION_MESSAGE_TYPE: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_PARAMETERS: u8 = 55;
const OPTION_RENEW_SECONDS: u8 = 58;
const OPTION_REBIND_SECONDS: u8 = 59;
const OPTION_END: u8 = 255;

/// An address on loan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    /// Bits of the subnet mask, 0 to 32.
    pub(super) prefix: u8,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) server: Ipv4Addr,
    /// When to ask the server for more time (T1); `None`: never, the lease does not end.
    pub(super) renew_after: Option<Duration>,
    /// When to ask any server (T2).
    pub(super) rebind_after: Option<Duration>,
}

/// What a server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It would lend this.
    Offer(Lease),
    /// It lends this.
    Ack(Lease),
    /// It refuses: start over.
    Nak,
}

/// What the client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Who has an address for me?
    Discover,
    /// I take this offer.
    Take(Lease),
    /// I have this address and want to keep it.
    Renew(Ipv4Addr),
}

/// One conversation: replies must carry its number and this card's address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conversation {
    pub(super) mac: MacAddr,
    /// Transaction id, random for each conversation.
    pub(super) xid: u32,
}

impl Conversation {
    /// The message's bytes. `seconds`: how long this conversation has lasted.
    pub(super) fn message(self, ask: Ask, seconds: u16) -> Vec<u8> {
        let (kind, own_address) = match ask {
            Ask::Discover => (1, Ipv4Addr::UNSPECIFIED),
            Ask::Take(_) => (3, Ipv4Addr::UNSPECIFIED),
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
        if let Ask::Take(offer) = ask {
            bytes.extend([OPTION_REQUESTED_ADDRESS, 4]);
            bytes.extend(offer.address.octets());
            bytes.extend([OPTION_SERVER, 4]);
            bytes.extend(offer.server.octets());
        }
        bytes.extend([OPTION_PARAMETERS, 5, OPTION_SUBNET_MASK, OPTION_ROUTER]);
        bytes.extend([OPTION_LEASE_SECONDS, OPTION_RENEW_SECONDS, OPTION_REBIND_SECONDS]);
        bytes.push(OPTION_END);
        bytes.resize(bytes.len().max(MESSAGE_BYTES_MIN), OPTION_PAD);
        bytes
    }

    /// What the bytes mean to this conversation; `None`: nothing (somebody else's, damaged, or no usable address in it).
    pub(super) fn reply(self, bytes: &[u8]) -> Option<Reply> {
        let header = bytes.get(..HEADER_BYTES)?;
        let ours = header.starts_with(&[2, 1, 6])
            && field(header, 4..8)? == self.xid.to_be_bytes()
            && header.get(28..34)? == self.mac.octets()
            && header.ends_with(&MAGIC_COOKIE);
        let options = Options(bytes.get(HEADER_BYTES..)?);
        match options.find(OPTION_MESSAGE_TYPE)? {
            _ if !ours => None,
            [2] => lease(field(header, 16..20)?, &options).map(Reply::Offer),
            [5] => lease(field(header, 16..20)?, &options).map(Reply::Ack),
            [6] => Some(Reply::Nak),
            _ => None,
        }
    }
}

/// How long to wait for the answer to the given try (0, 1, 2 …): 1, 2, 4, then 8 seconds, each up to a quarter longer by `random`,
/// so that machines switched on together do not stay in step (RFC 2131 §4.1). Shorter than the RFC's 4 to 64 seconds: a person waits.
pub(super) fn patience(tries: u32, random: u8) -> Duration {
    let base = Duration::from_secs(1 << tries.min(3));
    base + base * u32::from(random) / 1024
}

fn lease(address: [u8; 4], options: &Options<'_>) -> Option<Lease> {
    let address = Ipv4Addr::from(address);
    let usable = !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && !address.is_broadcast();
    let mask = options.number(OPTION_SUBNET_MASK)?;
    let contiguous = mask.leading_ones() + mask.trailing_zeros() == u32::BITS || mask == u32::MAX;
    if !usable || !contiguous {
        return None;
    }
    let seconds = options.number(OPTION_LEASE_SECONDS).unwrap_or(FOREVER);
    let timer = |option, default: u64| {
        (seconds != FOREVER).then(|| {
            let given = options.number(option).map(u64::from).filter(|t| *t < u64::from(seconds));
            Duration::from_secs(given.unwrap_or(default)).max(RENEW_MIN)
        })
    };
    Some(Lease {
        address,
        prefix: u8::try_from(mask.leading_ones()).ok()?,
        // A router list: the first is preferred (RFC 2132 §3.5).
        router: options
            .find(OPTION_ROUTER)
            .and_then(|routers| Some(Ipv4Addr::from(field(routers, 0..4)?))),
        server: Ipv4Addr::from(options.number(OPTION_SERVER)?),
        renew_after: timer(OPTION_RENEW_SECONDS, u64::from(seconds) / 2),
        rebind_after: timer(OPTION_REBIND_SECONDS, u64::from(seconds) * 7 / 8),
    })
}

fn field(bytes: &[u8], range: Range<usize>) -> Option<[u8; 4]> {
    bytes.get(range)?.try_into().ok()
}

/// The options of a message: code, length, value; padding between them; the first of a code counts.
struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    fn find(&self, wanted: u8) -> Option<&'a [u8]> {
        let mut rest = self.0;
        loop {
            match rest {
                [OPTION_PAD, tail @ ..] => rest = tail,
                [] | [OPTION_END, ..] | [_] => return None,
                [code, length, tail @ ..] => {
                    let (value, tail) = tail.split_at_checked(usize::from(*length))?;
                    if *code == wanted {
                        return Some(value);
                    }
                    rest = tail;
                }
            }
        }
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

    /// An answer as dnsmasq lays it out: type, server, times, mask, router, with padding where relays put it.
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
            router: Some(Ipv4Addr::new(192, 0, 2, 1)),
            server: Ipv4Addr::new(192, 0, 2, 1),
            renew_after: Some(Duration::from_secs(1800)),
            rebind_after: Some(Duration::from_secs(3150)),
        };
        assert_eq!(TALK.reply(&answer(2, &MASK_AND_ROUTERS)), Some(Reply::Offer(lease)));
        assert_eq!(TALK.reply(&answer(5, &MASK_AND_ROUTERS)), Some(Reply::Ack(lease)));
        assert_eq!(TALK.reply(&answer(6, &[])), Some(Reply::Nak));
    }

    #[test]
    fn what_is_not_for_this_conversation_is_ignored() {
        let good = answer(2, &MASK_AND_ROUTERS);
        for (at, why) in
            [(0, "a request"), (7, "other number"), (33, "other card"), (239, "no cookie")]
        {
            let mut other = good.clone();
            other[at] ^= 1;
            assert_eq!(TALK.reply(&other), None, "{why}");
        }
        assert_eq!(TALK.reply(&answer(2, &[])), None, "no subnet mask");
        assert_eq!(TALK.reply(&answer(2, &[1, 4, 255, 0, 255, 0])), None, "mask with a hole");
        let mut nobody = good;
        nobody[16..20].fill(0);
        assert_eq!(TALK.reply(&nobody), None, "no address");
    }

    #[test]
    fn the_servers_own_timers_count_unless_they_lie_after_the_end() {
        let timers = |t1: u8, t2: u8| {
            let mut extra = MASK_AND_ROUTERS.to_vec();
            extra.extend([58, 4, 0, 0, t1, 0, 59, 4, 0, 0, t2, 0]);
            let Some(Reply::Ack(lease)) = TALK.reply(&answer(5, &extra)) else { panic!() };
            (lease.renew_after.unwrap().as_secs(), lease.rebind_after.unwrap().as_secs())
        };
        assert_eq!(timers(1, 2), (256, 512));
        assert_eq!(timers(200, 201), (1800, 3150));
    }

    #[test]
    fn a_lease_for_no_time_is_not_renewed_without_a_pause() {
        let mut extra = MASK_AND_ROUTERS.to_vec();
        extra.extend([58, 4, 0, 0, 0, 0, 59, 4, 0, 0, 0, 0]);
        let Some(Reply::Ack(lease)) = TALK.reply(&answer(5, &extra)) else { panic!() };
        assert_eq!((lease.renew_after, lease.rebind_after), (Some(RENEW_MIN), Some(RENEW_MIN)));
    }

    #[test]
    fn a_first_message_asks_for_a_broadcast_answer_and_a_renewal_does_not() {
        let discover = TALK.message(Ask::Discover, 3);
        assert_eq!((discover.len(), &discover[8..12]), (300, &[0, 3, 0x80, 0][..]));
        let renew = TALK.message(Ask::Renew(Ipv4Addr::new(192, 0, 2, 50)), 0);
        assert_eq!(&renew[10..16], &[0, 0, 192, 0, 2, 50]);
        assert_eq!(Options(&renew[HEADER_BYTES..]).find(OPTION_REQUESTED_ADDRESS), None);
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
