//! Tests of the DHCP messages: answers of servers, sound, odd and damaged.

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
fn an_offers_boot_file_is_read_from_its_fields_or_its_options() {
    let offer = |edit: &dyn Fn(&mut Vec<u8>), extra: &[u8]| {
        let mut bytes = answer(2, extra);
        edit(&mut bytes);
        let offer = TALK.boot_offer(&bytes).unwrap();
        assert_eq!(offer.address, Ipv4Addr::new(192, 0, 2, 50));
        (offer.next_server, offer.file)
    };
    let named = |server: &str, file: &str| (server.to_owned(), file.to_owned());
    let fields = |bytes: &mut Vec<u8>| {
        bytes[20..24].copy_from_slice(&[192, 0, 2, 9]);
        bytes[108..112].copy_from_slice(b"a.0\0");
    };
    assert_eq!(offer(&|_| {}, &[]), named("", ""));
    assert_eq!(offer(&fields, &[]), named("192.0.2.9", "a.0"));
    let options = [66, 3, b's', b'r', b'v', 67, 3, b'b', b'.', b'0'];
    assert_eq!(offer(&|_| {}, &options), named("srv", "b.0"));
    assert_eq!(offer(&fields, &options), named("192.0.2.9", "b.0"));
    // The field `file` holds options: another name of the boot file.
    let overloaded = |bytes: &mut Vec<u8>| {
        bytes[108..114].copy_from_slice(&[67, 3, b'c', b'.', b'0', 255]);
    };
    assert_eq!(offer(&overloaded, &[52, 1, 1]), named("", "c.0"));
    assert_eq!(TALK.boot_offer(&answer(5, &[])), None, "no offer");
    let other = Conversation { xid: 1, ..TALK };
    assert_eq!(other.boot_offer(&answer(2, &[])), None, "of another transaction");
}

#[test]
fn a_question_for_a_boot_file_says_what_the_client_is() {
    for (client, arch) in
        [(NetbootClient::Bios, 0), (NetbootClient::UefiX86_64, 7), (NetbootClient::Ipxe, 0)]
    {
        let question = TALK.netboot_discover(client, 3);
        let options = Options::of(&question[..HEADER_BYTES], &question[HEADER_BYTES..]);
        assert_eq!(options.find(OPTION_ARCH), Some([0, arch].as_slice()));
        let class = format!("PXEClient:Arch:{arch:05}:UNDI:003016");
        assert_eq!(options.find(OPTION_VENDOR_CLASS), Some(class.as_bytes()));
        let user_class = options.find(OPTION_USER_CLASS);
        assert_eq!(user_class.is_some(), client == NetbootClient::Ipxe);
    }
}

#[test]
fn what_is_not_for_this_conversation_is_ignored() {
    let good = answer(2, &MASK_AND_ROUTERS);
    for (at, why) in [(0, "a request"), (7, "other number"), (33, "other nic"), (239, "no cookie")]
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
        TALK.boot_offer(&bytes);
    }

    #[test]
    fn never_panics_on_any_options(extra in proptest::collection::vec(any::<u8>(), 0..300)) {
        TALK.reply(&answer(2, &extra));
        TALK.boot_offer(&answer(2, &extra));
    }
}
