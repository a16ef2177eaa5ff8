//! Recovers the fleet at the agent's start, from the records, the site file, and the status files
//! of lost records.
//!
//! Called by [`super::Agent::start`], before anything is served. Every lost or damaged file is
//! logged by its name and holds its node, durably before this returns. A damaged or missing file
//! must never count as "nothing installed", and an unreadable one must never be overwritten.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    lifecycle::{Fleet, Known, Policy, Record, Records, UnclaimedInstalls, format_1},
    model::ids::NodeName,
    status_file::{self, StatusFileError, StatusFiles},
    store::{Loaded, Store, StoreError},
};

/// The recovered fleet, with messages for the administrator.
#[derive(Debug)]
pub(super) struct Recalled {
    pub(super) fleet: Fleet,
    /// Losses with their consequences.
    pub(super) losses: Vec<String>,
    /// Losses that other files made good, and upgrades.
    pub(super) notes: Vec<String>,
}

/// Recovers the fleet. If it was `overtaken`, another agent has acted since: the records are put
/// aside, and each node is held unless its status file has an installation.
pub(super) fn recall(
    store: &mut Store,
    files: &StatusFiles,
    policy: Policy,
    overtaken: bool,
    now: Timestamp,
) -> Result<Recalled, StoreError> {
    let (mut losses, notes) = (Vec::new(), Vec::new());
    if overtaken {
        let count = store.set_records_aside()?;
        losses.push(format!(
            "an agent with another state directory has acted upon these status files: they say \
             what is installed, all other nodes are held until somebody consents, and {count} \
             records of this state directory are put aside in it"
        ));
    }
    let Loaded { records, damaged, old } = store.load_all(format_1::record)?;
    let upgraded = !old.is_empty();
    let doubts = Vec::new();
    let mut reading =
        Reading { store, files, now, overtaken, records, changed: old, doubts, losses, notes };
    for (name, error) in damaged {
        reading.lose(&name, error.to_string());
    }
    reading.find_contradictions();
    let recovered = reading.recover_from_status_files();
    let (unclaimed, must_save) = reading.read_site()?;
    let Reading { records, changed, doubts, mut losses, mut notes, .. } = reading;
    // Durable at once, because the damaged file may be gone at the next start.
    for name in changed {
        if let Some(record) = records.get(&name) {
            store.save(&name, record.as_ref())?;
        }
    }
    if upgraded {
        let done = "the state directory was of format 1; it has a checksum in every file now";
        notes.push(done.to_owned());
    }
    let fleet = Fleet::resume(policy, records, unclaimed, recovered, now);
    if must_save || upgraded {
        store.save_site(fleet.unclaimed())?;
    }
    for (name, loss) in doubts {
        // Only now it is known: a status file may have told it.
        if fleet.unclaimed().knows(&name) {
            notes.push(format!("{loss}; what is installed there is still known"));
        } else {
            losses.push(format!("{loss}; its node is held until somebody consents"));
        }
    }
    store.complete_upgrade()?;
    store.another_agent().forget()?;
    Ok(Recalled { fleet, losses, notes })
}

/// The recovery's state.
struct Reading<'a> {
    store: &'a Store,
    files: &'a StatusFiles,
    now: Timestamp,
    overtaken: bool,
    records: Records,
    /// The nodes whose record differs from its file.
    changed: Vec<NodeName>,
    /// The nodes without a good record, and what became of it.
    doubts: Vec<(NodeName, String)>,
    losses: Vec<String>,
    notes: Vec<String>,
}

