//! Only one agent acts upon a status directory: it marks the directory as its own, and says every
//! ten seconds that it lives.
//!
//! Called by `hostler run`, which stands by while the mark of another agent changes, and by the
//! agent's operations, which wait while nobody has been able to look at the mark. A thread of its
//! own reads and writes the file, so that a directory that hangs holds up nothing else. It must
//! never act, nor let anything act, while the mark is another agent's.

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

/// From one heartbeat to the next, in seconds.
const INTERVAL_S: u32 = 10;
/// How often every agent looks at the mark, so that one that is missing is soon there again.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long an agent that begins waits for a mark where status files tell that an agent was here
/// before.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many heartbeats an agent that took over waits before it acts: the other one, should it live
/// after all, finds the new mark and stops.
const GRACE_BEATS: u32 = 2;
/// For how long a look at the mark holds good: less than another agent waits before it takes over.
const LEASE: Duration = Duration::from_secs(90);
/// How long the last word in the mark may take when the agent stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// A state directory that is locked, and the status directory marked as its agent's.
#[derive(Debug)]
pub struct Claim {
    pub(super) store: Store,
    pub(super) standing: Standing,
    /// Whether another agent has acted here, so that the records are old.
    pub(super) after_another: bool,
}

/// The mark's verdict on this agent. Stopping the last of them ends its thread.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    now: watch::Receiver<Now>,
    ours: Arc<AtomicBool>,
    stop: Sender<()>,
}

#[derive(Clone, Debug, PartialEq)]
enum Now {
    Looking,
    /// Another agent acts: who.
    StandingBy(String),
    /// This one may act, as was last seen then.
    Acting {
        after_another: bool,
        polled: Instant,
    },
    /// Another one took over: who.
    Overtaken(String),
    Stopped,
}

impl Claim {
    /// Locks the state directory and marks the status directory, once no other agent acts there.
    /// `standing_by` is told who does. `was_overtaken`: this process has acted before.
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
            // Whatever it is: somebody acted here, and this directory knows nothing of it.
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
                // A note of an earlier start counts too: that one ended before it had put its
                // records in order.
                Now::Acting { after_another, .. } => break after_another || another.has_acted(),
                Now::Looking | Now::Overtaken(_) | Now::Stopped => {}
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

/// How often things are looked at.
#[derive(Clone, Copy, Debug)]
struct MarkTimings {
    /// From one heartbeat to the next.
    heartbeat: Duration,
    /// From one look to the next.
    poll: Duration,
    /// How long a mark is waited for that is missing.
    patience: Duration,
}

impl Default for MarkTimings {
    fn default() -> Self {
        let beat = Duration::from_secs(u64::from(INTERVAL_S));
        Self { heartbeat: beat, poll: POLL_INTERVAL, patience: PATIENCE }
    }
}

/// The directory of the mark.
#[derive(Clone, Copy, Debug)]
struct MarkPlace<'a> {
    dir: &'a Path,
    /// Whether it is made again if it is gone: it holds status files alone.
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
        let (reported, now) = watch::channel(Now::Looking);
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

    /// Whether status files are this agent's to write.
    pub(super) fn ours(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ours)
    }

    /// Waits until it is certain that this agent may still act: at once as long as the mark was
    /// looked at lately.
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
            // The agent has stopped: nothing may be started any more.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until another agent has taken over, and says who.
    pub(super) async fn overtaken(&self) -> String {
        let mut now = self.now.clone();
        let overtaken = now.wait_for(|now| matches!(now, Now::Overtaken(_))).await;
        match overtaken.as_deref() {
            Ok(Now::Overtaken(who)) => who.clone(),
            _ => std::future::pending().await,
        }
    }

    /// Says in the mark that the agent has stopped, if that can be written quickly.
    pub(super) async fn stop(self) {
        let mut now = self.now.clone();
        // Its thread may have ended.
        self.stop.send(()).unwrap_or_default();
        drop(self.stop);
        let ended = now.wait_for(|now| matches!(now, Now::Stopped | Now::Overtaken(_)));
        drop(timeout(STOP_LIMIT, ended).await);
    }
}

