//! What an administrator can do about a target that cannot be used.

use super::{ErrorKind, IscsiError};
use crate::model::fault::{Advice, Advise, OTHER_MACHINE};

impl Advise for IscsiError {
    fn advice(&self) -> Advice {
        let hint = match &self.kind {
            ErrorKind::Unreachable(_) => {
                "look at the network between hostler and the machine, and at firewalls for TCP \
                 port 3260"
            }
            ErrorKind::LoginRefused(_) => OTHER_MACHINE,
            _ => "look at the machine's console and the network to it",
        };
        let code = match &self.kind {
            ErrorKind::Unreachable(_) => "TargetUnreachable",
            ErrorKind::LoginRefused(_) => "LoginRefused",
            ErrorKind::TargetGone(_) => "TargetGone",
            ErrorKind::TimedOut(_) => "TargetSilent",
            ErrorKind::Scsi(_) => "DiskError",
            ErrorKind::NoDisk(_) => "TargetHasNoDisk",
            ErrorKind::Digest(_) => "DigestMismatch",
            ErrorKind::Protocol(_) | ErrorKind::Request(_) => "TargetBrokeProtocol",
        };
        Advice::passing(code, hint)
    }
}
