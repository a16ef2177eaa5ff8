//! What each address has taken: its open connections and its share of requests.
//!
//! Called by the server for every connection and request. It must stay small however many addresses turn up, and it must never let those who
//! only take places keep out a ramdisk: when there is no place left, the oldest connection that has not shown a good key gives its own up.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

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
    /// By their numbers, and so by their age.
    connections: BTreeMap<u64, Connection>,
    next_number: u64,
    peers: BTreeMap<IpAddr, Peer>,
}

#[derive(Debug)]
struct Connection {
    peer: IpAddr,
    /// Whether it has shown a good key. Until then it is anybody's.
    proven: bool,
    /// Dropped with this entry, which tells the connection to end.
    _place: oneshot::Sender<()>,
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
    number: u64,
}

impl Peers {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, book: Mutex::default() })
    }

    /// A place for a new connection, if there is one or one can be taken from somebody; and what ends once it is taken from this one.
    pub(super) fn connect(
        self: &Arc<Self>,
        peer: IpAddr,
        now: Instant,
    ) -> Option<(Place, oneshot::Receiver<()>)> {
        let mut book = self.book();
        if book.peers.len() >= PEERS_MAX && !book.peers.contains_key(&peer) {
            book.forget_one();
        }
        let entry = book.peers.entry(peer).or_insert(Peer { connections: 0, next: now });
        let of_peer = entry.connections;
        if !self.limits.takes(entry, now) {
            return None;
        }
        if of_peer >= self.limits.connections_per_peer_max {
            book.end_oldest(|connection| connection.peer == peer)?;
        }
        if book.connections.len() >= self.limits.connections_max {
            book.end_oldest(|_| true)?;
        }
        let (place, taken) = oneshot::channel();
        let number = book.next_number;
        book.next_number += 1;
        book.connections.insert(number, Connection { peer, proven: false, _place: place });
        if let Some(entry) = book.peers.get_mut(&peer) {
            entry.connections += 1;
        }
        Some((Place { peers: Arc::clone(self), peer, number }, taken))
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

    /// It has shown a good key, and keeps its place.
    pub(super) fn prove(&self) {
        if let Some(connection) = self.peers.book().connections.get_mut(&self.number) {
            connection.proven = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.peers.book().end(self.number);
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
    /// Takes its place from the oldest of these that has not shown a good key.
    fn end_oldest(&mut self, of: impl Fn(&Connection) -> bool) -> Option<()> {
        let mut connections = self.connections.iter();
        let (number, _) = connections.find(|(_, it)| !it.proven && of(it))?;
        let number = *number;
        self.end(number);
        Some(())
    }

    fn end(&mut self, number: u64) {
        let Some(Connection { peer, .. }) = self.connections.remove(&number) else { return };
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.connections = peer.connections.saturating_sub(1);
        }
    }

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
    fn a_full_house_makes_room_by_ending_the_oldest_that_has_shown_no_key() {
        let (peers, now) = (Peers::new(limits()), Instant::now());
        let ended = |taken: &mut oneshot::Receiver<()>| {
            taken.try_recv() == Err(oneshot::error::TryRecvError::Closed)
        };
        let (first, mut first_taken) = peers.connect(address(1), now).unwrap();
        let (second, mut second_taken) = peers.connect(address(1), now).unwrap();
        first.prove();
        let (_third, mut third_taken) = peers.connect(address(1), now).unwrap();
        assert!(!ended(&mut first_taken) && ended(&mut second_taken), "one address has two places");
        let (fourth, _) = peers.connect(address(2), now).unwrap();
        let (fifth, _) = peers.connect(address(3), now).unwrap();
        assert!(!ended(&mut first_taken) && ended(&mut third_taken), "all have three");
        assert_eq!(peers.book().connections.len(), 3);
        // What was ended frees nobody else's place when it is gone.
        drop(second);
        assert_eq!(peers.book().peers.get(&address(1)).unwrap().connections, 1);
        fourth.prove();
        fifth.prove();
        assert!(peers.connect(address(4), now).is_none(), "the proven keep their places");
        drop(first);
        assert!(peers.connect(address(4), now).is_some());
    }

    #[test]
    fn a_burst_is_served_then_the_pace_holds_and_a_quiet_second_brings_it_back() {
        let (peers, start) = (Peers::new(limits()), Instant::now());
        let (place, _taken) = peers.connect(address(1), start).unwrap();
        let served = |at: Instant| (0..100).filter(|_| place.takes_request(at)).count();
        assert_eq!(served(start), 4, "five in one go, of which the connection was one");
        assert_eq!(served(start + Duration::from_millis(250)), 2);
        assert_eq!(served(start + Duration::from_secs(60)), 5);
    }

    #[test]
    fn however_many_addresses_come_the_book_stays_small_and_the_connected_stay_in_it() {
        let (peers, now) = (Peers::new(limits()), Instant::now());
        let _place = peers.connect(address(0), now).unwrap();
        assert_eq!(peers.book().connections.len(), 1);
        for n in 1..10_000 {
            assert!(peers.connect(address(n), now).is_some());
        }
        let book = peers.book();
        assert_eq!((book.peers.len(), book.connections.len()), (PEERS_MAX, 1));
        assert_eq!(book.peers.get(&address(0)).unwrap().connections, 1);
    }
}
