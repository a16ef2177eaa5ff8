//! One run of a BMC program: the checks of its file, its environment, and the meaning of its exit
//! code.

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

/// Exit code that asks for another run: `EX_TEMPFAIL` of sysexits.h.
const TRY_AGAIN: i32 = 75;
/// Exit code for a login that the BMC refuses: `EX_NOPERM` of sysexits.h.
const LOGIN_REFUSED: i32 = 77;
/// Most characters of a program's output in a message.
const QUOTED_CHARS_MAX: usize = 200;
/// Permission bits that let users other than the owner write a file.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The program of a BMC, and the values in its environment.
#[derive(Clone, Debug)]
pub struct ProgramConfig {
    /// The node's name.
    pub node: NodeName,
    /// The program and its address argument.
    pub address: BmcAddress,
    /// The BMC's user; may be empty.
    pub username: String,
    /// The file with the user's password.
    pub password_file: Option<PathBuf>,
    /// The pause between two runs.
    pub spacing: Duration,
}

/// The result of a run, with the program's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The program succeeded; holds its standard output.
    Done(String),
    /// The program asks for another run.
    TryAgain(String),
    /// The BMC refused the login.
    LoginRefused(String),
    /// The program refused the word.
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

/// Shortens and cleans output for a message.
pub(super) fn quoted(text: &str) -> String {
    text.escape_debug().take(QUOTED_CHARS_MAX).collect()
}

/// Refuses a file that is not safe to run. Every run checks it again, because the file may have
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

/// Refuses a file of an owner who could replace the program: neither root nor hostler's user.
fn refuse_owner(owner: u32, hostlers: u32) -> Result<(), String> {
    if owner == 0 || owner == hostlers {
        Ok(())
    } else {
        Err(format!("it must belong to root or hostler's user, and belongs to user {owner}"))
    }
}

/// Refuses a file that users other than its owner can write.
fn refuse_mode(mode: u32) -> Result<(), String> {
    if mode & WRITABLE_BY_OTHERS == 0 {
        Ok(())
    } else {
        let mode = mode & 0o777;
        Err(format!("others must not be able to write it; its mode is {mode:o}, set 755"))
    }
}

/// Builds the command that runs the program with one word.
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
