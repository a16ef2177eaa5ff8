//! What each address has taken: its open connections and its share of requests.
//!
//! Called by the server for every connection and request. It must stay small however many addresses turn up.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Limits;

/// Addresses remembered. More than the connections allowed at once, so that there is always an idle one to forget.
const PEERS_MAX: usize = 1024;

/// The book of all addresses.
#[derive(Debug)]
pub(super) struct Peers {
    limits: Limits,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    connections: usize,
    peers: BTreeMap<IpAddr, Peer>,
}

#[derive(Debug)]
struct Peer {
    connections: usize,
    /// When it would next be served if it had been given an even pace. How far this lies ahead is what it has borrowed.
    next: Instant,
}

/// A connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    peers: Arc<Peers>,
    peer: IpAddr,
}

impl Peers {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, book: Mutex::default() })
    }

    /// A place for a new connection, if there is one.
    pub(super) fn connect(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Option<Place> {
        let mut book = self.book();
        if book.connections >= self.limits.connections_max {
            return None;
        }
        if book.peers.len() >= PEERS_MAX && !book.peers.contains_key(&peer) {
            book.forget_one();
        }
        let entry = book.peers.entry(peer).or_insert(Peer { connections: 0, next: now });
        if entry.connections >= self.limits.connections_per_peer_max
            || !self.limits.takes(entry, now)
        {
            return None;
        }
        entry.connections += 1;
        book.connections += 1;
        Some(Place { peers: Arc::clone(self), peer })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing in here can be left half done by a panic elsewhere.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whose it is.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Whether one more request fits into the peer's share.
    pub(super) fn takes_request(&self, now: Instant) -> bool {
        let mut book = self.peers.book();
        book.peers.get_mut(&self.peer).is_some_and(|peer| self.peers.limits.takes(peer, now))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut book = self.peers.book();
        book.connections = book.connections.saturating_sub(1);
        if let Some(peer) = book.peers.get_mut(&self.peer) {
            peer.connections = peer.connections.saturating_sub(1);
        }
    }
}

impl Limits {
    fn takes(&self, peer: &mut Peer, now: Instant) -> bool {
        let pace = Duration::from_secs(1) / self.per_second.max(1);
        let next = peer.next.max(now) + pace;
        let fits = next.duration_since(now) <= pace * self.burst;
        if fits {
            peer.next = next;
        }
        fits
    }
}

impl Book {
    /// Forgets the unconnected address that has been quiet longest.
    fn forget_one(&mut self) {
        let idle = self.peers.iter().filter(|(_, peer)| peer.connections == 0);
        if let Some(peer) = idle.min_by_key(|(_, peer)| peer.next).map(|(address, _)| *address) {
            self.peers.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn limits() -> Limits {
        Limits {
            connections_max: 3,
            connections_per_peer_max: 2,
            per_second: 10,
            burst: 5,
            ..Limits::default()
        }
    }

    fn address(n: u32) -> IpAddr {
        Ipv6Addr::from(u128::from(n)).into()
    }

    #[test]
    fn places_are_bounded_for_each_and_for_all_and_come_back() {
        let (peers, now) = (Peers::new(limits()), Instant::now());
        let first = peers.connect(address(1), now).unwrap();
        let _second = peers.connect(address(1), now).unwrap();
        assert!(peers.connect(address(1), now).is_none());
        let _third = peers.connect(address(2), now).unwrap();
        assert!(peers.connect(address(3), now).is_none());
        drop(first);
        assert!(peers.connect(address(3), now).is_some());
    }

    #[test]
    fn a_burst_is_served_then_the_pace_holds_and_a_quiet_second_brings_it_back() {
        let (peers, start) = (Peers::new(limits()), Instant::now());
        let place = peers.connect(address(1), start).unwrap();
        let served = |at: Instant| (0..100).filter(|_| place.takes_request(at)).count();
        assert_eq!(served(start), 4, "five in one go, of which the connection was one");
        assert_eq!(served(start + Duration::from_millis(250)), 2);
        assert_eq!(served(start + Duration::from_secs(60)), 5);
    }

    #[test]
    fn however_many_addresses_come_the_book_stays_small_and_the_connected_stay_in_it() {
        let (peers, now) = (Peers::new(limits()), Instant::now());
        let _place = peers.connect(address(0), now).unwrap();
        for n in 1..10_000 {
            assert!(peers.connect(address(n), now).is_some());
        }
        let book = peers.book();
        assert_eq!((book.peers.len(), book.connections), (PEERS_MAX, 1));
        assert_eq!(book.peers.get(&address(0)).unwrap().connections, 1);
    }
}
