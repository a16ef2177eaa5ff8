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
use crate::places::{self, Admitted, Places};

/// Addresses remembered. More than the connections allowed at once, so that there is always an idle one to forget.
const PEERS_MAX: usize = 1024;

/// The book of all addresses.
#[derive(Debug)]
pub(super) struct Peers {
    limits: Limits,
    places: Arc<Places>,
    /// When each address would next be served if it had been given an even pace. How far this lies
    /// ahead is what it has borrowed.
    paces: Mutex<BTreeMap<IpAddr, Instant>>,
}

/// A connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    peers: Arc<Peers>,
    place: places::Place,
}

impl Peers {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let places = Places::new(limits.connections_max, limits.connections_per_peer_max);
        Arc::new(Self { limits, places, paces: Mutex::default() })
    }

    /// A place for a new connection, if there is one or one can be taken from somebody; and what ends once it is taken from this one.
    pub(super) fn connect(
        self: &Arc<Self>,
        peer: IpAddr,
        now: Instant,
    ) -> Option<(Place, oneshot::Receiver<()>)> {
        let mut paces = self.paces();
        if paces.len() >= PEERS_MAX && !paces.contains_key(&peer) {
            self.forget_one(&mut paces);
        }
        if !self.limits.takes(paces.entry(peer).or_insert(now), now) {
            return None;
        }
        let Admitted { place, taken, .. } = self.places.take(peer)?;
        Some((Place { peers: Arc::clone(self), place }, taken))
    }

    /// Forgets the unconnected address that has been quiet longest.
    fn forget_one(&self, paces: &mut BTreeMap<IpAddr, Instant>) {
        let connected = self.places.peers();
        let idle = paces.iter().filter(|(address, _)| !connected.contains(address));
        if let Some(address) = idle.min_by_key(|(_, next)| **next).map(|(address, _)| *address) {
            paces.remove(&address);
        }
    }

    fn paces(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Instant>> {
        // Nothing in here can be left half done by a panic elsewhere.
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whose it is.
    pub(super) fn peer(&self) -> IpAddr {
        self.place.peer()
    }

    /// Whether one more request fits into the peer's share.
    pub(super) fn takes_request(&self, now: Instant) -> bool {
        let mut paces = self.peers.paces();
        paces.get_mut(&self.peer()).is_some_and(|next| self.peers.limits.takes(next, now))
    }

    /// It has shown a good key, and keeps its place.
    pub(super) fn prove(&self) {
        self.place.keep();
    }
}

impl Limits {
    fn takes(&self, borrowed_to: &mut Instant, now: Instant) -> bool {
        let pace = Duration::from_secs(1) / self.per_second.max(1);
        let next = (*borrowed_to).max(now) + pace;
        let fits = next.duration_since(now) <= pace * self.burst;
        if fits {
            *borrowed_to = next;
        }
        fits
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
        for n in 1..10_000 {
            assert!(peers.connect(address(n), now).is_some());
        }
        assert_eq!(peers.paces().len(), PEERS_MAX);
        assert!(peers.paces().contains_key(&address(0)));
        assert_eq!(peers.places.peers().len(), 1);
    }
}
