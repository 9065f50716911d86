//! What starts in an enclave, and which ports it serves: the image's own words, unless `enclos.toml` has others.

use std::collections::BTreeSet;

use enclos_api::PROTOCOL_VERSION;
use enclos_api::config::{EnclaveConfig, Process};

use super::config::{App, BuildConfig};
use super::error::ImageError;
use super::oci::ImageConfig;

/// Environment of an application that sets no `PATH`, docker's own default.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The measured configuration. Adds to `warnings` what the user should know about it.
pub(crate) fn enclave_config(
    config: &BuildConfig,
    image: &ImageConfig,
    warnings: &mut Vec<String>,
) -> Result<EnclaveConfig, ImageError> {
    let app = &config.app;
    let process = Process {
        argv: argv(app, image)?,
        env: environment(app, image, warnings)?,
        cwd: absolute(app.workdir.as_ref().or(image.working_dir.as_ref()))?,
        user: app
            .user
            .clone()
            .or_else(|| image.user.clone())
            .unwrap_or_default(),
        stop_signal: signal(app.stop_signal.as_ref().or(image.stop_signal.as_ref()))?,
        log_to_host: app.log_to_host,
    };
    if process.log_to_host {
        warnings.push(
            "app.log_to_host is set: the host can read what the application prints, in production too"
                .into(),
        );
    }
    let ingress = match &config.ports {
        Some(ports) => ports.clone(),
        None => exposed_ports(image, warnings)?,
    };
    let attested_tls = attested_ports(&config.attested_tls, &ingress)?;
    Ok(EnclaveConfig {
        version: PROTOCOL_VERSION,
        process,
        ingress,
        attested_tls,
        kms: config.kms.clone(),
    })
}

/// Ports with attested TLS, in order. One that is not reachable at all would be a mistake that nobody notices.
fn attested_ports(wanted: &[u16], ingress: &[u16]) -> Result<Vec<u16>, ImageError> {
    if let Some(port) = wanted.iter().find(|port| !ingress.contains(port)) {
        return Err(ImageError::Value {
            field: "ingress.attested_tls",
            value: port.to_string(),
            expected: "one of ingress.ports, or of the image's ExposedPorts where that is not given",
        });
    }
    let ports: BTreeSet<u16> = wanted.iter().copied().collect();
    Ok(ports.into_iter().collect())
}

/// Entrypoint followed by Cmd, as OCI has it; AWS's tool drops one of them.
fn argv(app: &App, image: &ImageConfig) -> Result<Vec<String>, ImageError> {
    if let Some(command) = &app.command {
        return Ok(command.clone());
    }
    let own = image
        .entrypoint
        .iter()
        .flatten()
        .chain(image.cmd.iter().flatten());
    let argv: Vec<_> = own.cloned().collect();
    match argv.first().is_some_and(|program| !program.is_empty()) {
        true => Ok(argv),
        false => Err(ImageError::NoCommand),
    }
}

fn environment(
    app: &App,
    image: &ImageConfig,
    warnings: &mut Vec<String>,
) -> Result<Vec<String>, ImageError> {
    let mut env = Vec::new();
    for variable in image.env.iter().flatten() {
        let Some((name, _)) = variable
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
        else {
            let value = variable.clone();
            return Err(ImageError::Value {
                field: "Env",
                value,
                expected: "NAME=value",
            });
        };
        if !app.env.contains_key(name) {
            env.push(variable.clone());
        }
    }
    env.extend(
        app.env
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, DEFAULT_PATH.into());
    }
    let names = env
        .iter()
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, _)| name);
    warnings.extend(names.filter(|name| looks_secret(name)).map(|name| {
        format!("{name} looks like a secret: whoever has the image can read it; let the enclave fetch it")
    }));
    Ok(env)
}

/// Names under which people keep secrets.
fn looks_secret(name: &str) -> bool {
    const WORDS: [&str; 6] = [
        "PASSWORD",
        "PASSWD",
        "SECRET",
        "PRIVATE_KEY",
        "ACCESS_KEY",
        "API_KEY",
    ];
    let name = name.to_ascii_uppercase();
    WORDS.iter().any(|word| name.contains(word)) || name.ends_with("_TOKEN")
}

fn absolute(path: Option<&String>) -> Result<String, ImageError> {
    let path = path
        .filter(|path| !path.is_empty())
        .cloned()
        .unwrap_or_else(|| "/".into());
    match path.starts_with('/') {
        true => Ok(path),
        false => Err(ImageError::Value {
            field: "WorkingDir",
            value: path,
            expected: "an absolute path",
        }),
    }
}

/// A signal's number or name, as it is written there.
fn signal(value: Option<&String>) -> Result<String, ImageError> {
    let value = value
        .filter(|value| !value.is_empty())
        .cloned()
        .unwrap_or_else(|| "SIGTERM".into());
    match enclos_api::signal::number(&value) {
        Some(_) => Ok(value),
        None => Err(ImageError::Value {
            field: "StopSignal",
            value,
            expected: "a signal such as SIGTERM or SIGRTMIN+3, or a number",
        }),
    }
}

fn exposed_ports(image: &ImageConfig, warnings: &mut Vec<String>) -> Result<Vec<u16>, ImageError> {
    let mut ports = BTreeSet::new();
    for exposed in image.exposed_ports.iter().flat_map(|ports| ports.keys()) {
        let (port, protocol) = exposed.split_once('/').unwrap_or((exposed, "tcp"));
        if protocol != "tcp" {
            warnings.push(format!(
                "the exposed port {exposed} is not reachable: only TCP is"
            ));
            continue;
        }
        let (first, last) = port.split_once('-').unwrap_or((port, port));
        let range = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
        let (first, last) = range
            .filter(|(first, last)| 0 < *first && first <= last)
            .ok_or_else(|| {
                let (field, value) = ("ExposedPorts", exposed.clone());
                ImageError::Value {
                    field,
                    value,
                    expected: "a port such as 5000/tcp",
                }
            })?;
        ports.extend(first..=last);
    }
    Ok(ports.into_iter().collect())
}
