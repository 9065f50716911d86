//! The demo's text.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the terminal's side"
)]

use std::io::IsTerminal;
use std::time::Duration;

use enclos_api::control::{BootTimes, Measurements};
use enclos_e2e::stack::{Enclave, Stack};
use enclos_e2e::stories::Refusal;

/// Lines for the reader: printed at once, or kept until another part has been told.
#[derive(Debug)]
pub(crate) struct Page {
    live: bool,
    colour: bool,
    kept: Vec<String>,
}

impl Page {
    /// Prints each line as it is written.
    pub(crate) fn live() -> Self {
        Self::new(true)
    }

    /// Keeps the lines for [`Self::append`].
    pub(crate) fn kept() -> Self {
        Self::new(false)
    }

    fn new(live: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            live,
            colour,
            kept: Vec::new(),
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        other.kept.into_iter().for_each(|line| self.line(line));
    }

    fn line(&mut self, line: String) {
        if self.live {
            println!("{line}")
        } else {
            self.kept.push(line)
        }
    }

    fn painted(&self, colour: u8, text: &str) -> String {
        if self.colour {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn heading(&mut self, title: &str) {
        let title = self.painted(1, &format!("\n== {title}"));
        self.line(title);
    }

    /// A fact: a name and its value.
    pub(crate) fn fact(&mut self, name: &str, value: impl AsRef<str>) {
        self.line(format!("   {name:<18} {}", value.as_ref()));
    }

    /// Something that worked as it must.
    pub(crate) fn good(&mut self, text: &str) {
        let mark = self.painted(32, "✓");
        self.line(format!(" {mark} {text}"));
    }

    pub(crate) fn installation(&mut self, stack: &Stack) {
        self.fact("host's role", enclos_e2e::stack::ROLE);
        self.fact("host's instance", enclos_e2e::stack::INSTANCE);
        self.fact(
            "KMS",
            format!(
                "TLS for enclaves on {}, plain for you on {}",
                stack.kms.tls, stack.kms.dev
            ),
        );
    }

    pub(crate) fn measurements(&mut self, measured: &Measurements) {
        self.fact("PCR0 image", &measured.pcr0);
        self.fact("PCR1 kernel", &measured.pcr1);
        self.fact("PCR2 application", &measured.pcr2);
    }

    pub(crate) fn boot(&mut self, times: &BootTimes, answered: Duration) {
        let stages = [
            ("measured", times.measured_ms),
            ("VM started", times.launched_ms),
            ("init", times.heartbeat_ms),
            ("app started", times.app_started_ms),
        ];
        let reached = stages
            .iter()
            .filter_map(|(name, ms)| Some(format!("{name} {}", seconds((*ms)?))));
        let stages: Vec<String> = reached
            .chain([format!("first answer {:.2} s", answered.as_secs_f64())])
            .collect();
        self.fact("booted", stages.join(" → "));
    }

    pub(crate) fn refusal(&mut self, story: &str, refusal: &Refusal) {
        self.good(&format!("{story}: refused ({})", refusal.error));
        self.line(format!("     {}", refusal.reason));
        for condition in &refusal.conditions {
            let presented = condition.presented.as_deref().unwrap_or("nothing");
            let (expected, presented) = (short(&condition.expected), short(presented));
            self.line(format!(
                "     {} expected {expected}, presented {presented}",
                condition.key
            ));
        }
    }

    pub(crate) fn total(&mut self, time: Duration) {
        let text = format!(
            "\nEverything that must work worked, everything that must fail failed ({:.1} s).",
            time.as_secs_f64()
        );
        let text = self.painted(32, &text);
        self.line(text);
    }

    pub(crate) fn addresses(&mut self, stack: &Stack, enclaves: &[(&str, &Enclave<'_>)]) {
        self.heading("Left running until Ctrl-C");
        for (name, enclave) in enclaves {
            self.fact(
                name,
                format!("http://{} (enclave {})", enclave.address, enclave.id),
            );
        }
        self.fact(
            "KMS",
            format!(
                "http://{} with key test, secret test, any region",
                stack.kms.dev
            ),
        );
        self.fact(
            "command line",
            format!(
                "ENCLOS_RUN_DIR={} {} describe-enclaves",
                stack.host.run_dir().display(),
                stack.host.enclos().get_program().display()
            ),
        );
        self.fact(
            "verify with root",
            stack.host.state.join("root.pem").display().to_string(),
        );
    }
}

/// Prints why the demo failed, causes joined by colons.
pub(crate) fn failure(error: &anyhow::Error) {
    eprintln!("\nThe demo FAILED: {error:#}");
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

/// The first digits tell two hashes apart; whole ones are in the audit trail.
fn short(text: &str) -> String {
    match text.char_indices().nth(16) {
        Some((end, _)) if text.len() > 40 => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}
