//! What a document must be, from the command line: roots, registers, age. Shared by `attest verify` and
//! `call`.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use enclos_attest::document::TrustAnchors;
use enclos_attest::policy::{MAX_POLICY, Policy};
use enclos_attest::{PCR_COUNT, PcrIndex, PcrValue};
use enclos_client::Verifier;
use enclos_eif::Eif;

use crate::failure::{Failure, Outcome};

/// Options that say whom to trust and what to expect.
#[derive(Debug, Args)]
pub(super) struct Trust {
    /// Root certificate to trust, PEM or DER; may be repeated
    #[arg(long, value_name = "FILE")]
    root: Vec<PathBuf>,
    /// Trust the root of AWS Nitro Enclaves
    #[arg(long)]
    aws: bool,
    #[command(flatten)]
    pcrs: Pcrs,
    /// Expect the PCRs of this image
    #[arg(long, value_name = "FILE")]
    eif: Option<PathBuf>,
    /// Accept only what this measurement policy accepts (docs/attestation-policy.md)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Oldest document accepted, such as 300, 90s, 5m or 1h
    #[arg(long, value_name = "AGE", value_parser = parse_age, default_value = "5m")]
    max_age: Duration,
    /// Accept an enclave in debug mode, whose memory its host can read
    #[arg(long)]
    allow_debug: bool,
}

impl Trust {
    pub(super) fn verifier(&self) -> Outcome<Verifier> {
        let mut verifier = Verifier::new(self.anchors()?).max_age(self.max_age);
        if self.allow_debug {
            verifier = verifier.allow_debug();
        }
        for (index, value) in self.pcrs.0.iter().copied().chain(self.pcrs_of_eif()?) {
            verifier = verifier.expect_pcr(index, value);
        }
        if let Some(path) = &self.policy {
            verifier = verifier.policy(read_policy(path)?);
        }
        Ok(verifier)
    }

    fn anchors(&self) -> Outcome<TrustAnchors> {
        if self.root.is_empty() && !self.aws {
            return Err(Failure::text("no root is trusted: give --root FILE, or --aws for real Nitro Enclaves").hint(
                "on the host, `enclos-hypervisor pki show` prints the installation's root; get it over a channel that you trust",
            ));
        }
        let mut anchors = TrustAnchors::new();
        for path in &self.root {
            let bytes =
                std::fs::read(path).map_err(|error| Failure::file(None, "read", path, error))?;
            anchors = anchors.with_root(&path.display().to_string(), &bytes)?;
        }
        Ok(if self.aws {
            anchors.with_aws()
        } else {
            anchors
        })
    }

    fn pcrs_of_eif(&self) -> Outcome<Vec<(PcrIndex, PcrValue)>> {
        let Some(path) = &self.eif else {
            return Ok(Vec::new());
        };
        let unusable = |error| {
            Failure::from(anyhow::Error::new(error))
                .context(format!("cannot measure {}", path.display()))
        };
        let mut file = BufReader::new(
            File::open(path).map_err(|error| Failure::file(None, "open", path, error))?,
        );
        let eif = Eif::parse(&mut file).map_err(unusable)?;
        let measured = enclos_eif::measure(&mut file, &eif).map_err(unusable)?;
        let mut pcrs = vec![
            (0_u16, measured.pcr0),
            (1, measured.pcr1),
            (2, measured.pcr2),
        ];
        pcrs.extend(measured.pcr8.map(|pcr8| (8, pcr8)));
        pcrs.into_iter()
            .map(|(index, value)| Ok((PcrIndex::try_from(index)?, value)))
            .collect()
    }
}

/// Reads a measurement policy.
pub(super) fn read_policy(path: &Path) -> Outcome<Policy> {
    let limit = u64::try_from(MAX_POLICY)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    read.map_err(|error| Failure::file(None, "read", path, error))?;
    Policy::from_json(&bytes).map_err(|error| {
        Failure::from(error).context(format_args!("cannot use the policy {}", path.display()))
    })
}

