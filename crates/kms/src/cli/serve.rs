//! `enclos-kms serve`.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use enclos_attest::document::TrustAnchors;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{CANNOT_LISTEN, Data, Failure, IN_USE, USAGE, measurements, print, root};
use crate::busy_poll::BusyPoll;
use crate::crypto::seal::RootKey;
use crate::error::Chain;
use crate::limits::Limits;
use crate::measurements::Measurements;
use crate::memory_lock;
use crate::metrics::Metrics;
use crate::operations::Operations;
use crate::recipient::Trust;
use crate::server::Listener;
use crate::service::Service;
use crate::store::{Location, Store};
use crate::tls::{self, ServerCertificate, Source};
use crate::traces::{Exporter, Settings, Tracer};

/// How often keys are looked for that are due: for deletion, expiry or rotation.
const SWEEP: Duration = Duration::from_secs(60);

/// How often root.key is looked at.
const ROOT: Duration = Duration::from_secs(2);

/// How long after a start or a new version a value may still come that is sealed under an older one: longer than any request takes.
const SETTLE: Duration = Duration::from_secs(30);

/// How often the server certificate is issued anew: half of its life.
const RENEW: Duration = Duration::from_secs(86_400 * (tls::SERVER_DAYS.unsigned_abs() / 2));

/// Command line of `serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// File of settings, TOML: each flag is a key, with _ for -. Flags win over the environment, and that over the file
    #[arg(long, value_name = "FILE", env = "ENCLOS_KMS_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    data: Data,

    /// Address to listen on: TLS, or plain HTTP with --dev. Port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", env = "ENCLOS_KMS_LISTEN")]
    listen: SocketAddr,

    /// Plain HTTP on loopback with account 000000000000 and credentials test/test
    #[arg(long, conflicts_with_all = ["dev_listen", "tls_cert", "tls_key", "server_name"], env = "ENCLOS_KMS_DEV")]
    dev: bool,

    /// A second listener as --dev makes it, beside the one with TLS
    #[arg(long, value_name = "ADDR:PORT", env = "ENCLOS_KMS_DEV_LISTEN")]
    dev_listen: Option<SocketAddr>,

    /// Certificate chain of the server, PEM. By default one is issued by DATA/tls/ca.pem
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        env = "ENCLOS_KMS_TLS_CERT"
    )]
    tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, PEM
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_cert",
        env = "ENCLOS_KMS_TLS_KEY"
    )]
    tls_key: Option<PathBuf>,

    /// DNS name or address in the issued certificate; may be repeated
    #[arg(
        long,
        value_name = "NAME",
        default_value = "kms.enclos.internal",
        conflicts_with = "tls_cert",
        env = "ENCLOS_KMS_SERVER_NAME",
        value_delimiter = ','
    )]
    server_name: Vec<String>,

    /// Attestation root to trust, PEM or DER: an installation's own certificate authority; may be repeated
    #[arg(
        long,
        value_name = "FILE",
        env = "ENCLOS_KMS_TRUST_ROOT",
        value_delimiter = ','
    )]
    trust_root: Vec<PathBuf>,

    /// Trust AWS's own Nitro Enclaves root as well
    #[arg(long, env = "ENCLOS_KMS_TRUST_AWS")]
    trust_aws: bool,

    /// Directory of measurement policies, NAME.json, that key policies may name; read again on SIGHUP
    #[arg(long, value_name = "DIR", env = "ENCLOS_KMS_MEASUREMENT_POLICIES")]
    measurement_policies: Option<PathBuf>,

    /// Refuse TLS clients without a certificate of this authority, PEM
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "dev",
        env = "ENCLOS_KMS_CLIENT_CA"
    )]
    client_ca: Option<PathBuf>,

    /// Refuse key policies that are legal and seldom meant: those that would get a warning
    #[arg(long, env = "ENCLOS_KMS_STRICT_POLICIES")]
    strict_policies: bool,

    /// Enclos's own extension, which AWS has not: Sign, Verify, GenerateMac and VerifyMac take Recipient and are decided by
    /// attestation conditions; signatures and MACs are then sealed to the enclave that asks
    #[arg(long, env = "ENCLOS_KMS_ATTESTED_SIGNING")]
    attested_signing: bool,

    /// With --database: milliseconds for which a node may answer from what it knows without asking whether other nodes have
    /// changed keys, grants or policies. 0, the default: never
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=60_000), env = "ENCLOS_KMS_MAX_STALENESS")]
    max_staleness: u64,

    /// Most calls of one access key in a second; more are throttled. No limit by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), env = "ENCLOS_KMS_RATE_LIMIT")]
    rate_limit: Option<u32>,

    /// Most microseconds for which a thread stays awake for the next request of a client that is quick, and alone; 0: none
    #[arg(long, value_name = "US", default_value_t = 100, value_parser = clap::value_parser!(u64).range(..=1_000), env = "ENCLOS_KMS_BUSY_POLL")]
    busy_poll: u64,

    /// Address for /livez, /readyz and /metrics, plain HTTP: loopback, unless others are to see them. None by default
    #[arg(long, value_name = "ADDR:PORT", env = "ENCLOS_KMS_OPERATIONS_LISTEN")]
    operations_listen: Option<SocketAddr>,

    /// OpenTelemetry collector to send a span of each request to, http://HOST:PORT (OTLP over HTTP); OpenTelemetry's own variables
    /// work too. None by default
    #[arg(long, value_name = "URL", env = "ENCLOS_KMS_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,

    /// Do not start if memory cannot be locked against swapping
    #[arg(long, env = "ENCLOS_KMS_REQUIRE_LOCKED_MEMORY")]
    require_locked_memory: bool,
}

