//! What makes two images differ: which input changed, and which register that moved.
//!
//! | input | where it is | moves |
//! |---|---|---|
//! | kernel, command line | sections of their own | PCR0, PCR1 |
//! | runtime | first ramdisk | PCR0, PCR1 |
//! | application, configuration | other ramdisks; `/enclos/config.json` is the configuration | PCR0, PCR2 |
//! | signer | signature section | PCR8 |
//! | metadata | metadata section | none |

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufReader, Read, Seek};

use aws_lc_rs::digest::{Context, SHA384};
use enclos_attest::PcrValue;
use serde::Serialize;
use serde_json::Value;

use crate::configuration;
use crate::error::EifError;
use crate::format::Section;
use crate::inspect::{Report, inspect};
use crate::kernel;
use crate::listing::{Entry, list};
use crate::measure::Measurements;
use crate::ramdisk::RamdiskError;
use crate::reader::{Eif, Mode};

/// Most bytes that one image's ramdisk may unpack to while it is compared.
const MAX_UNPACKED: u64 = 64 << 30;

/// Why two images could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// One of them is no image.
    #[error("the {which} image cannot be read")]
    Image {
        /// `first` or `second`.
        which: &'static str,
        /// Why.
        #[source]
        source: EifError,
    },
    /// A ramdisk of one does not unpack.
    #[error("ramdisk {ramdisk} of the {which} image cannot be listed")]
    Ramdisk {
        /// `first` or `second`.
        which: &'static str,
        /// Its index.
        ramdisk: usize,
        /// Why.
        #[source]
        source: RamdiskError,
    },
}

/// A part that an image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// The kernel.
    Kernel,
    /// The kernel's command line.
    CommandLine,
    /// A file of the runtime.
    Runtime,
    /// A setting of the measured configuration.
    Configuration,
    /// A file of the application.
    Application,
    /// Whose key signed it.
    Signer,
    /// A field of the metadata, which nothing measures.
    Metadata,
}

impl Input {
    /// The registers that a change of this input moves.
    pub fn registers(self) -> &'static [u8] {
        match self {
            Self::Kernel | Self::CommandLine | Self::Runtime => &[0, 1],
            Self::Configuration | Self::Application => &[0, 2],
            Self::Signer => &[8],
            Self::Metadata => &[],
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::CommandLine => "command line",
            Self::Runtime => "runtime",
            Self::Configuration => "configuration",
            Self::Application => "application",
            Self::Signer => "signer",
            Self::Metadata => "metadata",
        })
    }
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// In which input.
    pub input: Input,
    /// Which file, setting or field; empty where the input is one thing.
    pub name: String,
    /// What it is in the first image; `None` where it is not there.
    pub before: Option<String>,
    /// What it is in the second image; `None` where it is not there.
    pub after: Option<String>,
}

/// A register of both images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// Its number.
    pub index: u8,
    /// In the first image, hexadecimal; `None` where it is not signed.
    pub before: Option<String>,
    /// In the second image.
    pub after: Option<String>,
}

impl Register {
    /// Whether the two differ.
    pub fn moved(&self) -> bool {
        self.before != self.after
    }
}

/// What makes two images differ.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// Registers of the first image.
    pub first: Measurements,
    /// Registers of the second image.
    pub second: Measurements,
    /// Everything that differs, by input and name.
    pub changes: Vec<Change>,
}

impl Difference {
    /// PCR0, PCR1, PCR2 and PCR8 of both.
    pub fn registers(&self) -> Vec<Register> {
        let (a, b) = (&self.first, &self.second);
        let pairs = [
            (0, Some(a.pcr0), Some(b.pcr0)),
            (1, Some(a.pcr1), Some(b.pcr1)),
            (2, Some(a.pcr2), Some(b.pcr2)),
            (8, a.pcr8, b.pcr8),
        ];
        let text = |pcr: Option<PcrValue>| pcr.map(|pcr| pcr.to_string());
        pairs
            .into_iter()
            .map(|(index, before, after)| Register {
                index,
                before: text(before),
                after: text(after),
            })
            .collect()
    }
}

