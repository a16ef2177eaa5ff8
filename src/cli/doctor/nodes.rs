//! The checks of every node: its BMC's secrets and answers, and its image.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    admin,
    agent::Preflight,
    config::Config,
    image::Sources,
    model::{
        admin::{BmcCommand, Fact},
        size::show_bytes,
        spec::{BmcDriver, Image, NodeSpec, Password},
    },
};

use super::finding::Finding;

/// Most questions to BMCs and image servers at once: fewer than the agent takes from operators.
const QUESTIONS_MAX: usize = 8;

/// The part of a digest that is shown.
const DIGEST_CHARS: usize = "sha256:".len() + 12;

/// Asks all BMCs and image servers at once, and returns the findings in the order of the nodes.
/// If the agent `runs`, it asks the BMCs.
pub(super) async fn check(
    config: &Config,
    specs: &[Arc<NodeSpec>],
    to_install: &[Arc<NodeSpec>],
    runs: bool,
) -> Vec<Finding> {
    let preflight = Arc::new(Preflight::new(config));
    let permits = Arc::new(Semaphore::new(QUESTIONS_MAX));
    let socket = runs.then(|| config.admin.socket.clone());
    let mut answers = JoinSet::new();
    let mut findings = Vec::new();
    for (place, spec) in specs.iter().enumerate() {
        if spec.bmc.is_none() {
            continue;
        }
        if !is_the_services_own(spec)
            && let Err(fault) = preflight.bmc_secrets(spec)
        {
            findings.push((place, Finding::of_fault("password", &spec.name, fault)));
            continue;
        }
        if is_the_services_own(spec) && !runs {
            let message = format!("{}: only the service can read its credential", spec.name);
            let hint = "start the service, and run `hostler doctor` again";
            findings.push((place, Finding::warning("password", message, hint)));
            continue;
        }
        findings.extend(open_to_all(config, spec).map(|finding| (place, finding)));
        let (preflight, permits) = (Arc::clone(&preflight), Arc::clone(&permits));
        let (spec, socket) = (Arc::clone(spec), socket.clone());
        answers.spawn(async move {
            let _permit = permits.acquire().await;
            (place, bmc(&preflight, &spec, socket.as_deref()).await)
        });
    }
    for (image, nodes) in images(to_install) {
        let (preflight, permits) = (Arc::clone(&preflight), Arc::clone(&permits));
        answers.spawn(async move {
            let _permit = permits.acquire().await;
            (usize::MAX, of_image(&preflight, &image, &nodes).await)
        });
    }
    findings.extend(answers.join_all().await);
    findings.sort_by(|(a, one), (b, other)| (a, &one.message).cmp(&(b, &other.message)));
    findings.into_iter().map(|(_, finding)| finding).collect()
}

/// Whether the BMC's password is a credential, which systemd gives to the agent's process alone.
fn is_the_services_own(spec: &NodeSpec) -> bool {
    let password = spec.bmc.as_ref().and_then(|bmc| bmc.password.as_ref());
    matches!(password, Some(Password::PasswordCredential(_)))
        && std::env::var_os("CREDENTIALS_DIRECTORY").is_none()
}

/// A password file that every user of this host can read.
fn open_to_all(config: &Config, spec: &NodeSpec) -> Option<Finding> {
    let Password::PasswordFile(name) = spec.bmc.as_ref()?.password.as_ref()? else { return None };
    let path: PathBuf = config.secrets.dir.join(name);
    let is_open = fs::metadata(&path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0)
        && is_open_dir(path.parent()?);
    is_open.then(|| {
        Finding::warning(
            "password",
            format!("{}: every user of this host can read {}", spec.name, path.display()),
            format!("chmod o= {}", path.display()),
        )
    })
}

/// Whether every user can enter a directory and those above it.
fn is_open_dir(dir: &Path) -> bool {
    dir.ancestors().all(|dir| fs::metadata(dir).is_ok_and(|metadata| metadata.mode() & 0o001 != 0))
}

async fn bmc(preflight: &Preflight, spec: &NodeSpec, socket: Option<&Path>) -> Finding {
    let check = "bmc";
    let address = spec.bmc_address().map_or_else(String::new, |address| format!(" at {address}"));
    if let Some(socket) = socket {
        return match admin::use_bmc(socket, &spec.name, BmcCommand::Status).await {
            Ok(facts) => {
                let shown = |Fact { name, value }: &Fact| format!("{name} {value}");
                let facts: Vec<String> = facts.iter().map(shown).collect();
                Finding::ok(check, format!("{}{address}: {}", spec.name, facts.join(", ")))
            }
            Err(error) => {
                let hint = format!("run `hostler explain {}`", spec.name);
                Finding::failure(check, format!("{}: {error}", spec.name), hint)
            }
        };
    }
    match preflight.chassis(spec).await {
        Ok(chassis) => {
            let power = chassis.power.as_str();
            let device = match chassis.boot {
                Some(_) => "",
                None if spec.bmc.as_ref().is_some_and(|bmc| bmc.driver == BmcDriver::Program) => "",
                None => ", does not show its boot device",
            };
            Finding::ok(check, format!("{}{address}: power {power}{device}", spec.name))
        }
        Err(fault) => Finding::of_fault(check, &spec.name, fault),
    }
}

/// The images of the specs, each once, with the names of its nodes.
fn images(specs: &[Arc<NodeSpec>]) -> Vec<(Image, String)> {
    let mut images: Vec<(Image, Vec<String>)> = Vec::new();
    for spec in specs {
        let known = images.iter_mut().find(|(image, _)| {
            image.source == spec.image.source && image.checksum == spec.image.checksum
        });
        match known {
            Some((_, nodes)) => nodes.push(spec.name.to_string()),
            None => images.push((spec.image.clone(), vec![spec.name.to_string()])),
        }
    }
    let shown = |nodes: &[String]| match nodes {
        [node] => node.clone(),
        [node, rest @ ..] => format!("{node} and {} more", rest.len()),
        [] => String::new(),
    };
    images.into_iter().map(|(image, nodes)| (image, shown(&nodes))).collect()
}

async fn of_image(preflight: &Preflight, image: &Image, nodes: &str) -> Finding {
    let check = "image";
    match preflight.image(image).await {
        Ok(found) => {
            let bytes = found
                .published_bytes
                .map_or_else(|| "of a size that its server does not tell".to_owned(), show_bytes);
            let digest: String = found.digest.to_string().chars().take(DIGEST_CHARS).collect();
            let source = Sources::shown(&image.source);
            Finding::ok(check, format!("{nodes}: {source}, {bytes}, {digest}…"))
        }
        Err(fault) => Finding::of_fault(check, nodes, fault),
    }
}
