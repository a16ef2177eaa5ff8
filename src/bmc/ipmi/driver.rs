//! The IPMI client as a BMC driver, whatever its transport.

use std::time::Duration;

use tokio::time::Instant;

use super::client::IpmiClient;
use crate::{
    bmc::{
        driver::{BmcCall, Chassis, Driver, Listening, TakeConsole},
        error::BmcError,
    },
    model::{
        admin::Fact,
        boot::Firmware,
        power::{BootDevice, BootPersistence, PowerState},
        system_guid::SystemGuid,
    },
};

impl Driver for IpmiClient {
    fn power_state(&self, deadline: Instant) -> BmcCall<'_, PowerState> {
        Box::pin(async move { Self::power_state(self, deadline).await.map_err(BmcError::from) })
    }

    fn poll_power_state(&self, deadline: Instant) -> BmcCall<'_, PowerState> {
        Box::pin(
            async move { Self::poll_power_state(self, deadline).await.map_err(BmcError::from) },
        )
    }

    fn reach_power(&self, wanted: PowerState, deadline: Instant) -> BmcCall<'_, ()> {
        Box::pin(
            async move { Self::reach_power(self, wanted, deadline).await.map_err(BmcError::from) },
        )
    }

    fn soft_off(&self, grace: Duration, deadline: Instant) -> BmcCall<'_, ()> {
        Box::pin(async move { Self::soft_off(self, grace, deadline).await.map_err(BmcError::from) })
    }

    fn set_boot_device(
        &self,
        device: BootDevice,
        persistence: BootPersistence,
        firmware: Firmware,
        deadline: Instant,
    ) -> BmcCall<'_, ()> {
        Box::pin(async move {
            let set = Self::set_boot_device(self, device, persistence, firmware, deadline);
            set.await.map_err(BmcError::from)
        })
    }

    fn chassis(&self, deadline: Instant) -> BmcCall<'_, Chassis> {
        Box::pin(async move { Self::chassis(self, deadline).await.map_err(BmcError::from) })
    }

    fn system_guid(&self, deadline: Instant) -> BmcCall<'_, SystemGuid> {
        Box::pin(async move { Self::system_guid(self, deadline).await.map_err(BmcError::from) })
    }

    fn facts(&self, deadline: Instant) -> BmcCall<'_, Vec<Fact>> {
        Box::pin(async move { Ok(self.device(deadline).await?.facts()) })
    }

    fn console<'a>(
        &'a self,
        limit: Duration,
        take: TakeConsole<'a>,
        stop: Listening<'a>,
    ) -> Listening<'a> {
        Box::pin(async move { Self::console(self, limit, take, stop).await })
    }
}
