//! Runs the programs of BMC drivers.
//!
//! The drivers `ipmitool` and `program` use it. It must never leave an abandoned program running,
//! read more of its output than is useful, or wait for a pipe that the program's child holds open.

use std::{
    io,
    process::{Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::timeout,
};

/// Most bytes read from standard output, and from standard error. Programs print some hundred.
pub(super) const OUTPUT_BYTES_MAX: u64 = 16 << 10;
/// The wait for the rest of the output after the program has ended.
const DRAIN_LIMIT: Duration = Duration::from_millis(100);

/// Runs a program in a process group of its own, and collects its output. Dropping the future kills
/// the group.
pub(super) async fn output(mut program: Command) -> io::Result<Output> {
    program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut running = Running(program.spawn()?);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let pipes = (running.0.stdout.take(), running.0.stderr.take());
    let mut reading = Box::pin(async {
        tokio::try_join!(beginning(pipes.0, &mut stdout), beginning(pipes.1, &mut stderr))
    });
    let status = tokio::select! {
        read = &mut reading => {
            read?;
            running.0.wait().await?
        }
        status = running.0.wait() => {
            // A child of the program may hold the pipes open for as long as it lives.
            if let Ok(read) = timeout(DRAIN_LIMIT, &mut reading).await {
                read?;
            }
            status?
        }
    };
    drop(reading);
    Ok(Output { status, stdout, stderr })
}

/// Reads the beginning of a pipe. A program that prints more finds the pipe closed.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>, said: &mut Vec<u8>) -> io::Result<()> {
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_BYTES_MAX).read_to_end(said).await?;
    }
    Ok(())
}

/// A running program. Dropping it kills its process group.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // A process that was waited for has no process id any more.
        let number = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(group) = number
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, "a bmc's program was not killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;

    #[tokio::test]
    async fn a_run_that_is_dropped_leaves_nothing_running() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = dir.path().join("numbers");
        let mut program = Command::new("sh");
        program.args(["-c", "sleep 1000 & echo $$ $! > \"$0\".new; mv \"$0\".new \"$0\"; wait"]);
        program.arg(&numbers);
        let started = async {
            while !numbers.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = output(program) => panic!("{ended:?}"),
            () = started => {}
        }
        let numbers = fs::read_to_string(numbers).unwrap();
        for number in numbers.split_whitespace() {
            let limit = Instant::now() + Duration::from_secs(5);
            while runs(number) {
                assert!(Instant::now() < limit, "{number} of {numbers}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Whether a process with this id exists and is no zombie.
    fn runs(number: &str) -> bool {
        let state = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        state.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
    }

    #[tokio::test]
    async fn a_program_that_never_stops_talking_is_not_listened_to_for_ever() {
        let output = output(Command::new("yes")).await.unwrap();
        assert_eq!(output.stdout.len() as u64, OUTPUT_BYTES_MAX);
        assert!(!output.status.success());
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_pipe_open_is_not_waited_for() {
        let mut program = Command::new("sh");
        program.args(["-c", "sleep 1000 & echo $!"]);
        let output = timeout(Duration::from_secs(10), output(program)).await.unwrap().unwrap();
        assert!(output.status.success());
        // The child belongs to the program, and may be the purpose of the run.
        let child = String::from_utf8(output.stdout).unwrap();
        assert!(runs(child.trim()), "{child}");
        let killed = std::process::Command::new("kill").arg(child.trim()).status().unwrap();
        assert!(killed.success());
    }
}