/// Compares two images, whatever is wrong with them, as long as their parts can be told apart.
///
/// # Errors
/// See [`DiffError`].
pub fn diff<A, B>(first: &mut A, second: &mut B) -> Result<Difference, DiffError>
where
    A: Read + Seek + Send,
    B: Read + Seek + Send,
{
    let first = Parts::read(first, "first")?;
    let second = Parts::read(second, "second")?;
    let (a, b) = (&first, &second);
    let mut changes = Vec::new();
    for (input, a, b) in [
        (Input::Kernel, &a.kernel, &b.kernel),
        (Input::CommandLine, &a.cmdline, &b.cmdline),
        (Input::Runtime, &a.runtime, &b.runtime),
        (Input::Configuration, &a.config, &b.config),
        (Input::Application, &a.app, &b.app),
        (Input::Signer, &a.signer, &b.signer),
        (Input::Metadata, &a.metadata, &b.metadata),
    ] {
        compare(&mut changes, input, a, b);
    }
    for (input, a, b) in [
        (Input::Runtime, &a.runtime_digest, &b.runtime_digest),
        (Input::Application, &a.app_digest, &b.app_digest),
    ] {
        changes.extend(unexplained(&changes, input, a, b));
    }
    Ok(Difference {
        first: first.report.measurements,
        second: second.report.measurements,
        changes,
    })
}

/// That ramdisks differ of which no file does.
fn unexplained(changes: &[Change], input: Input, a: &str, b: &str) -> Option<Change> {
    let explains = |change: &Change| {
        change.input.registers() == input.registers() && is_in_ramdisk(change.input)
    };
    (a != b && !changes.iter().any(explains)).then(|| Change {
        input,
        name: "(order, padding or packing of its archive)".into(),
        before: Some(a.to_owned()),
        after: Some(b.to_owned()),
    })
}

fn is_in_ramdisk(input: Input) -> bool {
    matches!(
        input,
        Input::Runtime | Input::Configuration | Input::Application
    )
}

/// Adds what differs between two sets of named values.
fn compare(changes: &mut Vec<Change>, input: Input, a: &Named, b: &Named) {
    let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    for name in names {
        let (before, after) = (a.get(name), b.get(name));
        if before != after {
            changes.push(Change {
                input,
                name: name.clone(),
                before: before.cloned(),
                after: after.cloned(),
            });
        }
    }
}

/// Values by name: whatever differs in text differs.
type Named = BTreeMap<String, String>;

fn one(value: String) -> Named {
    Named::from([(String::new(), value)])
}

/// An image taken apart into what is compared.
struct Parts {
    report: Report,
    kernel: Named,
    cmdline: Named,
    runtime: Named,
    runtime_digest: String,
    config: Named,
    app: Named,
    app_digest: String,
    signer: Named,
    metadata: Named,
}

impl Parts {
    fn read<R: Read + Seek + Send>(reader: &mut R, which: &'static str) -> Result<Self, DiffError> {
        let image = |source| DiffError::Image { which, source };
        let report = inspect(reader).map_err(image)?;
        let eif = Eif::parse_with(reader, &mut Mode::Tolerant(Vec::new())).map_err(image)?;
        let mut parts = Self {
            kernel: kernel_of(&eif, reader).map_err(image)?,
            cmdline: report.cmdline.clone().map_or_else(Named::new, one),
            runtime: Named::new(),
            runtime_digest: String::new(),
            config: Named::new(),
            app: Named::new(),
            app_digest: String::new(),
            signer: signer_of(&report),
            metadata: report.metadata.as_ref().map(flattened).unwrap_or_default(),
            report,
        };
        for (ramdisk, section) in eif.ramdisks().enumerate() {
            parts.ramdisk(&eif, reader, ramdisk, section, which)?;
        }
        Ok(parts)
    }

