//! The shown status is true.

use hostler::{
    lifecycle::Fleet,
    model::{
        ids::NodeName,
        status::{Booted, Phase, Status},
    },
};

use crate::world::Site;

/// The check of all statuses costs more than all others, and runs only after some steps.
const EVERY: u64 = 8;

impl Site {
    pub(crate) fn judge_status(&mut self, status: &Status) {
        if status.message.ends_with("until it can be written") {
            // The unclaimed installations could not be kept, so that the record was not even tried.
            self.unsaved.insert(status.node.clone());
            self.judge_unsaved(&status.node);
        }
        self.note_queue(status);
        let ready = !status.ready || matches!(status.phase, Phase::Deployed | Phase::Available);
        let booted = status.installed.as_ref().and_then(|installed| installed.booted);
        let unproven = matches!(booted, Some(Booted::Waiting | Booted::Missed));
        if status.phase == Phase::Deployed && status.ready && unproven {
            let what = format!("it is shown as deployed and ready, and {booted:?}");
            self.broken("deployed_is_up", Some(&status.node), what);
        }
        let explained = status.deadline.is_some() == status.deadline_reason.is_some();
        if !ready || !explained || status.message.is_empty() || status.history.len() > 50 {
            let what =
                format!("{} ready: {} {:?}", status.phase.as_str(), status.ready, status.deadline);
            self.broken("status_matches_record", Some(&status.node), what);
        }
    }

    /// Checks after a step that the last shown status is the node's, and agrees with the durable
    /// record.
    pub(crate) fn check_shown(&mut self, fleet: &Fleet, name: &NodeName) {
        let quiet = self.steps.is_multiple_of(EVERY)
            && !self.unsaved.contains(name)
            && self.is_informed(name);
        let (true, Some(node), Some(shown)) = (quiet, fleet.node(name), self.shown.get(name))
        else {
            return;
        };
        let status = Status { updated: shown.updated, ..node.status(self.now()) };
        if *shown != status {
            let what = format!("shown {:?}, and is {:?}", shown.phase, status.phase);
            return self.broken("status_matches_record", Some(name), what);
        }
        let Some(record) = self.records.get(name) else {
            return self.broken("status_matches_record", Some(name), "no record".to_owned());
        };
        let of_record = (record.phase, record.attempt, record.installed.clone());
        if of_record != (status.phase, status.attempt, status.installed.clone()) {
            let what = format!(
                "the record says {of_record:?}, and {} {} is shown",
                status.phase.as_str(),
                status.attempt
            );
            self.broken("status_matches_record", Some(name), what);
        }
    }
}
