//! A stream's bytes as a function of its number: whatever is lost, doubled or moved shows.

use std::io::{Read, Write};

use anyhow::{Result, bail};

/// Xorshift, seeded by the stream's number.
#[derive(Debug)]
pub(crate) struct Pattern(u64);

impl Pattern {
    pub(crate) fn new(stream: u64) -> Self {
        Self((stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let bytes = self.0.to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    pub(crate) fn write(mut self, to: &mut impl Write, len: usize) -> Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let mut left = len;
        while left > 0 {
            let part = left.min(buffer.len());
            self.fill(&mut buffer[..part]);
            to.write_all(&buffer[..part])?;
            left -= part;
        }
        Ok(())
    }

    /// Reads to the end and compares every byte.
    pub(crate) fn expect(mut self, from: &mut impl Read, len: usize) -> Result<()> {
        let (mut expected, mut found) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let mut done = 0;
        while done < len {
            let part = (len - done).min(expected.len());
            self.fill(&mut expected[..part]);
            from.read_exact(&mut found[..part])?;
            if let Some(at) = (0..part).find(|&at| expected[at] != found[at]) {
                bail!("byte {} of {len} differs", done + at);
            }
            done += part;
        }
        match from.read(&mut found[..1])? {
            0 => Ok(()),
            _ => bail!("more than {len} bytes arrived"),
        }
    }
}
