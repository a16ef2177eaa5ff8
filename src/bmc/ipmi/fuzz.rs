//! The entry point of the fuzz target: feeds arbitrary bytes to every decoder of BMC packets.

use super::{
    commands::{BootFlags, IpmiCommand, console_is_closed, manufacturer, power_state},
    crypto::Keys,
    handshake::{Credentials, Handshake, Nonces},
    packet::Packet,
    session::Session,
    sol::Stream,
};
use crate::model::{
    secret::Secret,
    spec::{CipherSuite, Privilege},
};

const CONSOLE: u32 = 0x35de_b640;
const BMC: u32 = 2;

/// Runs every decoder on the same bytes. For a dialogue, the bytes are datagrams, each with a
/// length byte before it.
pub fn fuzz(bytes: &[u8]) {
    Packet::decode(bytes);
    power_state(bytes);
    manufacturer(bytes);
    BootFlags::decode(bytes);
    console_is_closed(bytes);
    listen(bytes);
    for suite in [CipherSuite::Sha1, CipherSuite::Sha256] {
        shake_hands(suite, bytes);
        let keys = || Keys::derive(suite, &[7; 20]);
        let mut session = Session::new(suite, CONSOLE, BMC, keys());
        let Some(request) = session.request(IpmiCommand::GetChassisStatus) else { return };
        session.answer(&request, bytes);
        // Seals the bytes as a BMC with the right keys would.
        let mut answer = request.clone();
        answer.message = bytes.to_vec();
        let sealed = Session::new(suite, BMC, CONSOLE, keys()).seal(&answer, [9; 16]);
        session.answer(&request, &sealed);
        session.sol(bytes);
        session.sol(&Session::new(suite, BMC, CONSOLE, keys()).seal_sol(bytes, [9; 16]));
    }
}

fn listen(mut bytes: &[u8]) {
    let mut stream = Stream::default();
    while let Some((length, rest)) = bytes.split_first() {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        stream.take(payload);
        bytes = rest;
    }
}

fn shake_hands(suite: CipherSuite, mut bytes: &[u8]) {
    let credentials = Credentials {
        username: "admin".to_owned(),
        password: Secret::new("password".to_owned()),
        kg: None,
        privilege: Privilege::Administrator,
    };
    let nonces = Nonces { tag: 0x76, console_id: CONSOLE, challenge: [1; 16] };
    let mut handshake = Handshake::start(credentials, suite, nonces);
    while let Some((length, rest)) = bytes.split_first() {
        let (datagram, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        handshake.receive(datagram);
        bytes = rest;
    }
    handshake.abandon([0; 16]);
}
