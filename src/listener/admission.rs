//! Admission of connections: limits in all and for each peer, rate limits, and eviction.
//!
//! The accept loop asks for every connection, and a connection for each request after its first.
//! Memory must stay bounded whatever the number of peers. Clients that only hold connections must
//! never keep out a machine: a full listener evicts the unprotected connection that has been idle
//! longest. If all are protected, it evicts the one whose download has stalled longest, and for
//! [`NO_PROGRESS_MAX`] at least. Without a rate limit, nothing is kept of a peer that has no
//! connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    mem,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// Peers whose rate is kept: more than connections at once, so that an unconnected one can always
/// be forgotten.
const RATES_MAX: usize = 1024;

/// How long a download may stall before a full listener evicts its connection.
const NO_PROGRESS_MAX: Duration = Duration::from_secs(5);

/// The identity by which clients are told apart.
pub(crate) trait Peer: Copy + Ord + Debug + Send + Sync + 'static {}

impl<P: Copy + Ord + Debug + Send + Sync + 'static> Peer for P {}

/// The limits of one listener, or of several that share them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// Connections at once.
    pub(crate) max: usize,
    /// Connections at once from one peer.
    pub(crate) per_peer_max: usize,
    /// How fast requests of one peer may come; a connection counts as its first request.
    pub(crate) rate: Option<RateLimit>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateLimit {
    /// Over time; at least 1.
    pub(crate) per_second: u32,
    /// Requests in a burst.
    pub(crate) burst: u32,
}

/// The connections of a listener.
#[derive(Debug)]
pub(crate) struct Admission<P = IpAddr> {
    limits: ConnectionLimits,
    book: Mutex<Book<P>>,
}

#[derive(Debug)]
struct Book<P> {
    connections: BTreeMap<u64, Connection<P>>,
    next_number: u64,
    /// Each peer's token bucket as a time: its next request at an even rate. The time ahead of now
    /// is the part of the burst that it has used.
    rates: BTreeMap<P, Instant>,
}

#[derive(Debug)]
struct Connection<P> {
    peer: P,
    /// The start of its idle time, as a growing number; `None`: the connection is protected.
    idle_since: Option<u64>,
    /// The last progress of a download; `None`: there is none.
    progress_at: Option<Instant>,
    /// Whether a request has come over it.
    had_request: bool,
    /// Tells the connection to end, by being dropped.
    _eviction: oneshot::Sender<()>,
}

/// A connection's place within the limits, which dropping it gives back.
#[derive(Debug)]
pub(crate) struct ConnectionPermit<P = IpAddr> {
    admission: Arc<Admission<P>>,
    peer: P,
    number: u64,
}

/// A connection that was admitted.
#[derive(Debug)]
pub(crate) struct Admitted<P = IpAddr> {
    pub(crate) permit: ConnectionPermit<P>,
    /// Resolves when the connection is evicted.
    pub(crate) eviction: oneshot::Receiver<()>,
    /// The peer of the connection that was evicted for this one.
    pub(crate) evicted: Option<P>,
}

/// Why a connection is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// Every connection that could make room is protected.
    Full,
    /// The peer exceeds its rate.
    TooFast,
}

/// Protects a connection until this is dropped.
#[derive(Debug)]
pub(crate) struct Protection<P = IpAddr>(Arc<ConnectionPermit<P>>);

impl<P: Peer> Admission<P> {
    pub(crate) fn new(limits: ConnectionLimits) -> Arc<Self> {
        let connections = BTreeMap::new();
        let book = Book { connections, next_number: 0, rates: BTreeMap::new() };
        Arc::new(Self { limits, book: Mutex::new(book) })
    }

