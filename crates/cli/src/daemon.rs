//! Speaking to `enclos-hypervisor` and `enclos-gateway` over their control sockets.
//!
//! One request per connection. Every failure says which socket was tried and how the daemon behind it is
//! started.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enclos_api::frame::{self, FrameError};
use enclos_api::{control, gateway};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codes::Code;
use crate::dirs;
use crate::failure::{Failure, Outcome};

/// How long a daemon may take for an answer that needs no waiting.
const PROMPT: Duration = Duration::from_secs(30);

/// How long starting may take: above the hypervisor's own boot timeout (three minutes and more for large images), which
/// ends with a better message than ours.
const START: Duration = Duration::from_secs(1800);

/// How long stopping may take.
const STOP: Duration = Duration::from_secs(120);

/// Sends a request to the hypervisor and waits for its answer.
pub(crate) fn hypervisor(request: &control::Request) -> Outcome<control::Success> {
    let (mut stream, socket) = ask(request)?;
    read_success(&mut stream, &socket)
}

/// Sends a request to the hypervisor: the connection that it answers on, and the socket's path for what goes wrong.
fn ask(request: &control::Request) -> Outcome<(UnixStream, PathBuf)> {
    let socket = hypervisor_socket()?;
    let mut stream = connect(&socket, "enclos-hypervisor")?;
    stream.set_read_timeout(patience(request))?;
    frame::write(&mut stream, request).map_err(|error| lost(&socket, error))?;
    Ok((stream, socket))
}

/// The enclaves that the caller may see.
pub(crate) fn enclaves() -> Outcome<Vec<control::Enclave>> {
    let (mut stream, socket) = ask(&control::Request::Describe)?;
    let mut list = control::Enclaves::default();
    loop {
        let answer = list.take(read_success(&mut stream, &socket)?);
        if let Some(all) = answer.map_err(|other| unexpected(&other))? {
            return Ok(all);
        }
    }
}

/// Starts an enclave from an open image.
pub(crate) fn run(
    request: control::RunRequest,
    image: &std::fs::File,
) -> Outcome<control::Success> {
    let socket = hypervisor_socket()?;
    let mut stream = connect(&socket, "enclos-hypervisor")?;
    stream.set_read_timeout(Some(START))?;
    let bytes =
        frame::encode(&control::Request::Run(request)).map_err(|error| lost(&socket, error))?;
    send_with_fd(&mut stream, &bytes, image.as_fd())
        .map_err(|error| lost(&socket, error.into()))?;
    read_success(&mut stream, &socket)
}

/// Attaches to a console; what follows on the stream are its bytes.
pub(crate) fn console(enclave: control::Selector) -> Outcome<UnixStream> {
    let (mut stream, socket) = ask(&control::Request::Console { enclave })?;
    match read_success(&mut stream, &socket)? {
        control::Success::Streaming => Ok(stream),
        other => Err(unexpected(&other)),
    }
}

/// Sends a request to the gateway and waits for its answer.
pub(crate) fn gateway(request: &gateway::Request) -> Outcome<Vec<gateway::Publication>> {
    let socket = gateway_socket()?;
    let mut stream = connect(&socket, "enclos-gateway")?;
    stream.set_read_timeout(Some(PROMPT))?;
    frame::write(&mut stream, request).map_err(|error| lost(&socket, error))?;
    match read(&mut stream, &socket)? {
        gateway::Reply::Ok(publications) => Ok(publications),
        gateway::Reply::Error(failure) => Err(refused(failure)),
    }
}

/// The hypervisor's control socket.
pub(crate) fn hypervisor_socket() -> Outcome<PathBuf> {
    Ok(dirs::run()?.join(control::SOCKET_NAME))
}

/// The gateway's control socket.
pub(crate) fn gateway_socket() -> Outcome<PathBuf> {
    Ok(dirs::run()?.join(gateway::SOCKET_NAME))
}

/// An answer of another kind than the request asks for.
pub(crate) fn unexpected(success: &control::Success) -> Failure {
    let text = serde_json::to_string(success).unwrap_or_default();
    let shown: String = text.chars().take(80).collect();
    Failure::aws_text(
        Code::DAEMON_ANSWER,
        format_args!("the hypervisor answered something else: {shown}"),
    )
    .hint("command and daemon are of different versions; restart: `enclos down && enclos up`")
}

fn patience(request: &control::Request) -> Option<Duration> {
    match request {
        control::Request::Wait { .. } | control::Request::Watch => None,
        control::Request::Terminate { grace_s, .. } => {
            Some(STOP + Duration::from_secs((*grace_s).into()))
        }
        _ => Some(PROMPT),
    }
}

fn connect(socket: &Path, daemon: &str) -> Outcome<UnixStream> {
    UnixStream::connect(socket).map_err(|error| unreachable(socket, daemon, error))
}

fn unreachable(socket: &Path, daemon: &str, error: io::Error) -> Failure {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => format!(
            "the socket belongs to another user: run this command as the user that runs {daemon}, or as root"
        ),
        _ => format!(
            "start it with `enclos up`; if {daemon} runs already, set ENCLOS_RUN_DIR to its run directory"
        ),
    };
    let text = format!("cannot reach {daemon} at {}", socket.display());
    Failure::aws(
        Code::DAEMON_CONNECTION,
        anyhow::Error::new(error).context(text),
    )
    .hint(hint)
}

fn read_success(stream: &mut UnixStream, socket: &Path) -> Outcome<control::Success> {
    match read(stream, socket)? {
        control::Reply::Ok(success) => Ok(success),
        control::Reply::Error(failure) => Err(refused(failure)),
    }
}

fn read<T: DeserializeOwned>(stream: &mut UnixStream, socket: &Path) -> Outcome<T> {
    frame::read(stream).map_err(|error| lost(socket, error))
}

fn refused(failure: control::Failure) -> Failure {
    Failure::aws(Code::from_wire(failure.code), failure)
}

/// The conversation broke off.
fn lost(socket: &Path, error: FrameError) -> Failure {
    let (code, text) = match &error {
        FrameError::Io(cause)
            if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
        {
            (Code::DAEMON_ANSWER, "no answer in time from")
        }
        FrameError::Json(_) | FrameError::TooLarge { .. } => {
            (Code::SERDE, "cannot understand the answer from")
        }
        _ => (Code::DAEMON_ANSWER, "lost the connection to"),
    };
    Failure::aws(
        code,
        anyhow::Error::new(error).context(format!("{text} {}", socket.display())),
    )
    .hint("`enclos status` says whether the daemon still runs and where its log is")
}

/// Sends bytes with a file descriptor attached to the first of them (`SCM_RIGHTS`).
fn send_with_fd(stream: &mut UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other(
            "no room for the file descriptor in the control message",
        ));
    }
    let sent = sendmsg(
        &stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    stream.write_all(&bytes[sent..])
}

/// Whether a daemon answers at its socket.
pub(crate) fn answers<T: Serialize, R: DeserializeOwned>(socket: &Path, question: &T) -> Option<R> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    frame::write(&mut stream, question).ok()?;
    frame::read(&mut stream).ok()
}
