//! The agent's end of the admin socket: one short conversation with each client.
//!
//! Started by the agent. Every step of a conversation has a time limit: a client that sends
//! nothing, or too much, costs a few kilobytes for a few seconds. A full socket evicts the oldest
//! client that has not asked anything.

use std::{
    fs::{self, DirBuilder, Permissions},
    future::Future,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, fchmod},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixListener, UnixSocket, UnixStream},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    AdminError, AdminPeer, AdminReply, AdminRequest,
    wire::{BMC_LIMIT, QUESTION_BYTES_MAX, WireError, decode, encode, read_line},
};
use crate::{
    listener::{Admission, ConnectionLimits, ConnectionPermit, Listener, LocalClients, WhenFull},
    model::admin::Question,
};

/// Owner and group may give orders. Connecting takes the right to write (unix(7)).
const SOCKET_MODE: u32 = 0o660;
const DIR_MODE: u32 = 0o750;
/// Conversations at once. A site has a handful of operators; when all conversations await an
/// answer, the next clients wait in the backlog.
const CONNECTIONS_MAX: usize = 32;
const BACKLOG: u32 = 64;
/// For the question to arrive: clients send it at once.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// For the driver's answer: the driver may be writing ten thousand records to a slow disk.
const DRIVER_LIMIT: Duration = Duration::from_secs(10);
/// Between two checks whether a client has hung up while it waits for the answer.
const HANGUP_POLL: Duration = Duration::from_millis(500);
/// For the client to read the answer.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// A bound socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    _file: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            debug!(path = %self.0.display(), %error, "the admin socket cannot be removed");
        }
    }
}

impl Server {
    /// Binds a socket of mode 0660 at `path`, and makes its directory if need be. Replaces a killed
    /// agent's socket, but neither a living agent's nor any other file.
    pub async fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Socket { path: path.to_owned(), source };
        if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
            make_dir(dir).map_err(failed)?;
        }
        clear(path).await?;
        let listener = listen(path).map_err(failed)?;
        Ok(Self { listener, _file: SocketFile(path.to_owned()) })
    }

    /// Serves until `ended`, and sends each question to the driver by `requests`. Cuts open
    /// conversations at the end.
    pub async fn serve(
        self,
        requests: mpsc::Sender<AdminRequest>,
        ended: impl Future<Output = ()>,
    ) {
        let Self { listener: socket, _file } = self;
        let max = CONNECTIONS_MAX;
        let admission = Admission::new(ConnectionLimits { max, per_peer_max: max, rate: None });
        let listener = Listener { name: "admin", socket, admission, when_full: WhenFull::Wait };
        let connection = |stream, permit| converse(stream, requests.clone(), permit);
        listener.serve(ended, connection).await;
    }
}

/// Makes a directory that the group may enter, whatever the umask is.
fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))
}

/// Removes the socket of a killed agent.
async fn clear(path: &Path) -> Result<(), AdminError> {
    let failed = |source| AdminError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(AdminError::NotASocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)
            }
            // `WouldBlock`: an agent listens, and its backlog is full.
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(failed(error)),
            _ => Err(AdminError::InUse(path.to_owned())),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // Linux gives the file the socket's own mode less the umask: it never has more permissions.
    fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    socket.bind(path)?;
    // The umask may have taken permissions away.
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG)
}

/// Reads one question and answers it.
async fn converse(
    mut stream: UnixStream,
    requests: mpsc::Sender<AdminRequest>,
    permit: ConnectionPermit<LocalClients>,
) {
    let peer = match stream.peer_cred() {
        Ok(process) => {
            let pid = process.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
            AdminPeer { uid: process.uid(), pid }
        }
        Err(error) => return warn!(%error, "an operator cannot be identified, and is ignored"),
    };
    let (uid, pid) = (peer.uid, peer.pid);
    let arriving = timeout(READ_LIMIT, read_line(&mut stream, QUESTION_BYTES_MAX));
    let Ok(line) = arriving.await else {
        return debug!(uid, pid, "admin connection says nothing");
    };
    // Commands send their question with the connection, so that only silent clients are evicted.
    permit.protect();
    let answer = match line.and_then(|line| decode(&line)) {
        Ok(_) if has_hung_up(&stream) => return debug!(uid, pid, "an operator went away"),
        // Dropping the answer tells the driver that nobody waits for it.
        Ok(question) => tokio::select! {
            answer = answer(question, peer, &requests) => answer,
            () = hung_up(&stream) => return debug!(uid, pid, "an operator went away"),
        },
        Err(WireError::Io(error)) => return debug!(uid, pid, %error, "admin connection failed"),
        Err(error) => {
            debug!(uid, pid, "admin connection asks nothing");
            encode(&Err::<(), _>(error.to_string()))
        }
    };
    let sent = async { stream.write_all(&answer?).await };
    match timeout(WRITE_LIMIT, sent).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(uid, pid, %error, "an operator went away before the answer"),
        Err(_) => debug!(uid, pid, "an operator does not take the answer"),
    }
}

/// Returns when the client has closed the connection. This polls, because the kernel's own event
/// also fires, again and again, for a client that has only shut down its sending half.
async fn hung_up(stream: &UnixStream) {
    while !has_hung_up(stream) {
        sleep(HANGUP_POLL).await;
    }
}

/// Whether the client has closed the connection, perhaps long ago if this process was stopped.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut ends = [PollFd::new(stream, PollFlags::empty())];
    let polled = poll(&mut ends, Some(&Timespec::default()));
    polled.is_err() || ends.iter().any(|end| end.revents().contains(PollFlags::HUP))
}

/// Returns the driver's answer as a line.
async fn answer(
    question: Question,
    peer: AdminPeer,
    requests: &mpsc::Sender<AdminRequest>,
) -> Result<Vec<u8>, serde_json::Error> {
    let limit = if matches!(question, Question::Bmc { .. }) { BMC_LIMIT } else { DRIVER_LIMIT };
    let (reply, line) = oneshot::channel();
    let request = AdminRequest { question, peer, reply: AdminReply(reply) };
    let answered = timeout(limit, async {
        requests.send(request).await.ok()?;
        line.await.ok()
    });
    let why = match answered.await {
        Ok(Some(line)) => return line,
        Ok(None) => "it is stopping".to_owned(),
        Err(_) => format!(
            "it is not done after {} s; `hostler status` shows how far it came",
            limit.as_secs()
        ),
    };
    encode(&Err::<(), _>(why))
}
