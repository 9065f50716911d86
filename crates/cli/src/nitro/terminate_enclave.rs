//! `terminate-enclave`.

use enclos_api::control::{Request, Selector, Success};

use super::args::{TerminateEnclave, Which};
use super::output::Terminated;
use crate::daemon::{self, enclaves};
use crate::failure::Outcome;
use crate::term;

pub(super) fn run(args: TerminateEnclave) -> Outcome {
    if args.all {
        return all(args.grace);
    }
    let which = Which {
        enclave_id: args.enclave_id,
        enclave_name: args.enclave_name,
    };
    term::json(&terminate(which.selector(), args.grace)?)
}

/// Stops every enclave it can. What was stopped is printed even if one could not be; the first failure is
/// the command's.
fn all(grace_s: u32) -> Outcome {
    let (mut stopped, mut failed) = (Vec::new(), None);
    for enclave in enclaves()? {
        match terminate(Selector::Id(enclave.id.clone()), grace_s) {
            Ok(terminated) => stopped.push(terminated),
            Err(failure) => {
                failed.get_or_insert_with(|| {
                    failure.context(format_args!("cannot stop {}", enclave.id))
                });
            }
        }
    }
    term::json(&stopped)?;
    failed.map_or(Ok(()), Err)
}

fn terminate(enclave: Selector, grace_s: u32) -> Outcome<Terminated> {
    match daemon::hypervisor(&Request::Terminate { enclave, grace_s })? {
        Success::Terminated { id, name } => {
            term::note(format_args!("Successfully terminated enclave {id}."));
            Ok(Terminated {
                name,
                id,
                terminated: true,
            })
        }
        other => Err(daemon::unexpected(&other)),
    }
}
