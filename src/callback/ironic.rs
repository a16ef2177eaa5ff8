//! The endpoint for the deploy ramdisk of `OpenStack` Ironic's first years: an optional listener
//! for plain HTTP.
//!
//! Called by the server, which applies the limits of the HTTPS endpoint. The ramdisk is a shell
//! script: it calls once with curl, ignores the answer, sends its key in the body, and then waits
//! on a port of its own until somebody connects ([`release`]). Any other request gets the answer of
//! the HTTPS endpoint. This endpoint must never pass on a call of hostler's own ramdisk, because it
//! lacks TLS and CHAP.
//!
//! ```text
//! POST [/v1]/nodes/{node}/vendor_passthru/pass_deploy_info              202, empty
//! POST [/v1]/nodes/{node}/vendor_passthru/pass_bootloader_install_info  202, empty
//! ```
//!
//! Sources: diskimage-builder 1.28 (`deploy-ironic/init.d/80-deploy-ironic`) and Ironic 2014.1
//! (`drivers/modules/pxe.py`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
    middleware::from_fn_with_state,
    response::{IntoResponse as _, Response},
    routing,
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tracing::debug;

use super::http::{AppState, CallArgs, bounded, hand_over, refused};
use crate::{
    listener::ConnectionPermit,
    model::{
        callback::{Call, DeployInfo},
        secret::AttemptKey,
    },
};

/// The ramdisk's port, on which it waits for the end of the imaging.
const DONE_PORT: u16 = 10000;
/// Ironic's message at the end of the imaging; the ramdisk waits for the end of the connection.
const DONE: &[u8] = b"done";
/// For one try to send the message.
const DONE_LIMIT: Duration = Duration::from_secs(5);
/// Between two tries: the ramdisk begins to wait only after the answer to its call.
const DONE_PAUSE: Duration = Duration::from_secs(1);
/// The target's default port: the ramdisk never names another.
const ISCSI_PORT: u16 = 3260;
const LUN: u8 = 1;

/// Routes every path.
pub(super) fn router(state: Arc<AppState>) -> Router {
    Router::new()
        .route("/v1/nodes/{node}/vendor_passthru/{call}", routing::post(answer))
        .route("/nodes/{node}/vendor_passthru/{call}", routing::post(answer))
        .method_not_allowed_fallback(async || refused())
        .fallback(async || refused())
        .layer(from_fn_with_state(Arc::clone(&state), bounded))
        .with_state(state)
}

async fn answer(
    State(state): State<Arc<AppState>>,
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    path: Result<Path<(String, String)>, PathRejection>,
    body: Bytes,
) -> Response {
    let Ok(Path((node, name))) = path else { return refused() };
    let (Ok(node), Some((key, call))) = (node.parse(), parse(&name, &body)) else {
        return refused();
    };
    let answer = hand_over(&state, CallArgs { node, permit, key, call }).await;
    match answer.status() {
        StatusCode::ACCEPTED => StatusCode::ACCEPTED.into_response(),
        _ => answer,
    }
}

/// Tells the ramdisk that the imaging has ended, and retries until it listens. Dropping the future
/// stops this.
pub async fn release(ramdisk: IpAddr) {
    let address = SocketAddr::new(ramdisk, DONE_PORT);
    loop {
        match timeout(DONE_LIMIT, tell(address)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => debug!(%address, %error, "Ironic's ramdisk does not listen yet"),
            Err(_) => debug!(%address, "Ironic's ramdisk does not answer"),
        }
        tokio::time::sleep(DONE_PAUSE).await;
    }
}

async fn tell(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(DONE).await?;
    stream.shutdown().await
}

/// The body of `pass_deploy_info`.
#[derive(Deserialize)]
struct DeployInfoBody {
    key: AttemptKey,
    /// Empty if the ramdisk does not know its address.
    #[serde(default)]
    address: String,
    #[serde(default)]
    iqn: String,
    port: Option<Number>,
    lun: Option<Number>,
    #[serde(default)]
    error: String,
}

/// The body of `pass_bootloader_install_info`.
#[derive(Deserialize)]
struct BootloaderBody {
    key: AttemptKey,
    status: String,
    #[serde(default)]
    error: String,
}

/// A number, which Ironic accepts as text, too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u16),
    Text(String),
}

