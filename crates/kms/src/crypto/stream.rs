//! A long plaintext under AES-256-GCM in pieces, so that neither side holds more than two of them: the construction STREAM
//! (Hoang, Reyhanitabar, Rogaway, Vizár 2015), as `age` has it.
//!
//! ```text
//! piece = ciphertext (65,536 bytes; the last one: up to that) ‖ tag (16)
//! nonce = number of the piece (88 bits, big-endian) ‖ 1 if it is the last one, else 0
//! ```
//!
//! A key is for one stream alone. Pieces that were changed, moved, doubled, left out or cut off do not open, and nothing is given out
//! of a piece before its tag was checked.

use std::io::{self, ErrorKind, Read, Write};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::seal::{SealError, Secret};

/// Bytes of plaintext in a piece.
const PIECE: usize = 64 * 1024;

const TAG: usize = 16;

/// A stream that does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamError {
    /// The end is missing.
    #[error("the file is cut off: it ends after {0} bytes of content; take another copy of it")]
    Truncated(u64),
    /// Anything else.
    #[error(
        "the file was changed, damaged or cut off near byte {0} of its content; take another copy of it"
    )]
    Damaged(u64),
}

fn key(secret: &Secret) -> Result<LessSafeKey, SealError> {
    let unbound = UnboundKey::new(&AES_256_GCM, &**secret);
    Ok(LessSafeKey::new(unbound.map_err(|_| SealError::Cipher)?))
}

fn nonce(number: u64, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    // 24 bits of zeros, 64 of the number, 8 that say whether it is the last.
    for (to, from) in bytes.iter_mut().skip(3).zip(number.to_be_bytes()) {
        *to = from;
    }
    if let Some(end) = bytes.last_mut() {
        *end = u8::from(last);
    }
    Nonce::assume_unique_for_key(bytes)
}

/// Seals what is written to it.
pub(super) struct Sealing<W> {
    key: LessSafeKey,
    number: u64,
    piece: Zeroizing<Vec<u8>>,
    inner: W,
}

impl<W: Write> Sealing<W> {
    pub(super) fn new(secret: &Secret, inner: W) -> Result<Self, SealError> {
        Ok(Self {
            key: key(secret)?,
            number: 0,
            piece: Zeroizing::new(Vec::with_capacity(PIECE)),
            inner,
        })
    }

    fn seal_piece(&mut self, last: bool) -> io::Result<()> {
        let nonce = nonce(self.number, last);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut self.piece)
            .map_err(|_| io::Error::other(SealError::Cipher))?;
        self.inner.write_all(&self.piece)?;
        self.inner.write_all(tag.as_ref())?;
        self.piece.clear();
        self.number += 1;
        Ok(())
    }

    /// Writes the last piece: without it there is no whole stream.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.seal_piece(true)?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full piece waits until it is known that it is not the last.
        if self.piece.len() == PIECE && !bytes.is_empty() {
            self.seal_piece(false)?;
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        let (now, _) = bytes.split_at(taken);
        self.piece.extend_from_slice(now);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens what [`Sealing`] sealed.
pub(super) struct Opening<R> {
    key: LessSafeKey,
    number: u64,
    /// The next piece, sealed; empty at the end.
    ahead: Vec<u8>,
    /// The current piece, opened, and how much of it was given out.
    piece: Zeroizing<Vec<u8>>,
    given: usize,
    inner: R,
}

impl<R: Read> Opening<R> {
    pub(super) fn new(secret: &Secret, mut inner: R) -> io::Result<Self> {
        let ahead = sealed_piece(&mut inner)?;
        if ahead.is_empty() {
            return Err(broken(StreamError::Truncated(0)));
        }
        Ok(Self {
            key: key(secret).map_err(io::Error::other)?,
            number: 0,
            ahead,
            piece: Zeroizing::default(),
            given: 0,
            inner,
        })
    }

    fn open_next(&mut self) -> io::Result<()> {
        let sealed = std::mem::replace(&mut self.ahead, sealed_piece(&mut self.inner)?);
        let last = self.ahead.is_empty();
        self.piece = match self.open(&sealed, last) {
            Some(piece) => piece,
            None => return Err(broken(self.reason(&sealed, last))),
        };
        self.given = 0;
        self.number += 1;
        Ok(())
    }

    fn open(&self, sealed: &[u8], last: bool) -> Option<Zeroizing<Vec<u8>>> {
        let mut piece = Zeroizing::new(sealed.to_vec());
        let nonce = nonce(self.number, last);
        let opened = self.key.open_in_place(nonce, Aad::empty(), &mut piece);
        let length = opened.ok()?.len();
        piece.truncate(length);
        Some(piece)
    }

    /// Why a piece does not open. A whole one where another should follow, or a short one, was cut.
    fn reason(&self, sealed: &[u8], last: bool) -> StreamError {
        let at = self.number.saturating_mul((PIECE + TAG) as u64);
        let length = u64::try_from(sealed.len()).unwrap_or(u64::MAX);
        if last && self.open(sealed, false).is_some() {
            return StreamError::Truncated(at.saturating_add(length));
        }
        StreamError::Damaged(at)
    }
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given == self.piece.len() {
            if self.ahead.is_empty() {
                return Ok(0);
            }
            self.open_next()?;
        }
        let (_, rest) = self.piece.split_at(self.given);
        let taken = rest.len().min(out.len());
        for (to, from) in out.iter_mut().zip(rest) {
            *to = *from;
        }
        self.given += taken;
        Ok(taken)
    }
}

