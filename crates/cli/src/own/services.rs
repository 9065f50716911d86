//! `enclos up`, `down` and `status`: the daemons of one host, in the background.
//!
//! ```text
//! up ── lock ── host.toml ── hypervisor ── (kms: root certificate, server, principal) ── gateway
//! ```
//!
//! Each daemon leaves `<run>/<name>.pid` and appends to `<state>/log/<name>.log`. A daemon counts as up when its socket
//! answers, not when its process exists; starting what is up does nothing. `down` signals a process only when its name
//! is the one that the pid file stands for, so that a recycled pid harms nobody.

mod host_file;
mod kms;
mod service;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use enclos_api::control::Enclave;
use enclos_api::{control, gateway};

use crate::daemon::{self, enclaves};
use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::files::make_dir;
use crate::term;
use host_file::HostFile;
use service::{Service, State};

/// Options of `up`.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Host file; by default `host.toml` in the state directory, made if absent
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also run a development KMS: TLS for enclaves, plain HTTP with key `test`/`test` for this host
    #[arg(long)]
    kms: bool,
    /// Where the KMS serves enclaves, TLS
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8443",
        requires = "kms"
    )]
    kms_listen: SocketAddr,
    /// Where the KMS serves this host, plain HTTP; loopback only
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:4566",
        requires = "kms"
    )]
    kms_dev_listen: SocketAddr,
    /// Directory of measurement policies, NAME.json, that the KMS's key policies may name
    #[arg(long, value_name = "DIR", requires = "kms")]
    kms_measurement_policies: Option<PathBuf>,
}

/// Options of `down`.
#[derive(Debug, Args)]
pub(crate) struct Down {}

/// Directories of one installation.
#[derive(Debug, Clone)]
struct Places {
    run: PathBuf,
    state: PathBuf,
}

impl Places {
    fn new() -> Outcome<Self> {
        Ok(Self {
            run: dirs::run()?,
            state: dirs::state()?,
        })
    }

    /// Makes the directories and takes the lock that keeps two `up` or `down` apart.
    fn lock(&self) -> Outcome<File> {
        for dir in [&self.run, &self.state, &self.state.join("log")] {
            make_dir(dir, 0o755)?;
        }
        let path = self.state.join("services.lock");
        let lock =
            File::create(&path).map_err(|error| Failure::file(None, "create", &path, error))?;
        lock.lock()
            .map_err(|error| Failure::file(None, "lock", &path, error))?;
        Ok(lock)
    }

    fn service(&self, name: &'static str) -> Service {
        Service {
            name,
            program: dirs::program(&format!("enclos-{name}")),
            args: Vec::new(),
            pid_file: self.run.join(format!("{name}.pid")),
            log: self.state.join("log").join(format!("{name}.log")),
        }
    }

    fn hypervisor(&self, host: &HostFile) -> Service {
        let mut service = self.service("hypervisor");
        service.arg("serve").arg("--config").arg(&host.path);
        service
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--run-dir")
            .arg(&self.run);
        service
    }

    fn gateway(&self, host: &HostFile) -> Service {
        let mut service = self.service("gateway");
        service
            .arg("serve")
            .arg("--config")
            .arg(&host.path)
            .arg("--run-dir")
            .arg(&self.run);
        service
    }
}

pub(super) fn up(args: &Up) -> Outcome {
    let places = Places::new()?;
    let _lock = places.lock()?;
    let wanted = args.kms.then(|| wanted_kms(args, &places)).transpose()?;
    let host = HostFile::ensure(&places, args.config.as_deref(), wanted.as_ref())?;
    places.hypervisor(&host).start(&hypervisor_answers)?;
    if let Some(wanted) = &wanted {
        kms::start(&places, wanted, &host)?;
    }
    places.gateway(&host).start(&gateway_answers)?;
    term::note("ready: enclos run-enclave --cpu-count 2 --memory 512 --eif-path …");
    Ok(())
}

