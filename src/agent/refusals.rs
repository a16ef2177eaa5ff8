//! Remembers logins that BMCs rejected, so that polls do not repeat them: half a dozen wrong
//! passwords in a few minutes lock a user out.
//!
//! Used by `power.rs` for polls. It must never block a login that was not rejected: another spec,
//! another password and an operator's request take effect at once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    bmc::BmcSecrets,
    model::{
        fault::{Fault, RetryAdvice},
        ids::NodeName,
        spec::NodeSpec,
    },
};

/// The time for which a rejection is remembered: the BMC itself may have been repaired.
const LIFE: Duration = Duration::from_secs(3600);

/// The rejected logins of all nodes.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<NodeName, Refusal>>);

#[derive(Debug)]
struct Refusal {
    spec: NodeSpec,
    secrets: BmcSecrets,
    fault: Fault,
    at: Instant,
}

impl Refusals {
    /// The fault of a remembered rejection of this very login.
    pub(super) fn of(&self, spec: &NodeSpec, secrets: &BmcSecrets) -> Option<Fault> {
        let refusals = self.lock();
        let refusal = refusals.get(&spec.name)?;
        let stands =
            refusal.spec == *spec && refusal.secrets == *secrets && refusal.at.elapsed() < LIFE;
        stands.then(|| refusal.fault.clone())
    }

    /// Notes the result of a poll with this login.
    pub(super) fn note<T>(&self, spec: &NodeSpec, secrets: BmcSecrets, end: &Result<T, Fault>) {
        let fault = end.as_ref().err().filter(|fault| fault.retry == RetryAdvice::Never);
        let Some(fault) = fault.cloned() else { return self.forget(&spec.name) };
        let refusal = Refusal { spec: spec.clone(), secrets, fault, at: Instant::now() };
        self.lock().insert(spec.name.clone(), refusal);
    }

    /// Forgets a rejection, for an operator's request or a forgotten node.
    pub(super) fn forget(&self, node: &NodeName) {
        self.lock().remove(node);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Refusal>> {
        // A panic leaves no change half made.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{fault::Step, secret::Secret},
        spec_dir,
    };

    fn spec(username: &str) -> NodeSpec {
        let text = format!(
            "boot.mac = \"52:54:00:00:00:01\"\nbmc.address = \"192.0.2.20\"\n\
             bmc.username = \"{username}\"\nbmc.password_file = \"p\"\nimage.source = \"i\"\n\
             image.checksum = \"sha256:{}\"\n",
            "a".repeat(64)
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge-07.toml");
        std::fs::write(&path, text).unwrap();
        spec_dir::read_file(&path, None).unwrap()
    }

    /// Invariant (bmc): The end of a BMC's trouble is seen within 90 s among up to 1350 BMCs in
    /// trouble; refused credentials are not sent meanwhile.
    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_kept_back_for_an_hour_and_nothing_else_is() {
        let refusals = Refusals::default();
        let secret = |text: &str| BmcSecrets {
            password: Some(Secret::new(text.to_owned())),
            password_file: None,
            kg: None,
        };
        let refused = Fault::lasting(Step::Preflight, "BmcPasswordWrong", "no", "");
        let passing = Fault::passing(Step::Preflight, "BmcSilent", "no", "");
        let admin = spec("admin");
        refusals.note::<()>(&admin, secret("wrong"), &Err(refused.clone()));
        assert_eq!(refusals.of(&admin, &secret("wrong")), Some(refused.clone()));
        assert_eq!(refusals.of(&admin, &secret("right")), None);
        let kg = Some("site-bmc-key".parse().unwrap());
        assert_eq!(refusals.of(&admin, &BmcSecrets { kg, ..secret("wrong") }), None);
        assert_eq!(refusals.of(&spec("root"), &secret("wrong")), None);
        tokio::time::advance(LIFE).await;
        assert_eq!(refusals.of(&admin, &secret("wrong")), None);

        for end in [Ok(()), Err(passing)] {
            refusals.note::<()>(&admin, secret("wrong"), &Err(refused.clone()));
            refusals.note(&admin, secret("wrong"), &end);
            assert_eq!(refusals.of(&admin, &secret("wrong")), None);
        }
        refusals.note::<()>(&admin, secret("wrong"), &Err(refused));
        refusals.forget(&admin.name);
        assert_eq!(refusals.of(&admin, &secret("wrong")), None);
    }
}