    fn ramdisk<R: Read + Seek + Send>(
        &mut self,
        eif: &Eif,
        reader: &mut R,
        ramdisk: usize,
        section: &Section,
        which: &'static str,
    ) -> Result<(), DiffError> {
        let image = |source| DiffError::Image { which, source };
        let digest = digest_of(eif, reader, section).map_err(image)?;
        let body = eif.section(reader, section).map_err(image)?;
        let listed = list(&mut BufReader::with_capacity(256 << 10, body), MAX_UNPACKED);
        let mut entries = listed.map_err(|source| DiffError::Ramdisk {
            which,
            ramdisk,
            source,
        })?;
        if ramdisk == 0 {
            self.runtime_digest = digest;
            self.runtime = named(&entries);
            return Ok(());
        }
        self.app_digest += &digest;
        let config = configuration::read(eif, reader, section).map_err(image)?;
        let last = entries.get(configuration::CONFIG).map(|entry| entry.digest);
        // Where a later entry takes its place, that one is what the guest reads: it stays a file, and shows.
        if let Some(config) = config.filter(|config| last == Some(config.digest)) {
            entries.remove(configuration::CONFIG);
            self.config.extend(flattened(&config.settings));
        }
        self.app.extend(named(&entries));
        Ok(())
    }
}

fn kernel_of<R: Read + Seek>(eif: &Eif, reader: &mut R) -> Result<Named, EifError> {
    let Some(section) = eif.kernel() else {
        return Ok(Named::new());
    };
    let digest = digest_of(eif, reader, section)?;
    let version = kernel::version(eif.section(reader, section)?)?;
    let version = version.unwrap_or_else(|| "unknown version".into());
    Ok(one(format!(
        "{version}, {} bytes, SHA-384 {digest}",
        section.len
    )))
}

fn signer_of(report: &Report) -> Named {
    let Some(pcr8) = report.measurements.pcr8 else {
        return Named::new();
    };
    let issuer = report.certificate.as_ref().map(|certificate| {
        let name = certificate
            .issuer
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        name.collect::<Vec<_>>().join(", ")
    });
    one(format!(
        "issuer {}, PCR8 {pcr8}",
        issuer.unwrap_or_default()
    ))
}

fn digest_of<R: Read + Seek>(
    eif: &Eif,
    reader: &mut R,
    section: &Section,
) -> Result<String, EifError> {
    let mut body = eif.section(reader, section)?;
    let mut context = Context::new(&SHA384);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match body.read(&mut buffer)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    Ok(hex(context.finish().as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One line for each file: everything of it that is measured.
fn named(entries: &BTreeMap<Vec<u8>, Entry>) -> Named {
    let lines = entries
        .iter()
        .map(|(path, entry)| (format!("/{}", path_text(path)), describe(entry)));
    lines.collect()
}

/// A path that is no text keeps its bytes: two that differ are not to have one name.
fn path_text(path: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(path) {
        Ok(text) => text.into(),
        Err(_) => path.escape_ascii().to_string().into(),
    }
}

fn describe(entry: &Entry) -> String {
    let Entry {
        mode,
        uid,
        gid,
        mtime,
        device: (major, minor),
        len,
        digest,
    } = entry;
    let kind = match mode & 0o170_000 {
        0o040_000 => "directory".to_owned(),
        0o100_000 => format!("{len} bytes, SHA-256 {}", hex(digest)),
        0o120_000 => format!("symbolic link, {len} bytes, SHA-256 {}", hex(digest)),
        0o020_000 => format!("character device {major}:{minor}"),
        0o060_000 => format!("block device {major}:{minor}"),
        0o010_000 => "named pipe".to_owned(),
        0o140_000 => "socket".to_owned(),
        other => format!("type {other:o}"),
    };
    format!(
        "{kind}, mode {:04o}, owner {uid}:{gid}, time {mtime}",
        mode & 0o7777
    )
}

/// Leaves of a JSON value by JSON pointer.
fn flattened(value: &Value) -> Named {
    let mut leaves = Named::new();
    flatten(value, String::new(), &mut leaves);
    leaves
}

/// Depth is bounded by the JSON parser's own limit.
fn flatten(value: &Value, path: String, leaves: &mut Named) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                flatten(value, format!("{path}/{key}"), leaves);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                flatten(value, format!("{path}/{index}"), leaves);
            }
        }
        leaf => drop(leaves.insert(path, leaf.to_string())),
    }
}