/// The KMS of the flags. The daemon runs in another working directory, so its paths are made absolute here.
fn wanted_kms(args: &Up, places: &Places) -> Outcome<kms::Wanted> {
    let absolute = |directory: &PathBuf| {
        fs::canonicalize(directory).map_err(|error| Failure::file(None, "find", directory, error))
    };
    let policies = args.kms_measurement_policies.as_ref();
    Ok(kms::Wanted {
        measurement_policies: policies.map(absolute).transpose()?,
        ..kms::Wanted::new(places, args.kms_listen, args.kms_dev_listen)
    })
}

pub(super) fn down(_: &Down) -> Outcome {
    let places = Places::new()?;
    let _lock = places.lock()?;
    let running = enclaves().map_or(0, |enclaves| enclaves.len());
    if running > 0 {
        term::note(format_args!(
            "{running} running enclave(s) end with the hypervisor"
        ));
    }
    // The gateway first, so that it sees no hypervisor vanish; the KMS last, so that it outlives its clients.
    for name in ["gateway", "hypervisor", "kms"] {
        places.service(name).stop()?;
    }
    Ok(())
}

pub(super) fn status() -> Outcome {
    let places = Places::new()?;
    let hypervisor = state_of(&places, "hypervisor", &hypervisor_answers);
    let gateway = state_of(&places, "gateway", &gateway_answers);
    let kms = places.service("kms").state(&|| true);
    let mut text = String::new();
    for (name, state) in [
        ("hypervisor", &hypervisor),
        ("gateway", &gateway),
        ("kms", &kms),
    ] {
        text += &format!(
            "{name:<11} {state}  (log {})\n",
            places.service(name).log.display()
        );
    }
    text += &format!(
        "run dir     {}\nstate dir   {}\n",
        places.run.display(),
        places.state.display()
    );
    if hypervisor.is_up() {
        text += &enclave_lines()?;
    }
    if gateway.is_up() {
        text += &publication_lines()?;
    }
    term::out(&text)?;
    if hypervisor.is_up() && gateway.is_up() {
        return Ok(());
    }
    Err(Failure::text("not everything is up").hint("start it with `enclos up`"))
}

/// A daemon that was started by other means (systemd, by hand) has no pid file of ours, but answers.
fn state_of(places: &Places, name: &'static str, answers: &dyn Fn() -> bool) -> State {
    match places.service(name).state(answers) {
        State::Down if answers() => State::Up(None),
        state => state,
    }
}

fn enclave_lines() -> Outcome<String> {
    Ok(enclaves()?.iter().map(enclave_line).collect())
}

fn enclave_line(enclave: &Enclave) -> String {
    let Enclave {
        name,
        id,
        cid,
        cpu_count,
        memory_mib,
        boot,
        ..
    } = enclave;
    let mode = if enclave.debug { ", debug mode" } else { "" };
    let mut line =
        format!("enclave     {name} ({id}), CID {cid}, {cpu_count} vCPUs, {memory_mib} MiB{mode}");
    let milestones = [
        ("heartbeat", boot.heartbeat_ms),
        ("started", boot.app_started_ms),
        ("ready", boot.app_ready_ms),
    ];
    for (milestone, after) in milestones {
        if let Some(after) = after {
            line += &format!(", {milestone} after {after} ms");
        }
    }
    line + "\n"
}

fn publication_lines() -> Outcome<String> {
    let publications = daemon::gateway(&gateway::Request::List)?;
    let line = |entry: &gateway::Publication| {
        format!(
            "published   {} -> {} port {}\n",
            entry.listen, entry.enclave_id, entry.guest_port
        )
    };
    Ok(publications.iter().map(line).collect())
}

pub(super) fn hypervisor_answers() -> bool {
    let asked = daemon::hypervisor_socket()
        .map(|socket| daemon::answers::<_, control::Reply>(&socket, &control::Request::Host));
    matches!(asked, Ok(Some(control::Reply::Ok(_))))
}

pub(super) fn gateway_answers() -> bool {
    let asked = daemon::gateway_socket()
        .map(|socket| daemon::answers::<_, gateway::Reply>(&socket, &gateway::Request::List));
    matches!(asked, Ok(Some(gateway::Reply::Ok(_))))
}
