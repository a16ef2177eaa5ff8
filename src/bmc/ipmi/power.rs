//! Power states to reach and boot devices to set, by IPMI commands.
//!
//! The drivers `ipmi` and `ipmitool` call it. It must never treat an accepted command as a
//! completed one.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    call::IpmiCall,
    client::IpmiClient,
    commands::{self, BootFlags, IpmiCommand},
    error::{IpmiError, IpmiErrorKind},
    refusal::{NOT_IN_THIS_STATE, Verdict},
};
use crate::{
    bmc::{
        power::{self, PowerCall, Switched},
        timing::Timing,
    },
    model::{
        boot::Firmware,
        power::{BootDevice, BootPersistence, ChassisControl, PowerState},
        system_guid::SystemGuid,
    },
};

impl IpmiClient {
    /// Reads whether the machine is on.
    pub async fn power_state(&self, deadline: Instant) -> Result<PowerState, IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = call.power_state().await;
        call.end().await;
        result
    }

    /// Reads whether the machine is on, for a periodic poll: a BMC that stays silent gets fewer
    /// datagrams.
    pub async fn poll_power_state(&self, deadline: Instant) -> Result<PowerState, IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        call.spare_silent();
        let result = call.power_state().await;
        call.note_poll(&result);
        call.end().await;
        result
    }

    /// Reads the UUID of the BMC's system.
    pub async fn system_guid(&self, deadline: Instant) -> Result<SystemGuid, IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = call.system_guid().await;
        call.end().await;
        result
    }

    /// Sends one power command. Acceptance does not mean that the power changed: see
    /// [`IpmiClient::reach_power`].
    pub async fn chassis_control(
        &self,
        control: ChassisControl,
        deadline: Instant,
    ) -> Result<(), IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = call.command(IpmiCommand::ChassisControl(control)).await;
        call.end().await;
        result.map(drop)
    }

    /// Sends the BMC's own power cycle: off, a pause, on. A BMC refuses it while the machine is
    /// off.
    pub async fn power_cycle(&self, deadline: Instant) -> Result<(), IpmiError> {
        self.chassis_control(ChassisControl::PowerCycle, deadline).await
    }

    /// Brings the machine to a power state. Returns when the BMC reports that state, at once if it
    /// already does.
    pub async fn reach_power(
        &self,
        wanted: PowerState,
        deadline: Instant,
    ) -> Result<(), IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = power::reach_power(&mut call, wanted).await;
        call.end().await;
        result
    }

    /// Asks the operating system to shut down, and cuts the power if the system is still on after
    /// `grace` or the BMC cannot ask.
    pub async fn soft_off(&self, grace: Duration, deadline: Instant) -> Result<(), IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = power::soft_off(&mut call, grace).await;
        call.end().await;
        result
    }

    /// Sets the device of the next boot or of all later boots, and reads it back.
    pub async fn set_boot_device(
        &self,
        device: BootDevice,
        persistence: BootPersistence,
        firmware: Firmware,
        deadline: Instant,
    ) -> Result<(), IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = call.set_boot_device(device, persistence, firmware).await;
        call.end().await;
        result
    }
}

impl PowerCall for IpmiCall<'_> {
    type Error = IpmiError;

    async fn power_state(&mut self) -> Result<PowerState, IpmiError> {
        IpmiCall::power_state(self).await
    }

    async fn switch(&mut self, wanted: PowerState) -> Result<Switched<IpmiError>, IpmiError> {
        let command = IpmiCommand::ChassisControl(match wanted {
            PowerState::On => ChassisControl::PowerUp,
            PowerState::Off => ChassisControl::PowerDown,
        });
        let Err(error) = self.command_few_times(command, 1).await else {
            return Ok(Switched::Accepted);
        };
        let IpmiErrorKind::CommandRefused { completion, .. } = error.kind else {
            return Err(error);
        };
        // The next poll explains three refusals. Refused in this state: the machine is changing its
        // power, or has just done so. Refused for no clear reason: the BMC may have executed the
        // command. Refused after earlier successes: a BMC that is starting knows fewer commands.
        let was_accepted = self.memory.trust.covers(command);
        let may_pass = match Verdict::of(command, completion) {
            Verdict::Unclear => true,
            Verdict::Final => was_accepted || completion == NOT_IN_THIS_STATE,
            Verdict::Accepted | Verdict::Busy | Verdict::Privilege => false,
        };
        if may_pass { Ok(Switched::Refused(error)) } else { Err(error) }
    }

    async fn ask_shutdown(&mut self) -> Result<bool, IpmiError> {
        let given = self.optional(IpmiCommand::ChassisControl(ChassisControl::SoftShutdown)).await;
        accepted(given, |_| true)
    }

    async fn pause(&mut self, length: Duration) -> bool {
        IpmiCall::pause(self, length).await
    }

    fn is_cut_off(&self) -> bool {
        self.cut_off()
    }

    fn not_reached(&self, wanted: PowerState, waited: Duration) -> IpmiError {
        self.error(IpmiErrorKind::StateNotReached { wanted, waited })
    }

    fn waits(&self) -> (Timing, Duration) {
        (self.bmc.timing, self.bmc.poll_interval())
    }

    fn log_hard_off(&self) {
        tracing::info!(bmc = %self.bmc.config.address, "no soft shutdown, cutting the power");
    }
}

