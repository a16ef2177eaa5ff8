//! An HTTP client for files: certificate authorities, redirects, and the meaning of answers.
//!
//! Downloads and files of checksums use it. It must never show a URL's credentials or query, follow
//! a redirect from https to http, or decode a response: a checksum is of the published file.

use std::{error::Error, sync::Arc, time::Duration};

use jiff::Timestamp;
use reqwest::{
    Client, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
        HeaderMap, HeaderName, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE,
    },
    redirect::{Action, Attempt, Policy},
};
use rustls::{CertificateError, ClientConfig, RootCertStore, crypto::ring, pki_types::UnixTime};
use tokio::task::spawn_blocking;
use url::Url;

use super::FetchError;
use crate::{model::printable::is_escaped, progress::Watch};

/// Most redirects; browsers follow 20 (Fetch standard).
const REDIRECTS_MAX: usize = 10;

/// Time limit of a HEAD request. Without the size, the library makes space during the fetch.
const HEAD_LIMIT: Duration = Duration::from_secs(4);

/// Most characters of a URL, or of a server's text, in a message.
const SHOWN_CHARS_MAX: usize = 200;

const USER_AGENT: &str = concat!("hostler/", env!("CARGO_PKG_VERSION"));

/// A file on a web server.
#[derive(Debug)]
pub(super) struct Web {
    client: Client,
    url: Url,
}

/// The head of a response; its body follows.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// The URL and its redirects, for messages.
    pub(super) url: String,
    pub(super) body: Body,
    /// Bytes of the whole file; `None` if the server does not report them.
    pub(super) total_bytes: Option<u64>,
    /// Validator of this version of the file (RFC 9110 section 13.1.5).
    pub(super) validator: Option<HeaderValue>,
    /// The server's description for messages: type and encoding.
    pub(super) called: String,
}

/// The part of the file in a response body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The file from its first byte on.
    Whole,
    /// The requested rest, or its first bytes.
    Rest,
    /// Empty: the file ends before the requested rest.
    Beyond,
    /// Unusable for the rest; the server may still send the whole file.
    Useless,
}

/// Parses a source as a URL; `None` for a path, which has no `//`.
pub(super) fn url(source: &str) -> Option<Result<Url, FetchError>> {
    source.contains("://").then(|| {
        let url = Url::parse(source).map_err(|error| FetchError::Url(error.to_string()))?;
        if matches!(url.scheme(), "http" | "https") {
            Ok(url)
        } else {
            Err(FetchError::Url(format!("{} is neither http nor https", url.scheme())))
        }
    })
}

/// A URL for messages and logs, without credentials and query.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // A URL scheme without passwords needs no removal.
    url.set_username("").unwrap_or_default();
    url.set_password(None).unwrap_or_default();
    url.set_query(None);
    url.set_fragment(None);
    url.as_str().chars().take(SHOWN_CHARS_MAX).collect()
}

impl Web {
    /// Makes a client with the system's current certificate authorities and the environment's
    /// proxies, because an agent runs for years.
    pub(super) async fn new(url: Url, watch: &Watch<'_>) -> Result<Self, FetchError> {
        let built = watch.step(spawn_blocking(client)).await?;
        let client = built.map_err(|died| died.to_string()).and_then(|built| built);
        match client {
            Ok(client) => Ok(Self { client, url }),
            Err(reason) => Err(FetchError::Connection { url: shown(&url), reason }),
        }
    }

    /// Requests the file from this byte on, if it is still the validator's version; else the server
    /// sends the whole file.
    pub(super) async fn get(
        &self,
        from: u64,
        validator: Option<&HeaderValue>,
    ) -> Result<Answer, FetchError> {
        let mut request = self.client.get(self.url.clone());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
            if let Some(validator) = validator {
                request = request.header(IF_RANGE, validator);
            }
        }
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        let url = self.way_to(response.url());
        let wrong = |reason: String| FetchError::Answer { url: url.clone(), reason };
        let length = response.headers().get(CONTENT_LENGTH).and_then(number);
        let (body, total_bytes) = match (response.status(), content_range(response.headers())) {
            // RFC 9110 section 14.4 defines no Content-Range in this answer; a server that sends
            // one sends a part.
            (StatusCode::OK, Ok(Some(Range { part: Some((1.., _)), .. }))) if from > 0 => {
                (Body::Useless, None)
            }
            (StatusCode::OK, _) => (Body::Whole, length),
            (StatusCode::PARTIAL_CONTENT, Ok(Some(range))) if range.goes_on_from(from, length) => {
                (Body::Rest, range.total)
            }
            (StatusCode::PARTIAL_CONTENT, _) if from == 0 => {
                let reason = "the server sends a part of the file where all of it was asked for";
                return Err(wrong(reason.to_owned()));
            }
            (StatusCode::PARTIAL_CONTENT, _) => (Body::Useless, None),
            (StatusCode::RANGE_NOT_SATISFIABLE, range) if from > 0 => {
                (Body::Beyond, range.ok().flatten().and_then(|range| range.total))
            }
            (status, _) if from > 0 && !may_pass(status) => (Body::Useless, None),
            (status, _) => {
                let code = status.as_u16();
                return Err(FetchError::Status { url, code, status: status.to_string() });
            }
        };
        let validator = validator_of(response.headers());
        let called = called(response.headers());
        Ok(Answer { response, url, body, total_bytes, validator, called })
    }

    /// Requests the file's size with HEAD; `None` without a quick answer, because some servers
    /// never answer HEAD.
    pub(super) async fn size(&self) -> Result<Option<u64>, FetchError> {
        let asking = self.client.head(self.url.clone()).timeout(HEAD_LIMIT);
        let answer = asking.send().await.map_err(|error| self.failed(&error))?;
        // Servers may answer HEAD otherwise than GET, so that only its success counts.
        let length = answer.headers().get(CONTENT_LENGTH).and_then(number);
        Ok(length.filter(|_| answer.status() == StatusCode::OK))
    }

    fn failed(&self, error: &reqwest::Error) -> FetchError {
        failed(error, self.way_to(error.url().unwrap_or(&self.url)))
    }

    /// The URL and the end of its redirects, for messages.
    fn way_to(&self, end: &Url) -> String {
        let (requested, end) = (shown(&self.url), shown(end));
        if requested == end { requested } else { format!("{requested}, redirected to {end}") }
    }
}

