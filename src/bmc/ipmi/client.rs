//! A BMC that speaks IPMI: the way to it, and what was learned of it.
//!
//! Made by the IPMI and ipmitool drivers. It must never be used by two calls at once: whoever holds
//! the memory has the turn.

use std::time::Duration;

use tokio::{sync::Mutex, time::Instant};

use super::{
    config::IpmiConfig,
    error::{IpmiError, IpmiErrorKind},
    refusal::Trust,
    rmcp::Rmcp,
    transport::Transport,
};
use crate::{bmc::timing::Timing, model::spec::CipherSuite};

/// One BMC that speaks IPMI. Calls take turns; each opens a session, does its work, and closes the
/// session, also when it fails or is dropped. Every call tries again what may pass, until its
/// deadline.
#[derive(Debug)]
pub struct IpmiClient {
    pub(super) config: IpmiConfig,
    pub(super) timing: Timing,
    pub(super) transport: Box<dyn Transport>,
    pub(super) memory: Mutex<Memory>,
    /// The turn to listen to the console.
    pub(super) console: Mutex<()>,
}

/// The lessons of earlier calls to a BMC. Whoever holds them has the turn.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The suite it accepted last.
    pub(super) suite: Option<CipherSuite>,
    /// When the last call ended.
    pub(super) last_contact: Option<Instant>,
    /// The commands and credentials it has accepted.
    pub(super) trust: Trust,
    /// Polls in a row to which it said nothing at all.
    pub(super) silent_polls: u32,
}

impl IpmiClient {
    /// A BMC that is spoken to in process; nothing is sent yet.
    pub fn new(config: IpmiConfig, timing: Timing) -> Self {
        Self::over(Box::new(Rmcp), config, timing)
    }

    /// A BMC that is spoken to by another transport.
    pub(in crate::bmc) fn over(
        transport: Box<dyn Transport>,
        config: IpmiConfig,
        timing: Timing,
    ) -> Self {
        let (memory, console) = (Mutex::default(), Mutex::default());
        Self { config, timing, transport, memory, console }
    }

    /// The same BMC, with credentials that are known to have worked: one refusal is not final.
    #[must_use]
    pub fn trusted(self) -> Self {
        let memory = Mutex::new(Memory { trust: Trust::given(), ..Memory::default() });
        Self { memory, ..self }
    }

    pub(super) fn error(&self, kind: IpmiErrorKind) -> IpmiError {
        IpmiError { bmc: self.config.address.clone(), kind }
    }

    /// The pause between two polls of the power state.
    pub(super) fn poll_interval(&self) -> Duration {
        self.timing.poll.max(self.config.spacing)
    }
}
