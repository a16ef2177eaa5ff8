//! Places for connections: how many there are, in all and from each address, and who makes room
//! when they run out.
//!
//! Asked by the listeners on the deploy network before they do anything for a connection. It must
//! stay small however many addresses turn up, and it must never let those who only take places keep
//! out a machine: when there is no place left, the oldest connection that is not kept gives its own
//! up. It holds nothing of an address without a connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// All places of one listener.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    per_peer_max: usize,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    connections: BTreeMap<u64, Connection>,
    next_number: u64,
}

#[derive(Debug)]
struct Connection {
    peer: IpAddr,
    /// Since when it may be ended, as a number that only grows; `None`: it is kept.
    silent_since: Option<u64>,
    /// Dropped with this entry, which tells the connection to end.
    _place: oneshot::Sender<()>,
}

/// A connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    peer: IpAddr,
    number: u64,
}

/// A connection that got a place.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) place: Place,
    /// Ends once the place is taken away.
    pub(crate) taken: oneshot::Receiver<()>,
    /// The peer whose connection was ended for it.
    pub(crate) made_room: Option<IpAddr>,
}

/// A place is kept until this is dropped.
#[derive(Debug)]
pub(crate) struct Kept(Arc<Place>);

impl Places {
    pub(crate) fn new(max: usize, per_peer_max: usize) -> Arc<Self> {
        Arc::new(Self { max, per_peer_max, book: Mutex::default() })
    }

    /// A place for a new connection from there, if there is one or one can be taken from somebody.
    pub(crate) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Admitted> {
        let mut book = self.book();
        let of_peer = book.connections.values().filter(|it| it.peer == peer).count();
        let mut made_room = None;
        if of_peer >= self.per_peer_max {
            made_room = Some(book.end_oldest(|it| it.peer == peer)?);
        }
        if book.connections.len() >= self.max {
            made_room = Some(book.end_oldest(|_| true)?);
        }
        let (place, taken) = oneshot::channel();
        let number = book.number();
        let silent_since = Some(number);
        book.connections.insert(number, Connection { peer, silent_since, _place: place });
        Some(Admitted { place: Place { places: Arc::clone(self), peer, number }, taken, made_room })
    }

    /// The addresses that have a connection.
    pub(crate) fn peers(&self) -> BTreeSet<IpAddr> {
        self.book().connections.values().map(|it| it.peer).collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing in here can be left half done by a panic elsewhere.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The peer that has it.
    pub(crate) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Nobody makes room at its cost from now on.
    pub(crate) fn keep(&self) {
        self.set_silent(|_| None);
    }

    /// The same until what this returns is dropped; from then on it is as if it had just come.
    pub(crate) fn keep_while(self: &Arc<Self>) -> Kept {
        self.keep();
        Kept(Arc::clone(self))
    }

    fn set_silent(&self, since: impl FnOnce(&mut Book) -> Option<u64>) {
        let mut book = self.places.book();
        let since = since(&mut book);
        if let Some(connection) = book.connections.get_mut(&self.number) {
            connection.silent_since = since;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.book().connections.remove(&self.number);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.set_silent(|book| Some(book.number()));
    }
}

impl Book {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Takes its place from the one of these that has been silent longest; whose it was.
    fn end_oldest(&mut self, of: impl Fn(&Connection) -> bool) -> Option<IpAddr> {
        let these = self.connections.iter().filter(|(_, it)| of(it));
        let silent = these.filter_map(|(number, it)| Some((it.silent_since?, *number)));
        let (_, number) = silent.min()?;
        self.connections.remove(&number).map(|ended| ended.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn is_ended(admitted: &mut Admitted) -> bool {
        admitted.taken.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn a_full_house_makes_room_by_ending_the_oldest_that_is_not_kept() {
        let places = Places::new(3, 2);
        let mut first = places.take(address(1)).unwrap();
        let mut second = places.take(address(1)).unwrap();
        first.place.keep();
        let mut third = places.take(address(1)).unwrap();
        assert!(!is_ended(&mut first) && is_ended(&mut second), "one address has two places");
        assert_eq!((second.made_room, third.made_room), (None, Some(address(1))));
        let fourth = places.take(address(2)).unwrap();
        let fifth = places.take(address(3)).unwrap();
        assert!(!is_ended(&mut first) && is_ended(&mut third), "all have three");
        assert_eq!((fourth.made_room, fifth.made_room), (None, Some(address(1))));
        // An ended connection frees nobody else's place when it is gone.
        drop(second);
        assert_eq!(places.book().connections.len(), 3);
        fourth.place.keep();
        fifth.place.keep();
        assert!(places.take(address(4)).is_none(), "who is kept keeps its place");
        drop(first);
        assert!(places.take(address(4)).is_some());
        drop((third, fourth, fifth));
        assert!(places.peers().is_empty());
    }

    #[test]
    fn who_was_kept_for_a_while_is_then_as_if_it_had_just_come() {
        let places = Places::new(2, 2);
        let Admitted { place, mut taken, .. } = places.take(address(1)).unwrap();
        let place = Arc::new(place);
        let kept = place.keep_while();
        let mut second = places.take(address(2)).unwrap();
        drop(kept);
        let _third = places.take(address(3)).unwrap();
        assert!(is_ended(&mut second), "the first one spoke later");
        assert!(taken.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
    }
}
