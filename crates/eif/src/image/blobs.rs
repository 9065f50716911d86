//! The files of a container image: in a folder, or in an archive that is indexed first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::ramdisk::{MAGIC_LEN, Packing};

use super::allowance::Allowance;
use super::error::ImageError;
use super::layer::{MAX_UNPACKED, unpacked, within};
use super::stream::Skim;

/// Largest index, manifest or configuration (bytes): the limit that registries apply to manifests.
const MAX_JSON: u64 = 4 << 20;

/// Most files of a container's archive: blobs of all its images.
const MAX_INDEXED: usize = 1 << 15;

/// Longest name of one (bytes): an algorithm and a digest have 77 at most.
const MAX_INDEXED_NAME: usize = 255;

/// What makes an archive a container's.
const MARKS: [&str; 3] = ["index.json", "oci-layout", "manifest.json"];

/// What an entry of a container's archive may be.
enum Indexed {
    /// Offset and length.
    File(String, (u64, u64)),
    /// What it links to.
    Link(String, String),
}

impl Indexed {
    /// Nothing for directories, and for names that no such archive has.
    fn of<R: Read>(entry: &tar::Entry<'_, R>) -> Option<Self> {
        let short = |name: &[u8]| {
            let name = (name.len() <= MAX_INDEXED_NAME).then(|| String::from_utf8_lossy(name));
            name.map(|name| name.into_owned())
        };
        let path = normal(&short(&entry.path_bytes())?);
        Some(match entry.header().entry_type() {
            tar::EntryType::Symlink | tar::EntryType::Link => {
                Self::Link(path, short(&entry.link_name_bytes().unwrap_or_default())?)
            }
            tar::EntryType::Directory => return None,
            _ => Self::File(path, (entry.raw_file_position(), entry.size())),
        })
    }

    fn path(&self) -> &str {
        match self {
            Self::File(path, _) | Self::Link(path, _) => path,
        }
    }
}

/// Files by name: a folder or an indexed tar archive.
#[derive(Debug)]
pub(crate) enum Blobs {
    /// Paths are joined to this folder.
    Folder(PathBuf),
    /// Offset and length of each file.
    Archive {
        /// The archive.
        file: File,
        /// Where each file is in it.
        index: BTreeMap<String, (u64, u64)>,
    },
}

impl Blobs {
    /// Indexes an unpacked tar archive. Of a root file system the index may be cut short: it is asked for what makes an
    /// archive a container's alone.
    pub(crate) fn archive(file: File, path: &Path) -> Result<Self, ImageError> {
        let name = path.display().to_string();
        let (mut index, mut links) = (BTreeMap::new(), Vec::new());
        let mut one_too_many = None;
        let reader = Skim::new(&file).map_err(ImageError::layer(&name))?;
        let allowance = Allowance::new();
        let mut archive = tar::Archive::new(allowance.metered(reader));
        let mut entries = archive
            .entries_with_seek()
            .map_err(ImageError::layer(&name))?;
        let mut first = true;
        while let Some(entry) = allowance.next(&mut entries) {
            let entry = match entry {
                Err(_) if first => {
                    return Err(ImageError::UnknownSource {
                        path: path.to_owned(),
                    });
                }
                entry => entry.map_err(ImageError::layer(&name))?,
            };
            first = false;
            allowance.headers(0);
            let Some(indexed) = Indexed::of(&entry) else {
                continue;
            };
            if index.len() + links.len() >= MAX_INDEXED && !MARKS.contains(&indexed.path()) {
                one_too_many.get_or_insert_with(|| indexed.path().to_owned());
                continue;
            }
            match indexed {
                Indexed::File(path, place) => drop(index.insert(path, place)),
                Indexed::Link(path, target) => links.push((path, target)),
            }
        }
        if let Some(path) = one_too_many.filter(|_| MARKS.iter().any(|m| index.contains_key(*m))) {
            let problem =
                format!("is one of over {MAX_INDEXED}, more than a container's archive has");
            return Err(ImageError::entry(&name, path.as_bytes(), problem));
        }
        // Older `docker save` writes a layer that it wrote before as a link to it.
        for (path, target) in links {
            let beside = format!(
                "{}/{target}",
                path.rsplit_once('/').map_or("", |(dir, _)| dir)
            );
            let found = index
                .get(&normal(&beside))
                .or_else(|| index.get(&normal(&target)))
                .copied();
            index.extend(found.map(|found| (path, found)));
        }
        Ok(Self::Archive { file, index })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Archive { index, .. } => index.contains_key(&normal(name)),
        }
    }

    /// A file and its length.
    pub(crate) fn open(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64), ImageError> {
        let missing = || ImageError::MissingBlob {
            name: name.to_owned(),
        };
        match self {
            Self::Folder(folder) => {
                if Path::new(name)
                    .components()
                    .any(|c| !matches!(c, Component::Normal(_)))
                {
                    return Err(missing());
                }
                let path = folder.join(name);
                let file = File::open(&path).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => ImageError::file("read", &path)(error),
                })?;
                let len = file
                    .metadata()
                    .map_err(ImageError::file("read", &path))?
                    .len();
                Ok((Box::new(file), len))
            }
            Self::Archive { file, index } => {
                let (offset, len) = *index.get(&normal(name)).ok_or_else(missing)?;
                let mut file = file;
                file.seek(SeekFrom::Start(offset))
                    .map_err(ImageError::layer(name))?;
                Ok((Box::new(file.take(len)), len))
            }
        }
    }

    /// A small file whole.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (reader, len) = self.open(name)?;
        if len > MAX_JSON {
            return Err(ImageError::TooLarge {
                name: name.to_owned(),
                len,
                limit: MAX_JSON,
            });
        }
        let mut bytes = Vec::new();
        reader
            .take(MAX_JSON)
            .read_to_end(&mut bytes)
            .map_err(ImageError::layer(name))?;
        Ok(bytes)
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, ImageError> {
        parse(name, &self.read(name)?)
    }
}

pub(crate) fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ImageError> {
    let failed = |source| ImageError::Json {
        name: name.to_owned(),
        source,
    };
    serde_json::from_slice(bytes).map_err(failed)
}

/// A path in an archive without `.`, `..` and slashes that mean nothing.
fn normal(path: &str) -> String {
    let mut components = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            other => components.push(other),
        }
    }
    components.join("/")
}

/// Opens an archive; a packed one is unpacked into a temporary file, so that it can be indexed.
pub(crate) fn open_archive(path: &Path, folder: &Path) -> Result<File, ImageError> {
    let failed = ImageError::file("read", path);
    let mut file = File::open(path).map_err(&failed)?;
    let mut head = Vec::new();
    file.by_ref()
        .take(MAGIC_LEN)
        .read_to_end(&mut head)
        .map_err(&failed)?;
    file.seek(SeekFrom::Start(0)).map_err(&failed)?;
    if Packing::of(&head).is_none() {
        return Ok(file);
    }
    let failed = ImageError::file("unpack", path);
    let mut unpacked_file = tempfile::tempfile_in(folder).map_err(&failed)?;
    let file = BufReader::with_capacity(128 << 10, file);
    let mut archive = unpacked(file).map_err(&failed)?.take(MAX_UNPACKED);
    io::copy(&mut archive, &mut unpacked_file).map_err(&failed)?;
    within(&path.display().to_string(), &archive)?;
    Ok(unpacked_file)
}
