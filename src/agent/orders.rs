//! Answers operators' questions: orders, BMC commands and boot menus.
//!
//! Called by the driver, between two events. The core decides what an order does: this file passes
//! the event to each node that waits for such an order, and tells the operator the outcome in a
//! sentence. Every order is logged with the operator, because it may be consent to WIPE a disk.
//! Nothing here may change a node except by an event.

use std::sync::Arc;

use tracing::{info, warn};

use crate::{
    admin::{AdminPeer, AdminReply, AdminRequest},
    lifecycle::{Event, Hold, Node},
    model::{
        admin::{Answer, BmcCommand, Order, Question, Selection},
        consent,
        ids::NodeName,
        power::PowerState,
        spec::{Goal, NodeSpec},
        status::Phase,
    },
};

use super::{clock::now, driver::Driver};

impl Driver {
    /// Answers a question, or starts the task that will.
    pub(super) fn attend(&mut self, AdminRequest { question, peer, reply }: AdminRequest) {
        match question {
            Question::Order(order) => self.obey(&order, peer, reply),
            Question::ApproveNewMachines => self.approve_new_machines(peer, reply),
            Question::Bmc { node, command } => self.use_bmc(&node, command, peer, reply),
            Question::ShowBoot { mac, secrets } => {
                info!(%mac, uid = peer.uid, pid = peer.pid, secrets, "operator reads boot menus");
                reply.send(&Ok(self.adapters.show_boot(mac, secrets)));
            }
        }
    }

    /// Approves that machines of specs which appear from now on are new.
    fn approve_new_machines(&mut self, AdminPeer { uid, pid }: AdminPeer, reply: AdminReply) {
        if reply.is_closed() {
            return warn!(uid, pid, "consent to new machines came too late, and is dropped");
        }
        let changed = self.executor.approve_new_machines(&mut self.adapters);
        info!(
            uid,
            pid,
            ?changed,
            "operator approves machines that specs name from now on: they are WIPED and installed \
             if they are off"
        );
        reply.send(&changed);
    }

    /// Performs an order, unless the operator was told already that it failed.
    fn obey(&mut self, order: &Order, AdminPeer { uid, pid }: AdminPeer, reply: AdminReply) {
        if reply.is_closed() {
            return warn!(uid, pid, order = order.name(), "an order came too late, and is dropped");
        }
        let names = match order.selection() {
            Selection::Nodes(names) => names.iter().cloned().collect(),
            Selection::All => self.waiting_for(order),
        };
        if names.is_empty() {
            info!(uid, pid, order = order.name(), "no node waits for this order");
        }
        let mut answers = Vec::with_capacity(names.len());
        for name in names {
            let answer = self.obey_for(order, name);
            let Answer { node, counted, message } = &answer;
            info!(%node, uid, pid, order = order.name(), counted, "operator's order: {message}");
            answers.push(answer);
        }
        // The log and the status files have the answer for an operator who went away.
        reply.send(&Ok(answers));
    }

    /// The nodes that wait for an order with `--all`. Consent by `--all` is for nodes that the
    /// breaker holds; an operator must name a machine that may be in use or installed.
    fn waiting_for(&self, order: &Order) -> Vec<NodeName> {
        let fleet = self.executor.fleet();
        let waits = |node: &Node| match order {
            Order::Approve(_) => node.held_for() == Some(Hold::TooManyChanges),
            Order::Retry(_) => node.phase() == Phase::Failed,
        };
        let waits = |name: &NodeName| fleet.node(name).is_some_and(waits);
        fleet.names().into_iter().filter(waits).collect()
    }

    /// Starts an operator's BMC command, unless the node's state forbids it. Its task answers.
    fn use_bmc(
        &self,
        name: &NodeName,
        command: BmcCommand,
        AdminPeer { uid, pid }: AdminPeer,
        reply: AdminReply,
    ) {
        let command_name = command.name();
        let admitted = self
            .executor
            .fleet()
            .node(name)
            .ok_or_else(|| "no such node; `hostler status` lists those that there are".to_owned())
            .and_then(|node| admit(node, command));
        match admitted {
            Ok(spec) => {
                info!(node = %name, uid, pid, command = command_name, "operator uses a BMC");
                self.adapters.start_bmc_command(spec, command, reply);
            }
            Err(why) => {
                info!(node = %name, uid, pid, command = command_name, why, "an operator may not \
                    use a BMC");
                // The log has the answer for an operator who went away.
                reply.send(&Err::<(), _>(format!("{name}: {why}")));
            }
        }
    }

