//! A BMC as the agent knows it: power states to reach and boot devices to set.
//!
//! Called by the agent. It must never take an accepted command for a carried-out one.

use std::{ffi::OsString, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use super::{
    call::Call,
    commands::{self, BootFlags, Command},
    error::{IpmiError, IpmiErrorKind},
    refusal::{NOT_IN_THIS_STATE, Trust, Verdict},
};
use crate::model::{
    bmc_key::BmcKey,
    boot::Firmware,
    power::{BootDevice, BootPersistence, ChassisControl, PowerState},
    secret::Secret,
    spec::{BmcAddress, BmcDriver, CipherSuite, Privilege},
    system_guid::SystemGuid,
};

/// How to reach a BMC.
#[derive(Clone, Debug)]
pub struct BmcConfig {
    /// Who speaks to it.
    pub driver: BmcDriver,
    /// Where it answers.
    pub address: BmcAddress,
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
    /// The pause between two calls, and between two looks at the power state: some BMCs crash when they are asked more often.
    pub spacing: Duration,
}

/// The module's clockwork. The defaults are right for BMCs; tests on loopback are in more of a hurry.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Before a datagram is sent again for the first time. Each further wait is half as long again.
    pub resend_first: Duration,
    /// The longest of those waits.
    pub resend_max: Duration,
    /// Between two looks at the power state while it is to change, if the spacing is not longer.
    pub poll: Duration,
    /// Before a power command whose effect does not show is given again.
    pub reissue: Duration,
    /// How long a BMC may refuse what it accepted before until that is final.
    pub doubt: Duration,
    /// How long boot flags may show the device that was set before.
    pub flags_settle: Duration,
    /// Between two signs of life while a console is listened to. A BMC closes a session in which nothing was said for 60 s, give or take 3
    /// (IPMI 2.0 §6.12.15).
    pub console_alive: Duration,
    /// Before a console that somebody else has is asked for again, and the longest pause before one that was lost is.
    pub console_retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            resend_first: Duration::from_secs(1),
            resend_max: Duration::from_secs(4),
            poll: Duration::from_secs(1),
            reissue: Duration::from_secs(15),
            doubt: Duration::from_secs(60),
            flags_settle: Duration::from_secs(20),
            console_alive: Duration::from_secs(20),
            console_retry: Duration::from_secs(30),
        }
    }
}

/// One BMC. Calls take turns; each opens a session, does its work, and closes the session, also when it fails or is dropped.
/// Every call tries again what may pass, until its deadline.
#[derive(Debug)]
pub struct Bmc {
    pub(super) config: BmcConfig,
    pub(super) timing: Timing,
    pub(super) memory: Mutex<Memory>,
    /// Whose turn it is to listen to the console.
    pub(super) console: Mutex<()>,
    /// The program of that name, which `PATH` finds.
    pub(super) ipmitool: OsString,
}

/// What a BMC taught us. Whoever holds it has the turn.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The suite it accepted last.
    pub(super) suite: Option<CipherSuite>,
    /// When the last call ended.
    pub(super) last_contact: Option<Instant>,
    /// What it has accepted.
    pub(super) trust: Trust,
    /// Polls in a row to which it said nothing at all.
    pub(super) silent_polls: u32,
}

impl Bmc {
    /// A BMC; nothing is sent yet.
    pub fn new(config: BmcConfig) -> Self {
        Self::with_timing(config, Timing::default())
    }

    /// A BMC whose credentials are known to have worked: one refusal is not believed.
    pub fn trusted(config: BmcConfig) -> Self {
        let memory = Mutex::new(Memory { trust: Trust::given(), ..Memory::default() });
        Self { memory, ..Self::new(config) }
    }

    /// The same with other waits.
    pub fn with_timing(config: BmcConfig, timing: Timing) -> Self {
        let (memory, console) = (Mutex::default(), Mutex::default());
        Self { config, timing, memory, console, ipmitool: "ipmitool".into() }
    }

    /// Whether the machine is on.
    pub async fn power_state(&self, deadline: Instant) -> Result<PowerState, IpmiError> {
        let mut call = Call::begin(self, deadline).await?;
        let result = call.power_state().await;
        call.end().await;
        result
    }

    /// The same, for somebody who asks again and again: a BMC that stays silent is sent ever fewer
    /// datagrams.
    pub async fn poll_power_state(&self, deadline: Instant) -> Result<PowerState, IpmiError> {
        let mut call = Call::begin(self, deadline).await?;
        call.spare_silent();
        let result = call.power_state().await;
        call.note_poll(&result);
        call.end().await;
        result
    }

    /// What it says is the UUID of its system.
    pub async fn system_guid(&self, deadline: Instant) -> Result<SystemGuid, IpmiError> {
        let mut call = Call::begin(self, deadline).await?;
        let result = call.system_guid().await;
        call.end().await;
        result
    }

    /// Gives one power command. That it was accepted does not mean that it was carried out: see [`Bmc::reach_power`].
    pub async fn chassis_control(
        &self,
        control: ChassisControl,
        deadline: Instant,
    ) -> Result<(), IpmiError> {
        let mut call = Call::begin(self, deadline).await?;
        let result = call.command(Command::ChassisControl(control)).await;
        call.end().await;
        result.map(drop)
    }

    /// Off, a pause, on, by the BMC's own command. It is refused when the machine is off.
    pub async fn power_cycle(&self, deadline: Instant) -> Result<(), IpmiError> {
        self.chassis_control(ChassisControl::PowerCycle, deadline).await
    }

    /// Brings the machine to a power state and returns when the BMC reports it; at once if it does already.
    pub async fn reach_power(
        &self,
        wanted: PowerState,
        deadline: Instant,
    ) -> Result<(), IpmiError> {
        let mut call = Call::begin(self, deadline).await?;
        let result = call.reach_power(wanted).await;
        call.end().await;
        result
    }

