//! The site's implementation of the core's effects. The agent may be killed before each of these
//! calls: later calls then have no effect.

use std::sync::Arc;

use hostler::{
    lifecycle::{Effects, Node, Operation, ReceivedLog, Record, UnclaimedInstalls},
    model::{
        callback::Reply,
        ids::{NodeName, OpId},
        spec::NodeSpec,
        status::{Phase, Status},
    },
};

use super::site::{Caller, Happening, Site};
use crate::names::{operation_name, state_name};

impl Site {
    /// Whether the agent lives to make this call.
    fn lives_to_call(&mut self) -> bool {
        if let Some(fuse) = &mut self.fuse {
            if *fuse == 0 {
                self.dead = true;
            } else {
                *fuse -= 1;
            }
        }
        !self.dead
    }
}

impl Effects for Site {
    fn save(&mut self, node: &NodeName, record: &Record) -> Result<(), String> {
        if !self.lives_to_call() {
            return Ok(());
        }
        self.judge_decision(node, record);
        if self.t < self.store_full_until {
            self.note(Some(node), || format!("  no space left for {}", state_name(record)));
            self.judge_unsaved(node);
            return Err("no space left on device".to_owned());
        }
        self.note(Some(node), || format!("  save {}", state_name(record)));
        self.judge_save(node, record);
        Ok(())
    }

    fn save_site(&mut self, unclaimed: &UnclaimedInstalls) -> Result<(), String> {
        if !self.lives_to_call() {
            return Ok(());
        }
        if self.t < self.store_full_until {
            return Err("no space left on device".to_owned());
        }
        self.unclaimed = Some(serde_json::to_string(unclaimed).map_err(|error| error.to_string())?);
        self.watch.unclaimed_kept.clone_from(&self.watch.unclaimed);
        Ok(())
    }

    fn serve(&mut self, node: &Node) {
        if !self.lives_to_call() {
            return;
        }
        self.judge_node(node);
        let nics = node.spec().map(|spec| spec.boot.macs.clone()).unwrap_or_default();
        self.menus.insert(node.name().clone(), (node.menu(), nics));
    }

    fn start(&mut self, node: &NodeName, op: OpId, operation: Operation, spec: Arc<NodeSpec>) {
        if !self.lives_to_call() {
            return;
        }
        self.note(Some(node), || format!("  start {op} {}", operation_name(&operation)));
        self.begins(node, op);
        self.judge_start(node, &operation, &spec);
        self.begin_job(&(node.clone(), op), operation, spec);
    }

    fn cancel(&mut self, node: &NodeName, op: OpId) {
        if !self.lives_to_call() {
            return;
        }
        self.note(Some(node), || format!("  cancel {op}"));
        self.stop_job(&(node.clone(), op));
    }

    fn reply(&mut self, request: u64, reply: Reply) {
        if !self.lives_to_call() {
            return;
        }
        self.note(None, || format!("  reply to {request}: {reply:?}"));
        match self.open_requests.remove(&request) {
            Some(Caller::Stranger) if reply != Reply::Refused => {
                let what = format!("a stranger is told {reply:?}");
                self.broken("strangers_are_refused", None, what);
            }
            None => {
                let what = format!("request {request} is answered again");
                self.broken("every_call_is_answered_once", None, what);
            }
            Some(Caller::Ramdisk(id)) => {
                self.judge_reply(id, &reply);
                if !self.mishap(40) {
                    self.after_ms(10, 800, Happening::Answer { id, reply });
                }
            }
            Some(Caller::Log(id, may)) => self.judge_log_reply(id, may, &reply),
            Some(Caller::System | Caller::Stranger) => {}
        }
    }

    fn keep_log(&mut self, node: &NodeName, log: ReceivedLog) {
        if self.lives_to_call() {
            self.note(Some(node), || format!("  keep the log of attempt {}", log.attempt));
            self.judge_log(node, log);
        }
    }

    fn wake_ramdisks(&mut self) {
        self.lives_to_call();
    }

    fn show(&mut self, status: Status) {
        if !self.lives_to_call() {
            return;
        }
        self.judge_status(&status);
        let name = status.node.clone();
        // A change of phase is written at once, everything else within a second.
        if self.statuses.get(&name).is_none_or(|file| file.phase != status.phase)
            || self.dice.permille(500)
        {
            self.statuses.insert(name.clone(), status.clone());
        }
        self.shown.insert(name, status);
    }

    fn log_phase(&mut self, status: &Status) {
        if self.lives_to_call() {
            self.note(Some(&status.node), || {
                format!("  {}: {}", status.phase.as_str(), status.message)
            });
            if status.phase == Phase::Preparing {
                self.judge_permit(&status.node, status.attempt);
            }
        }
    }

    fn forget(&mut self, node: &NodeName) {
        if !self.lives_to_call() {
            return;
        }
        self.note(Some(node), || "  forgotten".to_owned());
        self.judge_forget(node);
        self.menus.remove(node);
        self.shown.remove(node);
        self.statuses.remove(node);
        self.records.remove(node);
        self.unsaved.remove(node);
    }
}
