//! Limits the number of concurrent transfers, in all and for each client.
//!
//! The server claims a slot for each request; the transfer holds it until the end of its thread.
//! The number of threads never exceeds that of slots, except for threads that are about to end.
//!
//! Anybody can send requests with forged addresses. To keep slots free for machines, an address has
//! a share of them, and when all are taken, a transfer whose client has never answered gives way. A
//! machine answers within milliseconds; a forged address never does.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// An identical request counts as the network's duplicate or the client's repetition while its
/// transfer is younger than this or alive. Later, the machine has restarted and uses the same port
/// again.
const DUPLICATE_LIFE: Duration = Duration::from_secs(1);

/// Time for a client's first answer before its transfer may give way to another.
const ANSWER_GRACE: Duration = Duration::from_millis(200);
/// Least share of an address, which is a quarter of the slots otherwise: a machine needs one or
/// two, several may share an address.
const SHARE_MIN: usize = 16;

/// The slots of all transfers.
#[derive(Clone, Debug)]
pub(super) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    /// Most slots for one address.
    share: usize,
    live: Mutex<Live>,
    freed: Condvar,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Live {
    count: usize,
    clients: HashMap<SocketAddr, Arc<Client>>,
    /// The number of slots of each address.
    addresses: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Client {
    request: Vec<u8>,
    began: Instant,
    /// The time of the client's last packet, including its request.
    last_packet: Mutex<Instant>,
    /// Whether the client has sent a packet to the transfer's own port, which only the owner of the
    /// request's address can know.
    answered: AtomicBool,
    superseded: AtomicBool,
    displaced: AtomicBool,
}

/// The answer to a claim.
#[derive(Debug)]
pub(super) enum Claim {
    /// The slot for a new transfer.
    Granted(Slot),
    /// A transfer already answers this request.
    Repeated,
    /// All slots are taken, or all of this address. A client without an answer repeats its request;
    /// a refused client gives up its boot.
    Full,
}

/// One slot, free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    peer: SocketAddr,
    client: Arc<Client>,
    slots: Slots,
}

/// The reason why a transfer must end before its file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cancel {
    /// The server stops.
    Stopping,
    /// The client has sent another request from the same port.
    Superseded,
    /// The client has never answered, and others are waiting.
    Displaced,
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Shared {
            max,
            share: (max / 4).max(SHARE_MIN),
            live: Mutex::default(),
            freed: Condvar::new(),
            stopping: AtomicBool::new(false),
        }))
    }

    pub(super) fn max(&self) -> usize {
        self.0.max
    }

    /// Claims a slot for a client's request. A new request ends the client's earlier transfer: it
    /// has one port and one file at a time.
    pub(super) fn claim(&self, peer: SocketAddr, request: &[u8], now: Instant) -> Claim {
        let mut live = self.live();
        if let Some(earlier) = live.clients.get(&peer) {
            if earlier.request == request && now < earlier.last_packet() + DUPLICATE_LIFE {
                return Claim::Repeated;
            }
            earlier.superseded.store(true, Ordering::Relaxed);
        }
        if live.addresses.get(&peer.ip()).is_some_and(|count| *count >= self.0.share) {
            return Claim::Full;
        }
        if live.count >= self.0.max {
            live.displace(now);
            return Claim::Full;
        }
        let client = Arc::new(Client {
            request: request.to_vec(),
            began: now,
            last_packet: Mutex::new(now),
            answered: AtomicBool::new(false),
            superseded: AtomicBool::new(false),
            displaced: AtomicBool::new(false),
        });
        live.count += 1;
        *live.addresses.entry(peer.ip()).or_default() += 1;
        live.clients.insert(peer, Arc::clone(&client));
        Claim::Granted(Slot { peer, client, slots: self.clone() })
    }

    /// Cancels every transfer, and waits until all have ended. `false` if some have not within the
    /// limit.
    pub(super) fn stop(&self, limit: Duration) -> bool {
        self.0.stopping.store(true, Ordering::Relaxed);
        let waited = self.0.freed.wait_timeout_while(self.live(), limit, |live| live.count > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.count == 0
    }

    /// No panic can occur between two changes of the locked data.
    fn live(&self) -> MutexGuard<'_, Live> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Cancels the transfer that has waited longest for its client's first answer. Its slot is free
    /// a moment later.
    fn displace(&self, now: Instant) {
        let silent = |client: &&Arc<Client>| {
            let ending = client.displaced.load(Ordering::Relaxed);
            !ending && !client.answered() && now >= client.began + ANSWER_GRACE
        };
        if let Some(client) = self.clients.values().filter(silent).min_by_key(|c| c.began) {
            client.displaced.store(true, Ordering::Relaxed);
        }
    }
}

