//! `describe-enclaves`.

use super::args::DescribeEnclaves;
use super::output::Described;
use crate::daemon::enclaves;
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
