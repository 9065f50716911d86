//! nitro-cli's options, and what they mean once read.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};
use enclos_api::control::{MAX_GRACE_S, Selector};

use crate::signing::Signing;

/// nitro-cli's commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start an enclave from an EIF
    RunEnclave(RunEnclave),
    /// List the enclaves that run
    DescribeEnclaves(DescribeEnclaves),
    /// Stop an enclave
    TerminateEnclave(TerminateEnclave),
    /// Follow the console of an enclave in debug mode
    Console(Console),
    /// Build an EIF from a container image
    BuildEnclave(BuildEnclave),
    /// Measure and describe an EIF
    DescribeEif(DescribeEif),
    /// Compute a PCR from a file or a signing certificate
    Pcr(Pcr),
    /// Sign an EIF in place
    SignEif(SignEif),
    /// Explain an error code
    Explain(Explain),
}

/// Options of `run-enclave`.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("cpus").required(true).args(["cpu_ids", "cpu_count", "config"])),
    after_help = "Exactly one of --cpu-count and --cpu-ids is needed, --memory and --eif-path too, unless \
                        --config gives them. --publish and --config can be combined."
)]
pub(crate) struct RunEnclave {
    /// Host CPUs for the enclave's vCPUs, such as `2 3`
    #[arg(long, value_name = "ID", num_args = 1.., value_delimiter = ',')]
    pub(crate) cpu_ids: Vec<u32>,
    /// Number of vCPUs
    #[arg(long, value_name = "N")]
    pub(crate) cpu_count: Option<u32>,
    /// Memory in MiB, or with a suffix: 512, 512M, 2G
    #[arg(long, value_name = "MIB", value_parser = parse_memory, required_unless_present = "config")]
    pub(crate) memory: Option<u64>,
    /// The image
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub(crate) eif_path: Option<PathBuf>,
    /// Context id; 0 takes the next free one
    #[arg(long, value_name = "CID", value_parser = parse_cid)]
    pub(crate) enclave_cid: Option<u32>,
    /// Name; by default the image's file name without `.eif`
    #[arg(long, value_name = "NAME")]
    pub(crate) enclave_name: Option<String>,
    /// Give the enclave a console; its PCR0, PCR1, PCR2 and PCR8 become zero
    #[arg(long)]
    pub(crate) debug_mode: bool,
    /// Follow the console after the start; implies --debug-mode
    #[arg(long)]
    pub(crate) attach_console: bool,
    /// Read the options from a JSON file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["memory", "eif_path", "enclave_cid", "enclave_name", "debug_mode"])]
    pub(crate) config: Option<PathBuf>,
    /// Listen on a host port and forward it to a port of the enclave; may be repeated (Enclos only)
    #[arg(long, value_name = "[ADDRESS:]PORT:GUESTPORT")]
    pub(crate) publish: Vec<PublishSpec>,
}

/// Options of `describe-enclaves`.
#[derive(Debug, Args)]
pub(crate) struct DescribeEnclaves {
    /// Add name, version and build metadata of each image
    #[arg(long)]
    pub(crate) metadata: bool,
}

/// Options of `terminate-enclave`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true)))]
pub(crate) struct TerminateEnclave {
    /// The enclave's id
    #[arg(long, value_name = "ID", group = "which")]
    pub(crate) enclave_id: Option<String>,
    /// The enclave's name
    #[arg(long, value_name = "NAME", group = "which")]
    pub(crate) enclave_name: Option<String>,
    /// Every enclave that this user may stop
    #[arg(long, group = "which")]
    pub(crate) all: bool,
    /// Seconds that the application has to stop by itself, told by its image's StopSignal; 0 kills the enclave at
    /// once, as nitro-cli does
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_GRACE_S)))]
    pub(crate) grace: u32,
}

/// One enclave, by id or by name.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// The enclave's id
    #[arg(long, value_name = "ID")]
    pub(crate) enclave_id: Option<String>,
    /// The enclave's name
    #[arg(long, value_name = "NAME")]
    pub(crate) enclave_name: Option<String>,
}

impl Which {
    /// clap has seen to it that one of the two is there.
    pub(crate) fn selector(self) -> Selector {
        match self.enclave_id {
            Some(id) => Selector::Id(id),
            None => Selector::Name(self.enclave_name.unwrap_or_default()),
        }
    }
}

/// Options of `console`.
#[derive(Debug, Args)]
pub(crate) struct Console {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Detach after this many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) disconnect_timeout: Option<u64>,
}

/// Options of `build-enclave`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without a container tool, --docker-uri also takes a file or directory: a `docker save` archive, an OCI \
                        archive or an OCI layout (prefix `docker-archive:` or `oci:`, or none when it exists)."
)]
pub(crate) struct BuildEnclave {
    /// Image reference, or path of an OCI archive, OCI layout or `docker save` archive
    #[arg(long, value_name = "URI")]
    pub(crate) docker_uri: String,
    /// Build the image from the Dockerfile in this directory first
    #[arg(long, value_name = "DIR")]
    pub(crate) docker_dir: Option<PathBuf>,
    /// Fetch the image by its tag, whatever the registry has there today; without this a digest is needed (Enclos only)
    #[arg(long)]
    pub(crate) allow_tag: bool,
    /// Where the EIF goes
    #[arg(long, value_name = "FILE")]
    pub(crate) output_file: PathBuf,
    #[command(flatten)]
    pub(crate) signing: Signing,
    /// enclos.toml: command, environment, ports, KMS; measured (Enclos only)
    #[arg(long, value_name = "FILE")]
    pub(crate) enclos_config: Option<PathBuf>,
    /// Name in the image's metadata
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Version in the image's metadata
    #[arg(long)]
    pub(crate) version: Option<String>,
    /// JSON file to add to the image's metadata, at most 4096 bytes
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata: Option<PathBuf>,
}

