//! A site: machines, their BMCs and ramdisks, the network, the spec directory and its authors, the
//! state directory, and a clock. [`Site`] is everything outside of the core, and implements the
//! core's [`hostler::lifecycle::Effects`]; [`World`] brings the site's events to the core, one
//! after the other.

mod agent;
mod effects;
mod fate;
pub(crate) mod machine;
mod manual_power;
mod netboot;
mod operator;
mod ramdisk;
mod ramdisk_log;
mod site;
mod specs;
mod work;

use hostler::{
    lifecycle::{Event, Executor, Record},
    model::ids::{NodeName, OpId},
};

use self::site::{EPOCH_MS, Happening};
pub(crate) use self::{
    site::{Caller, JobKey, LaterEdit, Site},
    work::IMAGE_BYTES,
};
use crate::{dice::Dice, plan::Plan};

/// The core and its site.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) executor: Option<Executor>,
    pub(crate) site: Site,
}

impl World {
    /// Makes a fresh site with these properties.
    pub(crate) fn new(plan: Plan, dice: Dice, traced: bool) -> Self {
        let mut site = Site::new(plan, dice, traced);
        site.write_first_specs();
        let mut world = Self { executor: None, site };
        world.start();
        world.site.after_s(1, 60, Happening::Whim);
        if world.site.plan.manual_power {
            world.site.after_s(1, 60, Happening::Manual);
        }
        world
    }

    /// Plays the next event.
    pub(crate) fn advance(&mut self) {
        let happening = self.site.queue.first_key_value().map(|(at, _)| *at);
        let wake = self.wake();
        match (happening, wake) {
            (Some((at, _)), Some(wake)) if wake < at => self.tick(wake),
            (None, Some(wake)) => self.tick(wake),
            (Some(key), _) => {
                let (at, _) = key;
                self.site.t = self.site.t.max(at);
                if let Some(happening) = self.site.queue.remove(&key) {
                    self.happen(happening);
                }
            }
            (None, None) => self.site.t += 1000,
        }
    }

    /// The true time of the core's next wake-up.
    fn wake(&self) -> Option<u64> {
        let executor = self.executor.as_ref()?;
        let core = executor.fleet().next_wake().map(|at| {
            let real = at.as_millisecond() - EPOCH_MS - self.site.skew_ms;
            u64::try_from(real).unwrap_or(0).max(self.site.t + 10)
        });
        let retry = executor.has_unsaved().then_some(self.site.t + 1000);
        [core, retry].into_iter().flatten().min()
    }

    fn tick(&mut self, at: u64) {
        self.site.t = self.site.t.max(at);
        let now = self.site.now();
        let Some(executor) = &mut self.executor else { return };
        let due = executor.fleet().due(now);
        self.site.note_step(due.len().max(1) as u64, 1);
        executor.tick(now, &mut self.site);
        self.site.judge_wake_ups(executor, &due);
        self.check();
    }

    fn happen(&mut self, happening: Happening) {
        let site = &mut self.site;
        match happening {
            Happening::Work { key, id, stamp } => {
                if let Some((node, event)) = site.work(&key, id, stamp) {
                    self.bring_stale(&node, &event);
                    self.bring(&node, event);
                }
            }
            Happening::Firmware { machine, session } => site.firmware(machine, session),
            Happening::Fetching { machine, session, node, key, stage } => {
                let event = site.fetching(machine, session, &node, key, stage);
                if let Some(event) = event.filter(|_| self.executor.is_some()) {
                    self.bring(&node, event);
                }
            }
            Happening::LocalMenu { machine, session, node } => {
                let event = site.local_menu(machine, session, &node);
                if let Some(event) = event.filter(|_| self.executor.is_some()) {
                    self.bring(&node, event);
                }
            }
            Happening::SystemUp { machine, session } => site.system_up(machine, session),
            Happening::BootCall { node, token, peer } => {
                let event = site.boot_call(node, token, peer);
                if let Some((node, event)) = event.filter(|_| self.executor.is_some()) {
                    self.bring(&node, event);
                }
            }
            Happening::Ramdisk { id, stamp } => site.ramdisk_acts(id, stamp),
            Happening::Arrival(message) => {
                // A dead agent gets no event.
                if self.executor.is_some() {
                    let (node, event) = site.event_of(*message);
                    self.bring(&node, event);
                }
            }
            Happening::Answer { id, reply } => site.ramdisk_hears(id, &reply),
            Happening::Scan => self.scan(),
            Happening::Whim => self.whim(),
            Happening::LaterEdit(edit) => self.do_edit(edit),
            Happening::Manual => site.operator_comes(),
            Happening::Start => self.start(),
        }
    }

    /// Sometimes brings the end of an operation that does not run before a real one.
    fn bring_stale(&mut self, node: &NodeName, event: &Event) {
        let Event::Done { op, outcome } = event else { return };
        if self.site.dice.permille(30) {
            let op = OpId(if self.site.dice.permille(500) { op.0 + 1 } else { op.0 - 1 });
            self.bring(node, Event::Done { op, outcome: outcome.clone() });
        }
    }

    /// Brings one event to the core.
    pub(crate) fn bring(&mut self, node: &NodeName, event: Event) {
        let Some(executor) = &mut self.executor else { return };
        let site = &mut self.site;
        site.note_step(1, event_number(&event));
        site.note(Some(node), || shorten(&format!("{event:?}")));
        let unchanged = site.unchanged_by(executor, node, &event);
        site.judge_event(node, &event);
        let request = event.request();
        executor.step(site.now(), node, event, site);
        if let (Some((rule, before)), Some(after)) = (unchanged, executor.fleet().node(node))
            && !site.dead
            && before != without_clock(after.record(), &before)
        {
            site.broken(rule, Some(node), "the record changed".to_owned());
        }
        if let Some(request) = request.filter(|_| !site.dead && !executor.is_unsaved(node))
            && site.open_requests.contains_key(&request)
        {
            site.broken("every_call_is_answered_once", Some(node), "no answer".to_owned());
        }
        self.check();
    }
}

fn event_number(event: &Event) -> u64 {
    match event {
        Event::Spec(_) => 2,
        Event::MassChange(_) => 3,
        Event::SpecProblems(_) => 4,
        Event::SpecClash(_) => 5,
        Event::SpecGone => 6,
        Event::DirectoryLost(_) => 7,
        Event::Done { op, outcome } => 8 + op.0 * 64 + u64::from(outcome.is_ok()) * 32,
        Event::Progress { .. } => 9,
        Event::Callback { call, .. } => 10 + 64 * call.name().len() as u64,
        Event::BootCalled { .. } => 18,
        Event::Fetched(_) => 11,
        Event::Tick => 12,
        Event::Granted(_) => 13,
        Event::Approve => 14,
        Event::Retry => 15,
        Event::NetbootLost => 17,
        Event::PowerMayHaveChanged => 16,
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(180).collect()
}

/// A record without the fields that every event adjusts after a backward change of the clock.
fn without_clock(record: &Record, before: &Record) -> Record {
    let Record { deadline, not_before, since, power_forced_at, .. } = before;
    Record {
        deadline: *deadline,
        not_before: *not_before,
        since: *since,
        power_forced_at: *power_forced_at,
        ..record.clone()
    }
}
