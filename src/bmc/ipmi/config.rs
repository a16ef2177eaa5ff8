//! The way to a BMC that speaks IPMI, and the user to speak as.
//!
//! Made by the agent from a spec and its secrets, read by the call and by the transports.

use std::time::Duration;

use crate::model::{
    bmc_key::BmcKey,
    secret::Secret,
    spec::{CipherSuite, HostPort, Privilege},
};

/// The configuration of an IPMI client.
#[derive(Clone, Debug)]
pub struct IpmiConfig {
    /// Where it answers.
    pub address: HostPort,
    /// Its user, at most 16 bytes; may be empty.
    pub username: String,
    /// The user's password, at most 20 bytes.
    pub password: Secret,
    /// The BMC key (`K_g`), if it has one beside the users' (IPMI 2.0 §13.32).
    pub kg: Option<BmcKey>,
    /// The privilege level to ask for.
    pub privilege: Privilege,
    /// The one cipher suite to use; `None` tries 17, then 3, and remembers what worked.
    pub cipher_suite: Option<CipherSuite>,
    /// The pause between two calls, and between two polls of the power state: some BMCs crash when
    /// they are asked more often.
    pub spacing: Duration,
}
