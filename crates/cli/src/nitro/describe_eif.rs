//! `describe-eif`: what an image is, as AWS prints it, and on stderr everything that is wrong with it.

use std::fs::File;
use std::io::BufReader;

use enclos_api::error::chain;

use super::args::DescribeEif;
use super::output::DescribedEif;
use crate::codes::Code;
use crate::failure::{Failure, Outcome};
use crate::term;

pub(super) fn run(args: &DescribeEif) -> Outcome {
    let path = &args.eif_path;
    let file = File::open(path)
        .map_err(|error| Failure::file(Some(Code::EIF_PARSING), "open", path, error))?;
    let report = enclos_eif::inspect(&mut BufReader::new(file)).map_err(|error| {
        Failure::aws(
            Code::EIF_PARSING,
            anyhow::Error::new(error).context(format!("cannot describe {}", path.display())),
        )
        .hint("an image that was cut off or damaged on the way must be copied or built again")
    })?;
    for finding in &report.findings {
        term::note(format_args!(
            "warning: {}; this image will not be run",
            chain(finding)
        ));
    }
    let setting = report
        .configuration
        .as_ref()
        .and_then(|configuration| configuration.pointer("/process/log_to_host"));
    if setting.and_then(serde_json::Value::as_bool) == Some(true) {
        term::note(
            "note: the host can read what this image's application prints, in production too (app.log_to_host, measured)",
        );
    }
    term::json(&DescribedEif::from(report))
}
