//! Measurements: PCR0, PCR1, PCR2 and PCR8 of an image, in one pass over the file.
//!
//! | PCR | what is hashed with SHA-384, data only, in file order |
//! |---|---|
//! | 0 | kernel, command line, all ramdisks |
//! | 1 | kernel, command line, first ramdisk |
//! | 2 | all ramdisks but the first |
//! | 8 | DER of the signing certificate |
//!
//! Each digest is then extended into 48 zero bytes. PCR1's input is a prefix of PCR0's, so two contexts do
//! for three registers; the second runs on a thread of its own once there is much to hash. The CRC and the
//! signature are checked on the way.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use aws_lc_rs::digest::{Context, Digest, SHA384};
use enclos_attest::PcrValue;

use crate::error::EifError;
use crate::format::{CRC_OFFSET, HEADER_LEN, MAX_SIGNATURE_LEN, SectionKind};
use crate::reader::{Eif, truncated};
use crate::signature::ImageSignature;

/// What is read at once, in bytes: large enough that system calls and hand-over to the second thread do not
/// show, small enough for the caches.
const CHUNK: usize = 256 << 10;

/// The registers that an image determines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurements {
    /// Whole image.
    pub pcr0: PcrValue,
    /// Kernel, command line, first ramdisk.
    pub pcr1: PcrValue,
    /// Remaining ramdisks.
    pub pcr2: PcrValue,
    /// Signing certificate, when the image is signed.
    pub pcr8: Option<PcrValue>,
}

/// Measures a parsed image and checks its CRC and, when it is signed, its signature. Whether the signing
/// certificate is valid at this time is the caller's question to
/// [`ImageSignature::check_validity`](crate::signature::ImageSignature::check_validity).
///
/// # Errors
/// [`EifError::Crc`], [`EifError::Signature`], [`EifError::Truncated`] when the file became shorter,
/// [`EifError::Io`].
pub fn measure<R: Read + Seek>(reader: &mut R, eif: &Eif) -> Result<Measurements, EifError> {
    let pass = pass(reader, eif)?;
    if pass.crc != eif.header.crc {
        return Err(EifError::Crc {
            stored: eif.header.crc,
            computed: pass.crc,
        });
    }
    let mut measurements = pass.measurements;
    if let Some(bytes) = pass.signature {
        let signature = ImageSignature::parse(&bytes).map_err(EifError::Signature)?;
        signature
            .verify(&measurements.pcr0)
            .map_err(EifError::Signature)?;
        measurements.pcr8 = Some(signature.pcr8());
    }
    Ok(measurements)
}

/// What one pass over the file yields.
pub(crate) struct Pass {
    pub(crate) crc: u32,
    /// Without PCR8.
    pub(crate) measurements: Measurements,
    pub(crate) signature: Option<Vec<u8>>,
}

pub(crate) fn pass<R: Read + Seek>(reader: &mut R, eif: &Eif) -> Result<Pass, EifError> {
    reader.seek(SeekFrom::Start(0))?;
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Arc<Vec<u8>>>(4);
        let rest = scope.spawn(move || {
            let mut context = Context::new(&SHA384);
            receiver.iter().for_each(|chunk| context.update(&chunk));
            context.finish()
        });
        let mut state = State::new(sender);
        let walked = state.walk(reader, eif);
        let State {
            crc,
            hasher,
            signature,
            rest: sender,
            ..
        } = state;
        drop(sender);
        let rest = rest
            .join()
            .map_err(|_| io::Error::other("the hashing thread panicked"))?;
        walked?;
        Ok(Pass {
            crc: crc.finalize(),
            measurements: hasher.finish(&rest),
            signature,
        })
    })
}

struct State {
    crc: crc32fast::Hasher,
    hasher: FirstRegisters,
    signature: Option<Vec<u8>>,
    rest: SyncSender<Arc<Vec<u8>>>,
    position: u64,
}

impl State {
    fn new(rest: SyncSender<Arc<Vec<u8>>>) -> Self {
        let hasher = FirstRegisters::new();
        Self {
            crc: crc32fast::Hasher::new(),
            hasher,
            signature: None,
            rest,
            position: 0,
        }
    }

    /// Reads the file from its start to its end exactly once.
    fn walk<R: Read>(&mut self, reader: &mut R, eif: &Eif) -> Result<(), EifError> {
        let mut header = [0; 548];
        reader.read_exact(&mut header)?;
        self.crc.update(&header[..CRC_OFFSET]);
        self.position = HEADER_LEN;
        for section in &eif.sections {
            self.read(reader, section.offset - self.position, None)?;
            let is_first = self.hasher.begin(section.kind);
            self.read(reader, section.len, Some((section.kind, is_first)))?;
        }
        self.read(reader, eif.file_len - self.position, None)
    }