/// How long a shutdown waits for listeners, which take a little less for themselves, and for work in the background.
const TASKS: Duration = Duration::from_secs(12);

/// And then for what is to be stored. Both together are less than a service manager waits: `TimeoutStopSec` in `enclos-kms.service`.
const STORE: Duration = Duration::from_secs(8);

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
enum DataError {
    #[error("another enclos-kms serves from {0}; stop it first or use another --data directory")]
    InUse(PathBuf),
    #[error(
        "the database already has a root key: copy root.key of a node that works to {0}, with mode 0600"
    )]
    NeedsRoot(PathBuf),
    #[error("cannot read the attestation root {path}")]
    Root {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot use the data directory {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Serves until SIGINT or SIGTERM.
pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    // From here on a signal means a clean stop, also one that comes right after the addresses were printed.
    let mut signals = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    // SIGHUP keeps its meaning, the end, where there is nothing to read again.
    let hangup = match arguments.measurement_policies {
        Some(_) => Some(signal(SignalKind::hangup())?),
        None => None,
    };
    if let Some(path) = &arguments.config {
        tracing::info!(path = %path.display(), "settings were read");
    }
    let data = arguments.data.data.clone();
    let _lock = lock(&data)?;
    let locked = lock_memory(arguments.require_locked_memory)?;
    let trust = trust(&arguments)?;
    let location = arguments.data.location()?;
    let (store, writer) = Store::open(location.clone()).await?;
    let root = root(&data, &store).await?;
    let service = Service::new(store.clone(), root, trust).await?;
    let service = service
        .with_limits(Limits::new(arguments.rate_limit))
        .with_strict_policies(arguments.strict_policies)
        .with_attested_signing(arguments.attested_signing)
        .with_staleness(Duration::from_millis(arguments.max_staleness));
    let service = match &arguments.measurement_policies {
        Some(directory) => measurements::load(service, directory).await?,
        None => service,
    };
    let (tracer, exporter) = tracer(&arguments, service.metrics())?;
    let service = Arc::new(service.with_tracer(tracer));
    service.metrics().memory_locked(locked);
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let listeners = listeners(&arguments, &data, (&stopped, service.metrics())).await?;
    let operations = operations(&arguments).await?;

    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn(listener.serve(Arc::clone(&service), stopped.clone()));
    }
    tasks.spawn(sweep(Arc::clone(&service), stopped.clone()));
    if let Some(hangup) = hangup {
        tasks.spawn(measurements::reload(
            Arc::clone(&service),
            hangup,
            stopped.clone(),
        ));
    }
    tasks.spawn(follow_root(location, Arc::clone(&service.root), stopped));
    let exporter = exporter.map(|exporter| tokio::spawn(exporter.run(ended.clone())));
    let operations = operations.map(|listener| {
        tokio::spawn(listener.serve(Arc::clone(&service), stop.subscribe(), ended))
    });
    tokio::select! {
        _ = signals.0.recv() => {}
        _ = signals.1.recv() => {}
    }
    tracing::info!("stopping: finishing requests under way");
    // Receivers exist as long as the tasks do.
    let _all_gone = stop.send(true);
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(TASKS, all).await.is_err() {
        tracing::warn!("work in the background was still under way and is given up");
        tasks.shutdown().await;
    }
    store.end_within(STORE);
    // What could not be stored the writer tells the log, so its end is waited for all the same.
    let flushed = store.flush().await;
    let _all_gone = end.send(true);
    for task in operations.into_iter().chain(exporter) {
        task.await?;
    }
    service.end_reading().await;
    drop((store, service));
    writer.await?;
    Ok(flushed?)
}

