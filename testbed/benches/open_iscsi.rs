//! The kernel's initiator: open-iscsi and dd, in a virtual machine that reaches the target over a
//! network interface of its own.

use std::path::Path;

use crate::tgtd::{IQN, Tgtd};

/// This machine's address on the virtual machine's network.
const ADDRESS: &str = "192.0.2.1:3260";

/// The command that writes the image to the target, which then listens on [`ADDRESS`].
pub(crate) fn command(image: &Path, target: &Tgtd) -> String {
    let portal = format!("portal={ADDRESS}");
    target.adm(&["--mode", "portal", "--op", "new", "--param", &portal]);
    format!("testbed/benches/open-iscsi {} {ADDRESS} {IQN}", image.display())
}
