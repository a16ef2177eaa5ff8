//! The admin socket's messages: a bounded line of JSON with the protocol's version.
//!
//! Used by server and client. The callers put a time limit around every read and write.

use std::{io, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

use crate::model::printable::escaped;

/// Longest question in bytes, with its line feed: about a thousand of the longest names.
pub(super) const QUESTION_BYTES_MAX: usize = 64 << 10;
/// Longest answer in bytes, with its line feed: about ten thousand nodes with a sentence each.
pub(super) const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Longest time for a BMC command: the agent's own limit, the node's `timeouts.power`, is
/// unbounded.
pub(super) const BMC_LIMIT: Duration = Duration::from_secs(15 * 60);
/// The protocol's version. Client and agent are one binary: their versions differ only if the agent
/// was not restarted after an update.
const VERSION: u32 = 2;

/// The reason why a line is no message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The line does not end within the limit.
    #[error("longer than {0} bytes")]
    TooLong(usize),
    /// The connection ended in the middle of a line.
    #[error("cut off in the middle of a line")]
    CutOff,
    /// The message is of another version of the protocol.
    #[error(
        "version {0} of the protocol, this hostler speaks version {VERSION}; restart the agent \
         after an update"
    )]
    Version(u32),
    /// The line is not the expected JSON. The reason is one line, whatever was sent.
    #[error("not a message: {0}")]
    Json(String),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<T> {
    version: u32,
    body: T,
}

/// The part of a message that every version has.
#[derive(Debug, Deserialize)]
struct AnyMessage {
    version: u32,
}

/// Reads one line of at most `bytes_max` bytes, and returns it without its line feed.
pub(super) async fn read_line(
    stream: impl AsyncRead + Unpin,
    bytes_max: usize,
) -> Result<Vec<u8>, WireError> {
    let mut line = Vec::new();
    BufReader::new(stream.take(bytes_max as u64)).read_until(b'\n', &mut line).await?;
    let length = line.len();
    match line.pop() {
        Some(b'\n') => Ok(line),
        _ if length == bytes_max => Err(WireError::TooLong(bytes_max)),
        _ => Err(WireError::CutOff),
    }
}

/// Encodes a message as a line, with its line feed.
pub(super) fn encode(body: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(&Message { version: VERSION, body })?;
    line.push(b'\n');
    Ok(line)
}

/// Decodes the message in a line.
pub(super) fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, WireError> {
    // The version first: a message of another version may differ in everything else.
    let AnyMessage { version } = serde_json::from_slice(line)?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    Ok(serde_json::from_slice::<Message<T>>(line)?.body)
}

