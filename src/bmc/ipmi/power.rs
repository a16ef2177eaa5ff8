//! Power states to reach and boot devices to set, by IPMI commands.
//!
//! Called by the IPMI and ipmitool drivers. It must never take an accepted command for a
//! carried-out one.

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

    /// Reads whether the machine is on, for a caller that polls: a BMC that stays silent is sent
    /// ever fewer datagrams.
    pub async fn poll_power_state(&self, deadline: Instant) -> Result<PowerState, IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        call.spare_silent();
        let result = call.power_state().await;
        call.note_poll(&result);
        call.end().await;
        result
    }

    /// Reads the UUID of its system.
    pub async fn system_guid(&self, deadline: Instant) -> Result<SystemGuid, IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = call.system_guid().await;
        call.end().await;
        result
    }

    /// Gives one power command. That it was accepted does not mean that it was done: see
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

    /// Off, a pause, on, by the BMC's own command. It is refused when the machine is off.
    pub async fn power_cycle(&self, deadline: Instant) -> Result<(), IpmiError> {
        self.chassis_control(ChassisControl::PowerCycle, deadline).await
    }

    /// Brings the machine to a power state and returns when the BMC reports it; at once if it does
    /// already.
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

    /// Asks the system to shut down; if it has not within `grace`, or the BMC cannot ask, the power
    /// is cut.
    pub async fn soft_off(&self, grace: Duration, deadline: Instant) -> Result<(), IpmiError> {
        let mut call = IpmiCall::begin(self, deadline).await?;
        let result = power::soft_off(&mut call, grace).await;
        call.end().await;
        result
    }

    /// Chooses the device of the next boot or of all to come, and reads it back.
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
        // Refused in this state: it is on its way already, or has just arrived. Refused for no
        // clear reason: it may have been done all the same. Refused though power commands were
        // accepted before: a BMC that starts knows fewer commands.
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

    fn pace(&self) -> (Timing, Duration) {
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
                // A refusal that may pass says nothing of the BMC.
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
        // The frame around the flags is as ipmitool sends it. Many BMCs know none of it, OpenBMC
        // refuses parameter 3.
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

    /// A BMC that cannot show its boot flags gets the benefit of the doubt; one that goes on to
    /// show another device does not. Some show for seconds what was set before.
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

    /// The boot flags; `None` if the BMC does not show them.
    async fn boot_flags(&mut self) -> Result<Option<BootFlags>, IpmiError> {
        match self.optional(IpmiCommand::GetBootFlags).await {
            Ok(answer) => Ok(BootFlags::decode(&answer)),
            Err(IpmiError { kind: IpmiErrorKind::CommandRefused { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The maker's IANA number, if the BMC says.
    async fn manufacturer(&mut self) -> Result<Option<u32>, IpmiError> {
        match self.optional(IpmiCommand::GetDeviceId).await {
            Ok(answer) => Ok(commands::manufacturer(&answer)),
            Err(IpmiError { kind: IpmiErrorKind::CommandRefused { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether the command was accepted. A refusal with a completion code that is `tolerable` is no
/// error.
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
