//! Advice about a target that cannot be used.

use super::{IscsiError, IscsiErrorKind};
use crate::model::fault::{Advice, Advise, OTHER_MACHINE};

impl Advise for IscsiError {
    fn advice(&self) -> Advice {
        let hint = match &self.kind {
            IscsiErrorKind::Unreachable(_) => {
                "look at the network between hostler and the machine, and at firewalls for TCP \
                 port 3260"
            }
            IscsiErrorKind::LoginRefused(_) => OTHER_MACHINE,
            _ => "look at the machine's console and the network to it",
        };
        let code = match &self.kind {
            IscsiErrorKind::Unreachable(_) => "TargetUnreachable",
            IscsiErrorKind::LoginRefused(_) => "LoginRefused",
            IscsiErrorKind::TargetGone(_) => "TargetGone",
            IscsiErrorKind::TimedOut(_) => "TargetSilent",
            IscsiErrorKind::Scsi(_) => "DiskError",
            IscsiErrorKind::NoDisk(_) => "TargetHasNoDisk",
            IscsiErrorKind::Digest(_) => "DigestMismatch",
            IscsiErrorKind::Protocol(_) | IscsiErrorKind::Request(_) => "TargetBrokeProtocol",
        };
        Advice::passing(code, hint)
    }
}
