//! Reads status files of version 1, which had no checksum, and `phase` in each entry of the
//! history.
//!
//! Called by the reader. It accepts exactly the files that version 1 wrote: an unknown or missing
//! key is damage.

use serde::Deserialize as _;
use toml::{Table, Value};

use crate::model::status::{STATUS_VERSION, Status};

use super::HEADER;

/// Parses a status of version 1.
pub(super) fn parse(text: &str) -> Result<Status, String> {
    // With a checksum it is a damaged file of a later version.
    let body = text.strip_prefix(HEADER).filter(|body| !body.lines().any(is_comment));
    let body = body.ok_or("it is not as hostler wrote it")?;
    let mut table: Table = toml::from_str(body).map_err(|error| error.message().to_owned())?;
    table.insert("version".to_owned(), Value::from(i64::from(STATUS_VERSION)));
    for entry in table.get_mut("history").and_then(Value::as_array_mut).into_iter().flatten() {
        let entry = entry.as_table_mut().ok_or("an entry of the history is no table")?;
        let phase = entry.remove("phase").ok_or("an entry of the history has no phase")?;
        if entry.insert("entered".to_owned(), phase).is_some() {
            return Err("unknown field `entered`".to_owned());
        }
    }
    let status = Status::deserialize(table.clone()).map_err(|error| error.message().to_owned())?;
    let again = Table::try_from(&status).map_err(|error| error.to_string())?;
    if again == table {
        Ok(status)
    } else {
        Err("it holds something that its version would not have written".to_owned())
    }
}

fn is_comment(line: &str) -> bool {
    line.starts_with('#')
}
