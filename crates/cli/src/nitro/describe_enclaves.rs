//! `describe-enclaves`.

use enclos_api::control::{Enclave, Request, Success};

use super::args::DescribeEnclaves;
use super::output::Described;
use crate::daemon;
use crate::failure::Outcome;
use crate::term;

pub(super) fn run(args: &DescribeEnclaves) -> Outcome {
    let described = enclaves()?;
    let described: Vec<_> = described
        .iter()
        .map(|enclave| Described::new(enclave, args.metadata))
        .collect();
    term::json(&described)
}

/// The enclaves that the caller may see.
pub(crate) fn enclaves() -> Outcome<Vec<Enclave>> {
    match daemon::hypervisor(&Request::Describe)? {
        Success::Enclaves(enclaves) => Ok(enclaves),
        other => Err(daemon::unexpected(&other)),
    }
}
