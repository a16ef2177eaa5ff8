//! BMCs: power state, boot device, identity and console of a machine, by whichever driver its spec
//! names.
//!
//! Called by the agent, with one [`Bmc`] for each node. [`open`] chooses the driver and is the one
//! place that knows all of them; to add one, write its folder, add it there and to [`BmcError`], to
//! `bmc.driver` in the model's spec and the spec's schema, and to the documents.
//!
//! Above the drivers stand `driver` (the trait), `timing` and `power` (the loop until a power state
//! is reached). `process` runs programs for the drivers that need one. No driver may trust that an
//! accepted command was done, keep a BMC busy with two calls at once, or outlast a deadline.

mod driver;
mod error;
pub mod ipmi;
mod ipmitool;
mod power;
mod process;
pub mod program;
mod timing;

use std::{ops::Deref, path::PathBuf, sync::Arc, time::Duration};

pub use self::{
    driver::{BmcCall, BootChoice, Chassis, ConsoleEvent, Driver, Listening, TakeConsole},
    error::BmcError,
    timing::Timing,
};
use self::{
    ipmi::{IpmiClient, IpmiConfig},
    ipmitool::Ipmitool,
    program::{ProgramClient, ProgramConfig},
};
use crate::model::{
    bmc_key::BmcKey,
    ids::NodeName,
    secret::Secret,
    spec::{self, BmcDriver, HostPort},
};

/// A node's BMC, by whichever driver.
#[derive(Clone, Debug)]
pub struct Bmc(Arc<dyn Driver>);

impl Deref for Bmc {
    type Target = dyn Driver;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// The secrets of a BMC, as its files hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmcSecrets {
    /// The password; `None` if the spec names none, which only a program can do with.
    pub password: Option<Secret>,
    /// The file that the password was read from.
    pub password_file: Option<PathBuf>,
    /// The BMC key (`K_g`), if the BMC has one.
    pub kg: Option<BmcKey>,
}

/// Whether a BMC's credentials are known to have worked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trusted {
    /// They have: one refusal is not final.
    Yes,
    /// Nobody knows.
    No,
}

/// Opens a node's BMC with the driver that its spec names. Nothing is sent yet. `spacing` is the
/// pause between two calls.
pub fn open(
    node: &NodeName,
    bmc: &spec::Bmc,
    secrets: &BmcSecrets,
    spacing: Duration,
    trusted: Trusted,
) -> Bmc {
    let timing = Timing::default();
    let ipmi = |over: fn(IpmiConfig, Timing) -> IpmiClient| -> Bmc {
        let client = over(ipmi_config(bmc, secrets, spacing), timing);
        Bmc(Arc::new(if trusted == Trusted::Yes { client.trusted() } else { client }))
    };
    match bmc.driver {
        BmcDriver::Ipmi => ipmi(IpmiClient::new),
        BmcDriver::Ipmitool => ipmi(by_ipmitool),
        BmcDriver::Program => {
            let config = ProgramConfig {
                node: node.clone(),
                address: bmc.address.clone(),
                username: bmc.username.clone(),
                password_file: secrets.password_file.clone(),
                spacing,
            };
            Bmc(Arc::new(ProgramClient::new(config, timing)))
        }
    }
}

/// A BMC that is spoken to by `ipmitool`.
pub fn by_ipmitool(config: IpmiConfig, timing: Timing) -> IpmiClient {
    IpmiClient::over(Box::new(Ipmitool::default()), config, timing)
}

fn ipmi_config(bmc: &spec::Bmc, secrets: &BmcSecrets, spacing: Duration) -> IpmiConfig {
    // The schema lets no spec through that has another address, or no password, with these drivers.
    let nowhere = || HostPort { host: String::new(), port: 0 };
    IpmiConfig {
        address: bmc.address.host().cloned().unwrap_or_else(nowhere),
        username: bmc.username.clone(),
        password: secrets.password.clone().unwrap_or_else(|| Secret::new(String::new())),
        kg: secrets.kg.clone(),
        privilege: bmc.privilege,
        cipher_suite: bmc.cipher_suite,
        spacing,
    }
}