impl Client {
    fn answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    fn last_packet(&self) -> Instant {
        *self.last_packet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Records a packet of the client; returns whether it was the first.
    pub(super) fn note_packet(&self, now: Instant) -> bool {
        *self.client.last_packet.lock().unwrap_or_else(PoisonError::into_inner) = now;
        !self.client.answered.swap(true, Ordering::Relaxed)
    }

    /// Whether the client has ever sent a packet to this transfer.
    pub(super) fn answered(&self) -> bool {
        self.client.answered()
    }

    /// The reason why the transfer must end, if there is one.
    pub(super) fn cancelled(&self) -> Option<Cancel> {
        if self.client.superseded.load(Ordering::Relaxed) {
            Some(Cancel::Superseded)
        } else if self.client.displaced.load(Ordering::Relaxed) && !self.answered() {
            Some(Cancel::Displaced)
        } else if self.slots.0.stopping.load(Ordering::Relaxed) {
            Some(Cancel::Stopping)
        } else {
            None
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut live = self.slots.live();
        live.count -= 1;
        if let Some(count) = live.addresses.get_mut(&self.peer.ip()) {
            *count -= 1;
            if *count == 0 {
                live.addresses.remove(&self.peer.ip());
            }
        }
        if live.clients.get(&self.peer).is_some_and(|c| Arc::ptr_eq(c, &self.client)) {
            live.clients.remove(&self.peer);
        }
        self.slots.0.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A different address for each number.
    fn from(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 1).into()
    }

    fn peer(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn granted(claim: Claim) -> Slot {
        match claim {
            Claim::Granted(slot) => slot,
            Claim::Repeated | Claim::Full => panic!("{claim:?}"),
        }
    }

    #[test]
    fn a_repeated_request_starts_nothing_while_its_transfer_lives() {
        let (slots, start) = (Slots::new(9), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let slot = granted(slots.claim(peer(1), b"x", at(0)));
        assert!(matches!(slots.claim(peer(1), b"x", at(999)), Claim::Repeated));
        slot.note_packet(at(900));
        assert!(matches!(slots.claim(peer(1), b"x", at(1899)), Claim::Repeated));
        assert_eq!(slot.cancelled(), None);
        let again = granted(slots.claim(peer(1), b"x", at(1900)));
        assert_eq!((slot.cancelled(), again.cancelled()), (Some(Cancel::Superseded), None));
        drop(slot);
        assert!(matches!(slots.claim(peer(1), b"x", at(1901)), Claim::Repeated));
    }

    #[test]
    fn another_request_from_the_same_port_supersedes_the_first() {
        let (slots, now) = (Slots::new(9), Instant::now());
        let first = granted(slots.claim(peer(1), b"x", now));
        let second = granted(slots.claim(peer(1), b"y", now));
        let other = granted(slots.claim(peer(2), b"y", now));
        assert_eq!(first.cancelled(), Some(Cancel::Superseded));
        assert_eq!((second.cancelled(), other.cancelled()), (None, None));
    }

    #[test]
    fn there_are_never_more_transfers_than_slots() {
        let (slots, now) = (Slots::new(2), Instant::now());
        let first = granted(slots.claim(peer(1), b"x", now));
        let second = granted(slots.claim(peer(1), b"y", now));
        assert!(matches!(slots.claim(peer(2), b"x", now), Claim::Full), "superseded is not ended");
        drop(first);
        let third = granted(slots.claim(peer(2), b"x", now));
        assert!(!slots.stop(Duration::ZERO));
        assert_eq!(third.cancelled(), Some(Cancel::Stopping));
        drop((second, third));
        assert!(slots.stop(Duration::ZERO));
    }

    #[test]
    fn an_address_has_a_share_of_the_slots() {
        let (slots, now) = (Slots::new(100), Instant::now());
        let mut held: Vec<_> =
            (0..25).map(|port| granted(slots.claim(peer(port), b"x", now))).collect();
        assert!(matches!(slots.claim(peer(99), b"x", now), Claim::Full));
        let other = granted(slots.claim(from(1), b"x", now));
        held.pop();
        granted(slots.claim(peer(99), b"x", now));
        drop((held, other));
        let live = slots.live();
        assert!(live.addresses.is_empty() && live.clients.is_empty());
    }

    #[test]
    fn clients_that_never_answer_make_room_for_others_the_longest_silent_first() {
        let (slots, start) = (Slots::new(3), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let [first, second, third] =
            [1, 2, 3].map(|n| granted(slots.claim(from(n), b"x", at(n.into()))));
        assert!(first.note_packet(at(4)) && !first.note_packet(at(5)));
        let full = |ms| assert!(matches!(slots.claim(from(9), b"x", at(ms)), Claim::Full));
        full(200);
        assert_eq!(second.cancelled(), None, "it still has time");
        full(203);
        assert_eq!((second.cancelled(), third.cancelled()), (Some(Cancel::Displaced), None));
        full(204);
        assert_eq!(third.cancelled(), Some(Cancel::Displaced));
        third.note_packet(at(205));
        assert_eq!(third.cancelled(), None, "an answer in time");
        full(900);
        assert_eq!(first.cancelled(), None, "it has answered");
        drop(second);
        granted(slots.claim(from(9), b"x", at(901)));
    }
}
