//! vsock streams, served and dialled.

use std::io::{self, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use crate::pattern::Pattern;

/// The parent, as on Nitro.
const PARENT_CID: u32 = 3;

const ECHO_PORT: u32 = 7000;

/// Answers every stream with its own bytes until the peer has shut down its side, then shuts down this one.
pub(crate) fn serve() -> Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, ECHO_PORT)?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || echo(&stream))?;
    }
    Ok(())
}

fn echo(stream: &VsockStream) -> io::Result<u64> {
    let copied = io::copy(&mut &*stream, &mut &*stream)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(copied)
}

/// Sends `bytes` on each of `streams` to the parent's port, shuts its side down and expects the same back.
pub(crate) fn dial(port: u32, bytes: usize, streams: u64) -> Result<()> {
    let threads: Vec<_> = (0..streams)
        .map(|number| thread::spawn(move || dial_one(port, bytes, number)))
        .collect();
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow!("a stream's thread panicked"))??;
    }
    println!("e2e-guest: {streams} streams of {bytes} bytes came back whole");
    Ok(())
}

fn dial_one(port: u32, bytes: usize, number: u64) -> Result<()> {
    let context = || format!("stream {number}");
    let stream = connect(port).with_context(context)?;
    let writer = stream.try_clone()?;
    let sender = thread::spawn(move || -> Result<()> {
        Pattern::new(number).write(&mut &writer, bytes)?;
        (&writer).flush()?;
        Ok(writer.shutdown(Shutdown::Write)?)
    });
    Pattern::new(number)
        .expect(&mut &stream, bytes)
        .with_context(context)?;
    sender
        .join()
        .map_err(|_| anyhow!("the sender panicked"))?
        .with_context(context)
}

/// The parent may begin to listen after this program has started.
fn connect(port: u32) -> std::io::Result<VsockStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match VsockStream::connect_with_cid_port(PARENT_CID, port) {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
            outcome => return outcome,
        }
    }
}
