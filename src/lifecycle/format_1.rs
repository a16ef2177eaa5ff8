//! Reads records and site files of format 1, which had no checksums.
//!
//! Called at the upgrade only. It accepts exactly the files that format 1 had: an unknown or
//! missing key is damage.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{state::Record, unclaimed::UnclaimedInstalls};

/// Converts a record.
pub fn record(mut value: Value) -> Result<Record, String> {
    for entry in value.get_mut("history").and_then(Value::as_array_mut).into_iter().flatten() {
        rename(entry, "phase", "entered")?;
    }
    parse(&value)
}

/// Converts a site file, which had unclaimed installations only.
pub fn unclaimed(mut value: Value) -> Result<UnclaimedInstalls, String> {
    let object = value.as_object_mut().ok_or("it is no JSON object")?;
    if object.contains_key("listed") || object.contains_key("incomplete") {
        return Err("it is of a newer format".to_owned());
    }
    object.insert("incomplete".to_owned(), json!(false));
    object.insert("listed".to_owned(), json!([]));
    object.insert("reinstalls".to_owned(), json!([]));
    parse(&value)
}

fn rename(entry: &mut Value, old: &str, new: &str) -> Result<(), String> {
    let entry = entry.as_object_mut().ok_or("an entry of the history is no JSON object")?;
    let value = entry.remove(old).ok_or_else(|| format!("missing field `{old}`"))?;
    match entry.insert(new.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(format!("unknown field `{new}`")),
    }
}

/// Parses JSON strictly: no unknown and no missing key.
fn parse<T: Serialize + DeserializeOwned>(value: &Value) -> Result<T, String> {
    let content = T::deserialize(value).map_err(|error| error.to_string())?;
    let again = serde_json::to_value(&content).map_err(|error| error.to_string())?;
    if again == *value {
        Ok(content)
    } else {
        Err("it holds something that its version would not have written".to_owned())
    }
}