/// The thread's own.
struct Keeper {
    timings: MarkTimings,
    file: MarkFile,
    statuses: StatusFiles,
    /// Where it is written down that another agent acts, before this one takes over.
    another: AnotherAgent,
    /// The directory, if it is made again when it is gone.
    made_dir: Option<PathBuf>,
    mark: AgentMark,
    stopped: Receiver<()>,
    reported: watch::Sender<Now>,
    ours: Arc<AtomicBool>,
    /// Whether the mark was ever written.
    is_marked: bool,
    /// Why the mark could not be written, as it was told.
    failed: Option<String>,
    /// The fault that was reported.
    damage: Option<String>,
}

/// The agent is to stop.
struct Stop;

impl Keeper {
    fn keep(mut self, was_overtaken: bool) {
        let kept = self.stand_by(was_overtaken).and_then(|after_another| self.act(after_another));
        if kept.is_err() {
            self.say_stopped();
            self.reported.send_replace(Now::Stopped);
        }
    }

    /// Waits until this agent may act, and marks the directory; whether another one acted before.
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
                    // Again before it takes over, if that fails.
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
                        // As without status files: two agents then do not see each other.
                        self.tell_failure(&error);
                        return Ok(false);
                    }
                },
                Verdict::Wait => {}
            }
            self.sleep(self.timings.poll)?;
        }
    }

    /// Marks the directory. The fact that another agent acted is on disk before that: from then on
    /// the mark is this agent's own, whatever becomes of it.
    fn mark(&mut self, found: &Found, after_another: bool) -> io::Result<bool> {
        if after_another {
            self.another.note()?;
        }
        self.put(found)
    }

    /// Whether the mark still stands when the agent before this one, if it lives, has seen it.
    fn is_settled(&mut self) -> Result<bool, Stop> {
        for _ in 0..GRACE_BEATS {
            self.sleep(self.timings.heartbeat)?;
            match self.find() {
                Ok(Found::Mark(mark)) if mark.run_id == self.mark.run_id => self.write_heartbeat(),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Says that it lives, until another agent takes over.
    fn act(&mut self, after_another: bool) -> Result<(), Stop> {
        self.ours.store(true, Ordering::SeqCst);
        let mut beaten = Instant::now();
        loop {
            let polled = Instant::now();
            self.tell(Now::Acting { after_another, polled });
            // Another look before the next time that is told: whose the mark is has to be seen.
            while !self.is_still_ours(&mut beaten)? {
                if !self.ours.load(Ordering::SeqCst) {
                    return Ok(());
                }
            }
        }
    }

    /// Looks once more after a moment. Restores the mark where it is missing or damaged. `false`:
    /// nobody knows by now whose it is, or that it is another agent's.
    fn is_still_ours(&mut self, beaten: &mut Instant) -> Result<bool, Stop> {
        self.sleep(self.timings.poll)?;
        let other = match self.find() {
            Ok(Found::Mark(mark)) if mark.run_id == self.mark.run_id => {
                if beaten.elapsed() >= self.timings.heartbeat {
                    *beaten = Instant::now();
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
                        info!(%path, "the agent's mark was not as it was written: written again");
                        true
                    }
                    // Another agent was quicker, and is looked at.
                    Ok(false) => false,
                    Err(error) => {
                        self.tell_failure(&error);
                        true
                    }
                });
            }
            Err(error) => {
                self.tell_failure(&error);
                // Nobody knows whose the mark is by now: the last look at it holds good for
                // a while. Where there never was one, none is missed.
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

    /// Puts the mark in place of what was found; `false`: somebody else was quicker.
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

    /// The last word; an agent that stands by takes over at once.
    fn say_stopped(&mut self) {
        self.ours.store(false, Ordering::SeqCst);
        let ours =
            |found: &Found| matches!(found, Found::Mark(mark) if mark.run_id == self.mark.run_id);
        if self.find().is_ok_and(|found| ours(&found)) {
            self.mark.stopped = Some(Timestamp::now());
            self.write_heartbeat();
        }
    }

    /// Names the file, once for each damage.
    fn tell_damage(&mut self, found: &Found) {
        let Found::Damaged(why) = found else { return };
        if self.damage.as_ref() != Some(why) {
            let path = self.file.path().display();
            let then = "it says nothing about agents, and is written anew";
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

/// Whether something else than a mark lies in its place.
fn is_in_the_way(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory};
    matches!(error.kind(), InvalidData | IsADirectory)
}

/// Whether an agent that cannot look at its mark runs without one, as it runs without status files:
/// the directory answers, and does not let it.
fn will_stay(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, PermissionDenied};
    matches!(error.kind(), NotADirectory | PermissionDenied)
}

#[cfg(test)]
mod tests;
