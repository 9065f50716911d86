//! `explain`: what a code means, why it appears, what to do. On stderr, as nitro-cli has it.

use super::args::Explain;
use crate::codes::Code;
use crate::failure::{Failure, Outcome};
use crate::term;

pub(super) fn run(args: &Explain) -> Outcome {
    let code = Code::parse(&args.error_code).ok_or_else(|| {
        let text = format!("`{}` is not an error code: E00 to E60 are", args.error_code);
        Failure::aws_text(Code::INVALID_ARGUMENT, text)
    })?;
    let entry = code.entry();
    term::note(format_args!(
        "{code} {}\n\n{}\n\nWhy: {}\nWhat to do: {}\nExit status: {}",
        entry.name,
        entry.meaning,
        entry.cause,
        entry.cure,
        code.exit_status()
    ));
    Ok(())
}
