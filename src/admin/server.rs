//! The agent's end: the socket, and a short conversation with everybody who connects.
//!
//! Started by the agent. Every step of a conversation has a time limit: a client that says nothing,
//! or too much, costs a few kilobytes for a few seconds. When the socket has no room left, the
//! oldest conversation that has not asked anything is evicted.

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
    AdminError, AdminReply, AdminRequest, Peer,
    wire::{BMC_LIMIT, QUESTION_BYTES_MAX, WireError, decode, encode, read_line},
};
use crate::{
    listener::{Admission, ConnectionLimits, ConnectionPermit, Listener, LocalClients, WhenFull},
    model::admin::Question,
};

/// Owner and group may give orders. Connecting takes the right to write (unix(7)).
const SOCKET_MODE: u32 = 0o660;
const DIR_MODE: u32 = 0o750;
/// Conversations at once. A site has a handful of operators; when all of these have asked
/// something, the next ones wait in the backlog.
const CONNECTIONS_MAX: usize = 32;
const BACKLOG: u32 = 64;
/// For the question to arrive: it is sent in one go.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// For the driver: it may be writing ten thousand records to a slow disk.
const DRIVER_LIMIT: Duration = Duration::from_secs(10);
/// Between two checks whether an operator went away while the answer is awaited.
const HANGUP_POLL: Duration = Duration::from_millis(500);
/// For the answer to be taken.
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
    /// Binds a socket of mode 0660 at `path`, in a directory that is made if need be. A killed
    /// agent's socket is replaced; a living agent's, or a file of another kind, is not.
    pub async fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Socket { path: path.to_owned(), source };
        if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
            make_dir(dir).map_err(failed)?;
        }
        clear(path).await?;
        let listener = listen(path).map_err(failed)?;
        Ok(Self { listener, _file: SocketFile(path.to_owned()) })
    }

    /// Serves until `ended`, handing each question to the driver behind `requests`. Conversations
    /// under way are cut at the end.
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

/// A directory that the group may enter whatever the umask is.
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
            // Somebody listens who has no time at the moment.
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(failed(error)),
            _ => Err(AdminError::InUse(path.to_owned())),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // Linux gives the file the socket's own mode less the umask, so that it is never open to more
    // than it should be.
    fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    socket.bind(path)?;
    // And not to less either.
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG)
}

/// Reads one question and answers it.
async fn converse(
    mut stream: UnixStream,
    requests: mpsc::Sender<AdminRequest>,
    permit: ConnectionPermit<LocalClients>,
) {
    let who = match stream.peer_cred() {
        Ok(peer) => {
            let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
            Peer { uid: peer.uid(), pid }
        }
        Err(error) => return warn!(%error, "an operator cannot be identified, and is ignored"),
    };
    let (uid, pid) = (who.uid, who.pid);
    let arriving = timeout(READ_LIMIT, read_line(&mut stream, QUESTION_BYTES_MAX));
    let Ok(line) = arriving.await else {
        return debug!(uid, pid, "admin connection says nothing");
    };
    // An operator's command asks in the moment it connects: silence keeps none of them out.
    permit.protect();
    let answer = match line.and_then(|line| decode(&line)) {
        Ok(_) if has_hung_up(&stream) => return debug!(uid, pid, "an operator went away"),
        // Dropping the answer tells the driver that nobody waits for it.
        Ok(question) => tokio::select! {
            answer = answer(question, who, &requests) => answer,
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

/// Returns when the other end is closed. The kernel's own notice would come for one that only has
/// no more to say, too, again and again.
async fn hung_up(stream: &UnixStream) {
    while !has_hung_up(stream) {
        sleep(HANGUP_POLL).await;
    }
}

/// Whether the other end is closed. It may have given up long ago, if this process was stopped or
/// starved meanwhile.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut ends = [PollFd::new(stream, PollFlags::empty())];
    let polled = poll(&mut ends, Some(&Timespec::default()));
    polled.is_err() || ends.iter().any(|end| end.revents().contains(PollFlags::HUP))
}

/// Has the driver answer, and returns that as a line.
async fn answer(
    question: Question,
    who: Peer,
    requests: &mpsc::Sender<AdminRequest>,
) -> Result<Vec<u8>, serde_json::Error> {
    let limit = if matches!(question, Question::Bmc { .. }) { BMC_LIMIT } else { DRIVER_LIMIT };
    let (reply, line) = oneshot::channel();
    let request = AdminRequest { question, who, reply: AdminReply(reply) };
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
