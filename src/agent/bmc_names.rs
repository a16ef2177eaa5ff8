//! Resolves the host names of BMCs, to find clashes and installed machines under other spellings.
//!
//! Each scan resolves the names in its specs, the driver requests the clashes, and every operation
//! that switches a machine checks once more. Lookups have a time limit and run in tasks of their
//! own; a failed lookup is no clash. Nothing here may block the driver's task.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::lookup_host,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::model::{
    fault::{Fault, Step},
    ids::NodeName,
    problem::{Problem, ProblemKind},
    spec::{BmcAddress, HostPort, NodeSpec},
};

/// The limit of a lookup.
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);
/// The time that a scan waits for new names.
const SCAN_LIMIT: Duration = Duration::from_secs(2);
/// The time for which a resolved name is valid.
const LIFE: Duration = Duration::from_secs(60);
/// The time for which a name is kept that no spec of the last scan has.
const MEMORY: Duration = Duration::from_secs(3600);
/// Most lookups at once: each takes a thread.
const LOOKUPS_MAX: usize = 16;

/// The resolved names of all BMCs. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct BmcNames {
    book: Arc<Mutex<Book>>,
    permits: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Book {
    /// The addresses of each host name.
    hosts: BTreeMap<String, Resolved>,
    /// The nodes of the effective specs, with the addresses of their BMCs.
    nodes: Vec<(NodeName, HostPort)>,
    /// The BMCs of machines that are or may be installed.
    installed: BTreeSet<HostPort>,
}

#[derive(Clone, Debug)]
struct Resolved {
    /// Empty if the lookup failed.
    addresses: BTreeSet<IpAddr>,
    at: Instant,
}

impl Default for BmcNames {
    fn default() -> Self {
        Self { book: Arc::default(), permits: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }
}

impl BmcNames {
    /// Resolves the names in these specs. Waits a little for new names; old ones are renewed in the
    /// background.
    pub(super) async fn resolve<'a>(&self, specs: impl Iterator<Item = &'a NodeSpec>) {
        let mut hosts: BTreeSet<String> = specs.filter_map(host_name).map(str::to_owned).collect();
        let (mut new, mut old) = (Vec::new(), Vec::new());
        {
            let mut book = self.book();
            let installed = book.installed.iter().filter(|address| is_name(address));
            hosts.extend(installed.map(|address| address.host.clone()));
            book.hosts
                .retain(|host, resolved| hosts.contains(host) || resolved.at.elapsed() < MEMORY);
            for host in hosts {
                match book.hosts.get(&host) {
                    None => new.push(host),
                    Some(resolved) if resolved.at.elapsed() >= LIFE => old.push(host),
                    Some(_) => {}
                }
            }
        }
        if !old.is_empty() {
            let names = self.clone();
            tokio::spawn(async move { names.resolve_all(old).await });
        }
        if !new.is_empty() {
            let names = self.clone();
            let lookup = tokio::spawn(async move { names.resolve_all(new).await });
            // A slower lookup goes on in the background.
            drop(timeout(SCAN_LIMIT, lookup).await);
        }
    }

