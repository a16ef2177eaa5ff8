//! A BMC behind a program: serialized calls, deadlines, and the meaning of the program's words.
//!
//! Each run contacts the BMC, so that the pause between two calls also separates two runs.

use std::{io, time::Duration};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use super::{
    error::{ProgramError, ProgramErrorKind, word_of},
    run::{self, Ended, ProgramConfig},
};
use crate::{
    bmc::{
        driver::{BmcCall, BootChoice, Chassis, Driver, Listening, TakeConsole},
        error::BmcError,
        power::{self, PowerCall, Switched},
        process,
        timing::Timing,
    },
    model::{
        admin::Fact,
        backoff::Backoff,
        boot::Firmware,
        power::{BootDevice, BootPersistence, PowerState},
        system_guid::SystemGuid,
    },
};

/// A client of one BMC behind a program. Its calls run one after the other. Every call retries
/// passing failures until its deadline.
#[derive(Debug)]
pub struct ProgramClient {
    config: ProgramConfig,
    timing: Timing,
    /// The end of the last run. Its lock is the BMC's lock.
    last_run: Mutex<Option<Instant>>,
}

impl ProgramClient {
    /// A client that runs the program for each word. Runs nothing yet.
    pub fn new(config: ProgramConfig, timing: Timing) -> Self {
        Self { config, timing, last_run: Mutex::default() }
    }

    /// Waits for the BMC's lock.
    async fn begin(&self, deadline: Instant) -> Result<ProgramCall<'_>, ProgramError> {
        let started = Instant::now();
        let last_run = timeout_at(deadline, self.last_run.lock()).await.map_err(|_elapsed| {
            self.error(ProgramErrorKind::InUse { waited: started.elapsed() })
        })?;
        Ok(ProgramCall { bmc: self, last_run, started, deadline, trouble: None })
    }

    fn error(&self, kind: ProgramErrorKind) -> ProgramError {
        ProgramError { bmc: self.config.address.clone(), kind }
    }

    fn poll_interval(&self) -> Duration {
        self.timing.poll.max(self.config.spacing)
    }
}

/// A call in progress. It holds the BMC's lock.
struct ProgramCall<'a> {
    bmc: &'a ProgramClient,
    last_run: MutexGuard<'a, Option<Instant>>,
    started: Instant,
    deadline: Instant,
    /// The error if the deadline comes now, and an obstacle stopped the last run.
    trouble: Option<ProgramErrorKind>,
}

impl ProgramCall<'_> {
    /// Runs the program with a word until it succeeds or refuses.
    async fn run(
        &mut self,
        word: &'static str,
        more: &[(&str, &str)],
    ) -> Result<String, ProgramError> {
        let deadline = self.deadline;
        match timeout_at(deadline, self.persist(word, more)).await {
            Ok(result) => result,
            Err(_elapsed) => {
                *self.last_run = Some(Instant::now());
                let waited = self.started.elapsed();
                Err(self.bmc.error(match self.trouble.clone() {
                    Some(ProgramErrorKind::PutOff { word, reason, .. }) => {
                        ProgramErrorKind::PutOff { word, reason, waited }
                    }
                    Some(trouble) => trouble,
                    None => ProgramErrorKind::NotEnded { word, waited },
                }))
            }
        }
    }

    async fn persist(
        &mut self,
        word: &'static str,
        more: &[(&str, &str)],
    ) -> Result<String, ProgramError> {
        let Timing { resend_first, resend_max, program_run, .. } = self.bmc.timing;
        let mut pauses = Backoff::doubling(resend_first, resend_max);
        loop {
            if let Some(last) = *self.last_run {
                sleep_until(last + self.bmc.config.spacing).await;
            }
            let unusable = |reason| self.bmc.error(ProgramErrorKind::Unusable { reason });
            let (program, _) = self.bmc.config.address.program().unwrap_or_default();
            run::refuse(program).map_err(unusable)?;
            let command = run::command(&self.bmc.config, word, more);
            let ended = timeout(program_run, process::output(command)).await;
            *self.last_run = Some(Instant::now());
            let waited = self.started.elapsed();
            self.trouble = Some(match ended {
                Err(_elapsed) => ProgramErrorKind::NotEnded { word, waited: program_run },
                // Somebody writes a new version of the program.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    ProgramErrorKind::Unusable { reason: error.to_string() }
                }
                Ok(Err(error)) => return Err(unusable(error.to_string())),
                Ok(Ok(output)) => match Ended::of(&output) {
                    Ended::Done(printed) => {
                        self.trouble = None;
                        return Ok(printed);
                    }
                    Ended::TryAgain(reason) => ProgramErrorKind::PutOff { word, reason, waited },
                    Ended::LoginRefused(reason) => {
                        return Err(self
                            .bmc
                            .error(ProgramErrorKind::LoginRefused { word, reason }));
                    }
                    Ended::Refused(reason) => {
                        return Err(self.bmc.error(ProgramErrorKind::Refused { word, reason }));
                    }
                },
            });
            sleep(pauses.next_pause()).await;
        }
    }

    /// Runs the word `status`: the first line is the power state, and a second line may be the boot
    /// device.
    async fn status(&mut self) -> Result<(PowerState, Option<BootDevice>), ProgramError> {
        let printed = self.run("status", &[]).await?;
        let mut lines = printed.lines().map(str::trim);
        let power = match lines.next() {
            Some("on") => PowerState::On,
            Some("off") => PowerState::Off,
            other => {
                let printed = run::quoted(other.unwrap_or_default());
                return Err(self.bmc.error(ProgramErrorKind::BadAnswer { printed }));
            }
        };
        let devices = [BootDevice::Pxe, BootDevice::Disk];
        let boot = lines.find_map(|line| devices.into_iter().find(|one| word_of(*one) == line));
        Ok((power, boot))
    }

    async fn set_boot_device(
        &mut self,
        wanted: BootDevice,
        persistence: BootPersistence,
        firmware: Firmware,
    ) -> Result<(), ProgramError> {
        let until = match persistence {
            BootPersistence::NextBoot => "next",
            BootPersistence::Persistent => "always",
        };
        let firmware = match firmware {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
        };
        let more = [("HOSTLER_BOOT", until), ("HOSTLER_FIRMWARE", firmware)];
        self.run(word_of(wanted), &more).await?;
        let patience = Instant::now() + self.bmc.timing.flags_settle;
        loop {
            let (_, Some(reported)) = self.status().await? else { return Ok(()) };
            if reported == wanted {
                return Ok(());
            }
            let pause = self.bmc.poll_interval();
            if Instant::now() >= patience || !PowerCall::pause(self, pause).await {
                let kind = ProgramErrorKind::BootDeviceNotKept { wanted, reported };
                return Err(self.bmc.error(kind));
            }
        }
    }
}