/// The error of a failed request.
pub(super) fn failed(error: &reqwest::Error, url: String) -> FetchError {
    if let Some(wrong) = causes(error).find_map(certificate_error) {
        let is_early = matches!(
            wrong,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }
        );
        return FetchError::Certificate { url, reason: wrong_certificate(wrong), is_early };
    }
    // The outermost errors only say that a request failed, and contain the URL.
    let reason = causes(error).last().map_or_else(|| "failed".to_owned(), bounded);
    if error.is_redirect() || error.is_builder() {
        FetchError::Answer { url, reason }
    } else {
        FetchError::Connection { url, reason }
    }
}

fn wrong_certificate(wrong: &CertificateError) -> String {
    match wrong {
        CertificateError::UnknownIssuer => "the server's certificate was issued by nobody this \
            system trusts; SSL_CERT_FILE may name further certificate authorities"
            .to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the server's certificate is valid from {} on, and this machine's clock says {}",
            date(*not_before),
            date(*time)
        ),
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the server's certificate was valid until {}, and this machine's clock says {}",
            date(*not_after),
            date(*time)
        ),
        wrong => format!("the server's certificate is not good: {}", bounded(wrong)),
    }
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).ok();
    let time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "a time without a date".to_owned(), |time| time.to_string())
}

/// Shortens and escapes text that may quote the server.
fn bounded(error: &(impl ToString + ?Sized)) -> String {
    error.to_string().chars().filter(|c| !is_escaped(*c)).take(SHOWN_CHARS_MAX).collect()
}

/// The causes of an error, the nearest first.
fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let inner = |error: &'a (dyn Error + 'static)| match error.downcast_ref::<std::io::Error>() {
        // The source of a wrapper is the source of its inner error, and would skip that one.
        Some(wrapper) => wrapper.get_ref().map(|error| error as &(dyn Error + 'static)),
        None => error.source(),
    };
    std::iter::successors(error.source(), move |error| inner(*error))
}

fn certificate_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    match error.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(wrong)) => Some(wrong),
        _ => None,
    }
}

/// Makes a new client for each file, so that its settings are current. Blocks.
fn client() -> Result<Client, String> {
    let mut authorities = RootCertStore::empty();
    // An unreadable certificate is ignored, and then its issuer is unknown.
    authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .user_agent(USER_AGENT)
        .default_headers(HeaderMap::from_iter([(
            ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        )]))
        .referer(false) // a Referer would show the URL's query to another server
        .redirect(Policy::custom(redirect))
        .build()
        .map_err(|error| error.to_string())
}

fn redirect(attempt: Attempt<'_>) -> Action {
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error(format!("redirected more than {REDIRECTS_MAX} times"));
    }
    // The same request has the same answer: hostler keeps no cookies.
    if attempt.previous().contains(attempt.url()) {
        return attempt.error("redirected in a circle");
    }
    let was_safe = attempt.previous().iter().any(|url| url.scheme() == "https");
    if was_safe && attempt.url().scheme() != "https" {
        return attempt.error("redirected from https to another scheme");
    }
    attempt.follow()
}

/// A Content-Range (RFC 9110 section 14.4): the first and last byte of a part, and the size of the
/// whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    part: Option<(u64, u64)>,
    total: Option<u64>,
}

impl Range {
    /// Whether the part begins at this byte, is no shorter than the body, and is consistent.
    fn goes_on_from(self, from: u64, length: Option<u64>) -> bool {
        let Some((first, last)) = self.part.filter(|_| from > 0) else { return false };
        let bytes = last.checked_sub(first).and_then(|bytes| bytes.checked_add(1));
        first == from
            && bytes.is_some()
            && (length.is_none() || length == bytes)
            && self.total.is_none_or(|total| last < total)
    }
}

/// Parses Content-Range; `Err` if it is malformed.
fn content_range(headers: &HeaderMap) -> Result<Option<Range>, ()> {
    let Some(value) = headers.get(CONTENT_RANGE) else { return Ok(None) };
    let parse = || {
        let (part, total) = value.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
        let total = if total == "*" { None } else { Some(total.parse().ok()?) };
        let part = if part == "*" {
            None
        } else {
            let (first, last) = part.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        Some(Range { part, total })
    };
    parse().map(Some).ok_or(())
}

/// Whether the same request may have another answer later (RFC 9110 section 15).
fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502..=504)
}

/// Describes a response: its type, and an unrequested encoding.
fn called(headers: &HeaderMap) -> String {
    let shown =
        |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(bounded);
    let kind = shown(CONTENT_TYPE).unwrap_or_else(|| "something without a type".to_owned());
    match shown(CONTENT_ENCODING) {
        Some(coding) if coding != "identity" => format!("{kind} in Content-Encoding {coding}"),
        _ => kind,
    }
}

fn number(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.parse().ok()
}

/// The strong entity tag, or else the date; a weak tag does not promise the same bytes.
fn validator_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let header = |name: HeaderName| headers.get(name).cloned();
    header(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")).or_else(|| header(LAST_MODIFIED))
}
