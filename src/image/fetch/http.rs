//! A web server's file as a source of images, downloaded over one connection or several in turn.
//!
//! [`super::source`] uses it for URLs. It must never continue for ever: it repairs a broken
//! download only as long as bytes arrive.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{task::spawn_blocking, time::timeout};
use url::Url;

use super::{
    FetchError, FetchOrder, Fetched,
    sink::{PIECE_BYTES_MAX, Piece, Sink},
    web::{self, Answer, Body, Web, failed},
};
use crate::{
    model::{backoff::Backoff, ids::hex, status::ImagingStage},
    progress::Watch,
};

/// Bytes of a server's answer in a message, as text or in hex.
const SHOWN_BYTES: usize = 60;
const SHOWN_BINARY_BYTES: usize = 8;

/// Most connections in a row that may break without progress.
const FRUITLESS_MAX: u32 = 8;

/// Bytes of progress that count as worth another connection.
const FRUIT_BYTES_MIN: u64 = 64 << 10;

/// Silent connections, one after the other, within the stall limit: a server that lost its power
/// sends no notice, and a new connection finds it when it is back. The first byte of an answer may
/// take the whole limit.
const SILENT_CONNECTIONS: u32 = 3;

/// The pause before the second connection without progress; doubled before each further one.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// A file behind an http or https URL.
#[derive(Debug)]
pub(super) struct HttpFile {
    url: Url,
}

impl HttpFile {
    pub(super) fn new(url: Url) -> Self {
        Self { url }
    }

    /// The URL without credentials and query.
    pub(super) fn shown(&self) -> String {
        web::shown(&self.url)
    }

    /// The decoded path of the URL.
    pub(super) fn listed_path(&self) -> Vec<u8> {
        percent_encoding::percent_decode_str(self.url.path()).collect()
    }

    /// Size in bytes; `None` if the server does not report it.
    pub(super) async fn size(&self, watch: &Watch<'_>) -> Result<Option<u64>, FetchError> {
        watch.step(self.web(watch).await?.size()).await?
    }

    /// Reads the first bytes of a small file, at most one more than `bytes_max`.
    pub(super) async fn read_small(
        &self,
        bytes_max: usize,
        watch: &Watch<'_>,
    ) -> Result<Vec<u8>, FetchError> {
        let web = self.web(watch).await?;
        let mut retries = Retries::new(0);
        loop {
            match read_once(&web, bytes_max, watch).await {
                Ok(text) => return Ok(text),
                Err(error) => retries.pause(error, 0, watch).await?,
            }
        }
    }

    /// Downloads the file. If a download in pieces has the wrong digest, downloads it again from
    /// the first byte.
    pub(super) async fn fetch(
        &self,
        order: &FetchOrder<'_>,
        sink: &mut Sink,
        watch: &Watch<'_>,
    ) -> Result<Fetched, FetchError> {
        let FetchOrder { wanted, into, known_bytes, bytes_max } = *order;
        let web = self.web(watch).await?;
        let mut came = download(&web, known_bytes, sink, bytes_max, watch).await?;
        let mut digest = sink.finish(watch).await?;
        if digest != *wanted && came.was_pieced {
            tracing::info!("a download in pieces has the wrong checksum and begins again");
            *sink = Sink::new(into, 0, wanted.algorithm());
            came = download(&web, 0, sink, bytes_max, watch).await?;
            digest = sink.finish(watch).await?;
        }
        if digest == *wanted || came.called.is_empty() {
            return Ok(Fetched { digest, came: String::new() });
        }
        let file = Arc::clone(into);
        let head = watch.step(spawn_blocking(move || beginning(&file))).await?;
        let head = head.unwrap_or_default();
        let came = format!("; the server sent {}, which begins with {head}", came.called);
        Ok(Fetched { digest, came })
    }

    async fn web(&self, watch: &Watch<'_>) -> Result<Web, FetchError> {
        Web::new(self.url.clone(), watch).await
    }
}