    fn read<R: Read>(
        &mut self,
        reader: &mut R,
        len: u64,
        section: Option<(SectionKind, bool)>,
    ) -> Result<(), EifError> {
        let end = self.position + len;
        while self.position < end {
            let want = usize::try_from(end - self.position)
                .unwrap_or(CHUNK)
                .min(CHUNK);
            let mut chunk = Vec::with_capacity(want);
            let taken = reader
                .by_ref()
                .take(want.try_into().unwrap_or(0))
                .read_to_end(&mut chunk)?;
            if taken == 0 {
                return Err(truncated("a section".into(), end, self.position));
            }
            self.position += u64::try_from(taken).unwrap_or(u64::MAX);
            self.feed(chunk, section)?;
        }
        Ok(())
    }

    fn feed(&mut self, chunk: Vec<u8>, section: Option<(SectionKind, bool)>) -> io::Result<()> {
        let chunk = Arc::new(chunk);
        self.crc.update(&chunk);
        match section {
            Some((SectionKind::Ramdisk, false)) => {
                let gone = |_| io::Error::other("the hashing thread ended early");
                self.rest.send(Arc::clone(&chunk)).map_err(gone)?;
                self.hasher.update(&chunk);
            }
            Some((SectionKind::Kernel | SectionKind::Cmdline | SectionKind::Ramdisk, _)) => {
                self.hasher.update(&chunk);
            }
            Some((SectionKind::Signature, _)) => {
                let bytes = self.signature.get_or_insert_default();
                if bytes.len() < usize::try_from(MAX_SIGNATURE_LEN).unwrap_or(usize::MAX) {
                    bytes.extend_from_slice(&chunk);
                }
            }
            Some((SectionKind::Metadata, _)) | None => {}
        }
        Ok(())
    }
}

/// PCR2 of an image that is being written: hashed by a thread of its own, since PCR0 covers the same bytes.
#[derive(Default)]
pub(crate) struct Rest {
    running: Option<(SyncSender<Vec<u8>>, thread::JoinHandle<Digest>)>,
    finished: Option<Digest>,
}

impl Rest {
    pub(crate) fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (sender, _) = self.running.get_or_insert_with(|| {
            let (sender, receiver) = sync_channel::<Vec<u8>>(4);
            let hashing = move || {
                let mut context = Context::new(&SHA384);
                receiver.iter().for_each(|chunk| context.update(&chunk));
                context.finish()
            };
            (sender, thread::spawn(hashing))
        });
        let gone = |_| io::Error::other("the hashing thread ended early");
        sender.send(bytes.to_vec()).map_err(gone)
    }

    /// The digest of everything; nothing is added afterwards.
    pub(crate) fn finish(&mut self) -> io::Result<Digest> {
        if let Some((sender, thread)) = self.running.take() {
            drop(sender);
            let panicked = |_| io::Error::other("the hashing thread panicked");
            self.finished = Some(thread.join().map_err(panicked)?);
        }
        Ok(*self
            .finished
            .get_or_insert_with(|| Context::new(&SHA384).finish()))
    }
}

/// PCR0 and PCR1: one context, of which a copy is kept when the second ramdisk begins.
#[derive(Clone)]
pub(crate) struct FirstRegisters {
    all: Context,
    first: Option<Context>,
    ramdisks: usize,
}

impl FirstRegisters {
    pub(crate) fn new() -> Self {
        Self {
            all: Context::new(&SHA384),
            first: None,
            ramdisks: 0,
        }
    }

    /// Notes that a section begins; whether PCR1 covers it.
    pub(crate) fn begin(&mut self, kind: SectionKind) -> bool {
        if kind == SectionKind::Ramdisk {
            self.ramdisks += 1;
            if self.ramdisks == 2 {
                self.first = Some(self.all.clone());
            }
        }
        self.ramdisks < 2
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.all.update(bytes);
    }

    pub(crate) fn finish(self, rest: &Digest) -> Measurements {
        let first = self.first.unwrap_or_else(|| self.all.clone()).finish();
        let all = self.all.finish();
        Measurements {
            pcr0: register(&all),
            pcr1: register(&first),
            pcr2: register(rest),
            pcr8: None,
        }
    }
}

/// A digest extended into zeros.
fn register(digest: &Digest) -> PcrValue {
    let mut bytes = [0; 48];
    bytes.copy_from_slice(digest.as_ref());
    PcrValue::measured(&bytes)
}
