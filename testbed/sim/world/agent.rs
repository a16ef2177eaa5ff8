//! The agent's process: it reads the directory, is killed at any point, and starts again from the
//! durable state.

use std::collections::BTreeMap;

use hostler::{
    lifecycle::{Executor, Fleet, Record, Records, UnclaimedInstalls},
    model::{ids::NodeName, status::Installed},
    spec_dir::clashes,
};

use super::{
    World,
    site::{Directory, Happening, Site},
};

/// The time between two scans without a change, in seconds.
const RESCAN_S: u64 = 900;

impl World {
    /// Scans the directory, as the agent's driver does.
    pub(crate) fn scan(&mut self) {
        let Some(executor) = &mut self.executor else { return };
        let site = &mut self.site;
        let now = site.now();
        let known = executor.fleet().names().len() as u64;
        if site.directory == Directory::Lost {
            site.note_step(known.max(1), 20);
            site.note(None, || "the directory cannot be read".to_owned());
            let events = executor.fleet().hold("no such directory");
            executor.step_all(now, events, site);
        } else {
            let specs = if site.directory == Directory::Empty {
                BTreeMap::new()
            } else {
                site.read_specs()
            };
            let in_force = executor.fleet().effective_specs(&specs);
            let clashes = clashes("specs", in_force.iter().map(AsRef::as_ref));
            site.note_step((specs.len() as u64).max(known).max(1), 21);
            site.note(None, || format!("scan of {} specs, {} clash", specs.len(), clashes.len()));
            site.judge_scan(&specs, &clashes);
            let events = executor.compare(now, specs, &clashes);
            executor.step_all(now, events, site);
        }
        self.check();
        self.site.watch_directory();
    }

    /// Starts the agent from the durable state.
    pub(crate) fn start(&mut self) {
        if self.executor.is_some() {
            return;
        }
        let site = &mut self.site;
        let now = site.now();
        site.dead = false;
        site.fuse = None;
        site.note(None, || "the agent starts".to_owned());
        let records = site.read_back();
        let recovered = site.installs_on_status(&records);
        // A new state directory with traces of an earlier agent.
        let is_lost = site.unclaimed.is_none() && !site.statuses.is_empty();
        site.judge_start_of_agent(&records, &recovered, is_lost);
        let lost =
            || if is_lost { UnclaimedInstalls::lost() } else { UnclaimedInstalls::default() };
        let unclaimed =
            site.unclaimed.as_deref().map(|unclaimed| serde_json::from_str(unclaimed).unwrap());
        let unclaimed = unclaimed.unwrap_or_else(lost);
        let recovered = recovered.into_iter().map(|(name, known)| (name, Some(known))).collect();
        let fleet = Fleet::resume(site.plan.policy, records, unclaimed, recovered, now);
        if site.unclaimed.is_none() {
            site.unclaimed = Some(serde_json::to_string(fleet.unclaimed()).unwrap());
            site.watch.unclaimed_kept.clone_from(&site.watch.unclaimed);
        }
        let mut executor = Executor::new(fleet);
        executor.present(site);
        self.executor = Some(executor);
        self.site.after_ms(50, 2000, Happening::Scan);
    }

    /// Removes an agent that was killed in this step, with its volatile knowledge.
    pub(crate) fn bury(&mut self) {
        if !self.site.dead || self.executor.is_none() {
            return;
        }
        self.executor = None;
        let site = &mut self.site;
        site.note(None, || "the agent is killed".to_owned());
        site.kill_jobs();
        site.menus.clear();
        site.open_requests.clear();
        site.unsaved.clear();
        site.judge_crash();
        site.damage();
        site.shown.clone_from(&site.statuses);
        let long = site.dice.permille(150) && !site.calm;
        site.after_s(1, if long { 4 * 3600 } else { 40 }, Happening::Start);
    }
}

impl Site {
    fn watch_directory(&mut self) {
        self.after_s(RESCAN_S / 2, RESCAN_S, Happening::Scan);
    }

    /// Damages files as a crash may do. A record is replaced atomically, so that only a failing
    /// disk damages one.
    fn damage(&mut self) {
        if self.calm || !self.dice.permille(100) {
            return;
        }
        let names: Vec<NodeName> = self.records.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        match self.dice.roll(4) {
            0 => {
                self.note(None, || "the state directory is lost".to_owned());
                self.records.clear();
                // The next start finds no deadlines, either.
                self.watch.waits.clear();
                self.unclaimed = None;
                self.watch.unclaimed.clear();
                self.watch.unclaimed_kept.clear();
                self.watch.let_through.clear();
                // The doubt is lost with it. Only a status file tells the next start of a loss.
                self.watch.is_incomplete = false;
            }
            1 => {
                let name = self.dice.pick(&names).clone();
                self.note(Some(&name), || "its status file is torn".to_owned());
                self.statuses.remove(&name);
            }
            _ => {
                let name = self.dice.pick(&names).clone();
                let status_too = self.dice.permille(500);
                self.note(Some(&name), || {
                    format!("its record is garbled; status too: {status_too}")
                });
                if status_too {
                    self.statuses.remove(&name);
                }
                self.records.remove(&name);
                self.watch.waits.remove(&name);
                self.watch.garbled.insert(name);
            }
        }
    }

    /// Reads the records from their files.
    fn read_back(&mut self) -> Records {
        let now = self.now();
        let garbled = std::mem::take(&mut self.watch.garbled);
        for name in &garbled {
            self.records.insert(name.clone(), Record::distrusted(now));
        }
        let mut records = BTreeMap::new();
        for (name, record) in self.records.clone() {
            let text = serde_json::to_string(&record).unwrap();
            let read: Box<Record> = serde_json::from_str(&text).unwrap();
            if *read != record {
                let what = "the record does not survive its file".to_owned();
                self.broken("status_matches_record", Some(&name), what);
            }
            records.insert(name, read);
        }
        records
    }

    /// The installations in status files without a good record.
    fn installs_on_status(&self, records: &Records) -> BTreeMap<NodeName, Installed> {
        let unknown =
            |name: &NodeName| records.get(name).is_none_or(|record| record.spec.is_none());
        self.statuses
            .iter()
            .filter(|(name, _)| unknown(name))
            .filter_map(|(name, status)| Some((name.clone(), status.installed.clone()?)))
            .collect()
    }
}
