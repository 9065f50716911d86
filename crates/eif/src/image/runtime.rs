//! Ramdisk 0: what Enclos brings into an enclave, the same for every application (PCR1).
//!
//! ```text
//! /init                         enclos-init
//! /enclos/agent                 enclos-agent
//! /enclos/modules/*.ko          unpacked modules of the kernel's own package
//! /enclos/modules/modules.order file names in load order, without the NSM driver
//! /enclos/modules/nsm.ko        the NSM driver as it is
//! /enclos/modules/nsm-rng.ko    the same, bound to virtio's entropy type
//! /dev /proc /sys, /dev/console
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::cpio::{Attributes, Special};
use crate::format::Architecture;
use crate::packing::{Limited, Packing};

use super::error::ImageError;
use super::module::{self, ModuleError};
use super::spool::Spool;
use super::tree::{Body, Kind, PathError, Tree};

/// Modules that a guest loads, beside those they depend on.
const WANTED: [&str; 2] = ["virtio_mmio", "vmw_vsock_virtio_transport"];

/// Bytes of an ELF file that say what it is for.
const ELF_HEADER: u64 = 64;

/// The NSM driver.
const NSM: &str = "nsm";

/// Largest unpacked module (bytes): several times the largest of Debian's.
const MAX_MODULE: u64 = 64 << 20;

/// Folders below the module folder, a guard against loops of links.
const MAX_DEPTH: usize = 16;

/// The programs that run inside the enclave, static executables for the kernel's processor.
#[derive(Debug, Clone)]
pub struct GuestBinaries {
    /// `enclos-init`.
    pub init: PathBuf,
    /// `enclos-agent`.
    pub agent: PathBuf,
}

/// What the runtime must be for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KernelFacts<'a> {
    pub(crate) version: Option<&'a str>,
    pub(crate) architecture: Architecture,
}

/// Builds the runtime's file system. `scratch` is for temporary files.
pub(crate) fn runtime(
    guest: &GuestBinaries,
    modules: &Path,
    kernel: KernelFacts<'_>,
    scratch: &Path,
    spool: &mut Spool,
) -> Result<Tree, ImageError> {
    let mut files = Files::new(scratch, spool)?;
    files.program("init", &guest.init, kernel.architecture)?;
    files.program("enclos/agent", &guest.agent, kernel.architecture)?;
    let mut loaded = Modules::new(modules, kernel)?;
    for name in WANTED {
        loaded.add(name)?;
    }
    loaded.add(NSM)?;
    let mut names = String::new();
    for name in loaded.order.iter().filter(|name| name.as_str() != NSM) {
        names.push_str(&format!("{name}.ko\n"));
    }
    if let Some(nsm) = loaded.found.get(NSM) {
        let failed = |source| ImageError::Module {
            name: NSM.into(),
            source,
        };
        let retargeted = module::retarget_nsm(nsm).map_err(failed)?;
        files.bytes("enclos/modules/nsm-rng.ko", &retargeted)?;
    }
    for (name, bytes) in loaded.found {
        files.bytes(&format!("enclos/modules/{name}.ko"), &bytes)?;
    }
    files.bytes("enclos/modules/modules.order", names.as_bytes())?;
    Ok(files.tree)
}

/// Refuses an ELF file for another processor.
fn check_architecture(head: &[u8], path: &Path, expected: Architecture) -> Result<(), ImageError> {
    match head.starts_with(b"\x7fELF") && Architecture::of_elf(head) != Some(expected) {
        true => Err(ImageError::OtherArchitecture {
            path: path.to_owned(),
            expected,
        }),
        false => Ok(()),
    }
}

struct Files<'s> {
    tree: Tree,
    spool: &'s mut Spool,
}

fn refused(path: &str) -> impl Fn(PathError) -> ImageError {
    move |error| ImageError::path("Enclos's own files", path.as_bytes(), error)
}

impl<'s> Files<'s> {
    /// The mount points and the console that the kernel opens for init.
    fn new(scratch: &Path, spool: &'s mut Spool) -> Result<Self, ImageError> {
        let mut tree = Tree::new(scratch);
        for path in ["dev", "proc", "sys", "enclos", "enclos/modules"] {
            let made = tree.directory(path.as_bytes(), Attributes::root(0o755));
            made.map_err(refused(path))?;
        }
        let console = Kind::Special(Special::Character { major: 5, minor: 1 });
        let set = tree.set(b"dev/console", Attributes::root(0o600), console);
        set.map_err(refused("dev/console"))?;
        Ok(Self { tree, spool })
    }

    /// A program of the host's. What is no ELF file at all is whatever the kernel makes of it.
    fn program(
        &mut self,
        path: &str,
        host: &Path,
        expected: Architecture,
    ) -> Result<(), ImageError> {
        let failed = ImageError::file("read", host);
        let mut head = Vec::new();
        let file = fs::File::open(host).map_err(&failed)?;
        let len = file.metadata().map_err(&failed)?.len();
        file.take(ELF_HEADER)
            .read_to_end(&mut head)
            .map_err(&failed)?;
        check_architecture(&head, host, expected)?;
        let body = Body::Host {
            path: host.to_owned(),
            len,
        };
        let set = self
            .tree
            .set(path.as_bytes(), Attributes::root(0o755), Kind::File(body));
        set.map_err(refused(path))
    }

    fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<(), ImageError> {
        own_file(&mut self.tree, self.spool, path, bytes)
    }
}

/// Puts a file that Enclos writes itself into a tree.
pub(crate) fn own_file(
    tree: &mut Tree,
    spool: &mut Spool,
    path: &str,
    mut bytes: &[u8],
) -> Result<(), ImageError> {
    let body = spool.store(&mut bytes).map_err(ImageError::spool(path))?;
    let set = tree.set(path.as_bytes(), Attributes::root(0o644), Kind::File(body));
    set.map_err(refused(path))
}

/// Modules and what they depend on, dependencies first.
struct Modules<'a> {
    folder: &'a Path,
    kernel: KernelFacts<'a>,
    /// Where each module's file is, by its name with underscores.
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    found: BTreeMap<String, Vec<u8>>,
    order: Vec<String>,
}

impl<'a> Modules<'a> {
    fn new(folder: &'a Path, kernel: KernelFacts<'a>) -> Result<Self, ImageError> {
        let (mut files, mut built_in) = (BTreeMap::new(), BTreeSet::new());
        find(folder, 0, &mut files, &mut built_in)?;
        Ok(Self {
            folder,
            kernel,
            files,
            built_in,
            found: BTreeMap::new(),
            order: Vec::new(),
        })
    }

    /// Adds a module after those it depends on; nothing for one that is built in or there already.
    fn add(&mut self, name: &str) -> Result<(), ImageError> {
        if self.found.contains_key(name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            return match self.built_in.contains(name) {
                true => Ok(()),
                false => Err(ImageError::MissingModule {
                    name: name.to_owned(),
                    path: self.folder.to_owned(),
                }),
            };
        };
        let packed = fs::read(path).map_err(ImageError::file("read", path))?;
        let failed = |source| ImageError::Module {
            name: name.to_owned(),
            source,
        };
        let bytes = unpack(packed).map_err(failed)?;
        check_architecture(&bytes, path, self.kernel.architecture)?;
        self.check_kernel(name, &bytes)?;
        let depends = module::info(&bytes, "depends")
            .map_err(failed)?
            .unwrap_or_default();
        // Entered before its dependencies, so that a circle of them ends.
        self.found.insert(name.to_owned(), bytes);
        for dependency in depends.split(',').filter(|name| !name.is_empty()) {
            self.add(&canonical(dependency))?;
        }
        self.order.push(name.to_owned());
        Ok(())
    }

    /// The first word of `vermagic` is the kernel's version.
    fn check_kernel(&self, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let failed = |source| ImageError::Module {
            name: name.to_owned(),
            source,
        };
        let magic = module::info(bytes, "vermagic")
            .map_err(failed)?
            .unwrap_or_default();
        let module = magic.split(' ').next().unwrap_or_default();
        match self.kernel.version {
            Some(kernel) if kernel != module => Err(ImageError::OtherKernel {
                name: name.to_owned(),
                module: module.to_owned(),
                kernel: kernel.to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// Files call a module `a-b.ko` that the kernel calls `a_b`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name, when the file is one.
fn module_name(file: &str) -> Option<String> {
    let stem = file
        .split_once(".ko")
        .filter(|(_, rest)| matches!(*rest, "" | ".xz" | ".gz" | ".zst"));
    stem.map(|(stem, _)| canonical(stem))
}

fn find(
    folder: &Path,
    depth: usize,
    files: &mut BTreeMap<String, PathBuf>,
    built_in: &mut BTreeSet<String>,
) -> Result<(), ImageError> {
    let failed = ImageError::file("read", folder);
    let entries = fs::read_dir(folder).map_err(&failed)?;
    let mut entries: Vec<_> = entries.collect::<Result<_, _>>().map_err(&failed)?;
    // A folder has its names in any order; of two modules with one name the last is taken: `updates` before `kernel`, as depmod
    // does.
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type().map_err(&failed)?.is_dir() {
            if depth < MAX_DEPTH {
                find(&path, depth + 1, files, built_in)?;
            }
        } else if name == "modules.builtin" {
            let list = fs::read_to_string(&path).map_err(ImageError::file("read", &path))?;
            built_in.extend(
                list.lines()
                    .filter_map(|l| module_name(l.rsplit('/').next()?)),
            );
        } else if let Some(module) = module_name(&name) {
            files.insert(module, path);
        }
    }
    Ok(())
}

fn unpack(packed: Vec<u8>) -> Result<Vec<u8>, ModuleError> {
    let Some(packing) = Packing::of(&packed) else {
        return Ok(packed);
    };
    let mut out = Limited::new(Vec::new(), MAX_MODULE);
    packing
        .unpack(&mut packed.as_slice(), &mut out)
        .map_err(ModuleError::Unpack)?;
    Ok(out.inner)
}
