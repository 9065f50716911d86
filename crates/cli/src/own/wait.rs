//! `enclos wait`: how an enclave ended.

use clap::Args;
use enclos_api::control::{Exit, Request, Success};
use serde::Serialize;

use crate::daemon;
use crate::failure::Outcome;
use crate::nitro::Which;
use crate::term;

/// Options of `wait`.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    which: Which,
}

/// In the style of nitro-cli's JSON, which has no such command.
#[derive(Debug, Serialize)]
struct Ended {
    #[serde(rename = "EnclaveName")]
    name: String,
    #[serde(rename = "EnclaveID")]
    id: String,
    #[serde(rename = "ExitStatus")]
    status: Option<i32>,
    #[serde(rename = "Signal")]
    signal: Option<i32>,
    #[serde(rename = "Reason")]
    reason: String,
}

pub(super) fn run(args: Wait) -> Outcome {
    match daemon::hypervisor(&Request::Wait {
        enclave: args.which.selector(),
    })? {
        Success::Exited(Exit {
            id,
            name,
            status,
            signal,
            reason,
        }) => term::json(&Ended {
            name,
            id,
            status,
            signal,
            reason,
        }),
        other => Err(daemon::unexpected(&other)),
    }
}
