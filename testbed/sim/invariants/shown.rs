//! The shown status is true.

use hostler::{
    lifecycle::{Fleet, Record, State},
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
            self.deliver_update(&status.node);
            self.judge_unsaved(&status.node);
        }
        self.note_queue(status);
        self.judge_shown_secrets(status);
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

    fn judge_shown_secrets(&mut self, status: &Status) {
        if self.steps.is_multiple_of(EVERY) {
            let (keys, passwords) = self.secrets_of(&status.node);
            let shown = serde_json::to_string(status).unwrap();
            if keys.iter().chain(&passwords).any(|secret| shown.contains(secret)) {
                self.broken("secrets_stay_inside", Some(&status.node), shown);
            }
        }
    }

    /// A record has its attempt's secrets only for as long as they are needed, and can be read
    /// back.
    pub(crate) fn judge_saved_secrets(&mut self, node: &NodeName, record: &Record) {
        if !self.steps.is_multiple_of(EVERY) {
            return;
        }
        let saved = serde_json::to_string(record).unwrap();
        let (keys, passwords) = self.secrets_of(node);
        let over =
            record.state.attempt().is_none() && !matches!(record.state, State::Preparing { .. });
        let written = !matches!(record.state, State::Imaging { .. });
        if over && keys.iter().any(|key| saved.contains(key))
            || written && passwords.iter().any(|password| saved.contains(password))
        {
            self.broken("secrets_stay_inside", Some(node), saved.clone());
        }
        if serde_json::from_str::<Record>(&saved).ok().as_ref() != Some(record) {
            self.broken("record_before_action", Some(node), "it cannot be read back".to_owned());
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
