//! Makes an entry: fetches, compares, decodes, seals.
//!
//! It runs once for all callers that want the image, in one process at a time. An interruption at
//! any point leaves no entry, and the next fetch resumes.

use std::{fs::File, future::pending, io, pin::pin, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{
    Entry, EntryOrder, Inner,
    cache::{Cache, CacheFileKind, Lock, Taken},
    content, of_cache, of_interrupted,
    session::Session,
    watched::{Heartbeat, on_thread, watched},
};
use crate::{
    checked_file::CheckedFile,
    image::{
        ImageError,
        decode::{self, DecodeError, DecodeLimits, too_large},
        fetch::FetchError,
    },
    model::{ids::Digest, spec::ImageFormat, status::ImagingStage},
    progress::{Meter, Watch, stopped},
    regular_file,
};

/// Pause between two polls for another process to finish an image.
const BUSY_INTERVAL: Duration = Duration::from_millis(100);
/// Pause between two polls of the free space: in this time, a fast disk takes a good part of the
/// reserve.
const SPACE_INTERVAL: Duration = Duration::from_millis(100);
/// How often an image may be made and disappear before the library gives up.
const TRIES: usize = 3;

impl Inner {
    /// Returns the entry, and makes it if it is missing.
    pub(super) async fn obtain(
        &self,
        order: &EntryOrder,
        watch: &Watch<'_>,
    ) -> Result<Entry, ImageError> {
        let session = self.session.get_or_try_init(|| self.begin()).await;
        let session = session.map_err(|error| of_cache(&self.cache.dir, error))?;
        let mut tries = 0;
        while tries < TRIES {
            match self.take(order, session).await? {
                Taken::Whole(lock, file) => return Ok(self.entry(order, lock, file)),
                Taken::Missing(lock) => {
                    tries += 1;
                    self.make(order, &Arc::new(lock), session, watch).await?;
                }
                Taken::Busy => {
                    let pause = sleep(BUSY_INTERVAL);
                    let mut cancel = watch.cancel.clone();
                    tokio::select! {
                        () = pause => {}
                        () = stopped(&mut cancel) => return Err(ImageError::Cancelled),
                    }
                }
            }
        }
        let error = io::Error::other("an image that was just made is gone; is its disk failing?");
        Err(self.failed(order, CacheFileKind::Raw, error))
    }

    async fn begin(&self) -> io::Result<Session> {
        let cache = self.cache.clone();
        on_thread(move || {
            cache.prepare()?;
            let session = Session::begin(cache.session_file()?)?;
            cache.sweep()?;
            Ok(session)
        })
        .await
    }

    async fn take(&self, order: &EntryOrder, session: &Session) -> Result<Taken, ImageError> {
        let (cache, name, mark) = (self.cache.clone(), order.name.clone(), session.mark.clone());
        let taken = on_thread(move || cache.take(&name, &mark)).await;
        taken.map_err(|error| self.failed(order, CacheFileKind::Raw, error))
    }

    fn entry(&self, order: &EntryOrder, lock: Lock, file: CheckedFile) -> Entry {
        Entry {
            digest: order.digest.clone(),
            bytes: file.bytes(),
            file,
            path: self.cache.path(&order.name, CacheFileKind::Raw),
            name: order.name.clone(),
            _lock: Arc::new(lock),
        }
    }

    async fn make(
        &self,
        order: &EntryOrder,
        lock: &Arc<Lock>,
        session: &Session,
        watch: &Watch<'_>,
    ) -> Result<(), ImageError> {
        if self.is_still_good(order, lock, session, watch).await? {
            return Ok(());
        }
        let published = self.fetch(order, watch).await?;
        let (from, content) = self.unpack(order, lock, published, watch).await?;
        let (cache, name, mark) = (self.cache.clone(), order.name.clone(), session.mark.clone());
        let (lock, source, limit) = (Arc::clone(lock), order.shown.clone(), self.cache_bytes);
        let sealed = on_thread(move || {
            // Held until the work ends, even if all callers have left.
            let _lock = lock;
            cache.seal(&name, from, &source, content, &mark)?;
            cache.prune(limit)
        });
        sealed.await.map_err(|error| self.failed(order, from, error))?;
        Ok(())
    }

    /// Checks whether an untrusted image is complete, and removes it if not.
    async fn is_still_good(
        &self,
        order: &EntryOrder,
        lock: &Arc<Lock>,
        session: &Session,
        watch: &Watch<'_>,
    ) -> Result<bool, ImageError> {
        let (cache, name) = (self.cache.clone(), order.name.clone());
        let found = on_thread(move || {
            Ok(cache
                .about(&name)
                .zip(regular_file::open(&cache.path(&name, CacheFileKind::Raw)).ok()))
        });
        let failed = |error| self.failed(order, CacheFileKind::Raw, error);
        let Some((about, raw)) = found.await.map_err(failed)? else { return Ok(false) };
        watch.meter.begin(ImagingStage::Decode, 0, about.bytes);
        let (cache, name, lock) = (self.cache.clone(), order.name.clone(), Arc::clone(lock));
        let mark = session.mark.clone();
        let checked = watched(watch, move |heartbeat| {
            let _lock = lock;
            let sums = cache.create(&name, CacheFileKind::Sums)?;
            let Some(content) = content::survey(&raw, &sums, heartbeat)? else { return Ok(None) };
            let is_good = about.describes(&content);
            if is_good {
                sums.sync_all()?;
                cache.write_about(&name, &raw, &about.source, content.digest, &mark)?;
            } else {
                for kind in [CacheFileKind::About, CacheFileKind::Raw, CacheFileKind::Sums] {
                    cache.remove(&name, kind)?;
                }
            }
            Ok(Some(is_good))
        });
        let checked = checked.await.map_err(|e| of_interrupted(&order.shown, watch, e))?;
        let is_good = checked.map_err(failed)?.ok_or(ImageError::Cancelled)?;
        if is_good {
            info!(image = %order.name, "the image in the cache was checked and is whole");
        } else {
            warn!(image = %order.name, "the image in the cache is damaged: it is fetched again");
        }
        Ok(is_good)
    }

    /// Returns the published file, with the right digest.
    async fn fetch(&self, order: &EntryOrder, watch: &Watch<'_>) -> Result<Arc<File>, ImageError> {
        let failed = |error| self.failed(order, CacheFileKind::Partial, error);
        let (cache, name) = (self.cache.clone(), order.name.clone());
        let file =
            on_thread(move || cache.create(&name, CacheFileKind::Partial)).await.map_err(failed)?;
        let file = Arc::new(file);
        self.make_room_for(order, &file, watch).await?;
        let fetched = self.fetch_into(order, &file, watch).await;
        if is_mismatch(&fetched) {
            self.cache.remove(&order.name, CacheFileKind::Partial).map_err(failed)?;
        }
        fetched.map(|()| file)
    }

    /// Fetches while there is space.
    async fn fetch_into(
        &self,
        order: &EntryOrder,
        file: &Arc<File>,
        watch: &Watch<'_>,
    ) -> Result<(), ImageError> {
        let (stop, cancel) = watch::channel(false);
        let inner = Watch { cancel, stall: watch.stall, meter: watch.meter };
        let EntryOrder { source, digest, .. } = order;
        let fetch = self.sources.fetch(source, digest, file, self.published_bytes_max, &inner);
        let mut fetch = pin!(fetch);
        let mut cancelled = watch.cancel.clone();
        let why = tokio::select! {
            fetched = &mut fetch => {
                return fetched.map_err(|error| self.of_fetch(order, watch, error));
            }
            // The number of holes still to come is unknown.
            why = self.space_runs_out(order, || 0) => why,
            () = stopped(&mut cancelled) => ImageError::Cancelled,
        };
        stop.send_replace(true);
        // The dropped fetch writes nothing after this.
        drop(fetch.await);
        Err(why)
    }

    /// Unpacks the published file; returns the kind of the raw file, and its digest.
    async fn unpack(
        &self,
        order: &EntryOrder,
        lock: &Arc<Lock>,
        published: Arc<File>,
        watch: &Watch<'_>,
    ) -> Result<(CacheFileKind, Digest), ImageError> {
        let failed = |error| self.of_decode(order, watch.meter, error);
        let is_raw = match order.format {
            Some(format) => {
                let file = Arc::clone(&published);
                let look = on_thread(move || Ok(decode::inspect(&file, format))).await;
                let look =
                    look.map_err(|error| self.failed(order, CacheFileKind::Partial, error))?;
                self.or_useless(order, look).map_err(failed)?.is_raw
            }
            None => true,
        };
        let bytes = published.metadata().map_err(|error| failed(error.into()))?.len();
        watch.meter.begin(ImagingStage::Decode, 0, bytes);
        let work = Unpacking {
            cache: self.cache.clone(),
            order: order.clone(),
            published,
            is_raw,
            raw_bytes_max: self.raw_bytes_max,
            _lock: Arc::clone(lock),
        };
        let no_space = async {
            // A raw file needs no decoding.
            if is_raw {
                pending().await
            } else {
                self.space_runs_out(order, || left_bytes(watch.meter)).await
            }
        };
        let unpacked = tokio::select! {
            unpacked = watched(watch, move |heartbeat| work.run(heartbeat)) => unpacked,
            why = no_space => return Err(why),
        };
        let unpacked = unpacked.map_err(|error| of_interrupted(&order.shown, watch, error))?;
        self.or_useless(order, unpacked).map_err(failed)
    }

    /// Removes a published file that cannot be decoded: a second fetch would bring the same.
    fn or_useless<T>(
        &self,
        order: &EntryOrder,
        result: Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        if let Err(DecodeError::Unusable(_) | DecodeError::TooLarge { .. }) = result {
            self.cache.remove(&order.name, CacheFileKind::Partial)?;
        }
        result
    }

    /// Makes space for the published file, before its first byte is written.
    async fn make_room_for(
        &self,
        order: &EntryOrder,
        file: &Arc<File>,
        watch: &Watch<'_>,
    ) -> Result<(), ImageError> {
        // If the request for the size fails, the fetch itself reports the failure.
        let size = self.sources.size(&order.source, watch).await.ok().flatten();
        let Some(bytes) = size.filter(|bytes| *bytes <= self.published_bytes_max) else {
            return Ok(());
        };
        let there =
            file.metadata().map_err(|error| self.failed(order, CacheFileKind::Partial, error))?;
        self.make_room(order, bytes.saturating_sub(there.len())).await
    }

    /// Keeps space free for the bytes to come. Returns when there is none.
    async fn space_runs_out(
        &self,
        order: &EntryOrder,
        left_bytes: impl Fn() -> u64 + Sync,
    ) -> ImageError {
        loop {
            if let Err(error) = self.make_room(order, left_bytes()).await {
                return error;
            }
            sleep(SPACE_INTERVAL).await;
        }
    }

    /// Makes space for so many more bytes by removing unused images.
    async fn make_room(&self, order: &EntryOrder, bytes: u64) -> Result<(), ImageError> {
        let (cache, limit) = (self.cache.clone(), self.cache_bytes);
        match on_thread(move || cache.make_room(bytes, limit)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.no_space(order, bytes)),
            Err(error) => Err(of_cache(&self.cache.dir, error)),
        }
    }

    fn no_space(&self, order: &EntryOrder, needed_bytes: u64) -> ImageError {
        self.too_full(order, needed_bytes, self.cache.free_bytes().unwrap_or_default())
    }

    fn too_full(&self, order: &EntryOrder, needed_bytes: u64, free_bytes: u64) -> ImageError {
        let (source_text, dir) = (order.shown.clone(), self.cache.dir.clone());
        ImageError::NoSpace { source_text, dir, needed_bytes, free_bytes }
    }

    fn of_decode(&self, order: &EntryOrder, meter: &Meter, error: DecodeError) -> ImageError {
        match error {
            DecodeError::Cancelled => ImageError::Cancelled,
            // The unfinished file may have been removed, and its space free.
            DecodeError::Io(error) if is_full(&error) => self.too_full(order, left_bytes(meter), 0),
            error => ImageError::Decode { source_text: order.shown.clone(), error },
        }
    }

    fn of_fetch(&self, order: &EntryOrder, watch: &Watch<'_>, error: FetchError) -> ImageError {
        match error {
            FetchError::Keep(error) if is_full(&error) => {
                self.no_space(order, left_bytes(watch.meter))
            }
            FetchError::Keep(error) => self.failed(order, CacheFileKind::Partial, error),
            FetchError::Interrupted(why) => of_interrupted(&order.shown, watch, why),
            error => ImageError::Fetch(error),
        }
    }

    fn failed(&self, order: &EntryOrder, kind: CacheFileKind, error: io::Error) -> ImageError {
        of_cache(&self.cache.path(&order.name, kind), error)
    }
}

