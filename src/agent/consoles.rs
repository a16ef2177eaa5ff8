//! Records serial consoles (`bmc.console`): in memory during an attempt, and beside the status file
//! after a failed one.
//!
//! Owned by `effects.rs`, which calls it after each step of a node. An attempt must never fail,
//! wait or change because of its console.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::{
    bmc::ConsoleEvent,
    lifecycle::{Attempt, Node},
    model::{
        fault::Step,
        ids::NodeName,
        secret::AttemptKey,
        spec::{Bmc, NodeSpec},
        status::Phase,
    },
    status_file::{CONSOLE_BYTES_MAX, ConsoleLog},
};

use super::{
    clock::now,
    publish::Publisher,
    work::{NodeEvent, Operations},
};

/// The time that opening a console may delay a power command: at most 10 s, and at most a fourth of
/// `timeouts.power`.
const OPEN_TIME_MAX: Duration = Duration::from_secs(10);
const OPEN_TIME_PART: u32 = 4;
/// Marks a possible gap in the recording.
const GAP: &[u8] = b"\n# something may be missing here\n";

/// The recordings of the attempts under way.
#[derive(Debug, Default)]
pub(super) struct Consoles {
    attempts: BTreeMap<NodeName, FollowedAttempt>,
}

#[derive(Debug)]
struct FollowedAttempt {
    key: AttemptKey,
    /// `None` if the spec wants no recording.
    recording: Option<Recording>,
}

/// A recording, which dropping this ends.
#[derive(Debug)]
struct Recording {
    attempt: u32,
    from: Timestamp,
    buffer: Arc<Mutex<RingBuffer>>,
    _stop: oneshot::Sender<()>,
}

/// The end of the received output.
#[derive(Debug, Default)]
struct RingBuffer {
    said: VecDeque<u8>,
    trouble: Option<String>,
}

impl Consoles {
    /// Begins and ends recordings with the node's attempts. Every recording holds `agent` until its
    /// session is closed.
    pub(super) fn follow(
        &mut self,
        node: &Node,
        operations: &Arc<Operations>,
        publisher: &Publisher,
        agent: &mpsc::Sender<NodeEvent>,
    ) {
        let (name, record) = (node.name(), node.record());
        if record.phase == Phase::Booting {
            // The first boot is recorded, too, and decides whether the recording is kept.
            return;
        }
        let attempt = record.state.attempt().filter(|_| record.phase.is_busy());
        if self.attempts.get(name).map(|followed| &followed.key) == attempt.map(|new| &new.key) {
            return;
        }
        if let Some(FollowedAttempt { key, recording }) = self.attempts.remove(name) {
            if record.phase == Phase::Deployed {
                publisher.drop_console(name);
            } else if let Some(recording) = recording {
                publisher.keep_console(recording.end(name, key));
            }
        }
        if let Some(attempt) = attempt {
            let spec = node.spec().and_then(|spec| recorded(spec, attempt));
            let recording =
                spec.map(|spec| Recording::begin(record.attempt, spec, operations, agent));
            self.attempts
                .insert(name.clone(), FollowedAttempt { key: attempt.key.clone(), recording });
        }
    }

    /// Drops the recording of a forgotten node.
    pub(super) fn forget(&mut self, name: &NodeName) {
        self.attempts.remove(name);
    }
}

/// The spec with the attempt's BMC, if its console is wanted.
fn recorded(spec: &Arc<NodeSpec>, attempt: &Attempt) -> Option<Arc<NodeSpec>> {
    let bmc: &Bmc = attempt.bmc.as_ref().filter(|bmc| bmc.console)?;
    let mut spec = Arc::clone(spec);
    if spec.bmc.as_deref() != Some(bmc) {
        Arc::make_mut(&mut spec).bmc = Some(Box::new(bmc.clone()));
    }
    Some(spec)
}

impl Recording {
    fn begin(
        attempt: u32,
        spec: Arc<NodeSpec>,
        operations: &Arc<Operations>,
        agent: &mpsc::Sender<NodeEvent>,
    ) -> Self {
        let buffer = Arc::<Mutex<RingBuffer>>::default();
        let (stop, stopped) = oneshot::channel();
        let (listener, operations, agent) =
            (Arc::clone(&buffer), Arc::clone(operations), agent.clone());
        tokio::spawn(async move {
            // A stopping agent waits until the console's session is closed.
            let _agent = agent;
            let node = &spec.name;
            let bmc = match operations.bmcs.client(Step::PowerOn, &spec) {
                Ok(bmc) => bmc,
                Err(fault) => return lock(&listener).on_failure(node, fault.message),
            };
            let limit = OPEN_TIME_MAX.min(spec.timeouts.power / OPEN_TIME_PART);
            let mut take = |event: ConsoleEvent<'_>| match event {
                ConsoleEvent::Opened => info!(%node, "its console is recorded"),
                ConsoleEvent::Text(text) => lock(&listener).append(text),
                ConsoleEvent::Gap => lock(&listener).append(GAP),
                ConsoleEvent::Trouble(error) => lock(&listener).on_failure(node, error.to_string()),
            };
            bmc.console(limit, &mut take, Box::pin(async { drop(stopped.await) })).await;
        });
        Self { attempt, from: now(), buffer, _stop: stop }
    }

    fn end(self, node: &NodeName, key: AttemptKey) -> ConsoleLog {
        let RingBuffer { said, trouble } = std::mem::take(&mut *lock(&self.buffer));
        let (attempt, from, to, said) = (self.attempt, self.from, now(), said.into());
        ConsoleLog { node: node.clone(), attempt, from, to, said, trouble, key }
    }
}

impl RingBuffer {
    fn append(&mut self, text: &[u8]) {
        self.said.extend(text);
        let surplus = self.said.len().saturating_sub(CONSOLE_BYTES_MAX);
        self.said.drain(..surplus);
    }

    /// Notes an error, and logs the first one.
    fn on_failure(&mut self, node: &NodeName, error: String) {
        if self.trouble.is_none() {
            warn!(%node, error, "its console cannot be recorded without gaps");
        }
        self.trouble = Some(error);
    }
}

fn lock(buffer: &Mutex<RingBuffer>) -> MutexGuard<'_, RingBuffer> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_keeps_the_last_64_kib() {
        let mut buffer = RingBuffer::default();
        for number in 0..200_000_u32 {
            buffer.append(&number.to_be_bytes());
        }
        let kept: Vec<u8> = buffer.said.into();
        assert_eq!(kept.len(), 64 << 10);
        assert!(kept.ends_with(&199_999_u32.to_be_bytes()));
        assert_eq!(kept.first_chunk(), Some(&(200_000_u32 - (16 << 10)).to_be_bytes()));
    }
}
