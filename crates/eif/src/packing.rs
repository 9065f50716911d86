//! Compression formats of kernels, ramdisks and modules, told apart by their first bytes.
//!
//! Each is decoded member by member without reading past the member's end, because ramdisks are
//! concatenations. Output goes through a limit; decoders whose memory the input chooses get one too.

use std::io::{self, BufRead, Read, Write};

/// Most memory an xz decoder may take, in KiB: twice the 32 MiB dictionary of the kernel's own build, far
/// below the 4 GiB that a header may ask for.
pub(crate) const XZ_MEMORY_KIB: u32 = 80 << 10;

/// Largest block of lz4's legacy format, from its specification.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// How data is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Not at all: a newc cpio archive.
    Newc,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
    /// lz4's legacy format, the one that kernels use.
    Lz4Legacy,
    /// lz4's frame format.
    Lz4Frame,
}

impl Packing {
    /// What data with these first bytes is; six of them decide.
    pub fn of(head: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Packing); 7] = [
            (b"070701", Packing::Newc),
            (b"070702", Packing::Newc),
            (&[0x1f, 0x8b], Packing::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Packing::Xz),
            (&[0x02, 0x21, 0x4c, 0x18], Packing::Lz4Legacy),
            (&[0x04, 0x22, 0x4d, 0x18], Packing::Lz4Frame),
        ];
        MAGICS
            .into_iter()
            .find(|(magic, _)| head.starts_with(magic))
            .map(|(_, packing)| packing)
    }

    /// Unpacks one member from the reader's position into `out` and leaves the reader behind it.
    /// [`Packing::Newc`] is no compression and refused.
    pub(crate) fn unpack<R: BufRead, W: Write>(
        self,
        reader: &mut R,
        out: &mut W,
    ) -> io::Result<()> {
        match self {
            Self::Newc => return Err(io::Error::other("a cpio archive is not compressed")),
            Self::Gzip => io::copy(&mut flate2::bufread::GzDecoder::new(reader), out)?,
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
                io::copy(&mut decoder.single_frame(), out)?
            }
            Self::Xz => {
                let limit = XZ_MEMORY_KIB;
                io::copy(
                    &mut lzma_rust2::XzReader::new_mem_limit(reader, false, limit),
                    out,
                )?
            }
            Self::Lz4Legacy => unpack_lz4_legacy(reader, out)?,
            Self::Lz4Frame => io::copy(&mut lz4_flex::frame::FrameDecoder::new(reader), out)?,
        };
        Ok(())
    }
}

/// Magic, then blocks of a little-endian length and that many bytes; a zero length or the end of the input
/// ends it. The kernel's build pads with zeros, so both occur.
fn unpack_lz4_legacy<R: BufRead, W: Write>(reader: &mut R, out: &mut W) -> io::Result<u64> {
    reader.read_exact(&mut [0; 4])?;
    let mut total = 0;
    let mut unpacked = Vec::new();
    while let Some(len) = read_block_len(reader)? {
        let mut packed = Vec::new();
        reader.take(u64::from(len)).read_to_end(&mut packed)?;
        if u64::try_from(packed.len()).ok() != Some(u64::from(len)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        unpacked.resize(LZ4_LEGACY_BLOCK, 0);
        let written = lz4_flex::block::decompress_into(&packed, &mut unpacked)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        out.write_all(&unpacked[..written])?;
        total += u64::try_from(written).unwrap_or(u64::MAX);
    }
    Ok(total)
}

fn read_block_len<R: BufRead>(reader: &mut R) -> io::Result<Option<u32>> {
    if reader.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut len = [0; 4];
    reader.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    let bound = lz4_flex::block::get_maximum_output_size(LZ4_LEGACY_BLOCK);
    match usize::try_from(len) {
        Ok(0) => Ok(None),
        Ok(n) if n <= bound => Ok(Some(len)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("lz4 block of {len} bytes, expected at most {bound}"),
        )),
    }
}

/// Counts what passes and refuses more than a limit.
#[derive(Debug)]
pub(crate) struct Limited<W> {
    pub(crate) inner: W,
    pub(crate) written: u64,
    limit: u64,
}

/// What [`Limited`] says when the limit is reached.
#[derive(Debug, thiserror::Error)]
#[error("unpacked data exceeds {0} bytes")]
pub(crate) struct LimitReached(pub(crate) u64);

impl<W: Write> Limited<W> {
    pub(crate) fn new(inner: W, limit: u64) -> Self {
        Self {
            inner,
            written: 0,
            limit,
        }
    }

    /// Writes zeros up to a multiple of `align`.
    pub(crate) fn pad(&mut self, align: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(align) - self.written;
        io::copy(&mut io::repeat(0).take(missing), self).map(drop)
    }
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let len = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        if len > self.limit - self.written {
            return Err(io::Error::other(LimitReached(self.limit)));
        }
        let written = self.inner.write(buf)?;
        self.written += u64::try_from(written).unwrap_or(u64::MAX);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Whether an I/O error is [`LimitReached`].
pub(crate) fn is_limit(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<LimitReached>())
}
