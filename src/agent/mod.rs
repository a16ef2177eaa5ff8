//! The agent, which connects the core and the adapters.
//!
//! Called by `hostler run`. [`Agent::start`] binds every socket and reads every record;
//! [`Agent::run`] serves and drives the fleet until it is told to stop. One task, the driver, owns
//! the fleet. Events reach it by channels, and operations run in tasks of their own. No other task
//! may change a node.
//!
//! ```text
//!  watch ─▶ scan ─┐                      ┌─▶ store        record, before anything else
//!  callback ──────┤    ┌──────────┐      ├─▶ tftp table   boot menu
//!  orders ────────┤    │  driver  │      ├─▶ work         BMC, image, disk ─┐
//!  tftp evidence ─┼──▶ │  (Fleet) │ ─────┼─▶ callback     replies            │
//!  work's ends ───┤    └──────────┘      ├─▶ admin        answers            │
//!  deadlines ─────┘                      └─▶ publisher    status files       │
//!        ▲                                                                   │
//!        └───────────────────────────────────────────────────────────────────┘
//! ```

mod bmc_commands;
mod bmc_names;
mod boot_files;
mod checkpoint;
mod clock;
mod consoles;
mod driver;
mod effects;
mod faults;
mod install;
mod last_words;
mod layout;
mod mark;
mod menu;
mod netboot_files;
mod netboot_warnings;
mod open_files;
mod orders;
mod power;
mod preflight;
mod publish;
mod recall;
mod refusals;
mod scan;
mod volume;
mod work;

use std::{
    fs,
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rustix::{
    fs::{Access, access},
    io::Errno,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::{error, info, warn};

use crate::{
    admin,
    boot_call::BootCalls,
    callback,
    config::{self, Config},
    lifecycle::{Executor, Fleet, Policy},
    model::problem::Problem,
    netboot, regular_file,
    spec_dir::Defaults,
    status_file::StatusFiles,
    store::{Store, StoreError},
    watch::{DEBOUNCE, Watcher},
};

pub use self::mark::Claim;
use self::{
    boot_files::DeployFiles,
    driver::{Driver, Sources},
    effects::Adapters,
    mark::Standing,
    menu::MenuWriter,
    open_files::polls_max,
    publish::Publisher,
    work::Operations,
};
pub(crate) use self::{preflight::Preflight, work::library};

/// The capacity of the driver's channels. The driver handles thousands of events a second; a full
/// channel blocks the sender.
const CHANNEL_DEPTH: usize = 256;
const OVERTAKEN: &str = "another agent has taken over: this one stops its operations and stands by";

/// The reason why the agent cannot start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the names of the fields say it")]
pub enum StartError {
    /// The configuration's `[defaults]` are invalid.
    #[error("[defaults]: {0}")]
    Defaults(Problem),
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The callback listener has no certificate.
    #[error(transparent)]
    TlsIdentity(#[from] callback::TlsIdentityError),
    /// A listener or thread cannot be started.
    #[error("{what}: {source}{}", way_out(source))]
    Listen { what: String, source: io::Error },
}

/// The advice for a failed listener.
fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program has that port: `ss -lnptu` names it; stop it, or set another \
             `listen`"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; this host has no such address: `ip address` shows those that it has; correct \
             network.advertise or `listen`"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 want root or CAP_NET_BIND_SERVICE, which systemd/hostler.service \
             gives"
        }
        io::ErrorKind::NotFound => {
            "; run `hostler loaders install`, which makes that directory, or set tftp.loaders"
        }
        _ => "",
    }
}

/// The reason why the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEnd {
    /// The agent was told to stop.
    Shutdown,
    /// Another agent took over the status directory.
    Overtaken,
}

/// An agent with bound sockets and read records, ready to run.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    store: Store,
    standing: Standing,
    fleet: Fleet,
    tftp: netboot::Server,
    http: netboot::http::Server,
    callback: callback::Server,
    admin: Option<admin::Server>,
    pin: String,
}

