//! One installation: hypervisor, KMS and gateway, each a process of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use enclos_api::config::{HostConfig, Instance, KmsAddress, Role};
use enclos_api::control::{self as wire, Enclave as Described};
use enclos_api::gateway;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::child::{self, Child};
use crate::http::{self, Reply};
use crate::image::Image;
use crate::kms::{ACCOUNT, Client, REGION, Server};
use crate::workbench::Workbench;
use crate::{control, wait};

/// Instance id of the host, measured into PCR4.
pub const INSTANCE: &str = "i-0a1b2c3d4e5f60718";

/// Role of the host, measured into PCR3.
pub const ROLE: &str = "arn:aws:iam::000000000000:role/backend";

/// A role that no key policy's PCR3 expects.
pub const OTHER_ROLE: &str = "arn:aws:iam::000000000000:role/other-team";

/// Longest boot on a busy machine, of which the tests make one on purpose.
pub const BOOT: Duration = Duration::from_secs(120);

const START: Duration = Duration::from_secs(20);

/// Hypervisor and gateway with their KMS.
#[derive(Debug)]
pub struct Stack {
    // Dropped in this order: enclaves' host first, then the KMS, then the folders of both.
    /// The enclaves' host.
    pub host: Host,
    /// The KMS.
    pub kms: Server,
    /// The host role as a caller of the KMS, outside of every enclave.
    pub role: Client,
    /// Folder of this stack's files.
    pub dir: PathBuf,
    _scratch: TempDir,
}

impl Stack {
    /// Starts everything in a new folder.
    ///
    /// # Errors
    /// A process does not start; the error carries what it said.
    pub fn start(bench: &Workbench) -> Result<Self> {
        let scratch = scratch_in(&bench.state)?;
        let dir = scratch.path().to_owned();
        let state = dir.join("host");
        let kms_address = free_address()?;
        let hypervisor = Hypervisor::start(bench, &state, ROLE, kms_address)?;
        let root = dir.join("root.pem");
        fs::write(&root, control::host(hypervisor.run_dir())?.root_certificate)?;
        let kms = Server::start(bench, &dir.join("kms"), kms_address, &[root])?;
        let role = kms.add_role(ROLE, &hypervisor.credentials)?;
        let host = hypervisor.with_gateway()?;
        Ok(Self {
            host,
            kms,
            role,
            dir,
            _scratch: scratch,
        })
    }

    /// Starts a second host beside this stack's: the same attestation authority and KMS, another role. It stands for
    /// another team's machine in the same installation.
    ///
    /// # Errors
    /// A process does not start.
    pub fn second_host(&self, role: &str) -> Result<Host> {
        let state = self.dir.join("second-host");
        fs::create_dir_all(&state)?;
        for file in ["ca.pem", "root.pem"] {
            fs::copy(self.host.state.join(file), state.join(file))?;
        }
        let hypervisor = Hypervisor::start(&self.host.bench, &state, role, self.kms.tls)?;
        self.kms.add_role(role, &hypervisor.credentials)?;
        hypervisor.with_gateway()
    }
}

/// A hypervisor whose gateway does not run yet.
#[derive(Debug)]
struct Hypervisor {
    bench: Workbench,
    process: Child,
    run: TempDir,
    state: PathBuf,
    config: PathBuf,
    credentials: PathBuf,
}

impl Hypervisor {
    fn start(bench: &Workbench, state: &Path, role: &str, kms: SocketAddr) -> Result<Self> {
        fs::create_dir_all(state)?;
        let run = run_dir()?;
        let credentials = state.join("credentials.json");
        let config = state.join("host.toml");
        fs::write(
            &config,
            toml::to_string(&host_config(role, &credentials, kms))?,
        )?;
        let mut command = bench.program("enclos-hypervisor");
        command.arg("serve").arg("--config").arg(&config);
        command
            .arg("--state-dir")
            .arg(state)
            .arg("--run-dir")
            .arg(run.path());
        let mut process =
            Child::start("enclos-hypervisor", command, &state.join("hypervisor.log"))?;
        process.until(START, || control::host(run.path()).is_ok())?;
        let (bench, state) = (bench.clone(), state.to_owned());
        Ok(Self {
            bench,
            process,
            run,
            state,
            config,
            credentials,
        })
    }

    fn run_dir(&self) -> &Path {
        self.run.path()
    }

    fn with_gateway(self) -> Result<Host> {
        let Self {
            bench,
            process: hypervisor,
            run,
            state,
            config,
            ..
        } = self;
        let mut command = bench.program("enclos-gateway");
        command
            .arg("serve")
            .arg("--config")
            .arg(config)
            .arg("--run-dir")
            .arg(run.path());
        let mut gateway = Child::start("enclos-gateway", command, &state.join("gateway.log"))?;
        let socket = run.path().join(gateway::SOCKET_NAME);
        gateway.until(START, || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })?;
        Ok(Host {
            gateway,
            hypervisor,
            run,
            state,
            bench,
        })
    }
}

fn host_config(role: &str, credentials: &Path, kms: SocketAddr) -> HostConfig {
    HostConfig {
        instance: instance(),
        role: Some(Role {
            arn: role.into(),
            credentials_file: Some(credentials.to_owned()),
        }),
        kms: Some(KmsAddress { address: kms }),
    }
}

/// The instance that every host of these tests is.
pub(crate) fn instance() -> Instance {
    Instance {
        id: INSTANCE.into(),
        region: REGION.into(),
        availability_zone: format!("{REGION}a"),
        account_id: ACCOUNT.into(),
    }
}