/// Up to a piece with its tag; less at the end of the file.
fn sealed_piece(inner: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut sealed = Vec::with_capacity(PIECE + TAG);
    inner.take((PIECE + TAG) as u64).read_to_end(&mut sealed)?;
    Ok(sealed)
}

fn broken(error: StreamError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret() -> Secret {
        Zeroizing::new([7; 32])
    }

    fn sealed(plaintext: &[u8]) -> Vec<u8> {
        let mut sealing = Sealing::new(&secret(), Vec::new()).unwrap();
        sealing.write_all(plaintext).unwrap();
        sealing.finish().unwrap()
    }

    fn opened(sealed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plaintext = Vec::new();
        Opening::new(&secret(), sealed)?.read_to_end(&mut plaintext)?;
        Ok(plaintext)
    }

    fn reason(sealed: &[u8]) -> StreamError {
        let error = opened(sealed).unwrap_err();
        *error.get_ref().unwrap().downcast_ref().unwrap()
    }

    #[test]
    fn every_length_comes_back() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 5] {
            let plaintext: Vec<u8> = (0..=255).cycle().take(length).collect();
            let sealed = sealed(&plaintext);
            let pieces = length.div_ceil(PIECE).max(1);
            assert_eq!(sealed.len(), length + pieces * TAG);
            assert_eq!(opened(&sealed).unwrap(), plaintext, "{length}");
        }
    }

    #[test]
    fn pieces_are_neither_cut_off_nor_moved_nor_doubled_nor_added() {
        let whole = sealed(&vec![1; 3 * PIECE]);
        let piece = PIECE + TAG;
        assert_eq!(reason(&[]), StreamError::Truncated(0));
        assert_eq!(
            reason(&whole[..2 * piece]),
            StreamError::Truncated(2 * piece as u64)
        );
        assert!(matches!(
            reason(&whole[..piece + 9]),
            StreamError::Damaged(_)
        ));
        let (first, rest) = whole.split_at(piece);
        let (second, third) = rest.split_at(piece);
        for other in [
            [second, first, third].concat(),
            [first, first, second, third].concat(),
            [first, third].concat(),
            [first, second, third, b"x"].concat(),
            [first, second, third, third].concat(),
        ] {
            assert!(matches!(reason(&other), StreamError::Damaged(_)));
        }
        let other = Zeroizing::new([8; 32]);
        let mut opening = Opening::new(&other, whole.as_slice()).unwrap();
        assert!(opening.read(&mut [0; 9]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn one_changed_bit_or_a_cut_anywhere_is_found(
            length in 0..2 * PIECE + 9, at in any::<prop::sample::Index>(), bit in 0..8_u32
        ) {
            let whole = sealed(&vec![9; length]);
            let at = at.index(whole.len());
            let mut changed = whole.clone();
            changed[at] ^= 1_u8 << bit;
            prop_assert!(opened(&changed).is_err());
            prop_assert!(opened(&whole[..at]).is_err());
        }
    }
}
