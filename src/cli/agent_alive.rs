//! Detects from an agent's mark whether the agent acts, so that a reader can distinguish a dead
//! agent from a quiet one.
//!
//! The commands that read status files use it. It contacts no agent: it reads the mark in the
//! status directory.

use std::path::Path;

use jiff::Timestamp;
use rustix::system::uname;
use serde_json::{Value, json};

use crate::{
    model::{agent_mark::AgentMark, printable::escaped},
    status_file::{MarkFile, StatusFileError},
};

use super::text::{clock, span};

/// Exit code of `hostler status` if no agent acts.
pub(super) const NO_AGENT: u8 = 6;

/// The agent of a status directory, by its mark.
#[derive(Debug)]
pub(super) struct AgentAlive {
    /// The mark; `None` if no agent of this version has acted there.
    mark: Option<AgentMark>,
    /// Whether the mark could be read, or is missing.
    is_known: bool,
    now: Timestamp,
}

impl AgentAlive {
    pub(super) fn look(dir: &Path) -> Result<Self, StatusFileError> {
        Ok(Self { mark: MarkFile::in_dir(dir).read()?, is_known: true, now: Timestamp::now() })
    }

    /// A state without knowledge of the agent.
    pub(super) fn unknown() -> Self {
        Self { mark: None, is_known: false, now: Timestamp::now() }
    }

    /// Whether no agent acts, by the mark.
    pub(super) fn is_dead(&self) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.dead_since(self.now).is_some())
    }

    /// Whether an agent acts, by the mark.
    pub(super) fn is_alive(&self) -> bool {
        self.mark.is_some() && !self.is_dead()
    }

    /// Whether no agent has ever acted here, or its mark was just removed.
    pub(super) fn is_absent(&self) -> bool {
        self.is_known && self.mark.is_none()
    }

    /// Whether an agent acted and gives no sign of life, so that its last status files may be old.
    /// A stopped agent has written all of them.
    pub(super) fn is_silent(&self) -> bool {
        self.is_dead() && self.mark.as_ref().is_some_and(|mark| mark.stopped.is_none())
    }

    /// A warning for readers of the nodes: no agent acts, or it acts on another host.
    pub(super) fn caution(&self) -> Option<String> {
        let mark = self.mark.as_ref()?;
        // Escaped, because any user who can write to the directory may have written it.
        let shown = escaped(&mark.to_string());
        let Some(since) = mark.dead_since(self.now) else {
            let here = uname();
            return (here.nodename().to_string_lossy() != mark.host)
                .then(|| format!("the agent is {shown}"));
        };
        let ago = span(self.now.duration_since(since));
        let end = if mark.stopped.is_some() { "was stopped" } else { "gives no sign of life" };
        Some(format!(
            "no agent since {}, {ago} ago: {shown}, {end}; start it there: \
             systemctl start hostler; if it does not stay, \
             `journalctl -u hostler` says why",
            clock(since)
        ))
    }

    /// The agent for `--output json`; null if unknown.
    pub(super) fn to_json(&self) -> Result<Value, serde_json::Error> {
        let Some(mark) = &self.mark else { return Ok(Value::Null) };
        let dead_since = mark.dead_since(self.now);
        let mut agent = serde_json::to_value(mark)?;
        if let Value::Object(agent) = &mut agent {
            agent.insert("alive".to_owned(), json!(dead_since.is_none()));
            agent.insert("dead_since".to_owned(), json!(dead_since));
        }
        Ok(agent)
    }
}
