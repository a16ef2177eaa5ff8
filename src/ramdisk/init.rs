//! PID 1 of the ramdisk: sets up console and runtime, and ends the machine in every case, because
//! the kernel panics when PID 1 returns.
//!
//! The binary's `main` calls it.

use std::{
    fmt, io,
    panic::{self, AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use rustix::system::{RebootCommand, reboot};
use tokio::runtime::Builder;
use tracing::{error, info};
use tracing_subscriber::fmt::{format::Writer, time::FormatTime, writer::MakeWriterExt as _};

use super::{
    boot_sequence::{self, Trouble},
    log::Log,
};
use crate::model::callback::Then;

/// How long the machine stays on for a reader of its console, if no BMC switches it off.
const LINGER: Duration = Duration::from_secs(600);

/// Runs the deploy ramdisk. Returns only if this process is not PID 1: on an administrator's
/// machine it does nothing.
pub fn init() -> ExitCode {
    let log = Log::default();
    let kept = log.clone();
    tracing_subscriber::fmt()
        .with_timer(SinceStart(Instant::now()))
        .with_target(false)
        .with_ansi(false)
        .with_writer(io::stderr.and(move || kept.clone()))
        // A console that cannot be written to must not stop the boot sequence.
        .log_internal_errors(false)
        .init();
    if std::process::id() != 1 {
        error!("hostler-ramdisk is the init of the deploy ramdisk and runs only as process 1");
        return ExitCode::from(2);
    }
    panic::set_hook(Box::new(|panicked| error!("{panicked}")));
    // Kept to the end, because a task renews the lease for as long as the machine is on.
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let mut then = Then::Wait;
    match &runtime {
        Ok(runtime) => {
            match catch_unwind(AssertUnwindSafe(|| runtime.block_on(boot_sequence::run(&log)))) {
                Ok(Ok(reported)) => then = reported,
                Ok(Err(trouble)) => {
                    error!("{trouble}");
                    runtime.block_on(boot_sequence::send_last_log(&log));
                    // The requests to the agent have already lasted long enough.
                    if matches!(trouble, Trouble::Agent(_)) {
                        then = Then::PowerOff;
                    }
                }
                // The panic hook has logged the location.
                Err(_) => {
                    error!("the deploy ramdisk has a defect; see the message above");
                    runtime.block_on(boot_sequence::send_last_log(&log));
                }
            }
        }
        Err(error) => error!(%error, "no threads"),
    }
    end(then)
}

/// Ends the machine. It does not stay on for ever, even if the kernel refuses an action.
fn end(then: Then) -> ! {
    let (mut command, mut linger) = match then {
        Then::Wait => (RebootCommand::PowerOff, LINGER),
        Then::PowerOff => (RebootCommand::PowerOff, Duration::ZERO),
        Then::Reboot => (RebootCommand::Restart, Duration::ZERO),
    };
    match then {
        Then::Wait => {
            info!("waiting for the power to go; off by itself in {} s", linger.as_secs());
        }
        Then::PowerOff => info!("switching this machine off"),
        Then::Reboot => info!("restarting this machine"),
    }
    loop {
        thread::sleep(linger);
        if let Err(error) = reboot(command) {
            error!(%error, "the kernel refuses");
        }
        (command, linger) = (RebootCommand::PowerOff, LINGER);
    }
}

/// Formats log times as the kernel does: `[ 3.12]`, seconds since the ramdisk started.
struct SinceStart(Instant);

impl FormatTime for SinceStart {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "[{:6.2}]", self.0.elapsed().as_secs_f64())
    }
}
