//! The trait of a BMC driver: the calls that the agent and operators' commands make to a BMC.
//!
//! Each driver implements it once; callers go through [`Bmc`](super::Bmc). Every call has a
//! deadline, and retries passing failures until then. Calls to one BMC run one after the other.
//! Dropping a call's future stops the call.

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
/// The future of an open console.
pub type Listening<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
/// Receives the events of a console.
pub type TakeConsole<'a> = &'a mut (dyn FnMut(ConsoleEvent<'_>) + Send);

/// A BMC driver. It must never treat an accepted command as a completed one.
pub trait Driver: fmt::Debug + Send + Sync {
    /// Reads whether the machine is on.
    fn power_state(&self, deadline: Instant) -> BmcCall<'_, PowerState>;

    /// Reads whether the machine is on, for a periodic poll: the driver may send a silent BMC fewer
    /// datagrams.
    fn poll_power_state(&self, deadline: Instant) -> BmcCall<'_, PowerState> {
        self.power_state(deadline)
    }

    /// Brings the machine to a power state. Returns when the BMC reports that state.
    fn reach_power(&self, wanted: PowerState, deadline: Instant) -> BmcCall<'_, ()>;

    /// Asks the operating system to shut down, and cuts the power if the system is still on after
    /// `grace` or the BMC cannot ask.
    fn soft_off(&self, grace: Duration, deadline: Instant) -> BmcCall<'_, ()>;

    /// Sets the device of the next boot or of all later boots, and reads it back if the BMC shows
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

    /// Reads the facts about the BMC itself that `hostler bmc NODE info` shows.
    fn facts(&self, deadline: Instant) -> BmcCall<'_, Vec<Fact>>;

    /// Passes on the machine's serial output until `stop` is ready or the BMC proves to have no
    /// console. Opening the console holds the BMC's lock, for at most `limit`; reading does not.
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
    /// The machine may have printed text that was lost.
    Gap,
    /// The console cannot be read now; the driver decides about a retry.
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

/// The boot device that a BMC shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootChoice {
    /// No device is set: the firmware follows its own order.
    Firmware,
    /// A device, of a BMC that does not show for how long it is set.
    Device(BootDevice),
    /// A device that hostler knows.
    Known(BootDevice, BootPersistence),
    /// Another device, by its IPMI number (IPMI 2.0 table 28-14, parameter 5, data 2, bits 5 to 2).
    Other(u8, BootPersistence),
}