    fn obey_for(&mut self, order: &Order, name: NodeName) -> Answer {
        let Some(node) = self.executor.fleet().node(&name) else {
            let message = "no such node; `hostler status` lists those that there are";
            return Answer::new(name, false, message);
        };
        if matches!(order, Order::Approve(_)) && node.is_unread() {
            return Answer::new(name, false, NOT_READ);
        }
        let Some(outcome) = outcome(order, node) else {
            let (phase, order) = (node.phase().as_str(), order.name());
            let other = other_order(node).map(|way| format!("; {way}")).unwrap_or_default();
            let message = format!("is {phase}; there is nothing to {order}{other}");
            return Answer::new(name, false, &message);
        };
        let event = match order {
            Order::Approve(_) => Event::Approve,
            Order::Retry(_) => Event::Retry,
        };
        self.adapters.ask_bmc_anew(&name);
        self.executor.step(now(), &name, event, &mut self.adapters);
        let caveat = match self.executor.fleet().node(&name) {
            None => ", but its spec is gone, and it is forgotten".to_owned(),
            Some(_) if self.executor.is_unsaved(&name) => {
                ", but its record cannot be written, and nothing is started until it can be"
                    .to_owned()
            }
            Some(node) if node.stands_still() => {
                format!(", but not yet: {}", node.status(now()).message)
            }
            Some(_) => String::new(),
        };
        Answer::new(name, true, &format!("{outcome}{caveat}"))
    }
}

/// The answer to an approval that cannot know of a clash, as after a start of the agent.
const NOT_READ: &str = "its spec has not been read since the agent started; once `hostler status` \
    shows it as held, consent to WIPE it";

/// Returns the spec for a command, or the reason why the command is refused.
fn admit(node: &Node, command: BmcCommand) -> Result<Arc<NodeSpec>, String> {
    let phase = node.phase().as_str();
    let spec = node.spec().ok_or("has had no valid spec yet, which would say where its BMC is")?;
    if spec.bmc.is_none() {
        return Err("has no BMC (bmc.driver = \"none\"); press its power button".to_owned());
    }
    if command.changes_nothing() {
        return Ok(Arc::clone(spec));
    }
    if !node.is_at_rest() && !node.awaits_system() {
        return Err(format!("is {phase}; hostler switches it itself until that is over"));
    }
    if node.phase() == Phase::Invalid {
        return Err(format!("is {phase}; whose machine it is must be settled first"));
    }
    if command.switches_off() && node.is_wiped_when_off() {
        return Err(format!(
            "is {phase}, and hostler would WIPE and install it as soon as it is off; `hostler \
             approve` is the order to WIPE it, and state = \"available\" in its spec keeps its \
             disk"
        ));
    }
    Ok(Arc::clone(spec))
}

/// The advice about another order that this node waits for.
fn other_order(node: &Node) -> Option<String> {
    let keep_off = node.spec().is_some_and(|spec| spec.goal == Goal::Available);
    match node.phase() {
        Phase::Held if keep_off => Some(consent::keep_off(node.name())),
        Phase::Held => Some(consent::approve(node.name())),
        Phase::Failed if node.boot_missed() => Some(consent::retry_boot(node.name())),
        Phase::Failed if !node.owes_restart() => Some(consent::retry(node.name())),
        _ => None,
    }
}

/// The outcome of an order at this node, or `None` if the node does not wait for it.
fn outcome(order: &Order, node: &Node) -> Option<String> {
    let keep_off = node.spec().is_some_and(|spec| spec.goal == Goal::Available);
    match (order, node.phase()) {
        (Order::Approve(_), Phase::Held) if keep_off => Some("will be switched off".to_owned()),
        (Order::Approve(_), Phase::Held) => Some(consent::WILL_WIPE.to_owned()),
        (Order::Approve(_), _) => None,
        (Order::Retry(_), _) if node.is_at_rest() && node.owes_restart() => {
            Some("will be restarted; its disk stays as it is".to_owned())
        }
        (Order::Retry(_), Phase::Failed) if node.boot_missed() => {
            Some("its first boot will be waited for again; its disk stays as it is".to_owned())
        }
        (Order::Retry(_), Phase::Failed | Phase::Pending) => Some("will be tried again".to_owned()),
        (Order::Retry(_), _) if node.is_at_rest() && node.has_bmc_trouble() => {
            Some("its BMC will be asked again".to_owned())
        }
        (Order::Retry(_), _) => {
            let switched = |wanted: PowerState| format!("will be switched {}", wanted.as_str());
            let verified = || "will have its kernel and ramdisk verified again".to_owned();
            let power = node.power_missed().map(switched);
            power.or_else(|| node.netboot_is_outdated().then(verified))
        }
    }
}