impl PowerCall for ProgramCall<'_> {
    type Error = ProgramError;

    async fn power_state(&mut self) -> Result<PowerState, ProgramError> {
        self.status().await.map(|(power, _)| power)
    }

    async fn switch(&mut self, wanted: PowerState) -> Result<Switched<ProgramError>, ProgramError> {
        self.run(wanted.as_str(), &[]).await.map(|_| Switched::Accepted)
    }

    async fn ask_shutdown(&mut self) -> Result<bool, ProgramError> {
        // The program has no word for a soft shutdown.
        Ok(false)
    }

    async fn pause(&mut self, length: Duration) -> bool {
        let end = Instant::now() + length;
        sleep_until(end.min(self.deadline)).await;
        end < self.deadline
    }

    fn is_cut_off(&self) -> bool {
        self.trouble.is_none() && self.deadline <= Instant::now()
    }

    fn not_reached(&self, wanted: PowerState, waited: Duration) -> ProgramError {
        self.bmc.error(ProgramErrorKind::StateNotReached { wanted, waited })
    }

    fn waits(&self) -> (Timing, Duration) {
        (self.bmc.timing, self.bmc.poll_interval())
    }

    fn log_hard_off(&self) {
        tracing::info!(bmc = %self.bmc.config.address, "a program asks for no shutdown, cutting \
            the power");
    }
}

impl Driver for ProgramClient {
    fn power_state(&self, deadline: Instant) -> BmcCall<'_, PowerState> {
        Box::pin(async move { Ok(self.begin(deadline).await?.power_state().await?) })
    }

    fn reach_power(&self, wanted: PowerState, deadline: Instant) -> BmcCall<'_, ()> {
        Box::pin(async move {
            let mut call = self.begin(deadline).await?;
            Ok(power::reach_power(&mut call, wanted).await?)
        })
    }

    fn soft_off(&self, grace: Duration, deadline: Instant) -> BmcCall<'_, ()> {
        Box::pin(async move {
            let mut call = self.begin(deadline).await?;
            Ok(power::soft_off(&mut call, grace).await?)
        })
    }

    fn set_boot_device(
        &self,
        device: BootDevice,
        persistence: BootPersistence,
        firmware: Firmware,
        deadline: Instant,
    ) -> BmcCall<'_, ()> {
        Box::pin(async move {
            let mut call = self.begin(deadline).await?;
            Ok(call.set_boot_device(device, persistence, firmware).await?)
        })
    }

    fn chassis(&self, deadline: Instant) -> BmcCall<'_, Chassis> {
        Box::pin(async move {
            let (power, device) = self.begin(deadline).await?.status().await?;
            // The program does not report for how long the device is set.
            let boot = device.map(BootChoice::Device);
            Ok(Chassis { power, boot })
        })
    }

    fn system_guid(&self, _deadline: Instant) -> BmcCall<'_, SystemGuid> {
        Box::pin(async move { Err(self.error(ProgramErrorKind::NoSystemGuid).into()) })
    }

    fn facts(&self, _deadline: Instant) -> BmcCall<'_, Vec<Fact>> {
        let (program, _) = self.config.address.program().unwrap_or_default();
        let usable = run::refuse(program).map(|()| vec![Fact::new("program", program)]);
        let facts = usable
            .map_err(|reason| BmcError::from(self.error(ProgramErrorKind::Unusable { reason })));
        Box::pin(async move { facts })
    }

    fn console<'a>(
        &'a self,
        _limit: Duration,
        _take: TakeConsole<'a>,
        _stop: Listening<'a>,
    ) -> Listening<'a> {
        // The schema refuses a console with this driver.
        Box::pin(async {})
    }
}
