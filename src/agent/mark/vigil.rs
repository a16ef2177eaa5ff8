//! Decides whether an agent may begin to act in a directory with this mark.
//!
//! Called by the mark's thread. Pure: the mark, the living processes and the time are arguments. It
//! must never compare another agent's heartbeat with this host's clock: only a change of the file
//! since the last poll counts.

use std::time::{Duration, Instant};

use crate::model::agent_mark::AgentMark;

/// The time without a change of a mark after which its agent counts as dead: far longer than a
/// restart, or than a busy disk delays heartbeats.
pub(super) const SILENCE: Duration = Duration::from_secs(180);

/// The content of the mark's file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found {
    /// There is no file.
    None,
    /// A whole mark.
    Mark(Box<AgentMark>),
    /// A file that is no mark, or a damaged one, which says nothing about agents; with the fault.
    Damaged(String),
    /// A mark that cannot be read, of another version or in a directory that does not answer; with
    /// the reason.
    Unclear(String),
}

/// The decision about this agent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// The agent may act.
    Free {
        /// Whether another agent acted here last, so that this one's records are old.
        after_another: bool,
    },
    /// Not yet: a living agent would restore its missing mark within the patience.
    Wait,
    /// Another agent, with this description, acts here.
    Taken(String),
}

/// The wait of an agent that wants to act.
#[derive(Debug)]
pub(super) struct Vigil {
    me: AgentMark,
    /// Whether another agent took over from this process. A mark with the own state id is then that
    /// of a copy of the state directory.
    was_overtaken: bool,
    met_another: bool,
    /// The time in which a living agent restores a missing mark.
    patience: Duration,
    /// The last whole mark of another agent.
    other: Option<AgentMark>,
    seen: Option<(Found, Instant)>,
}

impl Vigil {
    pub(super) fn new(me: AgentMark, was_overtaken: bool, patience: Duration) -> Self {
        let met_another = was_overtaken;
        Self { me, was_overtaken, met_another, patience, other: None, seen: None }
    }

    pub(super) fn judge(
        &mut self,
        found: &Found,
        lives: impl FnOnce(&AgentMark) -> bool,
        now: Instant,
    ) -> Verdict {
        match found {
            Found::Mark(mark) if mark.stopped.is_some() => {
                self.met_another |= mark.state_id != self.me.state_id;
                return self.free();
            }
            Found::Mark(mark) if mark.run_id == self.me.run_id => return self.free(),
            _ => {}
        }
        let unchanged = match &self.seen {
            Some((seen, since)) if seen == found => now.duration_since(*since),
            _ => {
                self.seen = Some((found.clone(), now));
                Duration::ZERO
            }
        };
        let is_gone = matches!(found, Found::None | Found::Damaged(_));
        if is_gone && !self.met_another {
            return if unchanged < self.patience { Verdict::Wait } else { self.free() };
        }
        let lives = match found {
            Found::Mark(mark) => {
                let lives = lives(mark);
                if self.is_mine(mark) && !lives {
                    return self.free();
                }
                self.other = Some(AgentMark::clone(mark));
                lives
            }
            // A missing mark says nothing about its agent, which restores it if it lives.
            _ => self.other.as_ref().is_some_and(lives),
        };
        self.met_another = true;
        if unchanged >= SILENCE && !lives {
            return self.free();
        }
        let last = self.other.as_ref().map_or_else(|| "one".to_owned(), AgentMark::to_string);
        Verdict::Taken(match found {
            Found::Mark(_) => last,
            Found::None => format!("{last}; its mark is missing"),
            Found::Damaged(why) => format!("{last}; its mark is damaged: {why}"),
            Found::Unclear(why) => format!("one whose mark cannot be read: {why}"),
        })
    }

    fn free(&self) -> Verdict {
        Verdict::Free { after_another: self.met_another }
    }

    /// Whether the mark is that of an earlier start of this agent. With a copied state directory,
    /// an agent on another host is another agent.
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

    /// The time in which a living agent restores a missing mark.
    const PATIENCE: Duration = Duration::from_secs(3);

    fn wants_to_act(was_overtaken: bool) -> Vigil {
        Vigil::new(mark("s", "new"), was_overtaken, PATIENCE)
    }

    const FREE: Verdict = Verdict::Free { after_another: false };
    const FREE_AFTER_ANOTHER: Verdict = Verdict::Free { after_another: true };

