//! How many connections there are, in all and from each address.
//!
//! Asked by the server before it does anything for a connection. It holds nothing of an address without one.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    per_peer_max: usize,
    /// Connections of each address that has any.
    taken: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A connection's place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    peer: IpAddr,
}

impl Places {
    pub(super) fn new(max: usize, per_peer_max: usize) -> Arc<Self> {
        Arc::new(Self { max, per_peer_max, taken: Mutex::default() })
    }

    /// A place for a connection from there, if there is one.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let mut taken = self.taken();
        let own = taken.get(&peer).copied().unwrap_or(0);
        if taken.values().sum::<usize>() >= self.max || own >= self.per_peer_max {
            return None;
        }
        taken.insert(peer, own + 1);
        Some(Place { places: Arc::clone(self), peer })
    }

    /// Nothing panics between two changes of what is behind this lock.
    fn taken(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        match taken.get_mut(&self.peer) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_for_each_address_and_come_back() {
        let places = Places::new(3, 2);
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let first = places.take(address(1)).unwrap();
        let second = places.take(address(1)).unwrap();
        assert!(places.take(address(1)).is_none());
        let _third = places.take(address(2)).unwrap();
        assert!(places.take(address(3)).is_none());
        drop(first);
        assert!(places.take(address(3)).is_some());
        drop(second);
        assert_eq!(places.taken().keys().collect::<Vec<_>>(), [&address(2)]);
    }
}