/// Reads what the settings name, as a start would; makes, opens and locks nothing.
pub(super) fn check(arguments: &Arguments) -> Result<(), Failure> {
    trust(arguments)?;
    arguments.data.location()?;
    if let files @ Source::Files { .. } = source(arguments, &arguments.data.data) {
        ServerCertificate::new(files)?.server_config(arguments.client_ca.as_deref())?;
    }
    if let Some(directory) = &arguments.measurement_policies {
        Measurements::open(directory)?;
    }
    tracer(arguments, &Metrics::default())?;
    Ok(())
}

/// What makes spans and what sends them, if they are wanted.
fn tracer(
    arguments: &Arguments,
    metrics: &Metrics,
) -> Result<(Option<Tracer>, Option<Exporter>), Failure> {
    let settings = Settings::new(arguments.otlp_endpoint.as_deref());
    let settings = settings.map_err(|error| Failure::new(USAGE, error))?;
    let Some(settings) = settings else {
        return Ok((None, None));
    };
    let (tracer, exporter) = Tracer::new(&settings, metrics)?;
    tracing::info!(endpoint = %settings.endpoint(), "spans are sent to a collector");
    Ok((Some(tracer), Some(exporter)))
}

/// The root key; the first node of a database makes it, the others are given it.
async fn root(data: &Path, store: &Store) -> Result<RootKey, Failure> {
    let path = data.join("root.key");
    let given = store.has_root().await?;
    if given && !path.exists() {
        return Err(DataError::NeedsRoot(path).into());
    }
    Ok(RootKey::open(&path, !given)?)
}

/// The attestation roots, each known by its file's name.
fn trust(arguments: &Arguments) -> Result<Trust, Failure> {
    let mut anchors = TrustAnchors::new();
    if arguments.trust_aws {
        anchors = anchors.with_aws();
    }
    for path in &arguments.trust_root {
        let bytes = std::fs::read(path).map_err(|source| DataError::Root {
            path: path.clone(),
            source,
        })?;
        anchors = anchors.with_root(&path.display().to_string(), &bytes)?;
    }
    if !arguments.trust_aws && arguments.trust_root.is_empty() {
        tracing::warn!(
            "no attestation root is trusted, so every Recipient will be refused; see --trust-root and --trust-aws"
        );
    }
    Ok(Trust::new(anchors))
}

/// Makes the directory, private, and takes its lock for the life of the process.
pub(super) fn lock(data: &Path) -> Result<File, Failure> {
    let io = |source| DataError::Io {
        path: data.to_owned(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .map_err(io)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data.join("serve.lock"))
        .map_err(io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::new(IN_USE, DataError::InUse(data.to_owned())))
        }
        Err(TryLockError::Error(source)) => Err(io(source).into()),
    }
}

async fn listeners(
    arguments: &Arguments,
    data: &Path,
    (stopped, metrics): (&watch::Receiver<bool>, &Metrics),
) -> Result<Vec<Listener>, Failure> {
    let cannot = |error| Failure::new(CANNOT_LISTEN, error);
    let mut listeners = Vec::new();
    let dev = if arguments.dev {
        Some(arguments.listen)
    } else {
        arguments.dev_listen
    };
    if let Some(address) = dev {
        let listener = Listener::dev(address).await.map_err(cannot)?;
        let address = listener.local_addr()?;
        tracing::warn!("development listener: anyone on this machine may use it with test/test");
        print(&format!("listening on http://{address}"))?;
        listeners.push(listener);
    }
    if !arguments.dev {
        let certificate = ServerCertificate::new(source(arguments, data))?;
        let config = certificate.server_config(arguments.client_ca.as_deref())?;
        let listener = Listener::tls(arguments.listen, config)
            .await
            .map_err(cannot)?;
        print(&format!("listening on https://{}", listener.local_addr()?))?;
        tokio::spawn(renew(certificate, stopped.clone()));
        listeners.push(listener);
    }
    let longest = Duration::from_micros(arguments.busy_poll);
    let busy_poll = BusyPoll::new(longest, metrics);
    let with = |listener: Listener| listener.with_busy_poll(Arc::clone(&busy_poll));
    Ok(listeners.into_iter().map(with).collect())
}

