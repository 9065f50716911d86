//! Files that are replaced as a whole and durably, and directories that nobody else can write to.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::failure::{Failure, Outcome};

/// Makes a directory, and those above it, with these permissions whatever the umask adds: daemons refuse directories that a
/// group can write to. One that is there stays as it is.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Outcome {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|error| Failure::file(None, "create", path, error))
}

/// Replaces a file as a whole and durably; it keeps its owner.
pub(crate) fn replace(path: &Path, text: &str, mode: u32) -> Outcome {
    replace_as(path, path, text, mode)
}

/// Writes a file as a whole and durably, for the owner of `like`, if there is one.
pub(crate) fn replace_as(path: &Path, like: &Path, text: &str, mode: u32) -> Outcome {
    let failed =
        |doing: &'static str| move |error: io::Error| Failure::file(None, doing, path, error);
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed("write beside"))?;
    let written = file.write_all(text.as_bytes());
    written.map_err(failed("write"))?;
    let new = file.as_file().metadata().map_err(failed("inspect"))?;
    let old = match like.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        other => Some(other.map_err(failed("inspect"))?),
    };
    if let Some(old) = old.filter(|old| (old.uid(), old.gid()) != (new.uid(), new.gid())) {
        std::os::unix::fs::fchown(file.as_file(), Some(old.uid()), Some(old.gid()))
            .map_err(failed("keep the owner of"))?;
    }
    let permitted = file.as_file().set_permissions(Permissions::from_mode(mode));
    permitted.map_err(failed("set the mode of"))?;
    file.as_file().sync_all().map_err(failed("flush"))?;
    let kept = file.persist(path);
    kept.map_err(|error| failed("replace")(error.error))?;
    let dir = File::open(dir).and_then(|dir| dir.sync_all());
    dir.map_err(failed("flush the directory of"))
}
