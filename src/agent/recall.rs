//! What the agent knows at its start: records, what was kept beside them, and what status files say where
//! one is lost.
//!
//! Called by [`super::Agent::start`], before anything is served. Whatever was lost or damaged is told by the
//! name of its file, and holds its node; that doubt is on disk before this returns. It must never take a file
//! that is damaged or missing for one that says "nothing installed", nor overwrite one that it could not read.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    lifecycle::{Fleet, Known, Left, Policy, Record, format_1},
    model::{
        ids::NodeName,
        status::{Condition, Status},
    },
    status_file::{StatusFileError, StatusFiles},
    store::{Loaded, Store, StoreError},
};

/// The fleet as it was recorded, and what an administrator must be told about that.
#[derive(Debug)]
pub(super) struct Recalled {
    pub(super) fleet: Fleet,
    /// What was lost, and what becomes of it.
    pub(super) losses: Vec<String>,
    /// What is known from elsewhere, or takes a new form.
    pub(super) notes: Vec<String>,
}

/// Reads the state directory, and the status files where they tell more. If it was `overtaken`, another agent has acted since, and
/// this one's records are put aside.
pub(super) fn recall(
    store: &mut Store,
    files: &StatusFiles,
    policy: Policy,
    overtaken: bool,
    now: Timestamp,
) -> Result<Recalled, StoreError> {
    let mut losses = Vec::new();
    let mut notes = Vec::new();
    let Loaded { mut records, damaged, old } = store.load_all(format_1::record)?;
    let upgraded = !old.is_empty();
    let mut changed = old;
    for (name, error) in damaged {
        losses.push(format!("{error}; its node is held until somebody consents"));
        records.insert(name.clone(), Record::distrusted(now));
        changed.push(name);
    }
    for (name, record) in &mut records {
        if record.contradicts_itself() {
            let fate = store.keep_record_aside(name);
            losses.push(format!(
                "record {name} says that its machine is deployed and that nothing is installed; {fate}; \
                 its node is held until somebody consents"
            ));
            *record = Record::distrusted(now);
            changed.push(name.clone());
        }
    }
    let witnessed =
        witnesses(store, files, &mut records, &mut changed, now, (&mut losses, &mut notes));
    let site = store.load_site(format_1::left);
    let mut must_save = !matches!(site, Ok(Some(_))) || upgraded;
    let mut left = match site {
        Ok(Some(left)) => left,
        // As long as nobody can say that there are none.
        Ok(None) if files.nodes().is_err_and(|error| !error.is_absence()) => Left::lost(),
        Ok(None) => Left::default(),
        Err(error @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) => {
            losses.push(format!(
                "{error}; what was installed on machines without a spec is no longer known"
            ));
            Left::lost()
        }
        Err(error) => return Err(error),
    };
    if overtaken {
        left.unlist_all();
        must_save = true;
    }
    for name in left.missing(&records) {
        must_save = true;
        if records.contains_key(name) {
            continue;
        }
        losses.push(format!(
            "record {name}.json is missing; its node and its machine are held until somebody consents"
        ));
    }
    if left.is_incomplete() {
        losses.push(
            "machines that a spec names for the first time are held until somebody consents, because \
             what was known of unclaimed machines was lost: run \"hostler approve NODE\" for each, which \
             lets hostler WIPE it, or \"hostler approve --new-machines\" when no further one may be installed"
                .to_owned(),
        );
    }
    // At once: at the next start the damaged file is no longer there to warn.
    for name in changed {
        if let Some(record) = records.get(&name) {
            store.save(&name, record)?;
        }
    }
    if upgraded {
        notes.push(
            "the state directory was of format 1; it has a checksum in every file now".into(),
        );
    }
    let fleet = Fleet::resume(policy, records, left, witnessed, now);
    if must_save {
        store.save_site(fleet.left())?;
    }
    store.complete_upgrade()?;
    Ok(Recalled { fleet, losses, notes })
}

/// What the status files say of machines of which no good record says it. `None`: nobody knows.
fn witnesses(
    store: &Store,
    files: &StatusFiles,
    records: &mut BTreeMap<NodeName, Record>,
    changed: &mut Vec<NodeName>,
    now: Timestamp,
    (losses, notes): (&mut Vec<String>, &mut Vec<String>),
) -> BTreeMap<NodeName, Known> {
    let nodes = files.nodes().unwrap_or_else(|error| {
        if !error.is_absence() {
            losses.push(format!(
                "{error}; the status files would tell what is installed if a record were lost"
            ));
        }
        Vec::new()
    });
    let nodes: BTreeSet<NodeName> = nodes.into_iter().collect();
    let missing: Vec<&NodeName> = records.keys().filter(|name| !nodes.contains(name)).collect();
    if let Some(first) = missing.first() {
        notes.push(format!(
            "status files of {} nodes are missing, the first of them {first}; they are written again",
            missing.len()
        ));
    }
    let mut witnessed = BTreeMap::new();
    for name in nodes {
        let record = records.get(&name).filter(|record| record.spec.is_some());
        if let Some(record) = record
            && files.says_installed(&name, record.installed.as_ref().map(|installed| installed.at))
        {
            continue;
        }
        let status = match (crate::status_file::read(&files.path(&name)), record) {
            (Ok(status), _) => status,
            (Err(error), _) if error.is_absence() => continue,
            (Err(error), Some(_)) => {
                losses.push(format!("{error}; its record is whole, and it is written again"));
                continue;
            }
            (Err(error), None) => {
                let fate = match &error {
                    StatusFileError::Damaged { .. } => files.keep_aside(&name),
                    _ => "it stays".to_owned(),
                };
                losses.push(format!(
                    "{error}; {fate}; there is no record of its node, which is held until somebody consents"
                ));
                witnessed.insert(name, None);
                continue;
            }
        };
        let installed = status.installed.as_ref().map(|installed| installed.at);
        match (record, installed) {
            (Some(record), Some(at)) if at > record.newest() => {
                let fate = store.keep_record_aside(&name);
                losses.push(format!(
                    "record {name} is older than its status file, which says that the machine was \
                     installed at {at}; {fate}; the status file is believed"
                ));
                records.insert(name.clone(), Record::distrusted(now));
                changed.push(name.clone());
            }
            (Some(_), _) => continue,
            (None, Some(at)) => notes.push(format!(
                "record {name} is lost; its status file says that the machine was installed at {at}"
            )),
            (None, None) if is_doubted(&status) => {
                losses.push(format!(
                    "record {name} is lost, and its status file says that it was before"
                ));
            }
            (None, None) => continue,
        }
        witnessed.insert(name, status.installed);
    }
    witnessed
}

/// Whether nobody knew what is on the machine when the status was written.
fn is_doubted(status: &Status) -> bool {
    let lost = |one: &Condition| one.kind == "Held" && one.reason == "RecordLost";
    status.conditions.iter().any(lost)
}

#[cfg(test)]
mod tests;
