//! Measurement policies of a server: read at the start, again on SIGHUP, each change in the audit trail.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use time::OffsetDateTime;
use tokio::signal::unix::Signal;
use tokio::sync::watch;

use super::{Failure, record};
use crate::error::Chain;
use crate::measurements::Measurements;
use crate::recipient::unix_millis;
use crate::service::Service;
use crate::store::Store;

/// What an audit event of read policies is called.
const EVENT: &str = "LoadMeasurementPolicies";

/// Gives a service the policies of a directory.
pub(super) async fn load(service: Service, directory: &Path) -> Result<Service, Failure> {
    let measurements = Measurements::open(directory)?;
    note(&service.store, &measurements.digests()).await?;
    let service = service.with_measurements(measurements);
    tell(&service);
    Ok(service)
}

/// Reads the directory again at each SIGHUP. What cannot be read or recorded changes nothing.
pub(super) async fn reload(
    service: Arc<Service>,
    mut hangup: Signal,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            received = hangup.recv() => match received {
                Some(()) => {}
                None => return,
            },
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        if let Err(Failure { error, .. }) = reload_once(&service).await {
            let error = Chain(error.as_ref());
            tracing::error!(%error, "reading measurement policies again failed, the former ones stay");
        }
    }
}

async fn reload_once(service: &Arc<Service>) -> Result<(), Failure> {
    let reader = Arc::clone(service);
    let read = tokio::task::spawn_blocking(move || reader.measurements.read_again());
    let reading = read.await??;
    let next = reading.digests();
    if next == service.measurements.digests() {
        tracing::info!("measurement policies are as they were");
        return Ok(());
    }
    // On disk before it decides.
    note(&service.store, &next).await?;
    service.measurements.replace(reading);
    tell(service);
    Ok(())
}

async fn note(store: &Store, policies: &BTreeMap<String, String>) -> Result<(), Failure> {
    let parameters = json!({ "policies": policies });
    let row = record::row("kms.amazonaws.com", EVENT, "", parameters)?;
    Ok(store.record(row, true).await?)
}

/// Logs what is in use, what is suspicious in it, and what key policies name and is not there.
fn tell(service: &Service) {
    let now = unix_millis(OffsetDateTime::now_utc());
    for (name, sha256) in service.measurements.digests() {
        tracing::info!(name, sha256, "measurement policy in use");
        for warning in service.measurements.warnings(&name, now) {
            tracing::warn!(name, "measurement policy: {warning}");
        }
    }
    for key in service.keys.select(|_| true) {
        let mut names = key.policy.measurement_policies();
        if let Some(name) = names.find(|name| !service.measurements.has(name)) {
            tracing::warn!(key = %key.arn, name, "the key policy names a measurement policy that is not here: its statements admit nobody");
        }
    }
}
