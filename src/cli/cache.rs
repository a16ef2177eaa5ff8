//! `hostler cache`: lists, fetches and removes the images in the cache.
//!
//! It works on the cache's directory directly, with or without a running agent: every process that
//! works on an image holds its lock.

use std::{
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};

use crate::{
    agent,
    config::{self, Config},
    image::{Kept, Library, Pruned},
    model::{
        ids::NodeName,
        size::{parse_bytes, show_bytes},
        spec::{Checksum, Image, ImageFormat, ImageKind, Verify},
    },
    progress::{Cancel, Meter, Watch},
    spec_dir,
};

use super::{
    Failure, Problems,
    text::{columns, progress, span},
};

/// Stall limit for images that no spec names: a spec's default.
const STALL: Duration = Duration::from_secs(120);
/// Interval at which a terminal shows the progress.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, clap::Subcommand)]
pub(super) enum CacheCommand {
    /// Show every image in the cache, least recently used first.
    List {
        #[command(flatten)]
        at: At,
    },
    /// Remove the least recently used images until the cache is within its size, but none in use.
    Prune {
        /// Remove every image that is not in use.
        #[arg(long, conflicts_with = "to")]
        all: bool,
        /// Remove until the cache takes at most this, for example 5GiB, instead of the configured
        /// size.
        #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
        to: Option<u64>,
        #[command(flatten)]
        at: At,
    },
    /// Fetch images, so that no machine waits for them. Exit code 1 if a fetch fails.
    Fetch {
        #[command(flatten)]
        what: ImageSelection,
        #[command(flatten)]
        at: At,
    },
}

/// The agent whose cache the command uses.
#[derive(Debug, clap::Args)]
pub(super) struct At {
    /// The agent's configuration, which names the cache's directory.
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

/// The images to fetch.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct ImageSelection {
    /// Nodes, or spec files, whose images are fetched; a name with a slash or the ending .toml is a
    /// file.
    #[arg(value_name = "NODE|FILE", group = "what")]
    specs: Vec<PathBuf>,
    /// Fetch the image with this source, as in a spec.
    #[arg(long, group = "what", requires = "checksum")]
    source: Option<String>,
    /// The image's checksum, as in a spec.
    #[arg(long, requires = "source")]
    checksum: Option<Checksum>,
}

/// An image to fetch.
#[derive(Debug)]
struct Wanted {
    image: Image,
    stall: Duration,
}

