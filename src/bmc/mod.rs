//! BMCs: power state, boot device, identity and console of a machine, by the driver that its spec
//! names.
//!
//! The agent holds one [`Bmc`] for each node. [`open`] chooses the driver, and is the only place
//! that knows all drivers. To add a driver, write its folder, and extend [`open`], [`BmcError`],
//! `bmc.driver` in the model's spec, the spec's schema, and the documents.
//!
//! All drivers share `driver` (the trait), `timing`, and `power` (the loop until a power state is
//! reached). `process` runs programs. No driver may treat an accepted command as a completed one,
//! send a BMC two calls at once, or outlast a deadline.

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

/// A node's BMC, behind its driver.
#[derive(Clone, Debug)]
pub struct Bmc(Arc<dyn Driver>);

impl Deref for Bmc {
    type Target = dyn Driver;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// The secrets of a BMC, read from its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmcSecrets {
    /// The password; `None` if the spec names none, which only the program driver accepts.
    pub password: Option<Secret>,
    /// The file that the password was read from.
    pub password_file: Option<PathBuf>,
    /// The BMC key (`K_g`), if the BMC has one.
    pub kg: Option<BmcKey>,
}

/// Whether a BMC's credentials are known to have worked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trusted {
    /// The credentials have worked, so that one refusal is not final.
    Yes,
    /// The credentials have not been tried.
    No,
}

/// Opens a node's BMC with the driver of its spec. Sends nothing yet. `spacing` is the pause
/// between two calls.
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

/// A client that runs `ipmitool` for each command.
pub fn by_ipmitool(config: IpmiConfig, timing: Timing) -> IpmiClient {
    IpmiClient::over(Box::new(Ipmitool::default()), config, timing)
}

fn ipmi_config(bmc: &spec::Bmc, secrets: &BmcSecrets, spacing: Duration) -> IpmiConfig {
    // With these drivers, the schema refuses a spec without password, or with an address of another
    // kind.
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
