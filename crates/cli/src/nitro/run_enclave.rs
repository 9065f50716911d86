//! `run-enclave`: start, publish ports, print, attach.

use std::fs::File;
use std::path::{Path, PathBuf};

use enclos_api::PROTOCOL_VERSION;
use enclos_api::control::{self, Cpus, Enclave, RunRequest, Selector, Success};
use enclos_api::gateway::{Publication, Request};
use serde::Deserialize;

use super::args::{PublishSpec, RunEnclave};
use super::console;
use super::output::Started;
use crate::codes::Code;
use crate::daemon;
use crate::failure::{Failure, Outcome};
use crate::term;

pub(super) fn run(args: RunEnclave) -> Outcome {
    let launch = Launch::resolve(args)?;
    let image = File::open(&launch.eif)
        .map_err(|error| Failure::file(Some(Code::FILE_OPERATION), "open", &launch.eif, error))?;
    term::note("Start allocating memory...");
    let enclave = start(&launch, &image)?;
    let published = publish_all(&enclave, &launch.publish)?;
    term::note(format_args!(
        "Started enclave with enclave-cid: {}, memory: {} MiB, cpu-ids: {:?}",
        enclave.cid, enclave.memory_mib, enclave.cpu_ids
    ));
    for entry in published {
        term::note(format_args!(
            "Published {} -> port {}",
            entry.listen, entry.guest_port
        ));
    }
    term::json(&Started::from(&enclave))?;
    if launch.attach {
        console::attach(&enclave, None)?;
    }
    Ok(())
}

/// What is to be started, options and configuration file brought together.
#[derive(Debug, PartialEq, Eq)]
struct Launch {
    eif: PathBuf,
    memory_mib: u64,
    cpus: Cpus,
    cid: Option<u32>,
    name: String,
    debug: bool,
    attach: bool,
    publish: Vec<PublishSpec>,
}

impl Launch {
    fn resolve(args: RunEnclave) -> Outcome<Self> {
        match &args.config {
            Some(path) => Self::from_file(path, args.attach_console, args.publish),
            None => Self::from_options(args),
        }
    }

    fn from_options(args: RunEnclave) -> Outcome<Self> {
        let missing = |name: &str| {
            Failure::aws_text(Code::MISSING_ARGUMENT, format_args!("{name} is missing"))
        };
        let eif = args.eif_path.ok_or_else(|| missing("--eif-path"))?;
        Ok(Self {
            memory_mib: args.memory.ok_or_else(|| missing("--memory"))?,
            cpus: cpus(
                args.cpu_count,
                Some(args.cpu_ids).filter(|ids| !ids.is_empty()),
            )?,
            cid: args.enclave_cid.filter(|cid| *cid != 0),
            name: args.enclave_name.unwrap_or_else(|| default_name(&eif)),
            debug: args.debug_mode || args.attach_console,
            attach: args.attach_console,
            publish: args.publish,
            eif,
        })
    }

    fn from_file(path: &Path, attach: bool, publish: Vec<PublishSpec>) -> Outcome<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::file(Some(Code::FILE_OPERATION), "read", path, error))?;
        let file: ConfigFile = serde_json::from_str(&text).map_err(|error| {
            let context = format!("{} is not a configuration of run-enclave", path.display());
            Failure::aws(Code::SERDE, anyhow::Error::new(error).context(context))
                .hint("needed: eif_path, memory_mib, and one of cpu_count and cpu_ids")
        })?;
        let attach = attach || file.attach_console;
        Ok(Self {
            memory_mib: file.memory_mib,
            cpus: cpus(file.cpu_count, file.cpu_ids)?,
            cid: file
                .enclave_cid
                .map(checked_cid)
                .transpose()?
                .filter(|cid| *cid != 0),
            name: file
                .enclave_name
                .unwrap_or_else(|| default_name(&file.eif_path)),
            debug: file.debug_mode || attach,
            attach,
            publish,
            eif: file.eif_path,
        })
    }

    fn request(&self) -> RunRequest {
        RunRequest {
            protocol: PROTOCOL_VERSION,
            name: self.name.clone(),
            cpus: self.cpus.clone(),
            memory_mib: self.memory_mib,
            cid: self.cid,
            debug: self.debug,
        }
    }
}

/// nitro-cli's configuration file. Keys that it does not know it ignores, and so do we.
#[derive(Debug, Deserialize)]
struct ConfigFile {
    eif_path: PathBuf,
    memory_mib: u64,
    cpu_count: Option<u32>,
    cpu_ids: Option<Vec<u32>>,
    enclave_cid: Option<u64>,
    enclave_name: Option<String>,
    #[serde(default)]
    debug_mode: bool,
    #[serde(default)]
    attach_console: bool,
}

