//! Keeps this agent's mark, so that only one agent acts upon a status directory.
//!
//! Called by `hostler run`, which stands by while another agent's mark changes, and by the agent's
//! operations, which wait while the mark cannot be read. A thread of its own reads the mark every
//! second and writes a heartbeat every ten, so that a directory that hangs blocks nothing else. The
//! agent must never act while the mark is another agent's.

mod identity;
mod vigil;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing::{error, info, warn};

use self::vigil::{Found, Verdict, Vigil};
use crate::{
    config::Config,
    model::{agent_mark::AgentMark, ids::hex},
    status_file::{
        MarkFile, StatusFiles,
        agent_mark::{NoMark, decode},
    },
    store::{AnotherAgent, Store},
};

use super::{StartError, prepare_status_dir, status_dir};

/// The time between two heartbeats, in seconds.
const INTERVAL_S: u32 = 10;
/// The time between two reads of the mark, after which a missing one is restored.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The time that a starting agent waits for a missing mark in a directory with status files.
const PATIENCE: Duration = Duration::from_secs(3);
/// The heartbeats that an agent waits after it took over: the other agent, if it lives after all,
/// reads the new mark and stops.
const GRACE_HEARTBEATS: u32 = 2;
/// The time for which a read of the mark is valid: less than another agent waits before it takes
/// over.
const LEASE: Duration = Duration::from_secs(90);
/// The limit for the last write of the mark when the agent stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// A locked state directory and a marked status directory.
#[derive(Debug)]
pub struct Claim {
    pub(super) store: Store,
    pub(super) standing: Standing,
    /// Whether another agent has acted here, so that the records are old.
    pub(super) after_another: bool,
}

/// Whether this agent may act, according to the mark. Stopping it ends the thread.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    now: watch::Receiver<Now>,
    ours: Arc<AtomicBool>,
    stop: Sender<()>,
}

#[derive(Clone, Debug, PartialEq)]
enum Now {
    Unknown,
    /// Another agent, with this description, acts.
    StandingBy(String),
    /// This agent may act, as of the last read.
    Acting {
        after_another: bool,
        polled: Instant,
    },
    /// Another agent, with this description, took over.
    Overtaken(String),
    Stopped,
}

impl Claim {
    /// Locks the state directory and marks the status directory, once no other agent acts there.
    /// `standing_by` gets the other agent's description. `was_overtaken`: another agent took over
    /// from this process.
    pub async fn take(
        config: &Config,
        was_overtaken: bool,
        mut standing_by: impl FnMut(&str),
    ) -> Result<Self, StartError> {
        let mut store = Store::open(&config.state.dir)?;
        let (state_id, loss) = store.state_id()?;
        if let Some(loss) = loss {
            error!("{loss}");
        }
        prepare_status_dir(&config.specs);
        let dir = status_dir(config);
        let (file, another) = (MarkFile::in_dir(dir), store.another_agent());
        if store.is_new() && file.is_there() {
            // Any file there proves that an agent acted, of which this state directory knows
            // nothing.
            another.note().map_err(no_heartbeat)?;
        }
        let place = MarkPlace { dir, is_made: config.specs.status_dir.is_some() };
        let standing = Standing::start(
            MarkTimings::default(),
            place,
            &state_id,
            was_overtaken,
            another.clone(),
        )
        .map_err(no_heartbeat)?;
        let mut now = standing.now.clone();
        let after_another = loop {
            match now.borrow_and_update().clone() {
                Now::StandingBy(who) => {
                    let dir = dir.display();
                    let then = "this one stands by and touches nothing";
                    warn!(%dir, other = who, "another agent acts here, or did lately; {then}");
                    standing_by(&who);
                }
                // A note of an earlier start counts, too: that start ended before it had put the
                // records in order.
                Now::Acting { after_another, .. } => break after_another || another.has_acted(),
                Now::Unknown | Now::Overtaken(_) | Now::Stopped => {}
            }
            if now.changed().await.is_err() {
                return Err(no_heartbeat(io::Error::other("its thread ended")));
            }
        };
        Ok(Self { store, standing, after_another })
    }
}

