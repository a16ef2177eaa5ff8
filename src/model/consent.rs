//! The messages about every act that lets hostler WIPE a disk.
//!
//! Used by all messages, hints, answers to orders and by `explain`. None of these may word such an
//! act itself, so that all of them say WIPE.

use super::ids::NodeName;

/// The advice to change `redeploy`.
pub const CHANGE_REDEPLOY: &str = "change `redeploy` in its spec, to WIPE and install it";
/// The advice to change the spec of a node whose attempts failed.
pub const CHANGE_SPEC: &str = "change its spec, to WIPE and install it anew";
/// The advice to switch off a machine that is held because it is on.
pub const SWITCH_OFF: &str = "switch it off, which is consent to WIPE and install it, too";
/// The advice to run `hostler approve --all`.
pub const APPROVE_ALL: &str = "run `hostler approve --all`, to WIPE and reinstall all of them";
/// The advice to netboot a machine without a BMC.
pub const NETBOOT: &str = "switch the machine on, or restart it, so that it boots from the \
    network: hostler will WIPE and install it";
/// The advice to netboot an installed machine without a BMC.
pub const NETBOOT_INSTALLED: &str = "restart the machine into a network boot, or switch it on so \
     that it boots from the network: hostler will WIPE and install it anew";
/// The answer to an order or consent that counted.
pub const WILL_WIPE: &str = "will be WIPED and installed";

/// The advice to run `hostler approve` for a node.
pub fn approve(node: &NodeName) -> String {
    format!("run `hostler approve {node}`, to WIPE and install it")
}

/// The advice to run `hostler retry` for a node whose disk is not good.
pub fn retry(node: &NodeName) -> String {
    format!("run `hostler retry {node}`, to WIPE and install it")
}

/// The advice to run `hostler retry` for a missed first boot, which writes nothing.
pub fn retry_boot(node: &NodeName) -> String {
    format!("run `hostler retry {node}`, to have its first boot waited for again")
}

/// The advice to switch off an unknown machine whose spec wants it off.
pub fn keep_off(node: &NodeName) -> String {
    format!(
        "switch it off, or run `hostler approve {node}` to let hostler do so; neither is consent \
         to WIPE it"
    )
}