    /// Admits a connection if there is room or an idle one can make room.
    pub(crate) fn admit(
        self: &Arc<Self>,
        peer: P,
        now: Instant,
    ) -> Result<Admitted<P>, NotAdmitted> {
        let mut book = self.book();
        if !book.takes(self.limits.rate, peer, now) {
            return Err(NotAdmitted::TooFast);
        }
        let of_peer = book.connections.values().filter(|it| it.peer == peer).count();
        let mut evicted = None;
        if of_peer >= self.limits.per_peer_max {
            evicted = Some(book.evict(now, |it| it.peer == peer).ok_or(NotAdmitted::Full)?);
        }
        if book.connections.len() >= self.limits.max {
            evicted = Some(book.evict(now, |_| true).ok_or(NotAdmitted::Full)?);
        }
        let (sender, eviction) = oneshot::channel();
        let number = book.number();
        let idle_since = Some(number);
        let connection = Connection {
            peer,
            idle_since,
            progress_at: None,
            had_request: false,
            _eviction: sender,
        };
        book.connections.insert(number, connection);
        let permit = ConnectionPermit { admission: Arc::clone(self), peer, number };
        Ok(Admitted { permit, eviction, evicted })
    }

    /// Whether one more request of this peer, connected or not, fits into its rate.
    pub(crate) fn takes(&self, peer: P, now: Instant) -> bool {
        self.book().takes(self.limits.rate, peer, now)
    }

    /// Whether a connection of a peer that has none would be admitted.
    pub(crate) fn has_room(&self) -> bool {
        let book = self.book();
        book.connections.len() < self.limits.max
            || book.connections.values().any(|it| it.idle_since.is_some())
    }
}

impl<P> Admission<P> {
    fn book(&self) -> MutexGuard<'_, Book<P>> {
        // Nothing in here can be left half done by a panic elsewhere.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Peer> ConnectionPermit<P> {
    pub(crate) fn peer(&self) -> P {
        self.peer
    }

    /// Whether one more request fits into the peer's rate. A connection's first request does: it
    /// was counted with the connection. Otherwise a client with a connection for each request would
    /// use up its rate by connections whose requests are then refused.
    pub(crate) fn takes_request(&self, now: Instant) -> bool {
        let mut book = self.admission.book();
        let connection = book.connections.get_mut(&self.number);
        let is_first = connection.is_some_and(|it| !mem::replace(&mut it.had_request, true));
        is_first || book.takes(self.admission.limits.rate, self.peer, now)
    }
}

impl<P> ConnectionPermit<P> {
    /// Keeps the connection from being evicted from now on.
    pub(crate) fn protect(&self) {
        self.set_idle(|_| None);
    }

    /// Keeps the connection from being evicted until the result is dropped; it then counts as just
    /// idle.
    pub(crate) fn protect_while(self: &Arc<Self>) -> Protection<P> {
        self.protect();
        Protection(Arc::clone(self))
    }

    fn set_idle(&self, since: impl FnOnce(&mut Book<P>) -> Option<u64>) {
        let mut book = self.admission.book();
        let since = since(&mut book);
        if let Some(connection) = book.connections.get_mut(&self.number) {
            connection.idle_since = since;
            connection.progress_at = None;
        }
    }
}

impl<P> Drop for ConnectionPermit<P> {
    fn drop(&mut self) {
        self.admission.book().connections.remove(&self.number);
    }
}

impl<P> Protection<P> {
    /// Notes progress of the connection's download.
    pub(crate) fn note_progress(&self) {
        self.note_progress_at(Instant::now());
    }

    fn note_progress_at(&self, now: Instant) {
        let permit = &self.0;
        if let Some(connection) = permit.admission.book().connections.get_mut(&permit.number) {
            connection.progress_at = Some(now);
        }
    }
}

impl<P> Drop for Protection<P> {
    fn drop(&mut self) {
        self.0.set_idle(|book| Some(book.number()));
    }
}

impl<P> Book<P> {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

impl<P: Peer> Book<P> {
    /// Evicts the idlest matching connection, or else the slowest; returns its peer.
    fn evict(&mut self, now: Instant, matches: impl Fn(&Connection<P>) -> bool) -> Option<P> {
        self.evict_idlest(&matches).or_else(|| self.evict_slowest(now, &matches))
    }

