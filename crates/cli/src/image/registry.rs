//! Images pulled from a registry into an OCI layout, without any container tool.
//!
//! ```text
//! reference@digest ─▶ manifest or index ─▶ manifest for the kernel's processor ─▶ configuration, layers
//! ```
//!
//! What is written is what came; whoever reads the layout checks every digest down from the one in the reference. A tag
//! says only what the registry says today, so it is taken on request alone.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use enclos_eif::Architecture;
use futures_util::StreamExt as _;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest,
};
use oci_client::{Client, Reference};
use serde_json::{Value, json};

use super::credentials;
use crate::codes::Code;
use crate::failure::{Failure, Outcome};
use crate::term;

/// Manifests and indexes that are understood.
const ACCEPTED: [&str; 4] = [
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
];

/// Largest manifest (bytes), the limit that registries have themselves.
const MAX_MANIFEST: usize = 4 << 20;

/// Most layers of an image: overlay file systems allow 128.
const MAX_LAYERS: usize = 512;

/// A registry that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// Pulls `named` into `folder`. Without a digest in it, `allow_tag` is needed.
pub(super) fn pull(
    named: &str,
    allow_tag: bool,
    architecture: Architecture,
    folder: &Path,
) -> Outcome {
    let reference: Reference = named.parse().map_err(|error: oci_client::ParseError| {
        Failure::aws(Code::DOCKER_PULL, error).context(format_args!(
            "`{named}` is neither a file nor the reference of an image"
        ))
    })?;
    if reference.digest().is_none() && !allow_tag {
        let text = format!(
            "{named} is not here, and a registry may give out another image for the same tag tomorrow"
        );
        return Err(Failure::aws_text(Code::DOCKER_PULL, text).hint(
            "name it by digest, NAME@sha256:…, or take what the tag means today with --allow-tag",
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(into_layout(&reference, architecture, folder))
        .map_err(|error| {
            Failure::aws(Code::DOCKER_PULL, error).context(format_args!(
                "cannot fetch the image {named} from {}",
                reference.resolve_registry()
            ))
        })
}

async fn into_layout(
    reference: &Reference,
    architecture: Architecture,
    folder: &Path,
) -> anyhow::Result<()> {
    let client = Client::new(config(reference));
    let auth = credentials::find(reference.registry())?;
    let (bytes, digest) = client
        .pull_manifest_raw(reference, &auth, &ACCEPTED)
        .await?;
    let descriptor = write_manifest(folder, &bytes, &digest)?;
    let mut manifest: Value = serde_json::from_slice(&bytes)?;
    if manifest.get("manifests").is_some() {
        let digest = for_platform(&manifest, architecture)?;
        let one = reference.clone_with_digest(digest);
        let (bytes, digest) = client.pull_manifest_raw(&one, &auth, &ACCEPTED).await?;
        write_manifest(folder, &bytes, &digest)?;
        manifest = serde_json::from_slice(&bytes)?;
    }
    let manifest: OciImageManifest = serde_json::from_value(manifest)?;
    anyhow::ensure!(
        manifest.layers.len() <= MAX_LAYERS,
        "the image has more than {MAX_LAYERS} layers"
    );
    let count = manifest.layers.len();
    for (position, blob) in std::iter::once(&manifest.config)
        .chain(&manifest.layers)
        .enumerate()
    {
        if position > 0 {
            term::note(format_args!(
                "layer {position} of {count}: {:.1} MiB",
                term::mib(size(blob))
            ));
        }
        write_blob(&client, reference, blob, folder).await?;
    }
    let annotations = json!({ "io.containerd.image.name": reference.whole() });
    let index =
        json!({ "schemaVersion": 2, "manifests": [with(descriptor, "annotations", annotations)] });
    fs::write(folder.join("index.json"), index.to_string())?;
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}

/// Plain HTTP is for registries on this host, as every container tool has it.
fn config(reference: &Reference) -> ClientConfig {
    let registry = reference.resolve_registry();
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let is_here = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let protocol = match is_here {
        true => ClientProtocol::HttpsExcept(vec![registry.to_owned()]),
        false => ClientProtocol::Https,
    };
    ClientConfig {
        protocol,
        read_timeout: Some(SILENCE),
        connect_timeout: Some(SILENCE),
        ..ClientConfig::default()
    }
}

/// The digest of the manifest that the layout's reader will choose.
fn for_platform(index: &Value, architecture: Architecture) -> anyhow::Result<String> {
    let manifests = index["manifests"].as_array().into_iter().flatten();
    let mut fitting = manifests.filter(|manifest| {
        let platform = &manifest["platform"];
        platform.is_null()
            || (platform["os"] == "linux" && platform["architecture"] == architecture.oci_name())
    });
    let digest = fitting
        .next()
        .and_then(|manifest| manifest["digest"].as_str());
    digest
        .map(str::to_owned)
        .ok_or_else(|| anyhow::anyhow!("it holds no image for linux/{}", architecture.oci_name()))
}

/// Writes a manifest and says what describes it.
fn write_manifest(folder: &Path, bytes: &[u8], digest: &str) -> anyhow::Result<Value> {
    anyhow::ensure!(
        bytes.len() <= MAX_MANIFEST,
        "the registry sent a manifest of {} bytes, the limit is {MAX_MANIFEST}",
        bytes.len()
    );
    let document: Value = serde_json::from_slice(bytes)?;
    let default = if document.get("manifests").is_some() {
        OCI_IMAGE_INDEX_MEDIA_TYPE
    } else {
        OCI_IMAGE_MEDIA_TYPE
    };
    let media_type = document["mediaType"].as_str().unwrap_or(default);
    fs::write(blob_path(folder, digest)?, bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

/// Writes a blob, of which not more is taken than was announced.
async fn write_blob(
    client: &Client,
    reference: &Reference,
    blob: &OciDescriptor,
    folder: &Path,
) -> anyhow::Result<()> {
    let path = blob_path(folder, &blob.digest)?;
    if path.exists() {
        return Ok(());
    }
    let mut file = io::BufWriter::new(fs::File::create_new(path)?);
    let mut stream = client.pull_blob_stream(reference, blob).await?.stream;
    let (mut received, announced) = (0, size(blob));
    while let Some(bytes) = stream.next().await {
        let bytes = bytes?;
        received += u64::try_from(bytes.len())?;
        anyhow::ensure!(
            received <= announced,
            "{} is larger than the {announced} bytes that its manifest announces",
            blob.digest
        );
        file.write_all(&bytes)?;
    }
    file.flush()?;
    Ok(())
}

fn size(blob: &OciDescriptor) -> u64 {
    u64::try_from(blob.size).unwrap_or(0)
}

/// Where a blob is in a layout. Nothing but hexadecimal digits gets into the path.
fn blob_path(folder: &Path, digest: &str) -> anyhow::Result<std::path::PathBuf> {
    let parts = digest.split_once(':').filter(|(algorithm, hex)| {
        matches!(*algorithm, "sha256" | "sha512")
            && hex.len() >= 64
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    });
    let (algorithm, hex) = parts.ok_or_else(|| {
        anyhow::anyhow!(
            "the registry names a blob {digest:?}, which is no sha256: or sha512: digest"
        )
    })?;
    let folder = folder.join("blobs").join(algorithm);
    fs::create_dir_all(&folder)?;
    Ok(folder.join(hex))
}

fn with(mut object: Value, key: &str, value: Value) -> Value {
    object[key] = value;
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Architecture = Architecture::X86_64;

    #[test]
    fn a_tag_is_taken_on_request_alone() {
        let folder = tempfile::tempdir().unwrap();
        let refused = pull("127.0.0.1:1/app:latest", false, HERE, folder.path()).unwrap_err();
        assert_eq!(refused.exit_status(), 50);
        assert!(refused.render("enclos").contains("--allow-tag"));
        let unreachable = pull("127.0.0.1:1/app:latest", true, HERE, folder.path()).unwrap_err();
        assert!(
            unreachable
                .render("enclos")
                .contains("cannot fetch the image 127.0.0.1:1/app:latest from 127.0.0.1:1")
        );
    }

    #[test]
    fn what_is_no_reference_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        for bad in ["", "a b", "x@sha256:12"] {
            assert!(
                pull(bad, true, HERE, folder.path())
                    .unwrap_err()
                    .render("enclos")
                    .contains("neither a file nor"),
                "{bad}"
            );
        }
    }

    #[test]
    fn only_this_host_is_spoken_to_in_the_clear() {
        let plain = |named: &str| config(&named.parse().unwrap()).protocol != ClientProtocol::Https;
        for here in ["localhost:5000/a", "127.0.0.1:5000/a", "127.1.2.3/a"] {
            assert!(plain(here), "{here}");
        }
        for elsewhere in [
            "a",
            "example.com/a",
            "localhost.example.com/a",
            "10.0.0.1:5000/a",
        ] {
            assert!(!plain(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn blobs_stay_in_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        for bad in [
            "",
            "sha256:",
            "sha256:../../x",
            "md5:00",
            &format!("sha256:{}/", "0".repeat(63)),
        ] {
            assert!(blob_path(folder.path(), bad).is_err(), "{bad}");
        }
        assert!(blob_path(folder.path(), &format!("sha256:{}", "0".repeat(64))).is_ok());
    }
}
