//! File work on a thread of its own, which is watched: how far it is, whether it still moves, and that it stops.
//!
//! Called by the library for everything that may take long. It must never block the runtime, nor wait for a thread that hangs in the
//! kernel: what such a thread uses, it owns.

use std::{
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinError, spawn_blocking},
    time::sleep,
};

use crate::progress::{Interrupted, Watch, stopped};

/// How often a thread is looked at: often enough that a stop takes no time an operator would notice.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Told how many bytes are behind, answers whether to go on.
pub(super) type Beat<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// What the thread and its watcher share.
#[derive(Debug, Default)]
struct Pulse {
    done_bytes: AtomicU64,
    stop: AtomicBool,
}

/// Tells the thread to stop when nobody waits for it any more.
struct Watcher(Arc<Pulse>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

/// Does the work on a thread. Once interrupted, the thread is told to stop and not waited for.
pub(super) async fn watched<T: Send + 'static>(
    watch: &Watch<'_>,
    work: impl FnOnce(&mut Beat<'_>) -> T + Send + 'static,
) -> Result<T, Interrupted> {
    let pulse = Arc::new(Pulse::default());
    let watcher = Watcher(Arc::clone(&pulse));
    let mut thread = spawn_blocking(move || {
        work(&mut |done_bytes| {
            pulse.done_bytes.store(done_bytes, Relaxed);
            if pulse.stop.load(Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
    });
    let mut cancel = watch.cancel.clone();
    let (mut seen_bytes, mut moved) = (0, Instant::now());
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut cancel) => return Err(Interrupted::Cancelled),
            done = &mut thread => return done.map_err(never_began),
            () = sleep(POLL_INTERVAL) => {}
        }
        let done_bytes = watcher.0.done_bytes.load(Relaxed);
        if done_bytes != seen_bytes {
            (seen_bytes, moved) = (done_bytes, Instant::now());
            watch.meter.set(done_bytes);
        } else if moved.elapsed() >= watch.stall {
            return Err(Interrupted::Stalled);
        }
    }
}

/// Does something on a thread that cannot be stopped and need not be.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(never_began(error))))
}

/// A panic goes on in whoever waited; else the runtime is going away.
fn never_began(error: JoinError) -> Interrupted {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Interrupted::Cancelled,
    }
}