    /// Sets the BMCs of machines that are or may be installed, to be resolved from now on if any of
    /// them or of the specs has a host name.
    pub(super) fn note_installed<'a>(
        &self,
        installed: impl Iterator<Item = &'a BmcAddress>,
        mut specs: impl Iterator<Item = &'a NodeSpec>,
    ) {
        let installed: BTreeSet<&HostPort> = installed.filter_map(BmcAddress::host).collect();
        let any_name = installed.iter().any(|address| is_name(address))
            || specs.any(|spec| host_name(spec).is_some());
        self.book().installed =
            if any_name { installed.into_iter().cloned().collect() } else { BTreeSet::new() };
    }

    /// Finds the nodes whose BMC is, under another spelling, that of a machine that is or may be
    /// installed.
    pub(super) fn aliased<'a>(
        &self,
        specs: impl Iterator<Item = &'a NodeSpec>,
    ) -> BTreeSet<NodeName> {
        let book = self.book();
        let mut installed: BTreeSet<(IpAddr, u16)> = BTreeSet::new();
        for address in &book.installed {
            installed.extend(book.resolved(address).into_iter().map(|ip| (ip, address.port)));
        }
        let is_alias = |address: &HostPort| {
            !book.installed.contains(address)
                && book
                    .resolved(address)
                    .into_iter()
                    .any(|ip| installed.contains(&(ip, address.port)))
        };
        let aliased = specs.filter(|spec| bmc_host(spec).is_some_and(is_alias));
        aliased.map(|spec| spec.name.clone()).collect()
    }

    /// Sets the effective specs, and finds the nodes that share a BMC under different spellings,
    /// each with a problem that names the others.
    pub(super) fn clashes<'a>(
        &self,
        shown_as: &str,
        specs: impl Iterator<Item = &'a NodeSpec>,
    ) -> BTreeMap<NodeName, Vec<Problem>> {
        let mut book = self.book();
        book.nodes =
            specs.filter_map(|spec| Some((spec.name.clone(), bmc_host(spec)?.clone()))).collect();
        let mut found: BTreeMap<NodeName, Vec<Problem>> = BTreeMap::new();
        if !book.nodes.iter().any(|(_, address)| is_name(address)) {
            return found;
        }
        let mut at: BTreeMap<(IpAddr, u16), Vec<&(NodeName, HostPort)>> = BTreeMap::new();
        for node in &book.nodes {
            for ip in book.resolved(&node.1) {
                at.entry((ip, node.1.port)).or_default().push(node);
            }
        }
        for ((ip, _), nodes) in at {
            for (node, address) in &nodes {
                let others: BTreeSet<String> = nodes
                    .iter()
                    .filter(|(other, others)| other != node && others != address)
                    .map(|(other, address)| format!("{shown_as}/{other}.toml ({address})"))
                    .collect();
                if others.is_empty() {
                    continue;
                }
                let others = others.into_iter().collect::<Vec<_>>().join(", ");
                let message = format!("{address} is at {ip}, and so is the BMC of {others}");
                let problem = Problem {
                    file: format!("{shown_as}/{node}.toml"),
                    key: "bmc.address".to_owned(),
                    message,
                    kind: ProblemKind::Clash,
                    ..Problem::default()
                };
                let problems = found.entry(node.clone()).or_default();
                // Two names may share several addresses.
                if !problems.iter().any(|known| known.message.ends_with(&others)) {
                    problems.push(problem);
                }
            }
        }
        found
    }

    /// Resolves the spec's BMC now, and fails if another node has the same.
    pub(super) async fn check(&self, step: Step, spec: &NodeSpec) -> Result<(), Fault> {
        let Some(address) = bmc_host(spec) else { return Ok(()) };
        let unknown: Vec<String> = {
            let book = self.book();
            let names = book.nodes.iter().filter(|(_, address)| is_name(address));
            let names = names.map(|(_, address)| address.host.clone());
            let missing = names.filter(|host| !book.hosts.contains_key(host));
            missing.chain(is_name(address).then(|| address.host.clone())).collect()
        };
        if !unknown.is_empty() {
            self.resolve_all(unknown.into_iter().collect::<BTreeSet<_>>()).await;
        }
        let book = self.book();
        let own = book.resolved(address);
        let others = book.nodes.iter().filter(|(node, other)| {
            *node != spec.name && other.port == address.port && other != address
        });
        for (node, other) in others {
            if let Some(ip) = book.resolved(other).intersection(&own).next() {
                return Err(Fault::passing(
                    step,
                    "BmcShared",
                    format!("{address} is at {ip}, and so is the BMC of {node}, {other}"),
                    "correct bmc.address in the spec that names another machine's BMC",
                ));
            }
        }
        Ok(())
    }

    /// Resolves these names, at most [`LOOKUPS_MAX`] at once.
    async fn resolve_all(&self, hosts: impl IntoIterator<Item = String>) {
        let mut lookups = JoinSet::new();
        for host in hosts {
            let names = self.clone();
            lookups.spawn(async move {
                // The semaphore is never closed.
                let _permit = names.permits.acquire().await;
                let addresses = match timeout(LOOKUP_LIMIT, lookup_host((&*host, 0))).await {
                    Ok(Ok(found)) => found.map(|address| address.ip().to_canonical()).collect(),
                    _ => BTreeSet::new(),
                };
                names.book().hosts.insert(host, Resolved { addresses, at: Instant::now() });
            });
        }
        while lookups.join_next().await.is_some() {}
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic leaves no change half made.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// The known addresses of a BMC.
    fn resolved(&self, address: &HostPort) -> BTreeSet<IpAddr> {
        match address.host.parse::<IpAddr>() {
            Ok(ip) => BTreeSet::from([ip.to_canonical()]),
            Err(_) => self
                .hosts
                .get(&address.host)
                .map(|resolved| resolved.addresses.clone())
                .unwrap_or_default(),
        }
    }
}

/// The host of a node's BMC. A program's address has none and is compared as text, by
/// `spec_dir::clashes`.
fn bmc_host(spec: &NodeSpec) -> Option<&HostPort> {
    spec.bmc_address().and_then(BmcAddress::host)
}

fn is_name(address: &HostPort) -> bool {
    address.host.parse::<IpAddr>().is_err()
}

