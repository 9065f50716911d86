//! `build-enclave`.

use serde_json::json;

use super::args::BuildEnclave;
use super::output::Measured;
use crate::failure::Outcome;
use crate::image::{self, Wanted};
use crate::term;

pub(super) fn run(args: BuildEnclave) -> Outcome {
    term::note("Start building the Enclave Image...");
    let wanted = Wanted {
        source: args.docker_uri,
        dockerfile: args.docker_dir,
        config: args.enclos_config,
        name: args.name,
        version: args.version,
        metadata: args.metadata,
        allow_tag: args.allow_tag,
        ..Wanted::default()
    };
    let built = image::build(&wanted, &args.signing, &args.output_file)?;
    for warning in &built.warnings {
        term::note(format_args!("warning: {warning}"));
    }
    term::note("Enclave Image successfully created.");
    term::json(&json!({ "Measurements": Measured::from(&built.measurements) }))
}
