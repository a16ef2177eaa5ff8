//! `hostler approve` and `hostler retry`: orders for the running agent.
//!
//! The agent decides about an order's effect; these commands send it, and print the agent's answer.

use std::{io::Write, process::ExitCode};

use crate::{
    admin,
    model::{
        admin::{Answer, Order, Selection},
        ids::NodeName,
        printable::escaped,
    },
};

use super::{AgentArgs, Failure};

/// The arguments that select nodes and the agent.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("whom").required(true))]
pub(super) struct For {
    /// The nodes.
    #[arg(value_name = "NODE", group = "whom")]
    nodes: Vec<NodeName>,
    /// All nodes that wait for this order. `retry`: nodes that failed. `approve`, which WIPES:
    /// nodes that were held because too many machines were to be reinstalled at once. A machine
    /// that is held for another reason has to be named.
    #[arg(long, group = "whom")]
    all: bool,
    #[command(flatten)]
    place: AgentArgs,
}

/// The arguments of `hostler approve`, the consent to WIPE disks.
#[derive(Debug, clap::Args)]
pub(super) struct Approval {
    #[command(flatten)]
    whom: For,
    /// Treat machines of new specs as new again, although a file of the state directory with the
    /// installed machines was lost. hostler will WIPE the disk of such a machine if the machine is
    /// off. Releases no node that is already held.
    #[arg(long, group = "whom")]
    new_machines: bool,
}

/// Sends consent to WIPE the held nodes' disks, or accepts new machines as new.
pub(super) fn approve(
    Approval { whom, new_machines }: Approval,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    if !new_machines {
        return give(Order::Approve, whom, out);
    }
    let changed = whom.place.ask(async |socket| admin::approve_new_machines(socket).await)?;
    let said = if changed {
        "machines that specs name from now on are new: hostler will WIPE and install those that \
         are off; nodes that are held already stay held"
    } else {
        "nothing to approve: machines that specs name for the first time are taken for new, and \
         WIPED and installed if they are off"
    };
    writeln!(out, "{said}")?;
    Ok(ExitCode::SUCCESS)
}

/// Sends an order for the selected nodes. Reports refused orders after all others.
pub(super) fn give(
    order: impl FnOnce(Selection) -> Order,
    For { nodes, all, place }: For,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let order =
        order(if all { Selection::All } else { Selection::Nodes(nodes.into_iter().collect()) });
    let answers = place.ask(async |socket| admin::ask(socket, &order).await)?;
    if answers.is_empty() {
        let named = match order {
            Order::Approve(_) => {
                "; a node that `hostler status` shows as held has to be named: `hostler approve \
                 NODE` lets hostler WIPE it"
            }
            Order::Retry(_) => "",
        };
        writeln!(out, "no node waits for this: there is nothing to {}{named}", order.name())?;
    }
    let (counted, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.counted);
    for Answer { node, message, .. } in counted {
        writeln!(out, "{node}: {}", escaped(&message))?;
    }
    if refused.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(NotCounted(refused).into()) }
}

/// Orders that changed nothing.
#[derive(Debug, thiserror::Error)]
#[error("{}", one_a_line(.0))]
struct NotCounted(Vec<Answer>);

fn one_a_line(answers: &[Answer]) -> String {
    let lines: Vec<_> =
        answers.iter().map(|Answer { node, message, .. }| format!("{node}: {message}")).collect();
    lines.join("\n")
}
