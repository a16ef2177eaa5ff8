//! The transfers under way: how many there may be, and which client each belongs to.
//!
//! The server claims a slot for each request; the transfer holds it until its thread has ended. There are never more threads than slots.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// A request that is the same to the bit is taken for the network's duplicate or the client's own repetition while its transfer is this
/// young or alive. After it, the machine has been restarted and uses the same port again.
const DUPLICATE_LIFE: Duration = Duration::from_secs(1);

/// All slots.
#[derive(Clone, Debug)]
pub(super) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    live: Mutex<Live>,
    freed: Condvar,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Live {
    count: usize,
    clients: HashMap<SocketAddr, Arc<Client>>,
}

#[derive(Debug)]
struct Client {
    request: Vec<u8>,
    heard: Mutex<Instant>,
    superseded: AtomicBool,
}

/// The answer to a claim.
#[derive(Debug)]
pub(super) enum Claim {
    /// Go on.
    Granted(Slot),
    /// This request is being served already.
    Repeated,
    /// All slots are taken.
    Full,
}

/// One slot, free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    peer: SocketAddr,
    client: Arc<Client>,
    slots: Slots,
}

/// Why a transfer must end before its file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cancel {
    /// The server stops.
    Stopping,
    /// The client has asked for something else from the same port.
    Superseded,
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Shared {
            max,
            live: Mutex::default(),
            freed: Condvar::new(),
            stopping: AtomicBool::new(false),
        }))
    }

    /// Claims a slot for a client's request. A new request ends the client's earlier transfer: it has one port and one file at a time.
    pub(super) fn claim(&self, peer: SocketAddr, request: &[u8], now: Instant) -> Claim {
        let mut live = self.live();
        if let Some(earlier) = live.clients.get(&peer) {
            if earlier.request == request && now < earlier.heard() + DUPLICATE_LIFE {
                return Claim::Repeated;
            }
            earlier.superseded.store(true, Ordering::Relaxed);
        }
        if live.count >= self.0.max {
            return Claim::Full;
        }
        let client = Arc::new(Client {
            request: request.to_vec(),
            heard: Mutex::new(now),
            superseded: AtomicBool::new(false),
        });
        live.count += 1;
        live.clients.insert(peer, Arc::clone(&client));
        Claim::Granted(Slot { peer, client, slots: self.clone() })
    }

    /// Tells every transfer to end, and waits until all have. `false`: some have not within the limit.
    pub(super) fn stop(&self, limit: Duration) -> bool {
        self.0.stopping.store(true, Ordering::Relaxed);
        let waited = self.0.freed.wait_timeout_while(self.live(), limit, |live| live.count > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.count == 0
    }

    /// Nothing panics between two changes of what is behind this lock.
    fn live(&self) -> MutexGuard<'_, Live> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// The client has sent something.
    pub(super) fn heard(&self, now: Instant) {
        *self.client.heard.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Whether the transfer must end.
    pub(super) fn cancelled(&self) -> Option<Cancel> {
        if self.client.superseded.load(Ordering::Relaxed) {
            Some(Cancel::Superseded)
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
        if live.clients.get(&self.peer).is_some_and(|c| Arc::ptr_eq(c, &self.client)) {
            live.clients.remove(&self.peer);
        }
        self.slots.0.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        slot.heard(at(900));
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
}
