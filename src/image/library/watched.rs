//! Runs file work on a separate thread that reports its progress and can be stopped.
//!
//! The library uses it for all long work. It must never block the runtime, nor wait for a thread
//! that hangs in the kernel: such a thread owns all that it uses.

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

/// Interval at which the library polls a thread: short enough that an operator notices no delay of
/// a stop.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A progress callback: takes the number of bytes done, and returns whether to continue.
pub(super) type Heartbeat<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// The progress and the stop signal that a thread and its watcher share.
#[derive(Debug, Default)]
struct Liveness {
    done_bytes: AtomicU64,
    stop: AtomicBool,
}

/// Stops the thread when its last waiter is gone.
struct Watcher(Arc<Liveness>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

/// Runs the work on a thread. After an interruption the thread gets a stop signal, and nobody waits
/// for it.
pub(super) async fn watched<T: Send + 'static>(
    watch: &Watch<'_>,
    work: impl FnOnce(&mut Heartbeat<'_>) -> T + Send + 'static,
) -> Result<T, Interrupted> {
    let liveness = Arc::new(Liveness::default());
    let watcher = Watcher(Arc::clone(&liveness));
    let mut thread = spawn_blocking(move || {
        work(&mut |done_bytes| {
            liveness.done_bytes.store(done_bytes, Relaxed);
            if liveness.stop.load(Relaxed) {
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

/// Runs short work on a thread that cannot be stopped.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(never_began(error))))
}

/// Continues a panic of the thread in its waiter; otherwise the runtime is shutting down.
fn never_began(error: JoinError) -> Interrupted {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Interrupted::Cancelled,
    }
}
