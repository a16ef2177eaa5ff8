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
            // Nowhere is left to say that writing failed. 2 has a meaning of its own for some
            // commands.
            drop(tell(&usage));
            return if usage.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    // Standard output is for answers.
    let left_out = log::init(args.is_agent());
    args.run(&mut io::stdout().lock(), left_out).unwrap_or_else(|failure| report(&failure))
}

/// Help or what is wrong with the arguments, which anybody may have put together. Only help has
/// styles, and only for a terminal.
fn tell(usage: &clap::Error) -> io::Result<()> {
    if usage.use_stderr() {
        write!(Printer(io::stderr().lock()), "{}", usage.render())
    } else {
        usage.print()
    }
}

/// One cause a line, leaving out those that the line before already has. A reader that went
/// away (`hostler status | head`) is no failure.
fn report(failure: &Failure) -> ExitCode {
    let io_error = failure.downcast_ref::<io::Error>();
    if io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let mut stderr = Printer(io::stderr().lock());
    let mut said = failure.to_string();
    let prefix = log::error_prefix();
    // Nowhere is left to say that writing failed.
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
