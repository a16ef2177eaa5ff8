//! The agent and its command line: arguments, logging, exit codes.

use std::{
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
};

use clap::Parser as _;
use hostler::cli::{Args, Failure};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(usage) => {
            // Nowhere is left to say that writing failed. 2 has a meaning of its own for some commands.
            drop(usage.print());
            return if usage.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let level = if args.is_agent() { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("HOSTLER_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    // The journal and a terminal both want the log on standard error; standard output is for answers.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    args.run(&mut io::stdout().lock()).unwrap_or_else(|failure| report(&failure))
}

/// One cause a line, leaving out those that the line before already ends with. A reader that went away
/// (`hostler status | head`) is no failure.
fn report(failure: &Failure) -> ExitCode {
    let io_error = failure.downcast_ref::<io::Error>();
    if io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let mut stderr = io::stderr().lock();
    let mut said = failure.to_string();
    // Nowhere is left to say that writing failed.
    drop(writeln!(stderr, "error: {said}"));
    let mut cause = failure.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.ends_with(&text) {
            drop(writeln!(stderr, "  because: {text}"));
            said = text;
        }
        cause = error.source();
    }
    ExitCode::FAILURE
}