    /// Evicts the matching connection whose download has stalled longest.
    fn evict_slowest(
        &mut self,
        now: Instant,
        matches: impl Fn(&Connection<P>) -> bool,
    ) -> Option<P> {
        let matching = self.connections.iter().filter(|(_, it)| matches(it));
        let sent = matching.filter_map(|(number, it)| Some((it.progress_at?, *number)));
        let is_slow = |(at, _): &(Instant, u64)| now.duration_since(*at) >= NO_PROGRESS_MAX;
        let (_, number) = sent.min().filter(is_slow)?;
        self.connections.remove(&number).map(|evicted| evicted.peer)
    }

    /// Evicts the matching connection that has been idle longest; returns its peer.
    fn evict_idlest(&mut self, matches: impl Fn(&Connection<P>) -> bool) -> Option<P> {
        let matching = self.connections.iter().filter(|(_, it)| matches(it));
        let idle = matching.filter_map(|(number, it)| Some((it.idle_since?, *number)));
        let (_, number) = idle.min()?;
        self.connections.remove(&number).map(|evicted| evicted.peer)
    }

    /// Counts one more connection or request if it fits into the peer's rate; returns whether it
    /// does.
    fn takes(&mut self, rate: Option<RateLimit>, peer: P, now: Instant) -> bool {
        let Some(rate) = rate else { return true };
        if self.rates.len() >= RATES_MAX && !self.rates.contains_key(&peer) {
            self.forget_quietest();
        }
        rate.takes(self.rates.entry(peer).or_insert(now), now)
    }