    /// Asks the system to shut down; if it has not within `grace`, or the BMC cannot ask, the power is cut.
    pub async fn soft_off(&self, grace: Duration, deadline: Instant) -> Result<(), IpmiError> {
        let mut call = Call::begin(self, deadline).await?;
        let result = call.soft_off(grace).await;
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
        let mut call = Call::begin(self, deadline).await?;
        let result = call.set_boot_device(device, persistence, firmware).await;
        call.end().await;
        result
    }

    pub(super) fn error(&self, kind: IpmiErrorKind) -> IpmiError {
        IpmiError { bmc: self.config.address.clone(), kind }
    }

    /// Between two looks at the power state.
    fn poll_interval(&self) -> Duration {
        self.timing.poll.max(self.config.spacing)
    }
}

impl Call<'_> {
    pub(super) async fn power_state(&mut self) -> Result<PowerState, IpmiError> {
        let command = Command::GetChassisStatus;
        let answer = self.command(command).await?;
        commands::power_state(&answer)
            .ok_or_else(|| self.error(IpmiErrorKind::BadAnswer { command: command.name() }))
    }

    async fn system_guid(&mut self) -> Result<SystemGuid, IpmiError> {
        let command = Command::GetSystemGuid;
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

    async fn reach_power(&mut self, wanted: PowerState) -> Result<(), IpmiError> {
        let mut accepted_at = None;
        let reached = self.pursue_power(wanted, &mut accepted_at).await;
        reached.map_err(|error| match accepted_at {
            // It answered to the end: that says more than what it was cut off in.
            Some(at) if self.cut_off() => {
                self.error(IpmiErrorKind::StateNotReached { wanted, waited: at.elapsed() })
            }
            Some(_) | None => error,
        })
    }

    /// Looks, gives the command now and then, and notes when it was first accepted.
    async fn pursue_power(
        &mut self,
        wanted: PowerState,
        accepted_at: &mut Option<Instant>,
    ) -> Result<(), IpmiError> {
        let command = Command::ChassisControl(match wanted {
            PowerState::On => ChassisControl::PowerUp,
            PowerState::Off => ChassisControl::PowerDown,
        });
        let mut reissue_at = Instant::now();
        let mut refused = NOT_IN_THIS_STATE;
        while self.power_state().await? != wanted {
            if reissue_at <= Instant::now() {
                let given = self.command_few_times(command, 1).await;
                if let Err(IpmiError {
                    kind: IpmiErrorKind::CommandRefused { completion, .. },
                    ..
                }) = &given
                {
                    refused = *completion;
                }
                // Refused in this state: it is on its way already, or has just arrived. Refused
                // for no clear reason: it may have been carried out all the same. Refused though
                // power commands were accepted before: a BMC that starts knows fewer commands.
                let was_accepted = self.memory.trust.covers(command);
                let tolerable = |completion| match Verdict::of(command, completion) {
                    Verdict::Unclear => true,
                    Verdict::Final => was_accepted || completion == NOT_IN_THIS_STATE,
                    Verdict::Accepted | Verdict::Busy | Verdict::Privilege => false,
                };
                if accepted(given, tolerable)? {
                    accepted_at.get_or_insert_with(Instant::now);
                }
                reissue_at = Instant::now() + self.bmc.timing.reissue;
            }
            if !self.pause(self.bmc.poll_interval()).await {
                let (command, completion) = (command.name(), refused);
                return Err(self.error(IpmiErrorKind::CommandRefused { command, completion }));
            }
        }
        Ok(())
    }

    async fn soft_off(&mut self, grace: Duration) -> Result<(), IpmiError> {
        if self.power_state().await? == PowerState::Off {
            return Ok(());
        }
        let patience = Instant::now() + grace;
        let asked = self.optional(Command::ChassisControl(ChassisControl::SoftShutdown)).await;
        if accepted(asked, |_| true)? {
            while Instant::now() < patience && self.pause(self.bmc.poll_interval()).await {
                if self.power_state().await? == PowerState::Off {
                    return Ok(());
                }
            }
        }
        tracing::info!(bmc = %self.bmc.config.address, "no soft shutdown, cutting the power");
        self.reach_power(PowerState::Off).await
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
        // The frame around the flags is as ipmitool sends it. Many BMCs know none of it, OpenBMC refuses parameter 3.
        for optional in
            [Command::KeepBootFlags, Command::SetBootInProgress(1), Command::ClearBootAcknowledge]
        {
            accepted(self.optional(optional).await, |_| true)?;
        }
        let set = self.command(Command::SetBootFlags(flags)).await;
        for optional in [Command::SetBootInProgress(2), Command::SetBootInProgress(0)] {
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
                    tracing::warn!(%bmc, ?flags, ?shown, "the bmc accepted the boot device but does not show it as set");
                    return Ok(());
                }
            }
        }
    }

    /// The boot flags; `None` if the BMC does not show them.
    async fn boot_flags(&mut self) -> Result<Option<BootFlags>, IpmiError> {
        match self.optional(Command::GetBootFlags).await {
            Ok(answer) => Ok(BootFlags::decode(&answer)),
            Err(IpmiError { kind: IpmiErrorKind::CommandRefused { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The maker's IANA number, if the BMC says.
    async fn manufacturer(&mut self) -> Result<Option<u32>, IpmiError> {
        match self.optional(Command::GetDeviceId).await {
            Ok(answer) => Ok(commands::manufacturer(&answer)),
            Err(IpmiError { kind: IpmiErrorKind::CommandRefused { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether the command was accepted. A refusal with a completion code that is `tolerable` is no error.
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
