//! Whether an agent may begin to act where it finds a mark. Pure: what is found, who lives and the
//! time are arguments.
//!
//! The other agent's heartbeat is never compared with this host's clock: it counts that the file
//! has changed since it was last looked at.

use std::time::{Duration, Instant};

use crate::model::agent_mark::AgentMark;

/// How long a mark has to stay unchanged before its agent is taken for dead: far longer than a
/// restart, or than the heartbeats that a busy disk swallows.
pub(super) const SILENCE: Duration = Duration::from_secs(180);

/// What is in the mark's place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    /// Nothing.
    None,
    /// A mark.
    Mark(Box<AgentMark>),
    /// Something else: the mark of a later version, or a damaged one. What is wrong with it.
    Unclear(String),
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// The agent may act. Whether another one acted here last, so that this one's records are old.
    Free {
        /// See above.
        after_another: bool,
    },
    /// Another agent acts here: who.
    Taken(String),
}

/// The patience of one agent that wants to act.
#[derive(Debug)]
pub(super) struct Vigil {
    me: AgentMark,
    /// Whether this process acted here before and another agent took over: then a mark with its own
    /// state id is that of a copy of its state directory.
    was_overtaken: bool,
    met_another: bool,
    seen: Option<(Found, Instant)>,
}

impl Vigil {
    pub(super) fn new(me: AgentMark, was_overtaken: bool) -> Self {
        Self { me, was_overtaken, met_another: was_overtaken, seen: None }
    }

    pub(super) fn judge(
        &mut self,
        found: Found,
        lives: impl FnOnce(&AgentMark) -> bool,
        now: Instant,
    ) -> Verdict {
        let lives = match &found {
            Found::None => return self.free(),
            Found::Mark(mark) if mark.stopped.is_some() => {
                self.met_another |= mark.state_id != self.me.state_id;
                return self.free();
            }
            Found::Mark(mark) => {
                let lives = lives(mark);
                let is_own = mark.run_id == self.me.run_id;
                if is_own || self.is_mine(mark) && !lives {
                    return self.free();
                }
                lives
            }
            Found::Unclear(_) => false,
        };
        self.met_another = true;
        let who = match &found {
            Found::Mark(mark) => mark.to_string(),
            Found::Unclear(why) => format!("one whose mark cannot be read: {why}"),
            Found::None => String::new(),
        };
        let since = match &self.seen {
            Some((seen, since)) if *seen == found => *since,
            _ => {
                self.seen = Some((found, now));
                now
            }
        };
        let is_silent = now.duration_since(since) >= SILENCE;
        if is_silent && !lives { self.free() } else { Verdict::Taken(who) }
    }

    fn free(&self) -> Verdict {
        Verdict::Free { after_another: self.met_another }
    }

    /// Whether it is the mark of an earlier start of this agent. A state directory that was copied
    /// to another host makes that host's agent another one.
    fn is_mine(&self, mark: &AgentMark) -> bool {
        let other_host = !mark.machine_id.is_empty()
            && !self.me.machine_id.is_empty()
            && mark.machine_id != self.me.machine_id;
        mark.state_id == self.me.state_id && !other_host && !self.was_overtaken
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::agent::mark::identity;

    fn mark(state_id: &str, run_id: &str) -> AgentMark {
        let mark = identity::of_this_process(state_id, run_id.to_owned(), 10, Timestamp::now());
        AgentMark { machine_id: "m".to_owned(), ..mark }
    }

    fn found(mark: &AgentMark) -> Found {
        Found::Mark(Box::new(mark.clone()))
    }

    const FREE: Verdict = Verdict::Free { after_another: false };
    const FREE_AFTER_ANOTHER: Verdict = Verdict::Free { after_another: true };

    fn is_taken(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Taken(_))
    }

