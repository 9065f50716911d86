//! Container images from files: OCI layouts (folder or tar) and `docker save` archives.
//!
//! ```text
//! OCI     index.json ─▶ [index ─▶] manifest ─▶ config, layers     each by digest and size
//! docker  manifest.json ─▶ config, layers                         layers by the config's diff_ids
//! ```
//!
//! Everything is verified as it is read: blobs against the digest that names them, unpacked layers against
//! the configuration's `diff_ids`. Nothing is trusted for being in the archive.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::path::Path;

use aws_lc_rs::digest::{Algorithm, SHA256, SHA512, digest as hash};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::format::Architecture;
use crate::packing::Packing;

use super::blobs::{Blobs, parse};
use super::error::ImageError;
use super::layer::{Lost, apply, unpacked};
use super::spool::Spool;
use super::stream::Hashing;
use super::tree::Tree;

/// Indexes inside indexes that are followed.
const MAX_NESTING: usize = 4;

/// Annotation that carries an image's name in an OCI layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same, with the repository, as containerd and docker write it.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// What an image says about running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ImageConfig {
    pub(crate) user: Option<String>,
    pub(crate) exposed_ports: Option<BTreeMap<String, Value>>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
    pub(crate) stop_signal: Option<String>,
    pub(crate) volumes: Option<BTreeMap<String, Value>>,
}

/// An image taken apart.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) tree: Tree,
    pub(crate) config: ImageConfig,
    /// The configuration as it is, for the metadata.
    pub(crate) raw_config: Value,
    /// Its name in the archive.
    pub(crate) name: Option<String>,
    /// Digest of the configuration, which is docker's image id.
    pub(crate) id: String,
    /// Files that lost extended attributes.
    pub(crate) lost: Lost,
}

/// Reads a JSON blob that must have this digest.
fn json_blob<T: DeserializeOwned>(blobs: &Blobs, digest: &Digest) -> Result<T, ImageError> {
    let name = digest.blob();
    let bytes = blobs.read(&name)?;
    digest.check(&name, &hash(digest.algorithm, &bytes))?;
    parse(&name, &bytes)
}

/// An algorithm and the digest that bytes must have.
#[derive(Debug, Clone)]
struct Digest {
    algorithm: &'static Algorithm,
    name: &'static str,
    hex: String,
}

impl Digest {
    fn parse(digest: &str) -> Result<Self, ImageError> {
        let unknown = || ImageError::UnknownDigest {
            digest: digest.to_owned(),
        };
        let (name, hex) = digest.split_once(':').ok_or_else(unknown)?;
        let (algorithm, name, len) = match name {
            "sha256" => (&SHA256, "sha256", 64),
            "sha512" => (&SHA512, "sha512", 128),
            _ => return Err(unknown()),
        };
        let digits = hex
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match digits && hex.len() == len {
            true => Ok(Self {
                algorithm,
                name,
                hex: hex.to_owned(),
            }),
            false => Err(unknown()),
        }
    }

    /// Name of the blob in a layout.
    fn blob(&self) -> String {
        format!("blobs/{}/{}", self.name, self.hex)
    }