impl Agent {
    /// Binds every socket and reads the state directory.
    pub async fn start(config: Config, claim: Claim) -> Result<Self, StartError> {
        let Claim { mut store, standing, after_another } = claim;
        if let Some(problem) = Defaults::new(None, config.defaults.as_ref()).problems().first() {
            return Err(StartError::Defaults(problem.clone()));
        }
        info!("files beneath a directory are opened {}", regular_file::beneath::way());
        let listen = |what: &str, at| {
            let what = format!("{what} {at}");
            move |source| StartError::Listen { what, source }
        };
        let tftp = netboot::Server::bind(tftp_config(&config))
            .map_err(listen("TFTP listener", config.tftp.listen))?;
        let http =
            netboot::http::Server::bind(config.http.listen, netboot::http::HttpLimits::default())
                .await
                .map_err(listen("HTTP listener", config.http.listen))?;
        let identity = callback::TlsIdentity::load_or_create(&config.state.dir)?;
        let pin = identity.pin().to_owned();
        let mut callback = callback::Server::bind(
            config.callback.listen,
            identity,
            callback::CallbackLimits::for_machines(config.limits.waiting + config.limits.imaging),
        )
        .await
        .map_err(listen("callback listener", config.callback.listen))?;
        if let Some(ironic) = &config.ironic {
            callback
                .bind_ironic(ironic.listen)
                .await
                .map_err(listen("listener for Ironic's ramdisk", ironic.listen))?;
        }
        for missing in DeployFiles::new(&config).missing() {
            warn!("{missing}");
        }
        if netboot::LoaderFiles::in_dir(&config.tftp.loaders).has_none() {
            let dir = config.tftp.loaders.display();
            warn!(%dir, "there is no boot loader that hostler knows, so that only machines with \
                 iPXE in their firmware can be installed; `hostler doctor` says what is missing");
        }
        // Only operators' commands need the admin socket.
        let admin = admin::Server::bind(&config.admin.socket)
            .await
            .inspect_err(|error| {
                warn!(%error, "`hostler approve` and `hostler retry` cannot reach this agent: let \
                     it make the [admin] socket, for example with RuntimeDirectory=hostler in its \
                     unit");
            })
            .ok();
        let (files, now) = (status_files(&config), Timestamp::now());
        let recall::Recalled { fleet, losses, notes } =
            recall::recall(&mut store, &files, policy(&config), after_another, now)?;
        for note in notes {
            warn!("{note}");
        }
        for loss in losses {
            error!("{loss}");
        }
        Ok(Self { config, store, standing, fleet, tftp, http, callback, admin, pin })
    }

    /// Serves, calls `ready`, and drives the fleet until `shutdown` or until another agent takes
    /// over. Then it starts nothing new and stops running operations. The records stay, and the
    /// next start goes on from them.
    pub async fn run(
        self,
        ready: impl FnOnce(),
        shutdown: impl Future<Output = ()>,
    ) -> Result<AgentEnd, StartError> {
        let Self { config, store, standing, fleet, tftp, http, callback, admin, pin } = self;
        let (evidence, fetches) = mpsc::channel(CHANNEL_DEPTH);
        let (requests, calls) = mpsc::channel(CHANNEL_DEPTH);
        let (ordering, orders) = mpsc::channel(CHANNEL_DEPTH);
        let (reporting, reports) = mpsc::channel(CHANNEL_DEPTH);
        let (changed, updates) = watch::channel(0);
        let (calling, boot_calls) = BootCalls::channel(CHANNEL_DEPTH);
        let (closing, closed) = watch::channel(false);

        // A listener may bind the wildcard address; machines need the advertised one.
        let reachable = |port| SocketAddr::new(config.network.advertise, port);
        let reached = |what: &str, bound: io::Result<SocketAddr>| {
            bound.map(|bound| reachable(bound.port())).map_err(not_listening(what))
        };
        let api = reached("callback listener", callback.local_addr())?;
        let http_address = reached("HTTP listener", http.local_addr())?;
        let ironic = callback.ironic_port().map(reachable);
        let table = netboot::BootTable::with_http(http_address);
        let menus = MenuWriter::new(table.clone(), config.tftp.loaders.clone(), api, pin, ironic);
        let statuses = status_files(&config).only_while(standing.ours());
        let publisher = Publisher::start(statuses, config.specs.rescan, reporting.downgrade());
        let operations =
            Operations::new(&config, standing.clone(), store.checkpoints(), http_address);
        let cached = netboot_files::cached(operations.library.clone(), reporting.downgrade());
        let bmc_names = operations.bmc_names.clone();
        let mut adapters = Adapters::new(store, menus, publisher, operations, changed, reporting);
        let mut executor = Executor::new(fleet);
        // A machine may netboot before the directory has been read.
        executor.present(&mut adapters);
        bmc_names.note_installed(executor.fleet().bmcs_of_installed(), std::iter::empty());
        let tftp = tftp.with_cached(cached).start(table, evidence);
        let tftp = tftp.map_err(not_listening("TFTP listener"))?;
        let ended = || closing_of(&closed);
        let http = tokio::spawn(http.serve(tftp.catalog(), calling.clone(), ended()));
        let callback = tokio::spawn(callback.serve(requests, calling, updates, ended()));
        let admin = admin.map(|admin| tokio::spawn(admin.serve(ordering, ended())));

        let (watcher, wakes) =
            Watcher::start(config.specs.dir.clone(), config.specs.rescan, DEBOUNCE)
                .map_err(not_listening("directory watcher"))?;
        let sources = Sources {
            scans: scan::start(&config, executor.fleet(), bmc_names, wakes),
            calls,
            boot_calls,
            orders,
            fetches,
            reports,
        };
        log_running(&config, tftp.local_addr(), http_address, api);
        ready();
        let mut end = AgentEnd::Shutdown;
        let over = async {
            tokio::select! {
                () = shutdown => {}
                other = standing.overtaken() => {
                    error!(other, "{OVERTAKEN}");
                    end = AgentEnd::Overtaken;
                }
            }
        };
        Driver::new(executor, adapters, &config.specs.dir).run(sources, over).await;

        closing.send_replace(true);
        drop(watcher);
        await_all(tftp, [callback, http].into_iter().chain(admin)).await;
        standing.stop().await;
        Ok(end)
    }
}