impl IpmiCall<'_> {
    pub(super) async fn power_state(&mut self) -> Result<PowerState, IpmiError> {
        let command = IpmiCommand::GetChassisStatus;
        let answer = self.command(command).await?;
        commands::power_state(&answer)
            .ok_or_else(|| self.error(IpmiErrorKind::BadAnswer { command: command.name() }))
    }

    async fn system_guid(&mut self) -> Result<SystemGuid, IpmiError> {
        let command = IpmiCommand::GetSystemGuid;
        let answer =
            match self.command(command).await {
                // A refusal that may pass does not mean that the BMC lacks the command.
                Err(IpmiError {
                    kind: IpmiErrorKind::CommandRefused { completion, .. }, ..
                }) if Verdict::of(command, completion) == Verdict::Final => Vec::new(),
                other => other?,
            };
        commands::system_guid(&answer).ok_or_else(|| self.error(IpmiErrorKind::NoSystemGuid))
    }

    async fn set_boot_device(
        &mut self,
        device: BootDevice,
        persistence: BootPersistence,
        firmware: Firmware,
    ) -> Result<(), IpmiError> {
        let supermicro_matters = device == BootDevice::Disk && firmware == Firmware::Uefi;
        let manufacturer = if supermicro_matters { self.manufacturer().await? } else { None };
        let flags = BootFlags::choose(device, persistence, firmware, manufacturer);
        // ipmitool sends the same commands around the flags. Many BMCs know none of them, and
        // OpenBMC refuses parameter 3.
        for optional in [
            IpmiCommand::KeepBootFlags,
            IpmiCommand::SetBootInProgress(1),
            IpmiCommand::ClearBootAcknowledge,
        ] {
            accepted(self.optional(optional).await, |_| true)?;
        }
        let set = self.command(IpmiCommand::SetBootFlags(flags)).await;
        for optional in [IpmiCommand::SetBootInProgress(2), IpmiCommand::SetBootInProgress(0)] {
            accepted(self.optional(optional).await, |_| true)?;
        }
        set?;
        self.verify_boot_device(device, flags).await
    }

    /// Reads the boot device back. A BMC that shows no boot flags is trusted, one that keeps
    /// showing another device is not. Some BMCs show the previous flags for seconds.
    async fn verify_boot_device(
        &mut self,
        wanted: BootDevice,
        flags: BootFlags,
    ) -> Result<(), IpmiError> {
        let bmc = &self.bmc.config.address;
        let patience = Instant::now() + self.bmc.timing.flags_settle;
        let not_kept = |call: &Self, reported| {
            call.error(IpmiErrorKind::BootDeviceNotKept { wanted, reported })
        };
        let mut other = None;
        loop {
            let shown = self.boot_flags().await.map_err(|error| match other {
                Some(reported) if self.cut_off() => not_kept(self, reported),
                _ => error,
            });
            match shown? {
                Some(shown) if shown == flags => return Ok(()),
                Some(shown) if !shown.chooses_nothing() && shown.selector != flags.selector => {
                    let pause = self.bmc.poll_interval();
                    if Instant::now() >= patience || !self.pause(pause).await {
                        return Err(not_kept(self, shown.selector));
                    }
                    other = Some(shown.selector);
                }
                shown => {
                    tracing::warn!(%bmc, ?flags, ?shown, "the bmc accepted the boot device but \
                        does not show it as set");
                    return Ok(());
                }
            }
        }
    }

    /// Reads the boot flags; `None` if the BMC does not show them.
    async fn boot_flags(&mut self) -> Result<Option<BootFlags>, IpmiError> {
        match self.optional(IpmiCommand::GetBootFlags).await {
            Ok(answer) => Ok(BootFlags::decode(&answer)),
            Err(IpmiError { kind: IpmiErrorKind::CommandRefused { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the manufacturer's IANA number; `None` if the BMC does not report it.
    async fn manufacturer(&mut self) -> Result<Option<u32>, IpmiError> {
        match self.optional(IpmiCommand::GetDeviceId).await {
            Ok(answer) => Ok(commands::manufacturer(&answer)),
            Err(IpmiError { kind: IpmiErrorKind::CommandRefused { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether the BMC accepted the command. A refusal with a `tolerable` completion code is no error.
pub(super) fn accepted(
    result: Result<Vec<u8>, IpmiError>,
    tolerable: impl Fn(u8) -> bool,
) -> Result<bool, IpmiError> {
    match result {
        Ok(_) => Ok(true),
        Err(IpmiError { kind: IpmiErrorKind::CommandRefused { completion, .. }, .. })
            if tolerable(completion) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
