//! The questions and orders that the agent and the operators' commands have for a BMC.
//!
//! Implemented once by each driver, called through [`Bmc`](super::Bmc). Every call has a deadline
//! and tries again what may pass until then. Calls to one BMC take turns. A call that is dropped
//! stops.

use std::{fmt, future::Future, pin::Pin, time::Duration};

use tokio::time::Instant;

use super::error::BmcError;
use crate::model::{
    admin::Fact,
    boot::Firmware,
    power::{BootDevice, BootPersistence, PowerState},
    system_guid::SystemGuid,
};

/// The future of one call to a BMC.
pub type BmcCall<'a, T> = Pin<Box<dyn Future<Output = Result<T, BmcError>> + Send + 'a>>;
/// The future of a console that is listened to.
pub type Listening<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
/// Takes what a console brings.
pub type TakeConsole<'a> = &'a mut (dyn FnMut(ConsoleEvent<'_>) + Send);

/// One way to have a BMC do something. It must never take an accepted order for a carried-out one.
pub trait Driver: fmt::Debug + Send + Sync {
    /// Reads whether the machine is on.
    fn power_state(&self, deadline: Instant) -> BmcCall<'_, PowerState>;

    /// Reads whether the machine is on, for a caller that polls: a driver may spare a BMC that
    /// stays silent.
    fn poll_power_state(&self, deadline: Instant) -> BmcCall<'_, PowerState> {
        self.power_state(deadline)
    }

    /// Brings the machine to a power state, and returns when the BMC reports it.
    fn reach_power(&self, wanted: PowerState, deadline: Instant) -> BmcCall<'_, ()>;

    /// Asks the system to shut down, and cuts the power if it has not within `grace` or cannot be
    /// asked.
    fn soft_off(&self, grace: Duration, deadline: Instant) -> BmcCall<'_, ()>;

    /// Chooses the device of the next boot or of all to come, and reads it back if the BMC shows
    /// it.
    fn set_boot_device(
        &self,
        device: BootDevice,
        persistence: BootPersistence,
        firmware: Firmware,
        deadline: Instant,
    ) -> BmcCall<'_, ()>;

    /// Reads the power state and the chosen boot device.
    fn chassis(&self, deadline: Instant) -> BmcCall<'_, Chassis>;

    /// Reads the UUID of the BMC's system.
    fn system_guid(&self, deadline: Instant) -> BmcCall<'_, SystemGuid>;

    /// Reads what `hostler bmc NODE info` shows of the BMC itself.
    fn facts(&self, deadline: Instant) -> BmcCall<'_, Vec<Fact>>;

    /// Passes on what the machine prints until `stop` is ready, or until it is clear that there is
    /// no console to be had. Opening it takes the BMC's turn, for `limit` at most; listening does
    /// not.
    fn console<'a>(
        &'a self,
        limit: Duration,
        take: TakeConsole<'a>,
        stop: Listening<'a>,
    ) -> Listening<'a>;
}

/// One event of a serial console.
#[derive(Debug)]
pub enum ConsoleEvent<'a> {
    /// The console is open.
    Opened,
    /// Text that the machine printed.
    Text(&'a [u8]),
    /// The machine may have printed something that was not received.
    Gap,
    /// The console cannot be read now. The driver decides whether to try again.
    Trouble(&'a BmcError),
}

/// A machine's power state and boot device, as its BMC reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chassis {
    /// Whether the machine is on.
    pub power: PowerState,
    /// The chosen boot device; `None` if the BMC does not show it.
    pub boot: Option<BootChoice>,
}

/// The device that a BMC shows as chosen to boot from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootChoice {
    /// None: the firmware's own order holds.
    Firmware,
    /// A device, of a BMC that does not say for how long.
    Device(BootDevice),
    /// A device that hostler knows.
    Known(BootDevice, BootPersistence),
    /// Another device, by its IPMI number (IPMI 2.0 table 28-14, parameter 5, data 2, bits 5 to 2).
    Other(u8, BootPersistence),
}