fn log_running(config: &Config, tftp: SocketAddr, http: SocketAddr, callback: SocketAddr) {
    info!(specs = %config.specs.dir.display(), %tftp, %http, %callback, "running");
}

fn not_listening(what: &str) -> impl FnOnce(io::Error) -> StartError {
    let what = what.to_owned();
    move |source| StartError::Listen { what, source }
}

/// Waits until the agent closes its listeners.
fn closing_of(closing: &watch::Receiver<bool>) -> impl Future<Output = ()> + use<> {
    let mut closing = closing.clone();
    async move { drop(closing.wait_for(|closing| *closing).await) }
}

async fn await_all(tftp: netboot::Running, others: impl Iterator<Item = JoinHandle<()>>) {
    // The TFTP server waits for its transfers' threads.
    let tftp = tokio::task::spawn_blocking(move || tftp.stop());
    for listener in others.chain([tftp]) {
        if let Err(error) = listener.await {
            error!(%error, "a listener panicked");
        }
    }
}

fn tftp_config(config: &Config) -> netboot::Config {
    netboot::Config {
        loaders: Some(config.tftp.loaders.clone()),
        files: DeployFiles::new(config).by_name(),
        images: image_dirs(&config.images),
        block_bytes_max: u16::try_from(config.tftp.block_max).unwrap_or(u16::MAX),
        ..netboot::Config::new(config.tftp.listen)
    }
}

/// The directories of images; relative paths are relative to the first.
fn image_dirs(images: &config::Images) -> Vec<PathBuf> {
    [&images.dir].into_iter().chain(&images.allowed_dirs).cloned().collect()
}

fn policy(config: &Config) -> Policy {
    Policy {
        attempts_max: config.limits.waiting,
        imagings_max: config.limits.imaging,
        polls_max: polls_max(),
        breaker: config.safety.breaker,
        enforce_power: config.safety.enforce_power,
    }
}

fn status_dir(config: &Config) -> &Path {
    config.specs.status_dir.as_ref().unwrap_or(&config.specs.dir)
}

fn status_files(config: &Config) -> StatusFiles {
    StatusFiles::new(status_dir(config)).in_made_dir(config.specs.status_dir.is_some())
}

/// Logs an unwritable status directory at the start, with advice. The agent runs anyway.
fn prepare_status_dir(specs: &config::Specs) {
    match &specs.status_dir {
        Some(dir) => {
            if let Err(error) = fs::create_dir_all(dir) {
                error!(dir = %dir.display(), %error, "specs.status_dir cannot be made");
            }
        }
        None => {
            if let Err(error @ (Errno::ROFS | Errno::ACCESS)) = access(&specs.dir, Access::WRITE_OK)
            {
                error!(dir = %specs.dir.display(), %error, "no status file can be written beside \
                    the specs; set specs.status_dir");
            }
        }
    }
}