impl From<serde_json::Error> for WireError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(escaped(&error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        admin::{Answer, BmcCommand, Order, Question, Selection},
        ids::NodeName,
    };

    const LINE: &str =
        r#"{"version":2,"body":{"order":{"approve":{"nodes":["edge-07","edge-8"]}}}}"#;

    fn names(names: &[&str]) -> BTreeSet<NodeName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn question(line: &str) -> Result<Question, String> {
        decode(line.as_bytes()).map_err(|error| error.to_string())
    }

    fn bmc(command: BmcCommand) -> Question {
        Question::Bmc { node: "edge-07".parse().unwrap(), command }
    }

    #[test]
    fn a_question_is_one_readable_line() {
        let approve = Order::Approve(Selection::Nodes(names(&["edge-8", "edge-07"])));
        let approve = Question::Order(approve);
        assert_eq!(encode(&approve).unwrap(), [LINE.as_bytes(), b"\n"].concat());
        assert_eq!(question(LINE), Ok(approve));
        for (line, meant) in [
            (r#"{"order":{"retry":"all"}}"#, Question::Order(Order::Retry(Selection::All))),
            (
                r#"{"show-boot":{"mac":"52:54:00:00:00:01","secrets":false}}"#,
                Question::ShowBoot { mac: "52:54:00:00:00:01".parse().unwrap(), secrets: false },
            ),
            (r#"{"bmc":{"node":"edge-07","command":"status"}}"#, bmc(BmcCommand::Status)),
            (
                r#"{"bmc":{"node":"edge-07","command":{"off":{"hard":true}}}}"#,
                bmc(BmcCommand::Off { hard: true }),
            ),
        ] {
            assert_eq!(question(&format!("{{\"version\":2,\"body\":{line}}}")), Ok(meant));
        }
    }

    #[test]
    fn an_error_is_one_line_whatever_the_agents_end_sends() {
        let line = serde_json::json!({ "version": 2, "body": "X\nFORGED\u{202e}" });
        let garbled = decode::<Question>(line.to_string().as_bytes()).unwrap_err().to_string();
        let said = crate::admin::AdminError::Refused("X\nFORGED\u{202e}".to_owned()).to_string();
        for text in [garbled, said] {
            assert!(!text.contains(['\n', '\u{202e}']), "{text}");
        }
    }

    #[test]
    fn a_message_that_is_not_exactly_a_question_is_refused() {
        for (line, why) in [
            ("", "not a message"),
            ("{}", "missing field `version`"),
            (r#"{"version":1,"body":{"wipe":"all"}}"#, "version 1 of the protocol"),
            (r#"{"version":2,"body":{"wipe":"all"}}"#, "unknown variant `wipe`"),
            (r#"{"version":2,"body":{"order":{"wipe":"all"}}}"#, "unknown variant `wipe`"),
            (r#"{"version":2,"body":{"order":{"approve":"some"}}}"#, "unknown variant `some`"),
            (r#"{"version":2,"body":{"order":{"approve":{"nodes":["../etc"]}}}}"#, "RFC 1123"),
            (r#"{"version":2,"body":{"show-boot":{"mac":"52:54","secrets":true}}}"#, "MAC"),
            (
                r#"{"version":2,"body":{"bmc":{"node":"a","command":"on","force":1}}}"#,
                "unknown field `force`",
            ),
            (
                r#"{"version":2,"body":{"order":{"approve":"all"}},"dry_run":true}"#,
                "unknown field `dry_run`",
            ),
            (r#"{"version":2,"body":{"order":{"approve":"all"}}} {}"#, "trailing characters"),
        ] {
            let error = question(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn an_answer_survives_the_wire_and_a_long_sentence_is_cut() {
        let answer = Answer::new("edge-07".parse().unwrap(), true, &"é".repeat(1000));
        assert_eq!(answer.message.chars().count(), 300);
        let answers: Result<Vec<Answer>, String> = Ok(vec![answer]);
        let line = encode(&answers).unwrap();
        assert_eq!(decode::<Result<Vec<Answer>, String>>(&line).unwrap(), answers);
    }

    #[tokio::test]
    async fn a_line_ends_within_its_limit_or_is_refused() {
        let read = async |bytes: &'static [u8]| read_line(bytes, 4).await;
        assert_eq!(read(b"abc\nmore").await.unwrap(), b"abc");
        assert!(matches!(read(b"abcd\n").await, Err(WireError::TooLong(4))));
        assert!(matches!(read(b"abc").await, Err(WireError::CutOff)));
        assert!(matches!(read(b"").await, Err(WireError::CutOff)));
    }

    proptest! {
        #[test]
        fn never_panics_on_any_bytes(bytes: Vec<u8>) {
            prop_assert!(decode::<Question>(&bytes).is_err());
        }

        #[test]
        fn a_damaged_order_names_no_node_that_was_not_there(
            at in 0..LINE.len(),
            bytes in "[\\PC\n\"'\\[\\]{}:,\u{0}]{0,8}",
        ) {
            let mut text = LINE.to_owned();
            text.replace_range(at..(at + bytes.len()).min(LINE.len()), &bytes);
            let Ok(Question::Order(Order::Approve(selection) | Order::Retry(selection))) =
                question(&text)
            else {
                return Ok(());
            };
            if let Selection::Nodes(nodes) = selection {
                for node in nodes {
                    prop_assert!(text.contains(&format!("\"{node}\"")), "{node} from {text}");
                }
            }
        }

        #[test]
        fn every_order_survives_the_wire(
            nodes in prop::collection::btree_set("[a-z0-9]{1,63}", 0..20),
            approve: bool,
        ) {
            let nodes = nodes.iter().map(|name| name.parse().unwrap()).collect();
            let selection = Selection::Nodes(nodes);
            let given = if approve { Order::Approve(selection) } else { Order::Retry(selection) };
            let given = Question::Order(given);
            prop_assert_eq!(decode::<Question>(&encode(&given).unwrap()).unwrap(), given);
        }
    }
}
