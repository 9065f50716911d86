//! The application of the end-to-end tests' images: one program, its first argument says what it does.
//!
//! | argument | does |
//! |---|---|
//! | `echo` | answers every stream on vsock port 7000 with its own bytes, and ends each side as the peer does |
//! | `nsm` | answers connections on TCP port 5000 with what AWS's NSM crate sees, as one line of JSON |
//! | `dial PORT BYTES STREAMS` | sends a pattern to the parent on as many streams and checks what returns |
//! | `facts` | answers connections on TCP port 5000 with user, folder, arguments, environment, clock |
//! | `exit STATUS` | waits for a connection on TCP port 5000, then ends with this status |
//! | `abort` | the same, then ends by a signal |
//! | `wait` | does nothing |

mod echo;
mod facts;
mod nsm;
mod pattern;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

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
        ["nsm"] => answer(nsm::observe)?,
        ["facts"] => answer(facts::observe)?,
        ["dial", port, bytes, streams] => {
            echo::dial(port.parse()?, bytes.parse()?, streams.parse()?)?;
        }
        ["exit", status] => {
            listen()?.accept()?;
            return Ok(ExitCode::from(status.parse::<u8>()?));
        }
        ["abort"] => {
            listen()?.accept()?;
            std::process::abort();
        }
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

/// Answers each connection with one observation.
fn answer(observe: fn() -> Result<serde_json::Value>) -> Result<()> {
    for stream in listen()?.incoming() {
        let observed =
            observe().unwrap_or_else(|error| serde_json::json!({ "error": format!("{error:#}") }));
        // A peer that left early is its own business: the next one gets its answer.
        let _ = writeln!(stream?, "{observed}");
        println!("e2e-guest: answered");
    }
    Ok(())
}