async fn operations(arguments: &Arguments) -> Result<Option<Operations>, Failure> {
    let Some(address) = arguments.operations_listen else {
        return Ok(None);
    };
    let listener = Operations::bind(address).await;
    let listener = listener.map_err(|error| Failure::new(CANNOT_LISTEN, error))?;
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "health and metrics can be read from other machines");
    }
    print(&format!("operations on http://{address}"))?;
    Ok(Some(listener))
}

fn source(arguments: &Arguments, data: &Path) -> Source {
    match (&arguments.tls_cert, &arguments.tls_key) {
        (Some(certificate), Some(key)) => Source::Files {
            certificate: certificate.clone(),
            key: key.clone(),
        },
        _ => Source::Own {
            data: data.to_owned(),
            names: tls::certificate_names(&arguments.server_name, arguments.listen.ip()),
        },
    }
}

/// Keys must not reach a swap file. Where that cannot be had it is said, or demanded.
fn lock_memory(required: bool) -> Result<bool, Failure> {
    match memory_lock::lock() {
        Err(error) if required => Err(error.into()),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "keys may be swapped out");
            Ok(false)
        }
        Ok(()) => Ok(true),
    }
}

/// When it is time to look for values that are sealed under older versions of the root key: often while requests that began under one
/// may still store something, seldom after that, because it takes a look at every key.
#[derive(Default)]
struct Pace {
    /// The current version, and since when.
    version: Option<(u32, Instant)>,
    /// When everything was looked at with success.
    looked: Option<Instant>,
}

impl Pace {
    fn is_due(&mut self, version: u32) -> bool {
        let known = self.version.filter(|(known, _)| *known == version);
        let (_, since) = *self
            .version
            .insert(known.unwrap_or_else(|| (version, Instant::now())));
        let often = since.elapsed() < SETTLE;
        self.looked
            .is_none_or(|looked| often || looked.elapsed() >= SWEEP)
    }
}

/// Takes up new versions of the root key.
async fn follow_root(location: Location, root: Arc<RootKey>, mut stopped: watch::Receiver<bool>) {
    let mut pace = Pace::default();
    loop {
        if let Err(failure) = take_up(&location, &root, &mut pace).await {
            tracing::error!(error = %Chain(failure.error.as_ref()), "taking up root.key or sealing anew failed, it will be tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(ROOT) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

async fn take_up(location: &Location, root: &RootKey, pace: &mut Pace) -> Result<(), Failure> {
    root.reload_in_task()?;
    if pace.is_due(root.version()) {
        pace.looked = None;
        root::seal_anew(location, root).await?;
        pace.looked = Some(Instant::now());
    }
    Ok(())
}

async fn renew(certificate: Arc<ServerCertificate>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        match certificate.renew() {
            Ok(()) => tracing::info!("server certificate renewed"),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "renewing the server certificate failed, the old one stays");
            }
        }
    }
}

async fn sweep(service: Arc<Service>, mut stopped: watch::Receiver<bool>) {
    loop {
        if let Err(error) = service.maintain(OffsetDateTime::now_utc()).await {
            tracing::error!(error = %Chain(&error), "deleting, expiring or rotating keys that are due failed, it will be tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_looked_for_often_after_a_new_one_and_seldom_later() {
        let ago = |time: Duration| Instant::now().checked_sub(time).unwrap();
        let mut pace = Pace::default();
        assert!(pace.is_due(1), "after a start");
        pace.looked = Some(Instant::now());
        assert!(pace.is_due(1), "requests may still be under way");
        pace.version = Some((1, ago(SETTLE)));
        assert!(!pace.is_due(1));
        assert!(pace.is_due(2), "a new version");
        pace.version = Some((2, ago(SETTLE)));
        pace.looked = Some(ago(SWEEP));
        assert!(pace.is_due(2), "a minute later");
        pace.looked = None;
        assert!(pace.is_due(2), "after a failure");
    }
}
