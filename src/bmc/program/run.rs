//! One run of a BMC program: whether it may be run, its environment, and the meaning of its end.

use std::{
    env, fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use rustix::{
    fs::{Access, access},
    process::geteuid,
};
use tokio::process::Command;

use crate::model::{ids::NodeName, spec::BmcAddress};

/// Exit code of a program that wants to be run again: `EX_TEMPFAIL` of sysexits.h.
const TRY_AGAIN: i32 = 75;
/// Exit code of a program that the BMC does not let in: `EX_NOPERM` of sysexits.h.
const LOGIN_REFUSED: i32 = 77;
/// Longest part of a program's output that gets into a message, in characters.
const QUOTED_CHARS_MAX: usize = 200;
/// Permission bits that let others than the owner write a file.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The program of a BMC, and what it learns from its environment.
#[derive(Clone, Debug)]
pub struct ProgramConfig {
    /// The node's name.
    pub node: NodeName,
    /// The program and the address it is given.
    pub address: BmcAddress,
    /// The BMC's user; may be empty.
    pub username: String,
    /// The file with the user's password.
    pub password_file: Option<PathBuf>,
    /// The pause between two runs.
    pub spacing: Duration,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Done, with this on standard output.
    Done(String),
    /// To be run again later.
    TryAgain(String),
    /// Refused because of the login.
    LoginRefused(String),
    /// Refused.
    Refused(String),
}

impl Ended {
    pub(super) fn of(output: &Output) -> Self {
        let reason = || {
            let said = String::from_utf8_lossy(&output.stderr);
            let first = said.lines().map(str::trim).find(|line| !line.is_empty());
            first.map_or_else(|| output.status.to_string(), quoted)
        };
        match output.status.code() {
            Some(0) => Self::Done(String::from_utf8_lossy(&output.stdout).into_owned()),
            Some(TRY_AGAIN) => Self::TryAgain(reason()),
            Some(LOGIN_REFUSED) => Self::LoginRefused(reason()),
            Some(_) | None => Self::Refused(reason()),
        }
    }
}

/// Output that is fit for a message.
pub(super) fn quoted(text: &str) -> String {
    text.escape_debug().take(QUOTED_CHARS_MAX).collect()
}

/// Refuses a program that must not be run. Checked at every run: the file may have
/// changed.
pub(super) fn refuse(program: &str) -> Result<(), String> {
    let path = Path::new(program);
    let file = fs::metadata(path).map_err(|error| error.to_string())?;
    let (mode, owner) = (file.permissions().mode(), file.uid());
    if !path.is_absolute() {
        Err("bmc.program must be an absolute path".to_owned())
    } else if !file.is_file() {
        Err("it must be a regular file".to_owned())
    } else {
        refuse_owner(owner, geteuid().as_raw())?;
        refuse_mode(mode)?;
        access(path, Access::EXEC_OK)
            .map_err(|error| format!("it must be executable: {}", io::Error::from(error)))
    }
}

/// Refuses a file of somebody who could put another program there.
fn refuse_owner(owner: u32, hostlers: u32) -> Result<(), String> {
    if owner == 0 || owner == hostlers {
        Ok(())
    } else {
        Err(format!("it must belong to root or hostler's user, and belongs to user {owner}"))
    }
}

/// Refuses a file that others than its owner can write.
fn refuse_mode(mode: u32) -> Result<(), String> {
    if mode & WRITABLE_BY_OTHERS == 0 {
        Ok(())
    } else {
        let mode = mode & 0o777;
        Err(format!("others must not be able to write it; its mode is {mode:o}, set 755"))
    }
}

/// The run of a program for one word.
pub(super) fn command(config: &ProgramConfig, word: &str, more: &[(&str, &str)]) -> Command {
    let (program, address) = config.address.program().unwrap_or_default();
    let mut command = Command::new(program);
    command
        .arg(word)
        .current_dir("/")
        .env_clear()
        .envs(env::var_os("PATH").map(|path| ("PATH", path)))
        .env("LC_ALL", "C")
        .env("HOSTLER_NODE", config.node.as_str())
        .env("HOSTLER_BMC_ADDRESS", address)
        .envs(more.iter().copied());
    if !config.username.is_empty() {
        command.env("HOSTLER_BMC_USERNAME", &config.username);
    }
    if let Some(file) = &config.password_file {
        command.env("HOSTLER_BMC_PASSWORD_FILE", file);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_another_user_is_not_run() {
        const HOSTLERS: u32 = 998;
        assert_eq!([0, HOSTLERS].map(|owner| refuse_owner(owner, HOSTLERS)), [Ok(()), Ok(())]);
        let refused = refuse_owner(1000, HOSTLERS).unwrap_err();
        assert!(refused.ends_with("belongs to user 1000"), "{refused}");
    }
}