    /// Forgets the unconnected peer that has been quiet longest.
    fn forget_quietest(&mut self) {
        let connected: BTreeSet<P> = self.connections.values().map(|it| it.peer).collect();
        let idle = self.rates.iter().filter(|(peer, _)| !connected.contains(peer));
        if let Some(peer) = idle.min_by_key(|(_, next)| **next).map(|(peer, _)| *peer) {
            self.rates.remove(&peer);
        }
    }
}

impl RateLimit {
    fn takes(self, borrowed_to: &mut Instant, now: Instant) -> bool {
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
    use std::{net::Ipv6Addr, ops::Range};

    use super::*;

    fn admission(max: usize, per_peer_max: usize, rate: Option<RateLimit>) -> Arc<Admission> {
        Admission::new(ConnectionLimits { max, per_peer_max, rate })
    }

    fn admit(admission: &Arc<Admission>, peer: IpAddr) -> Option<Admitted> {
        admission.admit(peer, Instant::now()).ok()
    }

    fn address(number: u32) -> IpAddr {
        Ipv6Addr::from(u128::from(number)).into()
    }

    fn is_evicted(admitted: &mut Admitted) -> bool {
        admitted.eviction.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    /// Invariant (fair): Silence at the HTTP boot port keeps no machine out.
    #[test]
    fn a_full_listener_evicts_the_connection_that_has_been_idle_longest() {
        let admission = admission(3, 2, None);
        let mut first = admit(&admission, address(1)).unwrap();
        let mut second = admit(&admission, address(1)).unwrap();
        first.permit.protect();
        let mut third = admit(&admission, address(1)).unwrap();
        assert!(!is_evicted(&mut first) && is_evicted(&mut second), "one address has two");
        assert_eq!((second.evicted, third.evicted), (None, Some(address(1))));
        let fourth = admit(&admission, address(2)).unwrap();
        let fifth = admit(&admission, address(3)).unwrap();
        assert!(!is_evicted(&mut first) && is_evicted(&mut third), "all have three");
        assert_eq!((fourth.evicted, fifth.evicted), (None, Some(address(1))));
        // Dropping an evicted connection gives no other connection's permit back.
        drop(second);
        assert_eq!(admission.book().connections.len(), 3);
        assert!(admission.has_room());
        fourth.permit.protect();
        fifth.permit.protect();
        assert!(!admission.has_room());
        let refused = admission.admit(address(4), Instant::now());
        assert_eq!(refused.err(), Some(NotAdmitted::Full), "protected connections stay");
        drop(first);
        assert!(admission.has_room() && admit(&admission, address(4)).is_some());
        drop((third, fourth, fifth));
        assert!(admission.book().connections.is_empty() && admission.book().rates.is_empty());
    }

    /// Invariant (fair): Silence at the HTTP boot port keeps no machine out.
    #[test]
    fn a_connection_that_was_protected_for_a_while_has_then_just_become_idle() {
        let admission = admission(2, 2, None);
        let Admitted { permit, mut eviction, .. } = admit(&admission, address(1)).unwrap();
        let protection = Arc::new(permit).protect_while();
        let mut second = admit(&admission, address(2)).unwrap();
        let permit = Arc::clone(&protection.0);
        drop(protection);
        let _third = admit(&admission, address(3)).unwrap();
        assert!(is_evicted(&mut second), "the first one was active later");
        assert_eq!(eviction.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(permit);
    }

    /// Invariant (fair): A client that takes nothing of its file keeps no machine out.
    #[test]
    fn a_client_that_takes_nothing_of_its_file_keeps_nobody_out() {
        let start = Instant::now();
        let admission = admission(3, 3, None);
        let [mut slow, mut quick, mut other] = [1, 2, 3].map(|peer| {
            let Admitted { permit, eviction, .. } = admit(&admission, address(peer)).unwrap();
            (Arc::new(permit).protect_while(), eviction)
        });
        // The third connection is protected, but not for a download.
        for (protection, _) in [&slow, &quick] {
            protection.note_progress_at(start);
        }
        let later = start + NO_PROGRESS_MAX;
        let just_before = start + NO_PROGRESS_MAX.saturating_sub(Duration::from_millis(1));
        let refused = admission.admit(address(4), just_before);
        assert_eq!(refused.err(), Some(NotAdmitted::Full), "both have just taken something");
        quick.0.note_progress_at(later);
        let admitted = admission.admit(address(4), later).unwrap();
        assert_eq!(admitted.evicted, Some(address(1)));
        let ends = [&mut slow, &mut quick, &mut other].map(|(_, eviction)| eviction.try_recv());
        let stays = Err(oneshot::error::TryRecvError::Empty);
        assert_eq!(ends, [Err(oneshot::error::TryRecvError::Closed), stays.clone(), stays]);
    }

    #[test]
    fn a_burst_is_served_then_the_rate_holds_and_a_quiet_second_brings_it_back() {
        let start = Instant::now();
        let rate = RateLimit { per_second: 10, burst: 5 };
        let admission = admission(3, 2, Some(rate));
        let permit = admission.admit(address(1), start).unwrap().permit;
        let served = |at: Instant| (0..100).filter(|_| permit.takes_request(at)).count();
        assert_eq!(served(start), 5, "the connection is the first of them");
        assert_eq!(admission.admit(address(1), start).err(), Some(NotAdmitted::TooFast));
        assert_eq!(served(start + Duration::from_millis(250)), 2);
        assert_eq!(served(start + Duration::from_secs(60)), 5);
    }

    #[test]
    fn a_client_with_a_connection_for_each_request_is_served_at_its_rate_however_often_it_asks() {
        let start = Instant::now();
        let admission = admission(3, 2, Some(RateLimit { per_second: 10, burst: 5 }));
        let calls = |after: Range<u64>| {
            let times = after.map(|ms| start + Duration::from_millis(ms));
            let connected =
                times.filter_map(|at| Some((admission.admit(address(1), at).ok()?, at)));
            connected.filter(|(admitted, at)| admitted.permit.takes_request(*at)).count()
        };
        assert_eq!(calls(0..1000), 5 + 9);
        assert_eq!(calls(1000..2000), 10);
    }

    #[test]
    fn however_many_peers_come_few_are_remembered_and_the_connected_are_among_them() {
        let admission = admission(3, 2, Some(RateLimit { per_second: 10, burst: 5 }));
        let _connected = admit(&admission, address(0)).unwrap();
        for number in 1..u32::try_from(RATES_MAX).unwrap() + 1000 {
            assert!(admit(&admission, address(number)).is_some());
        }
        assert_eq!(admission.book().rates.len(), RATES_MAX);
        assert!(admission.book().rates.contains_key(&address(0)));
        assert_eq!(admission.book().connections.len(), 1);
    }
}
