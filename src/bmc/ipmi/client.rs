//! The IPMI client: a BMC's address and credentials, and what it accepted before.
//!
//! The drivers `ipmi` and `ipmitool` make it. Two calls must never use it at once: the holder of
//! its memory's lock has the BMC.

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

/// A client of one BMC. Its calls run one after the other. Each opens a session and closes it, also
/// when it fails or its future is dropped. Every call retries passing failures until its deadline.
#[derive(Debug)]
pub struct IpmiClient {
    pub(super) config: IpmiConfig,
    pub(super) timing: Timing,
    pub(super) transport: Box<dyn Transport>,
    pub(super) memory: Mutex<Memory>,
    /// Held by the one caller that reads the console.
    pub(super) console: Mutex<()>,
}

/// The state that a client keeps between calls. Its lock is the BMC's lock.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The suite that the BMC accepted last.
    pub(super) suite: Option<CipherSuite>,
    /// When the last call ended.
    pub(super) last_contact: Option<Instant>,
    /// The commands and credentials that the BMC has accepted.
    pub(super) trust: Trust,
    /// Polls in a row without any answer.
    pub(super) silent_polls: u32,
}

impl IpmiClient {
    /// A client with its own IPMI sessions. Sends nothing yet.
    pub fn new(config: IpmiConfig, timing: Timing) -> Self {
        Self::over(Box::new(Rmcp), config, timing)
    }

    /// A client with another transport.
    pub(in crate::bmc) fn over(
        transport: Box<dyn Transport>,
        config: IpmiConfig,
        timing: Timing,
    ) -> Self {
        let (memory, console) = (Mutex::default(), Mutex::default());
        Self { config, timing, transport, memory, console }
    }

    /// Marks the credentials as known to have worked, so that one refusal is not final.
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
