//! The operator's end: one order, one answer.
//!
//! Called by the commands. It must never wait longer than its limit, whatever is at the other end.

use std::{
    io::{self, ErrorKind},
    path::Path,
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, net::UnixStream, time::timeout};

use super::{
    AdminError,
    wire::{ANSWER_BYTES_MAX, ORDER_BYTES_MAX, WireError, decode, encode, read_line},
};
use crate::model::admin::{Answer, Order};

/// For the whole conversation: longer than the agent takes to give up, so that its reason is heard.
const ANSWER_LIMIT: Duration = Duration::from_secs(25);

/// Gives the order to the agent that listens at `path`, and waits for its answers, at most 25 s.
pub async fn ask(path: &Path, order: &Order) -> Result<Vec<Answer>, AdminError> {
    let garbled = |source| AdminError::Garbled { path: path.to_owned(), source };
    let order = encode(order).map_err(|error| garbled(error.into()))?;
    if order.len() > ORDER_BYTES_MAX {
        return Err(AdminError::TooLong);
    }
    let conversation = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(&order).await?;
        read_line(stream, ANSWER_BYTES_MAX).await
    };
    let line = match timeout(ANSWER_LIMIT, conversation).await {
        Ok(Ok(line)) => line,
        Ok(Err(WireError::Io(source))) => return Err(unreached(path, source)),
        Ok(Err(WireError::CutOff)) => return Err(AdminError::HungUp(path.to_owned())),
        Ok(Err(error)) => return Err(garbled(error)),
        Err(_) => {
            let limit_s = ANSWER_LIMIT.as_secs();
            return Err(AdminError::Silent { path: path.to_owned(), limit_s });
        }
    };
    let answer: Result<Vec<Answer>, String> = decode(&line).map_err(garbled)?;
    answer.map_err(AdminError::Refused)
}

fn unreached(path: &Path, source: io::Error) -> AdminError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => AdminError::NoAgent(path),
        ErrorKind::PermissionDenied => AdminError::Denied(path),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => AdminError::HungUp(path),
        _ => AdminError::Socket { path, source },
    }
}