    fn is_taken(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Taken(_))
    }

    #[test]
    fn an_agent_begins_at_once_where_nobody_was_and_after_its_own_crash() {
        let now = Instant::now();
        let mut vigil = Vigil::new(mark("s", "new"), false, Duration::ZERO);
        assert_eq!(vigil.judge(&Found::None, |_| true, now), FREE);
        let crashed = mark("s", "old");
        assert_eq!(vigil.judge(&found(&crashed), |_| false, now), FREE);
        let before_reboot = AgentMark { boot_id: "old".to_owned(), ..crashed };
        assert_eq!(vigil.judge(&found(&before_reboot), |_| false, now), FREE);
    }

    #[test]
    fn another_agent_is_waited_for_as_long_as_its_mark_changes_whatever_its_clock_says() {
        let mut vigil = wants_to_act(false);
        let began = Instant::now();
        let mut other = mark("another", "old");
        for number in 0..1000 {
            other.heartbeat -= SignedDuration::from_secs(3600);
            let now = began + Duration::from_secs(170) * number;
            assert!(is_taken(&vigil.judge(&found(&other), |_| false, now)));
        }
        let last = began + Duration::from_secs(170) * 999;
        let at = |s| last + Duration::from_secs(s);
        assert!(is_taken(&vigil.judge(&found(&other), |_| false, at(179))));
        assert_eq!(vigil.judge(&found(&other), |_| false, at(180)), FREE_AFTER_ANOTHER);
    }

    #[test]
    fn a_process_of_this_host_that_is_stopped_and_not_dead_is_waited_for() {
        let mut vigil = wants_to_act(false);
        let (began, other) = (Instant::now(), mark("another", "old"));
        for s in [0, 180, 100_000] {
            let now = began + Duration::from_secs(s);
            assert!(is_taken(&vigil.judge(&found(&other), |_| true, now)));
        }
        let now = began + Duration::from_secs(100_000);
        assert_eq!(vigil.judge(&found(&other), |_| false, now), FREE_AFTER_ANOTHER);
    }

    #[test]
    fn an_agent_that_was_stopped_makes_room_at_once() {
        let now = Instant::now();
        let mut other = mark("another", "old");
        other.stopped = Some(Timestamp::now());
        assert_eq!(wants_to_act(false).judge(&found(&other), |_| true, now), FREE_AFTER_ANOTHER);
        other.state_id = "s".to_owned();
        assert_eq!(wants_to_act(false).judge(&found(&other), |_| true, now), FREE);
    }

    /// Invariant (agents): A missing or damaged mark releases nobody, and makes nobody a stranger
    /// to itself.
    #[test]
    fn a_mark_that_goes_away_or_is_damaged_releases_nobody_before_the_silence_is_over() {
        let began = Instant::now();
        let at = |s| began + Duration::from_secs(s);
        for gone in [Found::None, Found::Damaged("it is empty".to_owned())] {
            let mut vigil = wants_to_act(false);
            let other = mark("another", "old");
            assert!(is_taken(&vigil.judge(&found(&other), |_| false, began)));
            let Verdict::Taken(who) = vigil.judge(&gone, |_| false, at(170)) else {
                panic!("released by {gone:?}")
            };
            assert!(who.starts_with("process ") && who.contains("its mark is "), "{who}");
            assert!(is_taken(&vigil.judge(&gone, |_| false, at(349))));
            assert!(is_taken(&vigil.judge(&gone, |_| true, at(350))), "its process lives");
            assert_eq!(vigil.judge(&gone, |_| false, at(350)), FREE_AFTER_ANOTHER);
        }
        // Nor one that was overtaken by an agent whose mark it has not read yet.
        let mut vigil = wants_to_act(true);
        assert!(is_taken(&vigil.judge(&Found::None, |_| false, began)));
        assert!(is_taken(&vigil.judge(&Found::None, |_| false, at(179))));
        assert_eq!(vigil.judge(&Found::None, |_| false, at(180)), FREE_AFTER_ANOTHER);
    }

    /// Invariant (agents): A missing or damaged mark releases nobody, and makes nobody a stranger
    /// to itself.
    #[test]
    fn a_mark_that_is_missing_or_damaged_from_the_beginning_is_waited_for_a_moment() {
        let began = Instant::now();
        for bad in [Found::None, Found::Damaged("it is empty".to_owned())] {
            let mut fresh = wants_to_act(false);
            let early = began + Duration::from_millis(2900);
            assert_eq!(fresh.judge(&bad, |_| true, began), Verdict::Wait);
            assert_eq!(fresh.judge(&bad, |_| true, early), Verdict::Wait);
            assert_eq!(fresh.judge(&bad, |_| true, began + PATIENCE), FREE);

            // The acting agent restores its mark.
            let mut fresh = wants_to_act(false);
            assert_eq!(fresh.judge(&bad, |_| true, began), Verdict::Wait);
            assert!(is_taken(&fresh.judge(&found(&mark("another", "old")), |_| true, early)));
        }
    }

    #[test]
    fn a_copy_of_the_state_directory_is_another_agent() {
        let now = Instant::now();
        let elsewhere = AgentMark { machine_id: "n".to_owned(), ..mark("s", "old") };
        let mut vigil = wants_to_act(false);
        assert!(is_taken(&vigil.judge(&found(&elsewhere), |_| false, now)));
        // On the same host, the process tells.
        let mut vigil = wants_to_act(false);
        assert!(is_taken(&vigil.judge(&found(&mark("s", "copy")), |_| true, now)));
        // Two agents with the same state id do not overtake each other alternately.
        let mut vigil = wants_to_act(true);
        assert!(is_taken(&vigil.judge(&found(&mark("s", "copy")), |_| false, now)));
    }

    #[test]
    fn a_whole_mark_that_cannot_be_understood_is_somebodys() {
        let mut vigil = wants_to_act(false);
        let (began, later) = (Instant::now(), Found::Unclear("version 2".to_owned()));
        let Verdict::Taken(who) = vigil.judge(&later, |_| false, began) else {
            panic!("taken for no agent's mark")
        };
        assert!(who.contains("version 2"), "{who}");
        assert_eq!(vigil.judge(&later, |_| false, began + SILENCE), FREE_AFTER_ANOTHER);
    }
}
