//! The measured configuration of an image, where it is ours: `/enclos/config.json` at the start of a ramdisk behind the first.

use std::io::{Read, Seek};

use aws_lc_rs::digest::{self, SHA256};
use serde_json::Value;

use crate::error::EifError;
use crate::format::{Section, SectionKind};
use crate::ramdisk::{ENTRY_HEADER, hex_field};
use crate::reader::Eif;

/// Its path in the application's ramdisk.
pub(crate) const CONFIG: &[u8] = b"enclos/config.json";

/// Longest configuration that is read (bytes).
const MAX_CONFIG: u64 = 1 << 20;

/// What comes before its body at most (bytes): the entry of its directory and its own, their names included.
const BEFORE: u64 = 1024;

/// Where an entry's header has the length of its body.
const LENGTH: std::ops::Range<usize> = 54..62;

/// A configuration as an archive has it.
#[derive(Debug, PartialEq)]
pub(crate) struct Configuration {
    pub(crate) settings: Value,
    /// SHA-256 of its text: an entry that comes later in the archive may be of the same name.
    pub(crate) digest: [u8; 32],
}

/// The configuration in one ramdisk, if that is a plain archive that starts with it, as ours do.
pub(crate) fn read<R: Read + Seek>(
    eif: &Eif,
    reader: &mut R,
    section: &Section,
) -> Result<Option<Configuration>, EifError> {
    let mut head = Vec::new();
    let limit = MAX_CONFIG + BEFORE;
    eif.section(reader, section)?
        .take(limit)
        .read_to_end(&mut head)?;
    Ok(parse(&head))
}

/// The configuration of an image, if it has one.
pub(crate) fn find<R: Read + Seek>(eif: &Eif, reader: &mut R) -> Result<Option<Value>, EifError> {
    let ramdisks = eif.sections().iter();
    let ramdisks = ramdisks.filter(|section| section.kind == SectionKind::Ramdisk);
    for section in ramdisks.skip(1) {
        if let Some(config) = read(eif, reader, section)? {
            return Ok(Some(config.settings));
        }
    }
    Ok(None)
}

fn parse(head: &[u8]) -> Option<Configuration> {
    let name = [CONFIG, b"\0"].concat();
    let near = head.get(..usize::try_from(BEFORE).ok()?).unwrap_or(head);
    let at = near.windows(name.len()).position(|window| window == name)?;
    let header = head.get(at.checked_sub(ENTRY_HEADER)?..at)?;
    let len = usize::try_from(hex_field(&header[LENGTH])?).ok()?;
    let start = (at + name.len()).next_multiple_of(4);
    let body = head.get(start..start.checked_add(len)?)?;
    Some(Configuration {
        settings: serde_json::from_slice(body).ok()?,
        digest: digest::digest(&SHA256, body).as_ref().try_into().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::{Archive, Attributes};

    fn archive(body: &[u8]) -> Vec<u8> {
        let mut archive = Archive::new(Vec::new(), 0);
        archive
            .directory(b"enclos", Attributes::root(0o755))
            .unwrap();
        let len = u64::try_from(body.len()).unwrap();
        archive
            .file(CONFIG, Attributes::root(0o644), len, &mut &*body)
            .unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn the_configuration_is_found_at_the_start_alone_and_whole() {
        let whole = archive(br#"{"version":1}"#);
        let found = parse(&whole).unwrap();
        assert_eq!(found.settings, serde_json::json!({ "version": 1 }));
        let text = digest::digest(&SHA256, br#"{"version":1}"#);
        assert_eq!(found.digest, text.as_ref());
        assert_eq!(parse(&archive(b"no JSON")), None);
        assert_eq!(parse(&archive(b"")), None);
        let len = whole
            .windows(2)
            .position(|window| window == b"{\"")
            .unwrap();
        for end in 0..len + 13 {
            assert_eq!(parse(&whole[..end]), None, "{end}");
        }
        let late = [vec![0; 1024], whole].concat();
        assert_eq!(parse(&late), None);
        assert_eq!(parse(CONFIG), None);
    }
}