fn host_name(spec: &NodeSpec) -> Option<&str> {
    bmc_host(spec).filter(|address| is_name(address)).map(|address| address.host.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(node: &str, address: &str) -> NodeSpec {
        let text = format!(
            "boot.mac = \"52:54:00:00:00:01\"\nbmc.address = \"{address}\"\n\
             bmc.password_file = \"p\"\nimage.source = \"i\"\nimage.checksum = \"sha256:{}\"\n",
            "a".repeat(64)
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{node}.toml"));
        std::fs::write(&path, text).unwrap();
        crate::spec_dir::read_file(&path, None).unwrap()
    }

    fn knowing(hosts: &[(&str, &[&str])]) -> BmcNames {
        let names = BmcNames::default();
        for (host, addresses) in hosts {
            let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            let resolved = Resolved { addresses, at: Instant::now() };
            names.book().hosts.insert((*host).to_owned(), resolved);
        }
        names
    }

    fn clash(names: &BmcNames, addresses: &[&str]) -> Vec<String> {
        let nodes = (b'a'..).map(|letter| char::from(letter).to_string());
        let specs: Vec<NodeSpec> =
            nodes.zip(addresses).map(|(node, address)| spec(&node, address)).collect();
        let found = names.clashes("nodes", specs.iter());
        found.into_values().flatten().map(|problem| problem.to_string()).collect()
    }

    #[tokio::test]
    async fn specs_whose_bmc_is_one_by_address_and_by_name_clash_and_each_names_the_other() {
        let names = knowing(&[("bmc-1", &["192.0.2.20"]), ("bmc-2", &["192.0.2.7", "192.0.2.20"])]);
        assert_eq!(
            clash(&names, &["192.0.2.20", "bmc-1", "192.0.2.21"]),
            [
                "nodes/a.toml: bmc.address: 192.0.2.20:623 is at 192.0.2.20, and so is the BMC of \
                 nodes/b.toml (bmc-1:623)",
                "nodes/b.toml: bmc.address: bmc-1:623 is at 192.0.2.20, and so is the BMC of \
                 nodes/a.toml (192.0.2.20:623)",
            ]
        );
        assert_eq!(clash(&names, &["bmc-1", "bmc-2"]).len(), 2);
        assert_eq!(clash(&names, &["bmc-1", "bmc-2:624"]), [""; 0]);
        // Equal spellings are a clash of `spec_dir`.
        assert_eq!(clash(&names, &["bmc-1", "bmc-1"]), [""; 0]);
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_clashes_with_nothing() {
        let names = knowing(&[("bmc-1", &[]), ("bmc-2", &[])]);
        assert_eq!(clash(&names, &["bmc-1", "bmc-2", "192.0.2.20", "bmc-3"]), [""; 0]);
    }

    /// Invariant (machine): Two specs for one BMC under two names are a clash, and switch no
    /// machine.
    #[tokio::test]
    async fn a_machine_is_not_switched_by_a_bmc_that_turns_out_to_be_anothers() {
        let names = BmcNames::default();
        let specs = [spec("a", "127.0.0.1"), spec("b", "localhost"), spec("c", "localhost:624")];
        assert!(names.clashes("nodes", specs.iter()).is_empty(), "nothing is resolved yet");
        let [a, b, c] = &specs;
        for (one, other) in [(a, "BMC of b, localhost:623"), (b, "BMC of a, 127.0.0.1:623")] {
            let fault = names.check(Step::Preflight, one).await.unwrap_err();
            assert!(fault.message.contains(other), "{}", fault.message);
        }
        names.check(Step::Preflight, c).await.unwrap();
        assert_eq!(names.clashes("nodes", specs.iter()).len(), 2);
    }

    /// Invariant (machine): A machine whose BMC is an installed one's under another name is held.
    #[tokio::test]
    async fn the_bmc_of_an_installed_machine_is_found_under_another_spelling() {
        let names = knowing(&[("bmc-1", &["192.0.2.20"]), ("bmc-2", &["192.0.2.20"])]);
        let addresses = ["bmc-1", "192.0.2.20", "bmc-2", "192.0.2.21", "bmc-2:624"];
        let specs = addresses.map(|address| spec("n", address));
        for (installed, aliases) in [
            ("192.0.2.20", [true, false, true, false, false]),
            ("bmc-1", [false, true, true, false, false]),
            ("192.0.2.99", [false; 5]),
        ] {
            let installed = spec("i", installed);
            names.note_installed(installed.bmc_address().into_iter(), specs.iter());
            let is_alias = |spec: &NodeSpec| !names.aliased([spec].into_iter()).is_empty();
            assert_eq!(specs.each_ref().map(is_alias), aliases, "{:?}", installed.bmc_address());
        }
    }

    /// Invariant (machine): A machine whose BMC is an installed one's under another name is held.
    #[tokio::test]
    async fn the_names_of_installed_machines_are_resolved_though_no_spec_has_them() {
        let names = BmcNames::default();
        let (installed, new) = (spec("i", "localhost"), spec("n", "127.0.0.1"));
        names.note_installed(installed.bmc_address().into_iter(), std::iter::empty());
        names.resolve([&new].into_iter()).await;
        assert_eq!(names.aliased([&new].into_iter()), ["n".parse().unwrap()].into());
    }

    #[tokio::test]
    async fn a_scan_resolves_names_it_has_not_met() {
        let names = BmcNames::default();
        let specs = [spec("a", "127.0.0.1"), spec("b", "localhost")];
        names.resolve(specs.iter()).await;
        assert_eq!(names.clashes("nodes", specs.iter()).len(), 2);
    }
}