impl Reading<'_> {
    /// Marks a record as lost, so that its machine is not touched without consent, unless a status
    /// file says what is installed.
    fn lose(&mut self, name: &NodeName, loss: String) {
        self.doubts.push((name.clone(), loss));
        self.records.insert(name.clone(), Box::new(Record::distrusted(self.now)));
        self.changed.push(name.clone());
    }

    /// Finds whole records that contradict themselves.
    fn find_contradictions(&mut self) {
        let contradict = self.records.iter().filter(|(_, record)| record.contradicts_itself());
        let names: Vec<NodeName> = contradict.map(|(name, _)| name.clone()).collect();
        for name in names {
            let fate = self.store.keep_record_aside(&name);
            let says = "says that its machine is deployed and that nothing is installed";
            self.lose(&name, format!("record {name} {says}; {fate}"));
        }
    }

    /// Recovers the installations that only status files have. `None`: unknown.
    fn recover_from_status_files(&mut self) -> BTreeMap<NodeName, Known> {
        let nodes = self.files.nodes().unwrap_or_else(|error| {
            if !error.is_absence() {
                let they = "the status files would tell what is installed if a record were lost";
                self.losses.push(format!("{error}; {they}"));
            }
            Vec::new()
        });
        let nodes: BTreeSet<NodeName> = nodes.into_iter().collect();
        let missing: Vec<&NodeName> =
            self.records.keys().filter(|name| !nodes.contains(name)).collect();
        if let Some(first) = missing.first() {
            self.notes.push(format!(
                "status files of {} nodes are missing, the first of them {first}; they are written \
                 again",
                missing.len()
            ));
        }
        let mut recovered = BTreeMap::new();
        for name in nodes {
            if let Some(known) = self.recover_from_status_file(&name) {
                recovered.insert(name, known);
            }
        }
        recovered
    }

    /// Recovers one node's installation from its status file. The outer `None`: nothing beyond the
    /// record.
    fn recover_from_status_file(&mut self, name: &NodeName) -> Option<Known> {
        let record = self.records.get(name).filter(|record| record.spec.is_some());
        if let Some(record) = record {
            let at = record.installed.as_ref().map(|installed| installed.at);
            if self.files.has_installation_at(name, at) {
                return None;
            }
        }
        let newest = record.map(|record| record.newest());
        let status = match status_file::read(&self.files.path(name)) {
            Ok(status) => status,
            Err(error) if error.is_absence() => return None,
            Err(error) if newest.is_some() => {
                self.losses.push(format!("{error}; its record is whole, and it is written again"));
                return None;
            }
            Err(error) => {
                let fate = match &error {
                    StatusFileError::Damaged { .. } => self.files.keep_aside(name),
                    _ => "it stays".to_owned(),
                };
                let then = "there is no record of its node, which is held until somebody consents";
                self.losses.push(format!("{error}; {fate}; {then}"));
                return Some(None);
            }
        };
        let at = status.installed.as_ref().map(|installed| installed.at);
        match (newest, at) {
            (Some(newest), Some(at)) if at > newest => {
                let fate = self.store.keep_record_aside(name);
                let says = format!("which says that the machine was installed at {at}");
                let older = format!("record {name} is older than its status file");
                self.lose(name, format!("{older}, {says}; {fate}"));
            }
            (None, Some(_)) if self.overtaken => {}
            (None, Some(at)) => self.notes.push(format!(
                "record {name} is lost; its status file says that the machine was installed at {at}"
            )),
            (None, None) if status.is_record_lost() => {
                let says = "its status file says that nobody knows what is installed";
                let then = "it is held until somebody consents";
                self.losses.push(format!("record {name} is lost, and {says}; {then}"));
            }
            // An old status file without an installation does not prove that nothing was installed
            // later.
            (None, None) if self.overtaken || self.store.is_new() => {}
            _ => return None,
        }
        Some(status.installed)
    }

    /// Reads the site file. Returns whether it must be saved again.
    fn read_site(&mut self) -> Result<(UnclaimedInstalls, bool), StoreError> {
        let site = self.store.load_site(format_1::unclaimed);
        let mut must_save = self.overtaken || !matches!(site, Ok(Some(_)));
        let mut unclaimed = match site {
            Ok(Some(unclaimed)) => unclaimed,
            // Unreadable status files may have installations.
            Ok(None) if self.files.nodes().is_err_and(|error| !error.is_absence()) => {
                UnclaimedInstalls::lost()
            }
            // A new or emptied state directory beside status files of an earlier agent.
            Ok(None) if self.store.is_new() && self.files.nodes().is_ok_and(|n| !n.is_empty()) => {
                self.losses.push(
                    "the state directory is new, and status files are there: nodes without an \
                     installation in them are held until somebody consents"
                        .to_owned(),
                );
                UnclaimedInstalls::lost()
            }
            Ok(None) => UnclaimedInstalls::default(),
            Err(error @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) => {
                let lost = "what was installed on machines without a spec is no longer known";
                self.losses.push(format!("{error}; {lost}"));
                UnclaimedInstalls::lost()
            }
            Err(error) => return Err(error),
        };
        if self.overtaken {
            unclaimed.set_incomplete(true);
        }
        for name in unclaimed.missing(&self.records) {
            must_save = true;
            if !self.overtaken && !self.records.contains_key(name) {
                self.doubts.push((name.clone(), format!("record {name}.json is missing")));
            }
        }
        if unclaimed.is_incomplete() {
            self.losses.push(INCOMPLETE.to_owned());
        }
        Ok((unclaimed, must_save))
    }
}

const INCOMPLETE: &str = "machines that a spec names for the first time are held until somebody \
     consents, because what was known of unclaimed machines was lost, or only another agent's \
     state directory knows it: run \"hostler approve NODE\" for each, which lets hostler WIPE it, \
     or \"hostler approve --new-machines\" when no further one may be installed";

#[cfg(test)]
mod tests;
