//! `hostler show-boot`: the current boot menus of a network interface, in every boot loader's
//! language.

use std::{io::Write, process::ExitCode};

use crate::{
    admin,
    model::{
        admin::{NicBoot, ServedMenu},
        ids::MacAddr,
    },
};

use super::{AgentArgs, Failure};

/// The arguments of `hostler show-boot`.
#[derive(Debug, clap::Args)]
pub(super) struct ShowBootArgs {
    /// The NIC's address.
    mac: MacAddr,
    /// Show the attempt's key, too. It lets anybody impersonate the machine.
    #[arg(long)]
    secrets: bool,
    #[command(flatten)]
    place: AgentArgs,
}

/// The NIC gets no menu.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} is served no menu of its own (file not found): no node has it in boot.mac, or its spec \
     does not want the machine installed; look at `hostler status`"
)]
struct NotServed(MacAddr);

/// Prints each menu under the file name that its boot loader requests.
pub(super) fn show(
    ShowBootArgs { mac, secrets, place }: &ShowBootArgs,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let boot = place.ask(async |socket| admin::show_boot(socket, *mac, *secrets).await)?;
    let NicBoot { node, menus } = boot.ok_or(NotServed(*mac))?;
    writeln!(out, "{mac} is {node}'s; its boot loader gets one of these.")?;
    if !secrets && menus.iter().any(|menu| menu.text.expose().contains("<key>")) {
        writeln!(out, "The attempt's key stands as <key>; --secrets shows it.")?;
    }
    for ServedMenu { name, text } in menus {
        writeln!(out, "\n# {name}\n{}", text.expose().trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}