/// The input of a thread that unpacks an image.
struct Unpacking {
    cache: Cache,
    order: EntryOrder,
    published: Arc<File>,
    is_raw: bool,
    raw_bytes_max: u64,
    /// Held until the thread has ended, even if all callers have left.
    _lock: Arc<Lock>,
}

impl Unpacking {
    fn run(&self, heartbeat: &mut Heartbeat<'_>) -> Result<(CacheFileKind, Digest), DecodeError> {
        let done = self.unpack(heartbeat);
        if done.is_err() {
            self.cache.remove(&self.order.name, CacheFileKind::Temporary)?;
        }
        done
    }

    fn unpack(
        &self,
        heartbeat: &mut Heartbeat<'_>,
    ) -> Result<(CacheFileKind, Digest), DecodeError> {
        let (kind, raw) = if self.is_raw {
            (CacheFileKind::Partial, Arc::clone(&self.published))
        } else {
            let format = self.order.format.unwrap_or(ImageFormat::Raw);
            let raw = self.cache.create(&self.order.name, CacheFileKind::Temporary)?;
            raw.set_len(0)?;
            let scratch = || self.cache.scratch(&self.order.name);
            let raw_bytes_max = self.raw_bytes_max;
            let mut limits = DecodeLimits { raw_bytes_max, progress: heartbeat, scratch: &scratch };
            decode::decode(&self.published, format, &raw, &mut limits)?;
            (CacheFileKind::Temporary, Arc::new(raw))
        };
        let bytes = raw.metadata()?.len();
        too_large(bytes, true, self.raw_bytes_max)?;
        let sums = self.cache.create(&self.order.name, CacheFileKind::Sums)?;
        let content = content::survey(&raw, &sums, heartbeat)?.ok_or(DecodeError::Cancelled)?;
        Ok((kind, content.digest))
    }
}

/// The bytes to come, if known. A published file and its unpacked data take about the same space;
/// only the holes differ.
fn left_bytes(meter: &Meter) -> u64 {
    meter.progress().map_or(0, |now| now.total_bytes.saturating_sub(now.done_bytes))
}

fn is_mismatch(fetched: &Result<(), ImageError>) -> bool {
    matches!(fetched, Err(ImageError::Fetch(FetchError::Checksum { .. })))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
