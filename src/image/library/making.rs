//! Making an entry: fetch, compare, decode, seal.
//!
//! Runs once for all who want the image, in one process at a time. Whatever it is cut off by, what it leaves is no entry, and a fetch goes
//! on from there.

use std::{fs::File, future::pending, io, pin::pin, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{
    Entry, Inner, Order,
    cache::{Cache, Kind, Lock, Taken},
    content, of_cache, of_interrupted,
    session::Session,
    watched::{Beat, on_thread, watched},
};
use crate::{
    checked_file::CheckedFile,
    image::{
        ImageError,
        decode::{self, DecodeError, Limits, too_large},
        fetch::FetchError,
    },
    model::{ids::Digest, spec::ImageFormat, status::ImagingStage},
    progress::{Meter, Watch, stopped},
    regular_file,
};

/// Between two looks whether another process has done with an image.
const BUSY_INTERVAL: Duration = Duration::from_millis(100);
/// Between two looks at the space that is left: a fast disk takes a good part of the reserve meanwhile.
const SPACE_INTERVAL: Duration = Duration::from_millis(100);
/// An image that is made and gone again, so many times in a row, is not worth another one.
const TRIES: usize = 3;

impl Inner {
    /// The entry, made if need be.
    pub(super) async fn obtain(
        &self,
        order: &Order,
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
        let error = io::Error::other("what was put there does not stay; is its disk failing?");
        Err(self.failed(order, Kind::Raw, error))
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

    async fn take(&self, order: &Order, session: &Session) -> Result<Taken, ImageError> {
        let (cache, name, mark) = (self.cache.clone(), order.name.clone(), session.mark.clone());
        let taken = on_thread(move || cache.take(&name, &mark)).await;
        taken.map_err(|error| self.failed(order, Kind::Raw, error))
    }

    fn entry(&self, order: &Order, lock: Lock, file: CheckedFile) -> Entry {
        Entry {
            digest: order.digest.clone(),
            bytes: file.bytes(),
            file,
            path: self.cache.path(&order.name, Kind::Raw),
            name: order.name.clone(),
            _lock: Arc::new(lock),
        }
    }

    async fn make(
        &self,
        order: &Order,
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
            // Held until this is done, whoever may have left meanwhile.
            let _lock = lock;
            cache.seal(&name, from, &source, content, &mark)?;
            cache.prune(limit)
        });
        sealed.await.map_err(|error| self.failed(order, from, error))?;
        Ok(())
    }

    /// Whether what is there, and was not trusted, is whole after all. If not, it is removed.
    async fn is_still_good(
        &self,
        order: &Order,
        lock: &Arc<Lock>,
        session: &Session,
        watch: &Watch<'_>,
    ) -> Result<bool, ImageError> {
        let (cache, name) = (self.cache.clone(), order.name.clone());
        let found = on_thread(move || {
            Ok(cache.about(&name).zip(regular_file::open(&cache.path(&name, Kind::Raw)).ok()))
        });
        let failed = |error| self.failed(order, Kind::Raw, error);
        let Some((about, raw)) = found.await.map_err(failed)? else { return Ok(false) };
        watch.meter.begin(ImagingStage::Decode, 0, about.bytes);
        let (cache, name, lock) = (self.cache.clone(), order.name.clone(), Arc::clone(lock));
        let mark = session.mark.clone();
        let checked = watched(watch, move |beat| {
            let _lock = lock;
            let sums = cache.create(&name, Kind::Sums)?;
            let Some(content) = content::survey(&raw, &sums, beat)? else { return Ok(None) };
            let is_good = about.describes(&content);
            if is_good {
                sums.sync_all()?;
                cache.write_about(&name, &raw, &about.source, content.digest, &mark)?;
            } else {
                for kind in [Kind::About, Kind::Raw, Kind::Sums] {
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

    /// The file as published, with the right digest.
    async fn fetch(&self, order: &Order, watch: &Watch<'_>) -> Result<Arc<File>, ImageError> {
        let failed = |error| self.failed(order, Kind::Partial, error);
        let (cache, name) = (self.cache.clone(), order.name.clone());
        let file = on_thread(move || cache.create(&name, Kind::Partial)).await.map_err(failed)?;
        let file = Arc::new(file);
        self.make_room_for(order, &file, watch).await?;
        let fetched = self.fetch_into(order, &file, watch).await;
        if is_mismatch(&fetched) {
            self.cache.remove(&order.name, Kind::Partial).map_err(failed)?;
        }
        fetched.map(|()| file)
    }

    /// Fetches as long as there is space.
    async fn fetch_into(
        &self,
        order: &Order,
        file: &Arc<File>,
        watch: &Watch<'_>,
    ) -> Result<(), ImageError> {
        let (stop, cancel) = watch::channel(false);
        let inner = Watch { cancel, stall: watch.stall, meter: watch.meter };
        let Order { source, digest, .. } = order;
        let fetch = self.sources.fetch(source, digest, file, self.published_bytes_max, &inner);
        let mut fetch = pin!(fetch);
        let mut cancelled = watch.cancel.clone();
        let why = tokio::select! {
            fetched = &mut fetch => {
                return fetched.map_err(|error| self.of_fetch(order, watch, error));
            }
            // How much of what is still to come are holes, is not known.
            why = self.space_runs_out(order, || 0) => why,
            () = stopped(&mut cancelled) => ImageError::Cancelled,
        };
        stop.send_replace(true);
        // Nothing is written after this has returned.
        drop(fetch.await);
        Err(why)
    }

    /// Where the raw bytes are now, and what they are.
    async fn unpack(
        &self,
        order: &Order,
        lock: &Arc<Lock>,
        published: Arc<File>,
        watch: &Watch<'_>,
    ) -> Result<(Kind, Digest), ImageError> {
        let failed = |error| self.of_decode(order, watch.meter, error);
        let is_raw = match order.format {
            Some(format) => {
                let file = Arc::clone(&published);
                let look = on_thread(move || Ok(decode::inspect(&file, format))).await;
                let look = look.map_err(|error| self.failed(order, Kind::Partial, error))?;
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
            // What is raw already is only read.
            if is_raw {
                pending().await
            } else {
                self.space_runs_out(order, || left_bytes(watch.meter)).await
            }
        };
        let unpacked = tokio::select! {
            unpacked = watched(watch, move |beat| work.run(beat)) => unpacked,
            why = no_space => return Err(why),
        };
        let unpacked = unpacked.map_err(|error| of_interrupted(&order.shown, watch, error))?;
        self.or_useless(order, unpacked).map_err(failed)
    }

    /// What cannot be decoded is not kept: fetched again it would be the same.
    fn or_useless<T>(
        &self,
        order: &Order,
        result: Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        if let Err(DecodeError::Unusable(_) | DecodeError::TooLarge { .. }) = result {
            self.cache.remove(&order.name, Kind::Partial)?;
        }
        result
    }

    /// Makes space for the file as published, before the first byte of it is written.
    async fn make_room_for(
        &self,
        order: &Order,
        file: &Arc<File>,
        watch: &Watch<'_>,
    ) -> Result<(), ImageError> {
        // What cannot be asked for is not there either, and the fetch itself says why.
        let size = self.sources.size(&order.source, watch).await.ok().flatten();
        let Some(bytes) = size.filter(|bytes| *bytes <= self.published_bytes_max) else {
            return Ok(());
        };
        let there = file.metadata().map_err(|error| self.failed(order, Kind::Partial, error))?;
        self.make_room(order, bytes.saturating_sub(there.len())).await
    }

    /// Keeps space for what is still to come. Returns when there is none.
    async fn space_runs_out(
        &self,
        order: &Order,
        left_bytes: impl Fn() -> u64 + Sync,
    ) -> ImageError {
        loop {
            if let Err(error) = self.make_room(order, left_bytes()).await {
                return error;
            }
            sleep(SPACE_INTERVAL).await;
        }
    }

    /// Makes space for so many bytes more, at the cost of images nobody uses.
    async fn make_room(&self, order: &Order, bytes: u64) -> Result<(), ImageError> {
        let (cache, limit) = (self.cache.clone(), self.cache_bytes);
        match on_thread(move || cache.make_room(bytes, limit)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.no_space(order, bytes)),
            Err(error) => Err(of_cache(&self.cache.dir, error)),
        }
    }

    fn no_space(&self, order: &Order, needed_bytes: u64) -> ImageError {
        self.too_full(order, needed_bytes, self.cache.free_bytes().unwrap_or_default())
    }

    fn too_full(&self, order: &Order, needed_bytes: u64, free_bytes: u64) -> ImageError {
        let (source_text, dir) = (order.shown.clone(), self.cache.dir.clone());
        ImageError::NoSpace { source_text, dir, needed_bytes, free_bytes }
    }

    fn of_decode(&self, order: &Order, meter: &Meter, error: DecodeError) -> ImageError {
        match error {
            DecodeError::Cancelled => ImageError::Cancelled,
            // What was made of it so far may be gone again, and the space it took be free.
            DecodeError::Io(error) if is_full(&error) => self.too_full(order, left_bytes(meter), 0),
            error => ImageError::Decode { source_text: order.shown.clone(), error },
        }
    }

    fn of_fetch(&self, order: &Order, watch: &Watch<'_>, error: FetchError) -> ImageError {
        match error {
            FetchError::Keep(error) if is_full(&error) => {
                self.no_space(order, left_bytes(watch.meter))
            }
            FetchError::Keep(error) => self.failed(order, Kind::Partial, error),
            FetchError::Interrupted(why) => of_interrupted(&order.shown, watch, why),
            error => ImageError::Fetch(error),
        }
    }

    fn failed(&self, order: &Order, kind: Kind, error: io::Error) -> ImageError {
        of_cache(&self.cache.path(&order.name, kind), error)
    }
}

/// What a thread needs to unpack an image.
struct Unpacking {
    cache: Cache,
    order: Order,
    published: Arc<File>,
    is_raw: bool,
    raw_bytes_max: u64,
    /// Held until the thread has ended, whoever may have left meanwhile.
    _lock: Arc<Lock>,
}

impl Unpacking {
    fn run(&self, beat: &mut Beat<'_>) -> Result<(Kind, Digest), DecodeError> {
        let done = self.unpack(beat);
        if done.is_err() {
            self.cache.remove(&self.order.name, Kind::Temporary)?;
        }
        done
    }

    fn unpack(&self, beat: &mut Beat<'_>) -> Result<(Kind, Digest), DecodeError> {
        let (kind, raw) = if self.is_raw {
            (Kind::Partial, Arc::clone(&self.published))
        } else {
            let format = self.order.format.unwrap_or(ImageFormat::Raw);
            let raw = self.cache.create(&self.order.name, Kind::Temporary)?;
            raw.set_len(0)?;
            let scratch = || self.cache.scratch(&self.order.name);
            let raw_bytes_max = self.raw_bytes_max;
            let mut limits = Limits { raw_bytes_max, progress: beat, scratch: &scratch };
            decode::decode(&self.published, format, &raw, &mut limits)?;
            (Kind::Temporary, Arc::new(raw))
        };
        let bytes = raw.metadata()?.len();
        too_large(bytes, true, self.raw_bytes_max)?;
        let sums = self.cache.create(&self.order.name, Kind::Sums)?;
        let content = content::survey(&raw, &sums, beat)?.ok_or(DecodeError::Cancelled)?;
        Ok((kind, content.digest))
    }
}

/// How many bytes are still to come, as far as it is known. What is unpacked takes about as much of the disk as what it comes from; only
/// the holes are new.
fn left_bytes(meter: &Meter) -> u64 {
    meter.progress().map_or(0, |now| now.total_bytes.saturating_sub(now.done_bytes))
}

fn is_mismatch(fetched: &Result<(), ImageError>) -> bool {
    matches!(fetched, Err(ImageError::Fetch(FetchError::Checksum { .. })))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
