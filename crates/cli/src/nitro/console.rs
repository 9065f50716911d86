//! `console`: the enclave's serial output, until it ends, the time is up or the reader goes away.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use enclos_api::control::{Enclave, Selector};

use super::args::Console;
use crate::codes::Code;
use crate::daemon::{self, enclaves};
use crate::failure::{Failure, Outcome};
use crate::term;

pub(super) fn run(args: Console) -> Outcome {
    let enclave = find(&args.which.selector())?;
    attach(&enclave, args.disconnect_timeout.map(Duration::from_secs))
}

/// Follows the console of `enclave`, at most for `limit`.
pub(super) fn attach(enclave: &Enclave, limit: Option<Duration>) -> Outcome {
    term::out(&format!(
        "Connecting to the console for enclave {}...\n",
        enclave.cid
    ))?;
    let stream = daemon::console(Selector::Id(enclave.id.clone()))?;
    term::out("Successfully connected to the console.\n")?;
    // A limit beyond what clocks count is none.
    copy(
        stream,
        limit.and_then(|limit| Instant::now().checked_add(limit)),
    )
}

fn find(selector: &Selector) -> Outcome<Enclave> {
    let is_it = |enclave: &Enclave| match selector {
        Selector::Id(id) => enclave.id == *id,
        Selector::Name(name) => enclave.name == *name,
    };
    let (code, wanted) = match selector {
        Selector::Id(id) => (Code::NO_SUCH_ENCLAVE, id),
        Selector::Name(name) => (Code::NAMING, name),
    };
    enclaves()?.into_iter().find(is_it).ok_or_else(|| {
        Failure::aws_text(code, format_args!("there is no enclave `{wanted}`"))
            .hint("`enclos describe-enclaves` lists those that run")
    })
}

fn copy(mut stream: UnixStream, deadline: Option<Instant>) -> Outcome {
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
        stream.set_read_timeout(left)?;
        let len = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) if is_pause(&error) => continue,
            Err(error) => {
                let error = anyhow::Error::new(error).context("cannot read the console");
                return Err(Failure::aws(Code::CONSOLE_READ, error));
            }
        };
        if !write(&buffer[..len])? {
            return Ok(());
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut
    )
}

/// False when nobody reads any more.
fn write(bytes: &[u8]) -> Outcome<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            let error = anyhow::Error::new(error).context("cannot write the console's output");
            Err(Failure::aws(Code::CONSOLE_WRITE, error))
        }
    }
}
