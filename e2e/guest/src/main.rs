//! The application of the end-to-end tests' images: one program, its first argument says what it does.
//!
//! | argument | does |
//! |---|---|
//! | `echo` | answers every stream on vsock port 7000 with its own bytes, and ends each side as the peer does |
//! | `nsm` | answers connections on TCP port 5000 with what AWS's NSM crate saw at the start, as one line of JSON |
//! | `dial PORT BYTES STREAMS` | sends a pattern to the parent on as many streams and checks what returns |
//! | `facts` | answers connections on TCP port 5000 with user, folder, arguments, environment, clock |
//! | `exit STATUS` | waits for a byte on TCP port 5000, then ends with this status |
//! | `abort` | the same, then ends by a signal |
//! | `stop SIGNAL STATUS` | answers connections on TCP port 5000 with one word; ends with this status when this signal comes |
//! | `stubborn SIGNAL` | the same, but lives on |
//! | `forge STATUS` | prints a line that looks like one of the hypervisor's and steers terminals; ends as `exit` does |
//! | `wait` | does nothing |

mod echo;
mod facts;
mod nsm;
mod pattern;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// The ingress port of every test image.
const PORT: u16 = 5000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("e2e-guest: {error:#}");
            ExitCode::from(101)
        }
    }
}

fn run(words: &[&str]) -> Result<ExitCode> {
    println!("e2e-guest: {}", words.join(" "));
    match *words {
        ["echo"] => echo::serve()?,
        ["nsm"] => {
            let seen = observation(nsm::observe());
            answer(|| Ok(seen.clone()))?;
        }
        ["facts"] => answer(facts::observe)?,
        ["dial", port, bytes, streams] => {
            echo::dial(port.parse()?, bytes.parse()?, streams.parse()?)?;
        }
        ["exit", status] => {
            until_a_byte_arrives()?;
            return Ok(ExitCode::from(status.parse::<u8>()?));
        }
        ["forge", status] => {
            eprintln!("info: ended: \u{1b}[2Jforged");
            until_a_byte_arrives()?;
            println!("e2e-guest: the last word");
            return Ok(ExitCode::from(status.parse::<u8>()?));
        }
        ["abort"] => {
            until_a_byte_arrives()?;
            std::process::abort();
        }
        ["stop", signal, status] => {
            until_signalled(signal.parse()?)?;
            return Ok(ExitCode::from(status.parse::<u8>()?));
        }
        ["stubborn", signal] => loop {
            until_signalled(signal.parse()?)?;
        },
        ["wait"] => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        _ => bail!("unknown arguments {words:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn listen() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).context("cannot listen")
}

/// A connection alone says nothing: whoever looks whether the application is ready makes one too.
fn until_a_byte_arrives() -> Result<()> {
    for stream in listen()?.incoming() {
        if stream?.read(&mut [0]).is_ok_and(|len| len > 0) {
            break;
        }
    }
    Ok(())
}

/// Says on every connection that it takes the signal, until that comes.
fn until_signalled(signal: i32) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal])?;
    std::thread::spawn(|| answer(|| Ok(json!("ready"))));
    signals.forever().next().context("no signal came")?;
    println!("e2e-guest: signal {signal}");
    Ok(())
}

fn observation(observed: Result<Value>) -> Value {
    observed.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }))
}

/// Answers each connection with one observation.
fn answer(observe: impl Fn() -> Result<Value>) -> Result<()> {
    for stream in listen()?.incoming() {
        let observed = observation(observe());
        // A peer that left early is its own business: the next one gets its answer.
        let _ = writeln!(stream?, "{observed}");
        println!("e2e-guest: answered");
    }
    Ok(())
}