/// `--pcr N=HEX`, and `--pcr0 HEX` to `--pcr31 HEX`.
#[derive(Debug, Default)]
struct Pcrs(Vec<(PcrIndex, PcrValue)>);

/// Option of each register; clap wants names that live for ever.
#[rustfmt::skip]
const NAMES: [&str; PCR_COUNT] = [
    "pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr5", "pcr6", "pcr7",
    "pcr8", "pcr9", "pcr10", "pcr11", "pcr12", "pcr13", "pcr14", "pcr15",
    "pcr16", "pcr17", "pcr18", "pcr19", "pcr20", "pcr21", "pcr22", "pcr23",
    "pcr24", "pcr25", "pcr26", "pcr27", "pcr28", "pcr29", "pcr30", "pcr31",
];

/// Registers whose option is worth a line in the help.
const SHOWN: [u16; 6] = [0, 1, 2, 3, 4, 8];

impl Pcrs {
    fn options() -> impl Iterator<Item = (u16, &'static str)> {
        (0..).zip(NAMES)
    }

    fn read(&mut self, matches: &ArgMatches) {
        self.0.extend(
            matches
                .get_many::<(PcrIndex, PcrValue)>("pcr")
                .into_iter()
                .flatten()
                .copied(),
        );
        for (index, name) in Self::options() {
            if let (Some(value), Ok(index)) =
                (matches.get_one::<PcrValue>(name), PcrIndex::try_from(index))
            {
                self.0.push((index, *value));
            }
        }
    }
}

impl Args for Pcrs {
    fn augment_args(command: Command) -> Command {
        let any = Arg::new("pcr")
            .long("pcr")
            .value_name("N=HEX")
            .value_parser(parse_pcr);
        let any = any
            .action(clap::ArgAction::Append)
            .help("Expect a register's value; may be repeated");
        Self::options().fold(command.arg(any), |command, (index, name)| {
            let help = match index {
                0 => "Expect PCR0: the whole image",
                1 => "Expect PCR1: kernel and runtime",
                2 => "Expect PCR2: the application",
                3 => "Expect PCR3: the host's role",
                4 => "Expect PCR4: the host's instance id",
                8 => "Expect PCR8: the image's signer",
                _ => "Expect this register's value",
            };
            let option = Arg::new(name)
                .long(name)
                .value_name("HEX")
                .value_parser(PcrValue::from_hex);
            command.arg(option.help(help).hide(!SHOWN.contains(&index)))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Pcrs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut pcrs = Self::default();
        pcrs.read(matches);
        Ok(pcrs)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.read(matches);
        Ok(())
    }
}

fn parse_pcr(text: &str) -> Result<(PcrIndex, PcrValue), String> {
    let (index, value) = text
        .split_once('=')
        .ok_or("expected N=HEX, such as 0=c8eaa4…")?;
    let number: u16 = index
        .parse()
        .map_err(|_| format!("`{index}` is not the number of a register"))?;
    let index = PcrIndex::try_from(number).map_err(|error| error.to_string())?;
    Ok((
        index,
        PcrValue::from_hex(value).map_err(|error| error.to_string())?,
    ))
}

/// Seconds, or a number with s, m or h.
fn parse_age(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("`{text}` is not an age: a number of seconds, or a number with s, m or h");
    let (digits, unit) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| expected())?;
    number
        .checked_mul(unit)
        .map(Duration::from_secs)
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        for (text, seconds) in [
            ("300", 300),
            ("90s", 90),
            ("5m", 300),
            ("1h", 3600),
            ("0", 0),
        ] {
            assert_eq!(parse_age(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "m", "-1", "1d", "1.5h", "18446744073709551615h"] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn registers_are_below_32_and_96_digits_long() {
        let hex = "ab".repeat(48);
        assert_eq!(parse_pcr(&format!("31={hex}")).unwrap().0.get(), 31);
        for bad in [
            format!("32={hex}"),
            format!("x={hex}"),
            hex.clone(),
            format!("0={}", &hex[2..]),
            "0=".to_owned(),
        ] {
            assert!(parse_pcr(&bad).is_err(), "{bad}");
        }
    }
}