impl CacheCommand {
    pub(super) fn run(self, out: &mut impl Write) -> Result<ExitCode, Failure> {
        match self {
            Self::List { at } => {
                let list = agent::library(&config::read(&at.config)?).list()?;
                write!(out, "{}", table(&list, Timestamp::now()))?;
            }
            Self::Prune { all, to, at } => {
                let config = config::read(&at.config)?;
                let to_bytes = if all { 0 } else { to.unwrap_or(config.images.cache_size) };
                let Pruned { removed, freed_bytes, left_bytes } =
                    agent::library(&config).prune(to_bytes)?;
                for digest in &removed {
                    writeln!(out, "removed {digest}")?;
                }
                let in_use = if left_bytes > to_bytes { ", in use" } else { "" };
                let [freed, left] = [freed_bytes, left_bytes].map(show_bytes);
                writeln!(out, "{freed} freed, {left} left{in_use}")?;
            }
            Self::Fetch { what, at } => {
                let config = config::read(&at.config)?;
                let wanted = what.images(&config)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(fetch(&agent::library(&config), &wanted, out))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ImageSelection {
    fn images(self, config: &Config) -> Result<Vec<Wanted>, Failure> {
        if let Some((source, checksum)) = self.source.zip(self.checksum) {
            let image = Image {
                source,
                checksum,
                format: ImageFormat::Auto,
                kind: ImageKind::default(),
                verify: Verify::None,
                netboot: None,
            };
            return Ok(vec![Wanted { image, stall: STALL }]);
        }
        let (mut wanted, mut problems) = (Vec::new(), Vec::new());
        for named in &self.specs {
            match spec_dir::read_file(&spec_file(named, config)?, config.defaults.as_ref()) {
                Ok(spec) => {
                    wanted.push(Wanted { image: spec.image, stall: spec.timeouts.imaging_stall });
                }
                Err(found) => problems.extend(found),
            }
        }
        if problems.is_empty() { Ok(wanted) } else { Err(Problems(problems).into()) }
    }
}

/// The spec file of a node, or the given file.
fn spec_file(named: &Path, config: &Config) -> Result<PathBuf, Failure> {
    let is_file = named.components().count() > 1
        || named.is_absolute()
        || named.extension().is_some_and(|extension| extension == "toml");
    if is_file {
        return Ok(named.to_owned());
    }
    let node: NodeName = named.to_string_lossy().parse()?;
    Ok(config.specs.dir.join(format!("{node}.toml")))
}

/// Fetches one image after the other. Reports failed fetches after all others.
async fn fetch(library: &Library, wanted: &[Wanted], out: &mut impl Write) -> Result<(), Failure> {
    let (stop, cancel) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A cancelled fetch ends cleanly: its bytes stay for the next one.
    let stopping = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.send_replace(true);
    });
    let mut failed = Vec::new();
    for wanted in wanted {
        match fetch_one(library, wanted, cancel.clone()).await {
            Ok(line) => writeln!(out, "{line}")?,
            Err(error) => failed.push(error),
        }
        if *cancel.borrow() {
            break;
        }
    }
    stopping.abort();
    if failed.is_empty() { Ok(()) } else { Err(NotFetched(failed).into()) }
}

/// Fetches one image, and returns the message about it.
async fn fetch_one(library: &Library, wanted: &Wanted, cancel: Cancel) -> Result<String, String> {
    let Wanted { image, stall } = wanted;
    let meter = Meter::default();
    let watch = Watch { cancel, stall: *stall, meter: &meter };
    let work = async {
        let digest = library.digest(image, &watch).await.map_err(|error| error.to_string())?;
        library.get(image, &digest, &watch).await.map_err(|error| error.to_string())
    };
    let drawing = async {
        loop {
            sleep(DRAW_INTERVAL).await;
            draw(&meter);
        }
    };
    let entry = tokio::select! {
        entry = work => entry,
        never = drawing => never,
    };
    clear();
    let entry = entry?;
    Ok(format!("{}: {}, {}", image.source, entry.digest, show_bytes(entry.bytes)))
}

/// The messages of failed fetches.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
struct NotFetched(Vec<String>);

/// Redraws the progress line on a terminal.
fn draw(meter: &Meter) {
    if let (true, Some(now)) = (io::stderr().is_terminal(), meter.progress()) {
        // A failed draw does no harm.
        drop(write!(io::stderr(), "\r\x1b[K{}", progress(&now)));
    }
}

fn clear() {
    if io::stderr().is_terminal() {
        drop(write!(io::stderr(), "\r\x1b[K"));
    }
}

fn table(list: &[Kept], now: Timestamp) -> String {
    let head = ["SIZE", "ON DISK", "USED", "STATE", "DIGEST", "SOURCE"].map(str::to_owned);
    let rows = list.iter().map(|kept| {
        let state = match (kept.in_use, kept.bytes) {
            (true, _) => "in use",
            (false, Some(_)) => "kept",
            (false, None) => "incomplete",
        };
        [
            kept.bytes.map(show_bytes).unwrap_or_default(),
            show_bytes(kept.used_bytes),
            format!("{} ago", span(now.duration_since(kept.last_used))),
            state.to_owned(),
            kept.digest.to_string(),
            kept.source.clone().unwrap_or_default(),
        ]
    });
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_table_shows_what_is_whole_what_is_not_and_what_is_in_use() {
        let kept = |digit: &str, bytes: Option<u64>, in_use| Kept {
            digest: format!("sha256:{}", digit.repeat(64)).parse().unwrap(),
            source: bytes.map(|_| "debian-13.qcow2".to_owned()),
            bytes,
            used_bytes: 3 << 20,
            last_used: "2026-11-22T12:00:00Z".parse().unwrap(),
            in_use,
        };
        let list =
            [kept("a", None, false), kept("b", Some(2 << 30), true), kept("c", Some(7), false)];
        expect![[r#"
            SIZE     ON DISK  USED      STATE       DIGEST                                                                   SOURCE
                     3.0 MiB  1h1m ago  incomplete  sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
            2.0 GiB  3.0 MiB  1h1m ago  in use      sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb  debian-13.qcow2
            7 B      3.0 MiB  1h1m ago  kept        sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc  debian-13.qcow2
        "#]].assert_eq(&table(&list, "2026-11-22T13:01:00Z".parse().unwrap()));
    }
}
