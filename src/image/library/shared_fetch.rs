//! Shares one fetch among all callers that want the same image at the same time.
//!
//! The fetch is a separate task, which lives as long as a caller waits: a caller that gives up does
//! not stop it for the others. It must never continue without a caller.

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

/// Interval at which a caller's meter is updated.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);

/// The result for every caller.
type SharedOutcome = Result<Entry, Arc<ImageError>>;

/// The name of an image, and its source.
type Key = (Name, String);

/// The fetches in progress.
#[derive(Debug, Default)]
pub(super) struct SharedFetches(Mutex<BTreeMap<Key, Weak<SharedFetch>>>);

/// A fetch in progress. Only its waiters hold it: the last of them drops `_wanted`, and cancels the
/// work.
#[derive(Debug)]
pub(super) struct SharedFetch {
    meter: Arc<Meter>,
    _wanted: watch::Sender<bool>,
    outcome: watch::Receiver<Option<SharedOutcome>>,
}

impl SharedFetches {
    /// Joins the fetch in progress, or begins `work` with its meter and its cancel signal.
    pub(super) fn join<W>(
        &self,
        key: Key,
        work: impl FnOnce(Arc<Meter>, Cancel) -> W,
    ) -> Arc<SharedFetch>
    where
        W: Future<Output = Result<Entry, ImageError>> + Send + 'static,
    {
        let mut shared_fetches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let present = shared_fetches.get(&key).and_then(Weak::upgrade);
        // An ended fetch may have failed for a cause that is gone by now.
        if let Some(fetch) = present.filter(|fetch| fetch.outcome.borrow().is_none()) {
            return fetch;
        }
        let meter = Arc::new(Meter::default());
        let (wanted, cancel) = watch::channel(false);
        let (tell, outcome) = watch::channel(None);
        let work = work(Arc::clone(&meter), cancel);
        tokio::spawn(async move {
            let outcome = work.await.map_err(Arc::new);
            // No receiver may be left.
            drop(tell.send(Some(outcome)));
        });
        let fetch = Arc::new(SharedFetch { meter, _wanted: wanted, outcome });
        shared_fetches.retain(|_, fetch| fetch.strong_count() > 0);
        shared_fetches.insert(key, Arc::downgrade(&fetch));
        fetch
    }
}

impl SharedFetch {
    /// Waits for the result, and shows the progress.
    pub(super) async fn outcome(&self, dir: &Path, watch: &Watch<'_>) -> SharedOutcome {
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