    #[test]
    fn an_agent_begins_at_once_where_nobody_was_and_after_its_own_crash() {
        let mut vigil = Vigil::new(mark("s", "new"), false);
        let now = Instant::now();
        assert_eq!(vigil.judge(Found::None, |_| true, now), FREE);
        let crashed = mark("s", "old");
        assert_eq!(vigil.judge(found(&crashed), |_| false, now), FREE);
        let before_reboot = AgentMark { boot_id: "old".to_owned(), ..crashed };
        assert_eq!(vigil.judge(found(&before_reboot), |_| false, now), FREE);
    }

    #[test]
    fn another_agent_is_waited_for_as_long_as_its_mark_changes_whatever_its_clock_says() {
        let mut vigil = Vigil::new(mark("s", "new"), false);
        let began = Instant::now();
        let mut other = mark("another", "old");
        for beat in 0..1000 {
            other.heartbeat -= SignedDuration::from_secs(3600);
            let now = began + Duration::from_secs(170) * beat;
            assert!(is_taken(&vigil.judge(found(&other), |_| false, now)));
        }
        let last = began + Duration::from_secs(170) * 999;
        let at = |s| last + Duration::from_secs(s);
        assert!(is_taken(&vigil.judge(found(&other), |_| false, at(179))));
        assert_eq!(vigil.judge(found(&other), |_| false, at(180)), FREE_AFTER_ANOTHER);
    }

    #[test]
    fn a_process_of_this_host_that_is_stopped_and_not_dead_is_waited_for() {
        let mut vigil = Vigil::new(mark("s", "new"), false);
        let (began, other) = (Instant::now(), mark("another", "old"));
        for s in [0, 180, 100_000] {
            let now = began + Duration::from_secs(s);
            assert!(is_taken(&vigil.judge(found(&other), |_| true, now)));
        }
        let now = began + Duration::from_secs(100_000);
        assert_eq!(vigil.judge(found(&other), |_| false, now), FREE_AFTER_ANOTHER);
    }

    #[test]
    fn an_agent_that_was_stopped_or_whose_mark_is_removed_makes_room_at_once() {
        let now = Instant::now();
        let mut other = mark("another", "old");
        let mut vigil = Vigil::new(mark("s", "new"), false);
        assert!(is_taken(&vigil.judge(found(&other), |_| true, now)));
        assert_eq!(vigil.judge(Found::None, |_| true, now), FREE_AFTER_ANOTHER);

        other.stopped = Some(Timestamp::now());
        let mut vigil = Vigil::new(mark("s", "new"), false);
        assert_eq!(vigil.judge(found(&other), |_| true, now), FREE_AFTER_ANOTHER);
        other.state_id = "s".to_owned();
        let mut vigil = Vigil::new(mark("s", "new"), false);
        assert_eq!(vigil.judge(found(&other), |_| true, now), FREE);
    }

    #[test]
    fn a_copy_of_the_state_directory_is_another_agent() {
        let now = Instant::now();
        let elsewhere = AgentMark { machine_id: "n".to_owned(), ..mark("s", "old") };
        let mut vigil = Vigil::new(mark("s", "new"), false);
        assert!(is_taken(&vigil.judge(found(&elsewhere), |_| false, now)));
        // On this host its process tells.
        let mut vigil = Vigil::new(mark("s", "new"), false);
        assert!(is_taken(&vigil.judge(found(&mark("s", "copy")), |_| true, now)));
        // And two that overtake each other do not take turns.
        let mut vigil = Vigil::new(mark("s", "new"), true);
        assert!(is_taken(&vigil.judge(found(&mark("s", "copy")), |_| false, now)));
    }

    #[test]
    fn a_mark_that_cannot_be_read_is_somebodys() {
        let mut vigil = Vigil::new(mark("s", "new"), false);
        let (began, damaged) = (Instant::now(), Found::Unclear("half a file".to_owned()));
        let Verdict::Taken(who) = vigil.judge(damaged.clone(), |_| false, began) else {
            panic!("taken for nobody's")
        };
        assert!(who.contains("half a file"), "{who}");
        assert_eq!(vigil.judge(damaged, |_| false, began + SILENCE), FREE_AFTER_ANOTHER);
    }
}
