//! The agent and its command line: arguments, logging, exit codes.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser as _;
use hostler::cli::{Args, Failure, log, print::Printer};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(usage) => {
            // A failed write cannot be reported any more. Exit code 2 has another meaning for some
            // commands.
            drop(tell(&usage));
            return if usage.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    // Logs go to standard error: standard output is for answers.
    let left_out = log::init(args.is_agent());
    args.run(&mut io::stdout().lock(), left_out).unwrap_or_else(|failure| report(&failure))
}

/// Prints help, or the error in the arguments, which may hold any text. Only help has styles, and
/// only on a terminal.
fn tell(usage: &clap::Error) -> io::Result<()> {
    if usage.use_stderr() {
        write!(Printer(io::stderr().lock()), "{}", usage.render())
    } else {
        usage.print()
    }
}

/// Prints an error with one cause per line, without causes that repeat the line before. A closed
/// pipe (`hostler status | head`) is no failure.
fn report(failure: &Failure) -> ExitCode {
    let io_error = failure.downcast_ref::<io::Error>();
    if io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let mut stderr = Printer(io::stderr().lock());
    let mut said = failure.to_string();
    let prefix = log::error_prefix();
    // A failed write cannot be reported any more.
    drop(writeln!(stderr, "{prefix}error: {}", said.replace('\n', &format!("\n{prefix}"))));
    let mut cause = failure.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            drop(writeln!(stderr, "{prefix}  because: {text}"));
            said = text;
        }
        cause = error.source();
    }
    ExitCode::FAILURE
}