/// Options of `describe-eif`.
#[derive(Debug, Args)]
pub(crate) struct DescribeEif {
    /// The image
    #[arg(long, value_name = "FILE")]
    pub(crate) eif_path: PathBuf,
}

/// Options of `pcr`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Pcr {
    /// Certificate, PEM: prints PCR8
    #[arg(long, value_name = "FILE")]
    pub(crate) signing_certificate: Option<PathBuf>,
    /// Any file: prints the PCR of its content
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
}

/// Options of `sign-eif`.
#[derive(Debug, Args)]
pub(crate) struct SignEif {
    /// The image
    #[arg(long, value_name = "FILE")]
    pub(crate) eif_path: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) signing: Signing,
}

/// Options of `explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The code, such as E19
    #[arg(long, value_name = "CODE")]
    pub(crate) error_code: String,
}

/// `[ADDRESS:]PORT:GUESTPORT`. Without an address only this host can connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublishSpec {
    pub(crate) listen: SocketAddr,
    pub(crate) guest_port: u16,
}

impl FromStr for PublishSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "`{text}` is not [ADDRESS:]PORT:GUESTPORT, such as 8080:5000 or 0.0.0.0:8080:5000"
            )
        };
        let (listen, guest) = text.rsplit_once(':').ok_or_else(expected)?;
        let guest_port = guest
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(expected)?;
        let listen = match listen.parse::<u16>() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Err(_) => listen.parse().map_err(|_| expected())?,
        };
        Ok(Self { listen, guest_port })
    }
}

/// A plain number is MiB, as nitro-cli reads it. Whether it is enough, 0 included, depends on the image.
pub(crate) fn parse_memory(text: &str) -> Result<u64, String> {
    let expected =
        || format!("`{text}` is not a size: a number of MiB, or a number with M, G or T");
    let (digits, mib) = match text.strip_suffix(['m', 'M', 'g', 'G', 't', 'T']) {
        Some(digits) => (
            digits,
            match text.as_bytes().last() {
                Some(b'g' | b'G') => 1 << 10,
                Some(b't' | b'T') => 1 << 20,
                _ => 1,
            },
        ),
        None => (text, 1),
    };
    let digits = Some(digits).filter(|digits| !digits.starts_with('+'));
    let number: u64 = digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(expected)?;
    number.checked_mul(mib).ok_or_else(expected)
}

/// Ids that vsock reserves are refused as nitro-cli refuses them; 0 asks for the next free one.
pub(crate) fn parse_cid(text: &str) -> Result<u32, String> {
    let number: u64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number"))?;
    match u32::try_from(number) {
        Ok(1..=3) => Err(format!(
            "CID {number} is reserved (1 is local, 2 the host, 3 the parent); use 4 or more"
        )),
        Ok(cid) if cid != u32::MAX => Ok(cid),
        _ => Err(format!(
            "CID {number} is too large: the largest is {}",
            u32::MAX - 1
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_mib_unless_it_says_otherwise() {
        let good = [
            ("512", 512),
            ("512m", 512),
            ("512M", 512),
            ("2G", 2048),
            ("2g", 2048),
            ("1T", 1 << 20),
            ("0", 0),
        ];
        for (text, mib) in good {
            assert_eq!(parse_memory(text), Ok(mib));
        }
        for bad in [
            "",
            "+1",
            "G",
            "1.5G",
            "1GB",
            "12K",
            "-1",
            "18446744073709551615T",
        ] {
            assert!(
                parse_memory(bad).unwrap_err().contains("is not a size"),
                "{bad}"
            );
        }
    }

    #[test]
    fn reserved_cids_are_refused_on_both_sides() {
        for good in [0, 4, 16, u32::MAX - 1] {
            assert_eq!(parse_cid(&good.to_string()), Ok(good));
        }
        for bad in [
            1,
            2,
            3,
            u64::from(u32::MAX),
            u64::from(u32::MAX) + 1,
            u64::MAX,
        ] {
            assert!(parse_cid(&bad.to_string()).is_err(), "{bad}");
        }
        assert!(parse_cid("sixteen").is_err());
    }

    #[test]
    fn publications_default_to_this_host_alone() {
        let parse = |text: &str| text.parse::<PublishSpec>();
        let listen = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(
            parse("8080:5000"),
            Ok(PublishSpec {
                listen,
                guest_port: 5000
            })
        );
        assert_eq!(parse("0:5000").unwrap().listen.port(), 0);
        assert_eq!(
            parse("0.0.0.0:80:5000").unwrap().listen,
            "0.0.0.0:80".parse().unwrap()
        );
        assert_eq!(
            parse("[::1]:80:5000").unwrap().listen,
            "[::1]:80".parse().unwrap()
        );
        for bad in [
            "8080",
            "8080:0",
            "8080:70000",
            "host:80:5000",
            ":5000",
            "80:",
            "70000:5000",
        ] {
            assert!(parse(bad).unwrap_err().contains("GUESTPORT"), "{bad}");
        }
    }
}
