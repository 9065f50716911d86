//! Loads the kernel modules that the image carries.
//!
//! `modules.order` names one file per line, dependencies first. The NSM driver is chosen by what the engine
//! attached: virtio id 33 is the NSM itself (`nsm.ko`, untouched); where only id 4 is there, the NSM is
//! carried by the entropy device's id and `nsm-rng.ko`, the same driver for that id, is loaded.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::InitError;

/// virtio id of the NSM, as sysfs prints it.
const ID_NSM: u32 = 0x21;
/// virtio id of an entropy device.
const ID_ENTROPY: u32 = 4;

/// Where sysfs lists the virtio devices.
const VIRTIO_DEVICES: &str = "/sys/bus/virtio/devices";

/// Loads all modules and then the NSM's driver. A kernel that has everything built in needs no directory.
pub(super) fn load_all(dir: &Path) -> Result<(), InitError> {
    for name in order(dir)? {
        load(&dir.join(name))?;
    }
    if Path::new("/dev/nsm").exists() {
        return Ok(());
    }
    match nsm_driver(&virtio_ids(Path::new(VIRTIO_DEVICES))) {
        Some(name) if dir.join(name).exists() => load(&dir.join(name)),
        _ => Ok(()),
    }
}

/// Which driver serves the NSM, by the virtio ids that are present.
fn nsm_driver(ids: &[u32]) -> Option<&'static str> {
    if ids.contains(&ID_NSM) {
        return Some("nsm.ko");
    }
    ids.contains(&ID_ENTROPY).then_some("nsm-rng.ko")
}

fn order(dir: &Path) -> Result<Vec<String>, InitError> {
    let path = dir.join("modules.order");
    match std::fs::read_to_string(&path) {
        Ok(text) => parse_order(&text, &path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(InitError::ModuleFile { path, source }),
    }
}

fn parse_order(text: &str, path: &Path) -> Result<Vec<String>, InitError> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|name| match name.contains('/') {
            false => Ok(name.to_owned()),
            true => Err(InitError::ModuleName {
                path: path.to_path_buf(),
                name: name.to_owned(),
            }),
        })
        .collect()
}

fn virtio_ids(dir: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| virtio_id(&entry.path().join("device")))
        .collect()
}

fn virtio_id(path: &PathBuf) -> Option<u32> {
    let text = std::fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// Loads one module; one that is loaded already is no failure.
fn load(path: &Path) -> Result<(), InitError> {
    let file = File::open(path).map_err(|source| InitError::ModuleFile {
        path: path.to_path_buf(),
        source,
    })?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(source) => Err(InitError::Module {
            path: path.to_path_buf(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_true_nsm_is_preferred_to_the_carried_one() {
        assert_eq!(nsm_driver(&[4, 19, 0x21]), Some("nsm.ko"));
        assert_eq!(nsm_driver(&[19, 4]), Some("nsm-rng.ko"));
        assert_eq!(nsm_driver(&[19]), None);
    }

    #[test]
    fn ids_are_read_as_sysfs_prints_them() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("virtio0", "0x0021\n"),
            ("virtio1", "0x0004\n"),
            ("virtio2", "?"),
        ] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("device"), text).unwrap();
        }
        let mut ids = virtio_ids(dir.path());
        ids.sort_unstable();
        assert_eq!(ids, [4, 0x21]);
        assert!(virtio_ids(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn the_order_names_files_and_never_paths() {
        let path = Path::new("modules.order");
        assert_eq!(
            parse_order("a.ko\n\nb.ko\n", path).unwrap(),
            ["a.ko", "b.ko"]
        );
        assert!(matches!(
            parse_order("../a.ko", path),
            Err(InitError::ModuleName { .. })
        ));
        assert!(order(Path::new("/nonexistent")).unwrap().is_empty());
    }
}
