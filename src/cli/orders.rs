//! `hostler approve` and `hostler retry`: orders for the running agent.
//!
//! The agent decides what an order leads to; these commands carry it there and say what came back.

use std::{io::Write, process::ExitCode};

use crate::{
    admin,
    model::{
        admin::{Answer, Order, Selection},
        ids::NodeName,
        printable::escaped,
    },
};

use super::{AgentPlace, Failure};

/// For which nodes, and where the agent listens.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("whom").required(true))]
pub(super) struct For {
    /// The nodes.
    #[arg(value_name = "NODE", group = "whom")]
    nodes: Vec<NodeName>,
    /// All nodes that wait for this: to be tried again, those that failed; to be approved, and
    /// WIPED, those that were held because too many machines were to be reinstalled at once. A
    /// machine that is held for another reason has to be named.
    #[arg(long, group = "whom")]
    all: bool,
    #[command(flatten)]
    place: AgentPlace,
}

/// The nodes that are consented to.
#[derive(Debug, clap::Args)]
pub(super) struct Approval {
    #[command(flatten)]
    whom: For,
    /// Machines that specs name from now on: they are new again, although a file of the state
    /// directory that tells what is installed was lost. hostler will WIPE the disk of such a
    /// machine if the machine is off. No node that is held already is let go.
    #[arg(long, group = "whom")]
    new_machines: bool,
}

/// Consents to WIPE what the nodes are held for, or takes new machines for new.
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

/// Gives the order that `order` makes of the selection. Whatever did not count is an error, after
/// all that did.
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
#[error("{}", .0.iter().map(|Answer { node, message, .. }| format!("{node}: {message}")).collect::<Vec<_>>().join("\n"))]
struct NotCounted(Vec<Answer>);
