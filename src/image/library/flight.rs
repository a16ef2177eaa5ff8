//! One fetch for all who want the same image at the same time.
//!
//! The work is a task of its own, which lives as long as somebody waits for it: whoever leaves does not stop it for the others. It must
//! never go on for nobody.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

use super::{Entry, cache::Name, of_cache};
use crate::{
    image::ImageError,
    progress::{Cancel, Meter, Watch, stopped},
};

/// How often a waiter is shown how far the work is.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);

/// What comes of it, for everybody.
type Outcome = Result<Entry, Arc<ImageError>>;

/// The name of an image, and where it is to come from.
type Key = (Name, String);

/// The work under way.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<BTreeMap<Key, Weak<Flight>>>);

/// One piece of work. Held by its waiters only: with the last of them goes `_wanted`, and the work is cancelled.
#[derive(Debug)]
pub(super) struct Flight {
    meter: Arc<Meter>,
    _wanted: watch::Sender<bool>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Flights {
    /// The work on this; if there is none, `work` is started with its meter and its cancel signal.
    pub(super) fn join<W>(
        &self,
        key: Key,
        work: impl FnOnce(Arc<Meter>, Cancel) -> W,
    ) -> Arc<Flight>
    where
        W: Future<Output = Result<Entry, ImageError>> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let present = flights.get(&key).and_then(Weak::upgrade);
        // What has ended may have failed for a reason that is gone by now.
        if let Some(flight) = present.filter(|flight| flight.outcome.borrow().is_none()) {
            return flight;
        }
        let meter = Arc::new(Meter::default());
        let (wanted, cancel) = watch::channel(false);
        let (tell, outcome) = watch::channel(None);
        let work = work(Arc::clone(&meter), cancel);
        tokio::spawn(async move {
            let outcome = work.await.map_err(Arc::new);
            // Nobody may be left to hear it.
            drop(tell.send(Some(outcome)));
        });
        let flight = Arc::new(Flight { meter, _wanted: wanted, outcome });
        flights.retain(|_, flight| flight.strong_count() > 0);
        flights.insert(key, Arc::downgrade(&flight));
        flight
    }
}

impl Flight {
    /// Waits for what comes of it, showing how far it is.
    pub(super) async fn outcome(&self, dir: &Path, watch: &Watch<'_>) -> Outcome {
        let mut outcome = self.outcome.clone();
        let mut cancel = watch.cancel.clone();
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut cancel) => return Err(Arc::new(ImageError::Cancelled)),
                ended = outcome.wait_for(Option::is_some) => {
                    watch.meter.show(&self.meter);
                    return ended.ok().and_then(|ended| ended.clone()).unwrap_or_else(|| {
                        let error = io::Error::other("hostler itself failed: see its log");
                        Err(Arc::new(of_cache(dir, error)))
                    });
                }
                () = sleep(SHOW_INTERVAL) => watch.meter.show(&self.meter),
            }
        }
    }
}
