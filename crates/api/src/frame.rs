//! Length-prefixed JSON: four bytes of little-endian length, then that many bytes of UTF-8 JSON.
//!
//! The length is checked against a limit before anything is allocated, so a hostile peer costs at most
//! [`MAX_FRAME`] bytes.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Largest frame accepted, in bytes (1 MiB): far above any message here, far below what would hurt.
pub const MAX_FRAME: usize = 1 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed.
    #[error("cannot read or write the stream")]
    Io(#[from] io::Error),
    /// The peer closed the stream between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The length prefix exceeds [`MAX_FRAME`].
    #[error("frame of {len} bytes exceeds the limit of {MAX_FRAME}")]
    TooLarge {
        /// The length that was announced.
        len: usize,
    },
    /// The bytes are not the JSON that was expected.
    #[error("frame is not the expected JSON")]
    Json(#[from] serde_json::Error),
}

/// Serialises `value` into one frame, prefix included.
///
/// # Errors
/// [`FrameError::TooLarge`] or [`FrameError::Json`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value)?;
    let len = bytes.len() - 4;
    let prefix = u32::try_from(len).ok().filter(|_| len <= MAX_FRAME);
    let prefix = prefix.ok_or(FrameError::TooLarge { len })?;
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    Ok(bytes)
}

/// Checks a length prefix and returns the length of the body that follows.
///
/// # Errors
/// [`FrameError::TooLarge`] above [`MAX_FRAME`].
pub fn body_len(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let len = u32::from_le_bytes(prefix) as usize;
    if len > MAX_FRAME {
        return Err(FrameError::TooLarge { len });
    }
    Ok(len)
}

/// Parses the body of a frame.
///
/// # Errors
/// [`FrameError::Json`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

/// Writes one frame and flushes it.
///
/// # Errors
/// See [`FrameError`].
pub fn write<T: Serialize>(stream: &mut impl Write, value: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(value)?)?;
    Ok(stream.flush()?)
}

/// Reads one frame; blocks until it is whole.
///
/// # Errors
/// [`FrameError::Closed`] when the stream ends before the first byte; see [`FrameError`] for the others.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut prefix = [0; 4];
    match stream.read(&mut prefix[..1])? {
        0 => return Err(FrameError::Closed),
        _ => stream.read_exact(&mut prefix[1..])?,
    }
    let mut body = vec![0; body_len(prefix)?];
    stream.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_round_trip() {
        let mut bytes = Vec::new();
        write(&mut bytes, &vec![1, 2, 3]).unwrap();
        assert_eq!(read::<Vec<i32>>(&mut bytes.as_slice()).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn the_limit_holds_on_both_sides() {
        let at = u32::try_from(MAX_FRAME).unwrap();
        assert_eq!(body_len(at.to_le_bytes()).unwrap(), MAX_FRAME);
        assert!(matches!(
            body_len((at + 1).to_le_bytes()),
            Err(FrameError::TooLarge { .. })
        ));
        assert!(encode(&"x".repeat(MAX_FRAME - 2)).is_ok());
        assert!(matches!(
            encode(&"x".repeat(MAX_FRAME - 1)),
            Err(FrameError::TooLarge { .. })
        ));
    }

    #[test]
    fn an_ended_stream_and_a_torn_frame_differ() {
        assert!(matches!(
            read::<u8>(&mut [].as_slice()),
            Err(FrameError::Closed)
        ));
        let torn = [9, 0, 0, 0, b'1'];
        assert!(matches!(
            read::<u8>(&mut torn.as_slice()),
            Err(FrameError::Io(_))
        ));
    }

    #[test]
    fn bytes_that_are_not_json_are_refused() {
        let bytes = [2, 0, 0, 0, b'{', b'x'];
        assert!(matches!(
            read::<u8>(&mut bytes.as_slice()),
            Err(FrameError::Json(_))
        ));
    }
}