    fn check(&self, name: &str, found: &aws_lc_rs::digest::Digest) -> Result<(), ImageError> {
        let found = hex::encode(found);
        if found == self.hex {
            return Ok(());
        }
        let (name, expected) = (name.to_owned(), format!("{}:{}", self.name, self.hex));
        Err(ImageError::Digest {
            name,
            expected,
            found: format!("{}:{found}", self.name),
        })
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    fn is_index(&self) -> bool {
        self.media_type.contains("image.index") || self.media_type.contains("manifest.list")
    }

    fn name(&self) -> Option<&String> {
        let annotations = self.annotations.as_ref()?;
        annotations
            .get(IMAGE_NAME)
            .or_else(|| annotations.get(REF_NAME))
    }

    fn is_named(&self, wanted: &str) -> bool {
        let annotations = self.annotations.iter().flatten();
        let mut names =
            annotations.filter(|(key, _)| [IMAGE_NAME, REF_NAME].contains(&key.as_str()));
        names.any(|(_, name)| same_name(name, wanted))
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The configuration document of an image.
#[derive(Deserialize)]
struct ConfigDocument {
    architecture: Option<String>,
    os: Option<String>,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Whether an archive's name for an image is the one that was asked for; `latest` is implied.
fn same_name(name: &str, wanted: &str) -> bool {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    name == wanted || name.strip_suffix(":latest") == Some(wanted)
}

/// Which image is wanted.
pub(crate) struct Wanted<'a> {
    /// Its name, where there are several.
    pub(crate) reference: Option<&'a str>,
    /// The processor that it has to be for.
    pub(crate) architecture: Architecture,
    /// A folder for temporary files.
    pub(crate) scratch: &'a Path,
}

/// Takes an image out of an OCI layout.
pub(crate) fn load_oci(
    blobs: &Blobs,
    wanted: &Wanted<'_>,
    spool: &mut Spool,
) -> Result<Image, ImageError> {
    let index: Index = blobs.json("index.json")?;
    let chosen = choose(
        index.manifests,
        wanted.reference,
        Descriptor::is_named,
        describe,
    )?;
    let name = chosen.name().cloned();
    let manifest: Manifest = find_manifest(blobs, &chosen, wanted.architecture, 0)?;
    let digest = Digest::parse(&manifest.config.digest)?;
    let raw_config: Value = json_blob(blobs, &digest)?;
    let layers = manifest.layers.iter().map(|layer| {
        let digest = Digest::parse(&layer.digest)?;
        Ok(LayerSource {
            name: digest.blob(),
            digest: Some((digest, layer.size)),
        })
    });
    let layers = layers.collect::<Result<Vec<_>, ImageError>>()?;
    let id = format!("{}:{}", digest.name, digest.hex);
    let named = Named { id, name };
    assemble(blobs, raw_config, &layers, named, wanted, spool)
}

/// Takes an image out of a `docker save` archive.
pub(crate) fn load_docker(
    blobs: &Blobs,
    wanted: &Wanted<'_>,
    spool: &mut Spool,
) -> Result<Image, ImageError> {
    let images: Vec<DockerImage> = blobs.json("manifest.json")?;
    let is_named = |image: &DockerImage, wanted: &str| {
        image
            .repo_tags
            .iter()
            .flatten()
            .any(|tag| same_name(tag, wanted))
    };
    let chosen = choose(images, wanted.reference, is_named, |image| {
        image.repo_tags.clone().unwrap_or_default().join(", ")
    })?;
    // The configuration's name is its digest, with or without a folder and an ending.
    let file = chosen.config.rsplit('/').next().unwrap_or_default();
    let digest = Digest::parse(&format!("sha256:{}", file.trim_end_matches(".json")))?;
    let bytes = blobs.read(&chosen.config)?;
    digest.check(&chosen.config, &hash(digest.algorithm, &bytes))?;
    let raw_config = parse(&chosen.config, &bytes)?;
    let layers = chosen
        .layers
        .into_iter()
        .map(|name| LayerSource { name, digest: None })
        .collect::<Vec<_>>();
    let name = chosen.repo_tags.and_then(|tags| tags.into_iter().next());
    let id = format!("sha256:{}", digest.hex);
    let named = Named { id, name };
    assemble(blobs, raw_config, &layers, named, wanted, spool)
}

fn describe(descriptor: &Descriptor) -> String {
    descriptor
        .name()
        .cloned()
        .unwrap_or_else(|| descriptor.digest.clone())
}

/// The image that was asked for, or the only one.
fn choose<T>(
    mut images: Vec<T>,
    wanted: Option<&str>,
    is_named: impl Fn(&T, &str) -> bool,
    describe: impl Fn(&T) -> String,
) -> Result<T, ImageError> {
    let found = images.iter().map(describe).collect::<Vec<_>>().join(", ");
    if let Some(wanted) = wanted {
        images.retain(|image| is_named(image, wanted));
    }
    match (images.pop(), images.is_empty(), wanted) {
        (Some(image), true, _) => Ok(image),
        (None, _, Some(wanted)) => Err(ImageError::NoSuchImage {
            wanted: wanted.to_owned(),
            found,
        }),
        (None, _, None) => Err(ImageError::NoImage),
        (Some(_), false, _) => Err(ImageError::Ambiguous { found }),
    }
}

/// Follows indexes to the manifest for this platform.
fn find_manifest(
    blobs: &Blobs,
    from: &Descriptor,
    architecture: Architecture,
    depth: usize,
) -> Result<Manifest, ImageError> {
    let digest = Digest::parse(&from.digest)?;
    if !from.is_index() {
        return json_blob(blobs, &digest);
    }
    let index: Index = json_blob(blobs, &digest)?;
    let platforms = index.manifests.iter().filter_map(|d| d.platform.as_ref());
    let found: Vec<_> = platforms
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    let fits = |d: &&Descriptor| match &d.platform {
        Some(platform) => {
            platform.os == "linux" && platform.architecture == architecture.oci_name()
        }
        None => true,
    };
    match index.manifests.iter().find(fits) {
        Some(descriptor) if depth < MAX_NESTING => {
            find_manifest(blobs, descriptor, architecture, depth + 1)
        }
        _ => Err(ImageError::Platform {
            expected: architecture,
            found: found.join(", "),
        }),
    }
}

struct LayerSource {
    name: String,
    /// Of the layer as it is stored.
    digest: Option<(Digest, u64)>,
}

/// What an image is called.
struct Named {
    id: String,
    name: Option<String>,
}

fn assemble(
    blobs: &Blobs,
    raw_config: Value,
    layers: &[LayerSource],
    Named { id, name }: Named,
    wanted: &Wanted<'_>,
    spool: &mut Spool,
) -> Result<Image, ImageError> {
    let json = |source| ImageError::Json {
        name: format!("configuration {id}"),
        source,
    };
    let document = ConfigDocument::deserialize(&raw_config).map_err(json)?;
    let platform = (document.os.as_deref(), document.architecture.as_deref());
    let expected = wanted.architecture;
    if platform != (Some("linux"), Some(expected.oci_name())) {
        let (os, architecture) = platform;
        let found = format!("{}/{}", os.unwrap_or("?"), architecture.unwrap_or("?"));
        return Err(ImageError::Platform { expected, found });
    }
    let diff_ids = document.rootfs.diff_ids;
    if diff_ids.len() != layers.len() {
        let (layers, diff_ids) = (layers.len(), diff_ids.len());
        return Err(ImageError::LayerCount { layers, diff_ids });
    }
    let mut tree = Tree::new(wanted.scratch);
    let mut lost = Lost::default();
    for (layer, diff_id) in layers.iter().zip(&diff_ids) {
        apply_layer(
            blobs,
            layer,
            &Digest::parse(diff_id)?,
            &mut tree,
            spool,
            &mut lost,
        )?;
    }
    let config = document.config.unwrap_or_default();
    Ok(Image {
        tree,
        config,
        raw_config,
        name,
        id,
        lost,
    })
}

fn apply_layer(
    blobs: &Blobs,
    layer: &LayerSource,
    diff_id: &Digest,
    tree: &mut Tree,
    spool: &mut Spool,
    lost: &mut Lost,
) -> Result<(), ImageError> {
    let name = layer.name.as_str();
    let (stored, len) = blobs.open(name)?;
    if let Some((digest, size)) = layer.digest.as_ref().filter(|(_, size)| *size != len) {
        let (name, expected) = (name.to_owned(), format!("{} of {size} bytes", digest.hex));
        return Err(ImageError::Digest {
            name,
            expected,
            found: format!("{len} bytes"),
        });
    }
    let failed = ImageError::layer(name);
    let algorithm = layer
        .digest
        .as_ref()
        .map_or(diff_id.algorithm, |(digest, _)| digest.algorithm);
    let mut stored = Hashing::new(stored, algorithm);
    let packed = Packing::of(stored.fill_buf().map_err(&failed)?).is_some();
    // What is not packed is hashed once for both digests.
    let diff = if packed || algorithm != diff_id.algorithm {
        let unpacked = unpacked(&mut stored).map_err(&failed)?;
        let mut unpacked = Hashing::new(unpacked, diff_id.algorithm);
        apply(name, &mut unpacked, tree, spool, lost)?;
        Some(unpacked.finish().map_err(&failed)?)
    } else {
        apply(name, &mut stored, tree, spool, lost)?;
        None
    };
    let stored = stored.finish().map_err(&failed)?;
    if let Some((digest, _)) = &layer.digest {
        digest.check(name, &stored)?;
    }
    diff_id.check(
        &format!("{name} (unpacked)"),
        diff.as_ref().unwrap_or(&stored),
    )
}
