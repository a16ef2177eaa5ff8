//! The address and credentials of a BMC that speaks IPMI.
//!
//! The agent makes it from a spec and its secrets; calls and transports read it.

use std::time::Duration;

use crate::model::{
    bmc_key::BmcKey,
    secret::Secret,
    spec::{CipherSuite, HostPort, Privilege},
};

/// The configuration of an IPMI client.
#[derive(Clone, Debug)]
pub struct IpmiConfig {
    /// The BMC's host and port.
    pub address: HostPort,
    /// The BMC's user, at most 16 bytes; may be empty.
    pub username: String,
    /// The user's password, at most 20 bytes.
    pub password: Secret,
    /// The BMC key (`K_g`) of two-key login, if the BMC has one (IPMI 2.0 §13.32).
    pub kg: Option<BmcKey>,
    /// The privilege level to ask for.
    pub privilege: Privilege,
    /// The only cipher suite to use; `None` tries 17, then 3, and remembers the one that worked.
    pub cipher_suite: Option<CipherSuite>,
    /// The pause between two calls, and between two polls of the power state: some BMCs crash under
    /// more frequent requests.
    pub spacing: Duration,
}