impl Number {
    fn get(self) -> Option<u16> {
        match self {
            Self::Number(number) => Some(number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

/// Parses a call and the key in its body; `None` if it is no call.
fn parse(name: &str, body: &[u8]) -> Option<(AttemptKey, Call)> {
    match name {
        "pass_deploy_info" => {
            let DeployInfoBody { key, address, iqn, port, lun, error } = read(body)?;
            let address = match address.as_str() {
                "" => None,
                address => Some(address.parse().ok()?),
            };
            let info = DeployInfo {
                address,
                port: port.map_or(Some(ISCSI_PORT), Number::get).filter(|port| *port > 0)?,
                lun: lun.map_or(Some(LUN.into()), Number::get)?.try_into().ok()?,
                iqn,
                chap_username: String::new(),
                chap_password: None,
                // The ramdisk's `safe_url_encode` writes spaces as `+` and drops every other
                // special character.
                error: error.replace('+', " "),
                knows_salt: false,
            };
            Some((key, Call::IronicDeployInfo(info)))
        }
        "pass_bootloader_install_info" => {
            let BootloaderBody { key, status, error } = read(body)?;
            let error = match status.as_str() {
                "SUCCEEDED" => String::new(),
                _ if error.trim().is_empty() => status,
                _ => error,
            };
            Some((key, Call::IronicBootloader(error)))
        }
        _ => None,
    }
}

/// Parses JSON of a shell script, which puts a program's output between quotes unescaped, with its
/// line breaks and quotes. Only the last field, `error`, has such output.
fn read<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    const ERROR: &str = "\"error\":\"";
    const END: &str = "\"}";
    let text: String = String::from_utf8_lossy(body)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    serde_json::from_str(&text).ok().or_else(|| {
        let start = text.find(ERROR)? + ERROR.len();
        let end = text.rfind(END).filter(|end| *end >= start)?;
        let error = serde_json::to_string(text.get(start..end)?).ok()?;
        let mended = format!("{}{}{}", text.get(..start - 1)?, error, text.get(end + 1..)?);
        serde_json::from_str(&mended).ok()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";

    fn parsed(name: &str, fields: &str) -> Option<Call> {
        let body = format!("{{\"key\":\"{KEY}\",{fields}}}");
        parse(name, body.as_bytes()).map(|(key, call)| {
            assert_eq!(key.expose(), KEY);
            call
        })
    }

    fn target(fields: &str) -> Option<DeployInfo> {
        match parsed("pass_deploy_info", fields)? {
            Call::IronicDeployInfo(info) => Some(info),
            other => panic!("{other:?}"),
        }
    }

    fn bootloader(fields: &str) -> Option<String> {
        match parsed("pass_bootloader_install_info", fields)? {
            Call::IronicBootloader(error) => Some(error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_target_is_read_as_the_script_writes_it_and_as_ironic_took_it() {
        let info = target(r#""address":"192.0.2.9","iqn":"iqn.x","error":"""#).unwrap();
        let expected = DeployInfo {
            address: Some([192, 0, 2, 9].into()),
            port: 3260,
            lun: 1,
            iqn: "iqn.x".to_owned(),
            chap_username: String::new(),
            chap_password: None,
            error: String::new(),
            knows_salt: false,
        };
        assert_eq!(info, expected);
        for fields in [r#""port":"3261","lun":"2""#, r#""port":3261,"lun":2"#] {
            let info = target(fields).unwrap();
            assert_eq!((info.address, info.port, info.lun), (None, 3261, 2), "{fields}");
        }
        for bad in [
            r#""address":"nowhere""#,
            r#""port":"70000""#,
            r#""port":"0""#,
            r#""port":0"#,
            r#""lun":256"#,
            r#""lun":"one""#,
            r#""iqn":1"#,
        ] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_plus_in_an_error_is_a_space() {
        let info = target(r#""address":"","error":"Could+not+find+disk+to+use.""#).unwrap();
        assert_eq!(info.error, "Could not find disk to use.");
    }

    #[test]
    fn a_programs_output_is_read_though_it_is_no_json() {
        let ok =
            "\"status\":\"SUCCEEDED\",\"error\":\"Generating\n\"grub\"\u{1b}[m configuration\"";
        assert_eq!(bootloader(ok).as_deref(), Some(""));
        let failed =
            "\"status\":\"FAILED\",\"error\":\"grub-install: error: cannot find \"/boot\\\"\n\"";
        assert_eq!(
            bootloader(failed).as_deref(),
            Some("grub-install: error: cannot find \"/boot\\\" ")
        );
        assert_eq!(bootloader(r#""status":"FAILED","error":"""#).as_deref(), Some("FAILED"));
        assert_eq!(bootloader(r#""error":"""#), None, "without a status it says nothing");
    }

    #[test]
    fn without_a_key_or_with_a_call_of_the_https_endpoint_it_is_no_call() {
        assert!(parse("pass_deploy_info", br#"{"address":"192.0.2.9"}"#).is_none());
        assert!(parse("pass_deploy_info", br#"{"key":"short"}"#).is_none());
        for name in ["lookup", "deploy_state", "completed", "heartbeat", ""] {
            assert_eq!(parsed(name, r#""macs":[],"disks":[]"#), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_on_any_bytes(
            name in "pass_deploy_info|pass_bootloader_install_info|.{0,9}",
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            parse(&name, &body);
        }

        #[test]
        fn never_panics_on_any_error_and_reads_all_of_it(error in "\\PC{0,60}") {
            let fields = format!("\"status\":\"FAILED\",\"error\":\"x{error}\"");
            if let Some(read) = bootloader(&fields) {
                prop_assert!(read.starts_with('x'));
            }
        }
    }
}
