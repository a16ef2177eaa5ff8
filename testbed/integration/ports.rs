//! Loopback ports for counterparts and agents.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

/// A port nobody uses, UDP or TCP, and nobody is given before the test is over: it lies below those
/// the kernel gives to connections.
pub(crate) fn free() -> SocketAddr {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let spread = std::process::id().wrapping_mul(211) % 18_000;
        AtomicU16::new(10_000 + u16::try_from(spread).unwrap())
    });
    loop {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, NEXT.fetch_add(1, Ordering::Relaxed)));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}