/// A running hypervisor with its gateway.
#[derive(Debug)]
pub struct Host {
    gateway: Child,
    hypervisor: Child,
    run: TempDir,
    /// Folder of the attestation authority.
    pub state: PathBuf,
    bench: Workbench,
}

impl Host {
    /// Folder of the sockets.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.run.path()
    }

    /// Process id of the hypervisor.
    #[must_use]
    pub fn hypervisor_id(&self) -> u32 {
        self.hypervisor.id()
    }

    /// What the hypervisor has printed.
    #[must_use]
    pub fn hypervisor_log(&self) -> String {
        self.hypervisor.log()
    }

    /// What the gateway has printed.
    #[must_use]
    pub fn gateway_log(&self) -> String {
        self.gateway.log()
    }

    /// The command line, talking to this host.
    #[must_use]
    pub fn enclos(&self) -> Command {
        let mut command = self.bench.program("enclos");
        command
            .env("ENCLOS_RUN_DIR", self.run_dir())
            .env("ENCLOS_STATE_DIR", &self.state);
        command
    }

    /// Starts an enclave with `enclos run-enclave` and publishes its port 5000.
    ///
    /// # Errors
    /// It does not start; the error carries what was printed.
    pub fn run(&self, image: &Image, options: &[&str]) -> Result<Enclave<'_>> {
        let listen = free_address()?;
        let started = Instant::now();
        let mut command = self.enclos();
        command.args(["run-enclave", "--memory", &image.memory_mib.to_string()]);
        if !options.contains(&"--cpu-count") {
            command.args(["--cpu-count", "1"]);
        }
        command.arg("--eif-path").arg(&image.eif).args(options);
        command.args(["--publish", &format!("{listen}:5000")]);
        let printed = child::read(&mut command, BOOT).with_context(|| self.logs())?;
        let printed: Value = serde_json::from_str(&printed)?;
        let id = printed["EnclaveID"]
            .as_str()
            .with_context(|| format!("no EnclaveID in {printed}"))?;
        Ok(Enclave {
            host: self,
            id: id.to_owned(),
            address: listen,
            started,
            printed,
        })
    }

    fn logs(&self) -> String {
        format!(
            "hypervisor said:\n{}gateway said:\n{}",
            self.hypervisor_log(),
            self.gateway_log()
        )
    }
}

/// A virtual machine; terminated when dropped.
#[derive(Debug)]
pub struct Enclave<'a> {
    host: &'a Host,
    /// Its id.
    pub id: String,
    /// Host address of its port 5000.
    pub address: SocketAddr,
    /// When `run-enclave` was called.
    pub started: Instant,
    /// What `run-enclave` printed.
    pub printed: Value,
}

impl Enclave<'_> {
    /// What the hypervisor says of it now.
    ///
    /// # Errors
    /// It does not run any more.
    pub fn describe(&self) -> Result<Described> {
        control::enclave(self.host.run_dir(), &self.id)
    }

    /// Waits until the application answers on `path` with 200, and returns how long after `run-enclave` that was.
    ///
    /// # Errors
    /// It does not within [`BOOT`].
    pub fn until_answering(&self, path: &str) -> Result<Duration> {
        let outcome = wait::until(&format!("GET {path}"), BOOT, || {
            match http::get(self.address, path, Duration::from_secs(5)) {
                Ok(reply) => Ok((reply.status == 200).then(|| Ok(self.started.elapsed()))),
                // One that has ended will never answer.
                Err(error) => match self.describe() {
                    Ok(_) => Err(error),
                    Err(gone) => Ok(Some(Err(gone))),
                },
            }
        });
        outcome.flatten().with_context(|| self.host.logs())
    }

    /// GET from the application.
    ///
    /// # Errors
    /// No reply.
    pub fn get(&self, path: &str) -> Result<Reply> {
        http::get(self.address, path, Duration::from_secs(30))
    }

    /// POST to the application.
    ///
    /// # Errors
    /// No reply.
    pub fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        http::post_json(self.address, path, body, Duration::from_secs(30))
    }

    /// Stops it as an operator does.
    ///
    /// # Errors
    /// `terminate-enclave` fails.
    pub fn terminate(&self) -> Result<String> {
        let mut command = self.host.enclos();
        command.args(["terminate-enclave", "--enclave-id", &self.id]);
        child::read(&mut command, Duration::from_secs(30))
    }

    /// Ends its `enclos-vmm` without warning.
    ///
    /// # Errors
    /// There is no such process.
    pub fn kill_vmm(&self) -> Result<()> {
        child::send(self.describe()?.pid, Signal::KILL)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It goes on.
    pub fn wait(&self, limit: Duration) -> Result<wire::Exit> {
        control::wait(self.host.run_dir(), &self.id, limit)
    }
}

impl Drop for Enclave<'_> {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let request = wire::Request::Terminate {
            enclave: wire::Selector::Id(self.id.clone()),
            grace_s: 0,
        };
        let _ = control::ask(self.host.run_dir(), &request, Duration::from_secs(30));
    }
}

/// A loopback address whose port was free a moment ago.
///
/// # Errors
/// None is.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A folder for logs, keys and images.
fn scratch_in(state: &Path) -> Result<TempDir> {
    let parent = state.join("stacks");
    fs::create_dir_all(&parent)?;
    let dir = tempfile::Builder::new()
        .prefix("stack-")
        .tempdir_in(parent)?;
    child::remove_on_signal(dir.path());
    Ok(dir)
}

/// A folder for sockets: short, since a socket's path may have 107 bytes, and open to the user ids that enclaves have.
fn run_dir() -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("enclos-").tempdir()?;
    child::remove_on_signal(dir.path());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}