/// Shows the first bytes of a file: as text if they are printable, else in hex.
fn beginning(file: &File) -> String {
    let mut head = [0; SHOWN_BYTES];
    let read = file.read_at(&mut head, 0).unwrap_or_default();
    let head = head.get(..read).unwrap_or_default();
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n');
    if !head.is_empty() && head.iter().all(is_text) {
        let text: String = head.iter().map(|byte| char::from(*byte)).collect();
        return format!("{:?}", text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let hex = hex(head.get(..SHOWN_BINARY_BYTES).unwrap_or(head));
    if hex.is_empty() { "nothing".to_owned() } else { hex }
}

/// The origin of a sink's bytes.
#[derive(Debug)]
struct SinkOrigin {
    /// Whether the file came in several pieces, which may be of different versions.
    was_pieced: bool,
    /// The server's description of the file; empty if no byte was missing.
    called: String,
}

/// Fills the sink from a web server.
///
/// The first `known_bytes` of the sink's file count as the beginning of the published file. Only a
/// download in one piece is certain not to use them.
async fn download(
    web: &Web,
    known_bytes: u64,
    sink: &mut Sink,
    bytes_max: u64,
    watch: &Watch<'_>,
) -> Result<SinkOrigin, FetchError> {
    let mut known_left = known_bytes;
    while known_left > 0 {
        let part = known_left.min(PIECE_BYTES_MAX);
        sink.put(Piece::Known(part), watch).await?;
        known_left -= part;
    }
    let mut download = Download {
        web,
        bytes_max,
        version: None,
        total_bytes: None,
        has_begun: false,
        came: SinkOrigin { was_pieced: false, called: String::new() },
        is_beginning_kept: true,
    };
    let mut retries = Retries::new(known_bytes);
    while let Err(error) = download.attempt(sink, watch).await {
        match retries.pause(error, sink.bytes(), watch).await {
            Ok(()) => {}
            Err(error) if may_be_mended(&error) && download.give_beginning_up(sink) => {
                tracing::info!(%error, "a download cannot be resumed and begins again");
                retries.once_more();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(download.came)
}

async fn read_once(web: &Web, bytes_max: usize, watch: &Watch<'_>) -> Result<Vec<u8>, FetchError> {
    let mut answer = watch.step(web.get(0, None)).await??;
    let mut text = Vec::new();
    while text.len() <= bytes_max {
        let chunk = watch.step(answer.response.chunk()).await?;
        let Some(chunk) = chunk.map_err(|error| failed(&error, answer.url.clone()))? else { break };
        text.extend_from_slice(&chunk);
    }
    text.truncate(bytes_max + 1);
    Ok(text)
}

/// A download over several connections.
#[derive(Debug)]
struct Download<'a> {
    web: &'a Web,
    bytes_max: u64,
    version: Option<reqwest::header::HeaderValue>,
    total_bytes: Option<u64>,
    has_begun: bool,
    /// The origin of the bytes in the sink.
    came: SinkOrigin,
    /// Whether requests ask for the rest after a beginning; else for the whole file.
    is_beginning_kept: bool,
}

impl Download<'_> {
    /// Downloads over one connection. Its bytes stay in the sink.
    async fn attempt(&mut self, sink: &mut Sink, watch: &Watch<'_>) -> Result<(), FetchError> {
        let from = sink.bytes();
        let answer = self.ask(from, watch).await?;
        let differs =
            |total_bytes: u64| answer.total_bytes.is_some_and(|announced| announced != total_bytes);
        let has_changed = self.total_bytes.is_some_and(differs);
        match answer.body {
            Body::Beyond if answer.total_bytes == Some(from) => {
                self.came.was_pieced = true;
                return Ok(());
            }
            Body::Rest if !has_changed => self.came.was_pieced = true,
            Body::Beyond | Body::Rest | Body::Useless => {
                self.restart(sink, watch).await?;
                let reason = "the file changes while it is fetched".to_owned();
                return Err(FetchError::Connection { url: answer.url, reason });
            }
            Body::Whole if from > 0 => self.restart(sink, watch).await?,
            Body::Whole => {}
        }
        self.version.clone_from(&answer.validator);
        self.came.called.clone_from(&answer.called);
        self.total_bytes = match answer.body {
            Body::Rest => answer.total_bytes.or(self.total_bytes),
            _ => answer.total_bytes,
        };
        if let Some(total_bytes) = self.total_bytes {
            self.check_room(&answer, total_bytes, true)?;
        }
        if self.has_begun {
            watch.meter.set(sink.bytes());
        } else {
            watch.meter.begin(ImagingStage::Fetch, sink.bytes(), self.total_bytes.unwrap_or(0));
            self.has_begun = true;
        }
        self.receive(answer, sink, watch).await
    }

    /// Requests the missing part. If the server does not support that, or does not answer, requests
    /// the whole file, and keeps the beginning until it arrives.
    async fn ask(&self, from: u64, watch: &Watch<'_>) -> Result<Answer, FetchError> {
        if from > 0 && self.is_beginning_kept {
            let asking = self.web.get(from, self.version.as_ref());
            match watch.step(timeout(patience(watch), asking)).await? {
                Ok(Ok(answer)) if answer.body != Body::Useless => return Ok(answer),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(_)) | Err(_) => {}
            }
            tracing::info!(
                from,
                "the server cannot send the rest of a file; all of it is asked for"
            );
        }
        watch.step(self.web.get(0, None)).await?
    }

    /// Requests the whole file from now on. Returns `false` if the last request was the same.
    fn give_beginning_up(&mut self, sink: &Sink) -> bool {
        let is_other = sink.bytes() > 0 && self.is_beginning_kept;
        self.is_beginning_kept = false;
        is_other
    }

    async fn receive(
        &self,
        mut answer: Answer,
        sink: &mut Sink,
        watch: &Watch<'_>,
    ) -> Result<(), FetchError> {
        let patience = patience(watch);
        loop {
            let chunk = watch.step(timeout(patience, answer.response.chunk())).await?;
            let chunk = chunk.map_err(|_| {
                let reason = format!("the server sent nothing for {patience:.0?}");
                FetchError::Connection { url: answer.url.clone(), reason }
            })?;
            let chunk = chunk.map_err(|error| failed(&error, answer.url.clone()))?;
            let Some(chunk) = chunk else { break };
            let bytes = chunk.len() as u64;
            self.check_room(&answer, sink.bytes().saturating_add(bytes), false)?;
            sink.put(Piece::Data(chunk), watch).await?;
            watch.meter.add(bytes);
        }
        let got_bytes = sink.bytes();
        match self.total_bytes {
            Some(announced_bytes) if announced_bytes != got_bytes => {
                Err(FetchError::Length { url: answer.url, announced_bytes, got_bytes })
            }
            _ => Ok(()),
        }
    }

    fn check_room(&self, answer: &Answer, bytes: u64, is_all: bool) -> Result<(), FetchError> {
        if bytes <= self.bytes_max {
            return Ok(());
        }
        let (place, bytes_max) = (answer.url.clone(), self.bytes_max);
        Err(FetchError::TooLarge { place, bytes, is_all, bytes_max })
    }

    async fn restart(&mut self, sink: &mut Sink, watch: &Watch<'_>) -> Result<(), FetchError> {
        (self.version, self.total_bytes, self.came.was_pieced) = (None, None, false);
        sink.put(Piece::Restart, watch).await
    }
}

/// Longest silence of a connection before the next one is tried.
fn patience(watch: &Watch<'_>) -> Duration {
    watch.stall / SILENT_CONNECTIONS
}

/// Whether another connection may help after this error.
fn may_be_mended(error: &FetchError) -> bool {
    match error {
        FetchError::Connection { .. } | FetchError::Length { .. } => true,
        FetchError::Status { .. } => !error.is_lasting(),
        _ => false,
    }
}

/// Decides about retries and their pauses.
#[derive(Debug)]
struct Retries {
    furthest_bytes: u64,
    fruitless: u32,
    backoff: Backoff,
    since: Instant,
}

impl Retries {
    fn new(furthest_bytes: u64) -> Self {
        let backoff = Backoff::doubling(PAUSE_MIN, PAUSE_MAX);
        Self { furthest_bytes, fruitless: 0, backoff, since: Instant::now() }
    }

    /// Counts another connection, which is without progress unless it gets further than any before.
    fn once_more(&mut self) {
        (self.fruitless, self.since) = (FRUITLESS_MAX, Instant::now());
    }

    /// Waits before the next connection, or returns the error if there are too many.
    async fn pause(
        &mut self,
        error: FetchError,
        bytes: u64,
        watch: &Watch<'_>,
    ) -> Result<(), FetchError> {
        let is_mended = may_be_mended(&error);
        let pause = if bytes >= self.furthest_bytes.saturating_add(FRUIT_BYTES_MIN) {
            *self = Self::new(bytes);
            Duration::ZERO
        } else {
            self.fruitless += 1;
            self.backoff.next_pause()
        };
        let is_late = self.since.elapsed() + pause >= watch.stall;
        if !is_mended || self.fruitless > FRUITLESS_MAX || is_late {
            return Err(error);
        }
        tracing::info!(%error, bytes, "a download broke and is resumed");
        Ok(watch.step(tokio::time::sleep(pause)).await?)
    }
}