fn no_heartbeat(source: io::Error) -> StartError {
    StartError::Listen { what: "the heartbeat".to_owned(), source }
}

/// The times of the thread, which tests shorten.
#[derive(Clone, Copy, Debug)]
struct MarkTimings {
    /// The time between two heartbeats.
    heartbeat: Duration,
    /// The time between two reads of the mark.
    poll: Duration,
    /// The wait for a missing mark.
    patience: Duration,
}

impl Default for MarkTimings {
    fn default() -> Self {
        let heartbeat = Duration::from_secs(u64::from(INTERVAL_S));
        Self { heartbeat, poll: POLL_INTERVAL, patience: PATIENCE }
    }
}

/// The directory of the mark.
#[derive(Clone, Copy, Debug)]
struct MarkPlace<'a> {
    dir: &'a Path,
    /// Whether a missing directory is made again, because it is for status files alone.
    is_made: bool,
}

impl Standing {
    fn start(
        timings: MarkTimings,
        place: MarkPlace<'_>,
        state_id: &str,
        was_overtaken: bool,
        another: AnotherAgent,
    ) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let (reported, now) = watch::channel(Now::Unknown);
        let (stop, stopped) = channel();
        let ours = Arc::new(AtomicBool::new(false));
        let keeper = Keeper {
            timings,
            file: MarkFile::in_dir(place.dir),
            statuses: StatusFiles::new(place.dir),
            another,
            made_dir: place.is_made.then(|| place.dir.to_owned()),
            mark: identity::of_this_process(state_id, hex(&random), INTERVAL_S, Timestamp::now()),
            stopped,
            reported,
            ours: Arc::clone(&ours),
            is_marked: false,
            failed: None,
            damage: None,
        };
        let keep = move || keeper.keep(was_overtaken);
        thread::Builder::new().name("heartbeat".to_owned()).spawn(keep)?;
        Ok(Self { now, ours, stop })
    }

    /// Whether this agent may write status files.
    pub(super) fn ours(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ours)
    }

    /// Waits until a read of the mark within the lease confirms that this agent may act.
    pub(super) async fn confirmed(&self) {
        let fresh = |now: &Now| match now {
            Now::Acting { polled, .. } => polled.elapsed() < LEASE,
            _ => false,
        };
        let mut now = self.now.clone();
        if !fresh(&now.borrow()) {
            warn!(
                "for {} s nobody could see whose mark is in the status directory; nothing is \
                 started until somebody can",
                LEASE.as_secs()
            );
        }
        if now.wait_for(fresh).await.is_err() {
            // The agent has stopped: nothing may start any more.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until another agent has taken over, and returns its description.
    pub(super) async fn overtaken(&self) -> String {
        let mut now = self.now.clone();
        let overtaken = now.wait_for(|now| matches!(now, Now::Overtaken(_))).await;
        match overtaken.as_deref() {
            Ok(Now::Overtaken(who)) => who.clone(),
            _ => std::future::pending().await,
        }
    }

    /// Notes in the mark that the agent has stopped, within a limit.
    pub(super) async fn stop(self) {
        let mut now = self.now.clone();
        // The thread may have ended.
        self.stop.send(()).unwrap_or_default();
        drop(self.stop);
        let ended = now.wait_for(|now| matches!(now, Now::Stopped | Now::Overtaken(_)));
        drop(timeout(STOP_LIMIT, ended).await);
    }
}

/// The state of the thread.
struct Keeper {
    timings: MarkTimings,
    file: MarkFile,
    statuses: StatusFiles,
    /// The note that another agent acted, which precedes a takeover.
    another: AnotherAgent,
    /// The directory, if it is made again when it is missing.
    made_dir: Option<PathBuf>,
    mark: AgentMark,
    stopped: Receiver<()>,
    reported: watch::Sender<Now>,
    ours: Arc<AtomicBool>,
    /// Whether this start has ever written the mark.
    is_marked: bool,
    /// The logged error of a failed read or write.
    failed: Option<String>,
    /// The logged damage.
    damage: Option<String>,
}

/// The agent was told to stop.
struct Stop;

impl Keeper {
    fn keep(mut self, was_overtaken: bool) {
        let kept = self.stand_by(was_overtaken).and_then(|after_another| self.act(after_another));
        if kept.is_err() {
            self.say_stopped();
            self.reported.send_replace(Now::Stopped);
        }
    }

    /// Waits until this agent may act, and marks the directory. Returns whether another agent acted
    /// before.
    fn stand_by(&mut self, was_overtaken: bool) -> Result<bool, Stop> {
        let nodes = self.statuses.nodes();
        let is_new = nodes.map_or_else(|error| error.is_absence(), |nodes| nodes.is_empty());
        let mut vigil = None;
        loop {
            let found = match self.find() {
                Err(error) if will_stay(&error) => {
                    self.tell_failure(&error);
                    return Ok(false);
                }
                found => found.unwrap_or_else(|error| Found::Unclear(error.to_string())),
            };
            self.tell_damage(&found);
            let vigil = vigil.get_or_insert_with(|| {
                let nobody_was_here = is_new && found == Found::None;
                let patience = if nobody_was_here { Duration::ZERO } else { self.timings.patience };
                Vigil::new(self.mark.clone(), was_overtaken, patience)
            });
            let made_room = matches!(&found, Found::Mark(mark) if mark.stopped.is_some());
            match vigil.judge(&found, identity::lives, std::time::Instant::now()) {
                Verdict::Taken(who) => {
                    // If this fails, the takeover retries it.
                    self.another.note().unwrap_or_default();
                    self.tell(Now::StandingBy(who));
                }
                Verdict::Free { after_another } => match self.mark(&found, after_another) {
                    Ok(is_put)
                        if is_put && (!after_another || made_room || self.is_settled()?) =>
                    {
                        return Ok(after_another);
                    }
                    Ok(_) => {}
                    Err(error) if after_another => self.tell(Now::StandingBy(format!(
                        "another one did; it is gone, but that or the mark cannot be written: \
                         {error}"
                    ))),
                    Err(error) => {
                        // The agent acts without a mark, as it does without status files.
                        self.tell_failure(&error);
                        return Ok(false);
                    }
                },
                Verdict::Wait => {}
            }
            self.sleep(self.timings.poll)?;
        }
    }

    /// Marks the directory. The note that another agent acted must be on disk first, because
    /// afterwards the mark is this agent's own.
    fn mark(&mut self, found: &Found, after_another: bool) -> io::Result<bool> {
        if after_another {
            self.another.note()?;
        }
        self.put(found)
    }

    /// Waits until the other agent, if it lives, has read the mark. Returns whether the mark is
    /// still there.
    fn is_settled(&mut self) -> Result<bool, Stop> {
        for _ in 0..GRACE_HEARTBEATS {
            self.sleep(self.timings.heartbeat)?;
            match self.find() {
                Ok(Found::Mark(mark)) if mark.run_id == self.mark.run_id => self.write_heartbeat(),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Writes heartbeats until another agent takes over.
    fn act(&mut self, after_another: bool) -> Result<(), Stop> {
        self.ours.store(true, Ordering::SeqCst);
        let mut heartbeat_at = Instant::now();
        loop {
            let polled = Instant::now();
            self.tell(Now::Acting { after_another, polled });
            // Reads until the mark's owner is certain.
            while !self.is_still_ours(&mut heartbeat_at)? {
                if !self.ours.load(Ordering::SeqCst) {
                    return Ok(());
                }
            }
        }
    }

    /// Reads the mark once more after a pause, and restores a missing or damaged one. Returns
    /// `false` if the owner is uncertain or another agent.
    fn is_still_ours(&mut self, heartbeat_at: &mut Instant) -> Result<bool, Stop> {
        self.sleep(self.timings.poll)?;
        let other = match self.find() {
            Ok(Found::Mark(mark)) if mark.run_id == self.mark.run_id => {
                if heartbeat_at.elapsed() >= self.timings.heartbeat {
                    *heartbeat_at = Instant::now();
                    self.write_heartbeat();
                }
                return Ok(true);
            }
            Ok(Found::Mark(mark)) if mark.stopped.is_none() => mark.to_string(),
            Ok(Found::Unclear(why)) => format!("one whose mark cannot be read: {why}"),
            Ok(found) => {
                self.tell_damage(&found);
                return Ok(match self.put(&found) {
                    Ok(true) => {
                        let path = self.file.path().display();
                        info!(
                            %path,
                            "the agent's mark was changed or removed: the agent writes it again"
                        );
                        true
                    }
                    // Another agent was quicker; the next read shows which one.
                    Ok(false) => false,
                    Err(error) => {
                        self.tell_failure(&error);
                        true
                    }
                });
            }
            Err(error) => {
                self.tell_failure(&error);
                // The owner is uncertain, and the last read stays valid for the lease. An agent
                // that never wrote a mark goes on without one.
                return Ok(!self.is_marked);
            }
        };
        self.ours.store(false, Ordering::SeqCst);
        self.tell(Now::Overtaken(other));
        Ok(false)
    }

    fn find(&self) -> io::Result<Found> {
        Ok(match self.file.bytes() {
            Ok(None) => Found::None,
            Ok(Some(bytes)) => match decode(&bytes) {
                Ok(mark) => Found::Mark(Box::new(mark)),
                Err(NoMark::Damaged(why)) => Found::Damaged(why),
                Err(NoMark::OfAnotherVersion(why)) => Found::Unclear(why),
            },
            Err(error) if is_in_the_way(&error) => Found::Damaged(error.to_string()),
            Err(error) => return Err(error),
        })
    }

    /// Writes the mark over what was found. Returns `false` if another agent was quicker.
    fn put(&mut self, found: &Found) -> io::Result<bool> {
        self.mark.heartbeat = Timestamp::now();
        let is_put = match found {
            Found::None => {
                if let Some(dir) = &self.made_dir {
                    fs::create_dir_all(dir)?;
                }
                self.file.create(&self.mark)?
            }
            _ => self.file.replace(&self.mark).map(|()| true)?,
        };
        self.is_marked |= is_put;
        Ok(is_put)
    }

    fn write_heartbeat(&mut self) {
        self.mark.heartbeat = Timestamp::now();
        match self.file.replace(&self.mark) {
            Ok(()) => self.failed = None,
            Err(error) => self.tell_failure(&error),
        }
    }

    /// Notes in the mark that this agent has stopped, so that one that stands by takes over at
    /// once.
    fn say_stopped(&mut self) {
        self.ours.store(false, Ordering::SeqCst);
        let ours =
            |found: &Found| matches!(found, Found::Mark(mark) if mark.run_id == self.mark.run_id);
        if self.find().is_ok_and(|found| ours(&found)) {
            self.mark.stopped = Some(Timestamp::now());
            self.write_heartbeat();
        }
    }

    /// Logs each damage once.
    fn tell_damage(&mut self, found: &Found) {
        let Found::Damaged(why) = found else { return };
        if self.damage.as_ref() != Some(why) {
            let path = self.file.path().display();
            let then = "it says nothing about agents, and this one writes it again";
            error!(%path, why, "the agent's mark is damaged: {then}");
            self.damage = Some(why.clone());
        }
    }

    fn tell_failure(&mut self, error: &io::Error) {
        let error = error.to_string();
        if self.failed.as_ref() != Some(&error) {
            error!(path = %self.file.path().display(), error, "the agent's mark cannot be read or \
                written: `hostler status` and other agents do not see that it runs");
            self.failed = Some(error);
        }
    }

    fn tell(&self, now: Now) {
        self.reported.send_if_modified(|reported| {
            let updates = *reported != now;
            *reported = now;
            updates
        });
    }

    fn sleep(&self, time: Duration) -> Result<(), Stop> {
        match self.stopped.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Stop),
        }
    }
}

/// Whether something other than a file has the mark's name.
fn is_in_the_way(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory};
    matches!(error.kind(), InvalidData | IsADirectory)
}

/// Whether an error of the directory is permanent, so that the agent runs without a mark, as it
/// does without status files.
fn will_stay(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, PermissionDenied};
    matches!(error.kind(), NotADirectory | PermissionDenied)
}

#[cfg(test)]
mod tests;
