//! The words for every act that lets hostler wipe a disk.
//!
//! Used wherever somebody is told what they can do: messages, hints, `explain`, answers to orders.
//! None of these may name such an act in words of its own, so that all of them say WIPE.

use super::ids::NodeName;

/// Another value of `redeploy`.
pub const CHANGE_REDEPLOY: &str = "change `redeploy` in its spec, to WIPE and install it";
/// A machine that is held because it is on, switched off by whomever.
pub const SWITCH_OFF: &str = "switch it off, which is consent to WIPE and install it, too";
/// `hostler approve --all`.
pub const APPROVE_ALL: &str = "run `hostler approve --all`, to WIPE and reinstall all of them";
/// The machine boots from the network, where hostler cannot switch it.
pub const NETBOOT: &str = "switch the machine on, or restart it, so that it boots from the \
    network: hostler will WIPE and install it";
/// The same, where something is installed already.
pub const NETBOOT_INSTALLED: &str = "restart the machine into a network boot, or switch it on so \
     that it boots from the network: hostler will WIPE and install it anew";
/// An order or a consent that counted.
pub const WILL_WIPE: &str = "will be WIPED and installed";

/// `hostler approve` of one node.
pub fn approve(node: &NodeName) -> String {
    format!("run `hostler approve {node}`, to WIPE and install it")
}

/// `hostler retry` of a node that was given up before its disk was good.
pub fn retry(node: &NodeName) -> String {
    format!("run `hostler retry {node}`, to WIPE and install it")
}

/// `hostler retry` of an installed node whose system did not show that it is up. It writes nothing.
pub fn retry_boot(node: &NodeName) -> String {
    format!("run `hostler retry {node}`, to have its first boot waited for again")
}

/// The ways to have a machine off that hostler does not know, and whose spec wants it kept off.
pub fn keep_off(node: &NodeName) -> String {
    format!(
        "switch it off, or run `hostler approve {node}` to let hostler do so; neither is consent \
         to WIPE it"
    )
}
