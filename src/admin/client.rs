//! The client's end of the admin socket: one question, one answer.
//!
//! Called by the commands. It must never wait longer than its limit, whatever the server does.

use std::{
    io::{self, ErrorKind},
    path::Path,
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{
    AdminError,
    wire::{ANSWER_BYTES_MAX, BMC_LIMIT, QUESTION_BYTES_MAX, WireError, decode, encode, read_line},
};
use crate::model::{
    admin::{Answer, BmcCommand, Fact, NicBoot, Order, Question},
    ids::{MacAddr, NodeName},
};

/// For the whole conversation: longer than the agent's own limits, so that its reason arrives.
const ANSWER_LIMIT: Duration = Duration::from_secs(25);
/// For a conversation that waits for a BMC command.
const BMC_ANSWER_LIMIT: Duration = BMC_LIMIT.saturating_add(Duration::from_secs(15));
/// Between two tries to connect while the agent's backlog is full: a Unix socket refuses at once.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Sends an order to the agent that listens at `path` and returns its answers, within 25 s.
pub async fn ask(path: &Path, order: &Order) -> Result<Vec<Answer>, AdminError> {
    converse(path, &Question::Order(order.clone()), ANSWER_LIMIT).await
}

/// Approves that machines of specs which appear from now on are new, and returns whether that
/// changes anything. Takes at most 25 s.
pub async fn approve_new_machines(path: &Path) -> Result<bool, AdminError> {
    converse(path, &Question::ApproveNewMachines, ANSWER_LIMIT).await
}

/// Returns the boot menus of a network interface, or `None` if no node has it. They include the
/// attempt's key only if `secrets`. Takes at most 25 s.
pub async fn show_boot(
    path: &Path,
    mac: MacAddr,
    secrets: bool,
) -> Result<Option<NicBoot>, AdminError> {
    converse(path, &Question::ShowBoot { mac, secrets }, ANSWER_LIMIT).await
}

/// Has a node's BMC perform a command, and waits for the end. The agent gives up after the node's
/// `timeouts.power`, and after 15 minutes at most.
pub async fn use_bmc(
    path: &Path,
    node: &NodeName,
    command: BmcCommand,
) -> Result<Vec<Fact>, AdminError> {
    converse(path, &Question::Bmc { node: node.clone(), command }, BMC_ANSWER_LIMIT).await
}

async fn converse<T: DeserializeOwned>(
    path: &Path,
    question: &Question,
    limit: Duration,
) -> Result<T, AdminError> {
    let garbled = |source| AdminError::Garbled { path: path.to_owned(), source };
    let question = encode(question).map_err(|error| garbled(error.into()))?;
    if question.len() > QUESTION_BYTES_MAX {
        return Err(AdminError::TooLong);
    }
    let mut is_connected = false;
    let conversation = async {
        let mut stream = connect(path).await?;
        is_connected = true;
        stream.write_all(&question).await?;
        read_line(stream, ANSWER_BYTES_MAX).await
    };
    let line = match timeout(limit, conversation).await {
        Ok(Ok(line)) => line,
        Ok(Err(WireError::Io(source))) => return Err(unreached(path, source)),
        Ok(Err(WireError::CutOff)) => return Err(AdminError::HungUp(path.to_owned())),
        Ok(Err(error)) => return Err(garbled(error)),
        Err(_) => {
            let limit_s = limit.as_secs();
            if !is_connected {
                return Err(AdminError::Busy { path: path.to_owned(), limit_s });
            }
            return Err(AdminError::Silent { path: path.to_owned(), limit_s });
        }
    };
    let answer: Result<T, String> = decode(&line).map_err(garbled)?;
    answer.map_err(AdminError::Refused)
}

/// Connects as soon as the agent's backlog has room.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(CONNECT_PAUSE).await,
            connected => return connected,
        }
    }
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