fn cpus(count: Option<u32>, ids: Option<Vec<u32>>) -> Outcome<Cpus> {
    match (count, ids) {
        (Some(count), None) => Ok(Cpus::Count(count)),
        (None, Some(ids)) => Ok(Cpus::Ids(ids)),
        (Some(_), Some(_)) => Err(Failure::aws_text(
            Code::CONFLICTING_ARGUMENT,
            "both a CPU count and CPU ids are given",
        )
        .hint("give one of the two")),
        (None, None) => Err(Failure::aws_text(
            Code::MISSING_ARGUMENT,
            "neither a CPU count nor CPU ids are given",
        )),
    }
}

fn checked_cid(cid: u64) -> Outcome<u32> {
    super::args::parse_cid(&cid.to_string())
        .map_err(|text| Failure::aws_text(Code::INVALID_ARGUMENT, text))
}

/// The image's file name without `.eif`.
fn default_name(eif: &Path) -> String {
    let name = eif.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(".eif").unwrap_or(&name).to_owned()
}

fn start(launch: &Launch, image: &File) -> Outcome<Enclave> {
    match daemon::run(launch.request(), image)? {
        Success::Started { enclave, warnings } => {
            for warning in warnings {
                term::note(format_args!("warning: {warning}"));
            }
            Ok(*enclave)
        }
        other => Err(daemon::unexpected(&other)),
    }
}

/// An enclave whose ports cannot be published is of no use: it is stopped again.
fn publish_all(enclave: &Enclave, wanted: &[PublishSpec]) -> Outcome<Vec<Publication>> {
    let published = wanted
        .iter()
        .map(|spec| publish(enclave, *spec))
        .collect::<Outcome<Vec<_>>>();
    published.map_err(|failure| {
        let stop = control::Request::Terminate {
            enclave: Selector::Id(enclave.id.clone()),
            grace_s: 0,
        };
        match daemon::hypervisor(&stop) {
            Ok(_) => failure.hint("the enclave was stopped again"),
            Err(_) => failure.hint(
                "the enclave still runs without its port: stop it with `enclos terminate-enclave`",
            ),
        }
    })
}

fn publish(enclave: &Enclave, spec: PublishSpec) -> Outcome<Publication> {
    let wanted = Publication {
        enclave_id: enclave.id.clone(),
        listen: spec.listen,
        guest_port: u32::from(spec.guest_port),
    };
    let replied = daemon::gateway(&Request::Publish(wanted.clone())).map_err(|failure| {
        failure.context(format_args!(
            "cannot publish {} -> port {}",
            spec.listen, spec.guest_port
        ))
    })?;
    Ok(replied.into_iter().next().unwrap_or(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_json(json: &str) -> Outcome<Launch> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        Launch::from_file(file.path(), false, Vec::new())
    }

    fn code_of(json: &str) -> u8 {
        from_json(json).unwrap_err().exit_status()
    }

    #[test]
    fn a_configuration_file_means_what_its_options_mean() {
        let launch = from_json(
            r#"{"eif_path":"/a/hello.eif","memory_mib":512,"cpu_ids":[2,3],"enclave_cid":17,"debug_mode":true,"other":1}"#,
        )
        .unwrap();
        assert_eq!(launch.name, "hello");
        assert_eq!((launch.cpus, launch.cid), (Cpus::Ids(vec![2, 3]), Some(17)));
        assert!(launch.debug && !launch.attach);
    }

    #[test]
    fn attaching_implies_debug_mode() {
        let launch =
            from_json(r#"{"eif_path":"x","memory_mib":1,"cpu_count":1,"attach_console":true}"#)
                .unwrap();
        assert!(launch.debug && launch.attach && launch.name == "x");
    }

    #[test]
    fn a_bad_configuration_file_gets_awss_codes() {
        assert_eq!(code_of(r#"{"eif_path":"x","memory_mib":1}"#), 1);
        assert_eq!(
            code_of(r#"{"eif_path":"x","memory_mib":1,"cpu_count":1,"cpu_ids":[1]}"#),
            2
        );
        assert_eq!(
            code_of(r#"{"eif_path":"x","memory_mib":1,"cpu_count":1,"enclave_cid":3}"#),
            3
        );
        assert_eq!(
            code_of(r#"{"eif_path":"x","memory_mib":"1","cpu_count":1}"#),
            17
        );
        assert_eq!(code_of("{"), 17);
    }
}
