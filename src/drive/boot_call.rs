//! The files on a config drive by which an installed system says that it is up.
//!
//! `config_drive.rs` calls it. cloud-init gets `phone_home` in the vendor data, beside the
//! administrator's; other systems get a script and the plain URL. The URL holds the attempt's
//! token, so that no error may hold any of these files.

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::model::spec::{Attachment, DriveLabel};

use super::DriveFile;

/// The number of cloud-init's calls, three seconds apart.
const TRIES: u32 = 60;
/// The boundary of the MIME parts: allowed by MIME (RFC 2046 §5.1.1), and never a line of base64.
const BOUNDARY: &str = "hostler-vendor-data";
/// Beginnings by which cloud-init recognizes a MIME file.
const MIME_STARTS: [&str; 2] = ["content-type:", "mime-version:"];

/// The files for a system without cloud-init.
pub(super) fn files<'a>(url: &str) -> [DriveFile<'a>; 2] {
    // No time limit for wget: that of busybox 1.35 crashes with one.
    let script = format!(
        "#!/bin/sh\n\
         # Tells hostler that this system is up. Run it once the network is there: it tries for\n\
         # ten minutes.\n\
         url='{url}'\n\
         n=0\n\
         while [ \"$n\" -lt 120 ]; do\n\
         \x20 if command -v curl >/dev/null; then\n\
         \x20   curl -fsS -m 10 -o /dev/null -d \"hostname=$(uname -n)\" \"$url\" && exit 0\n\
         \x20 else\n\
         \x20   wget -q -O /dev/null --post-data \"hostname=$(uname -n)\" \"$url\" && exit 0\n\
         \x20 fi\n\
         \x20 n=$((n + 1))\n\
         \x20 sleep 5\n\
         done\n\
         exit 1\n"
    );
    let url = format!("{url}\n").into_bytes();
    [("hostler/booted.sh", script.into_bytes().into()), ("hostler/booted.url", url.into())]
}

/// The vendor data of `phone_home` and of the administrator.
pub(super) fn vendor_data(
    label: DriveLabel,
    given: Option<&Attachment>,
    url: &str,
) -> Cow<'static, [u8]> {
    let own = format!("#cloud-config\nphone_home: {{url: {url:?}, post: all, tries: {TRIES}}}\n");
    let given = given.map(|file| file.content.as_bytes());
    match label {
        DriveLabel::Config2 => format!("{:#}\n", openstack(given, &own)).into_bytes().into(),
        DriveLabel::Cidata => match given {
            None => own.into_bytes().into(),
            Some(given) => multipart(given, own.as_bytes()).into(),
        },
    }
}

/// `OpenStack`'s vendor data are JSON, in which several parts are a list.
fn openstack(given: Option<&[u8]>, own: &str) -> Value {
    let parts = |given: Value| match given {
        Value::Array(mut parts) => {
            parts.push(own.into());
            parts.into()
        }
        Value::Null => own.into(),
        one => json!([one, own]),
    };
    let Some(given) = given else { return json!({ "cloud-init": own }) };
    match serde_json::from_slice(given) {
        Ok(Value::Object(mut all)) => {
            let before = all.remove("cloud-init").unwrap_or_default();
            all.insert("cloud-init".to_owned(), parts(before));
            Value::Object(all)
        }
        Ok(other) => json!({ "cloud-init": parts(other) }),
        Err(_) => json!({ "cloud-init": parts(String::from_utf8_lossy(given).into()) }),
    }
}

/// Puts both into a MIME message, in which cloud-init detects the type of each part.
fn multipart(given: &[u8], own: &[u8]) -> Vec<u8> {
    let start = given.get(..MIME_STARTS.map(str::len).into_iter().max().unwrap_or(0));
    let start = start.map(|start| String::from_utf8_lossy(start).to_ascii_lowercase());
    let is_mime = start.is_some_and(|start| MIME_STARTS.iter().any(|it| start.starts_with(it)));
    let is_gzip = given.starts_with(b"\x1f\x8b");
    let mut message =
        format!("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\n\n")
            .into_bytes();
    let mut part = |bytes: &[u8], kind: Option<&str>| {
        message.extend(format!("--{BOUNDARY}\n").as_bytes());
        match kind {
            None => message.extend(bytes),
            Some(kind) => {
                let head = format!("Content-Type: {kind}\nContent-Transfer-Encoding: base64\n\n");
                message.extend(head.as_bytes());
                for line in BASE64_STANDARD.encode(bytes).as_bytes().chunks(76) {
                    message.extend(line);
                    message.push(b'\n');
                }
            }
        }
        message.push(b'\n');
    };
    let kind = if is_gzip { "application/gzip" } else { "text/plain" };
    part(given, (!is_mime).then_some(kind));
    part(own, Some("text/plain"));
    message.extend(format!("--{BOUNDARY}--\n").as_bytes());
    message
}
