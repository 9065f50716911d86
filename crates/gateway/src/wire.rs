//! [`enclos_api::frame`] over tokio's streams.

use std::time::Duration;

use enclos_api::frame::{self, FrameError};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// How long a peer may take over one frame that it has been asked for.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads one frame.
///
/// # Errors
/// See [`FrameError`]; [`FrameError::Closed`] when the stream ends before the first byte.
pub async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, FrameError> {
    let mut prefix = [0; 4];
    if stream.read(&mut prefix[..1]).await? == 0 {
        return Err(FrameError::Closed);
    }
    stream.read_exact(&mut prefix[1..]).await?;
    let mut body = vec![0; frame::body_len(prefix)?];
    stream.read_exact(&mut body).await?;
    frame::decode(&body)
}

/// Reads one frame within [`FRAME_TIMEOUT`].
///
/// # Errors
/// See [`FrameError`].
pub async fn read_soon<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, FrameError> {
    let read = tokio::time::timeout(FRAME_TIMEOUT, read(stream)).await;
    read.map_err(|_| FrameError::Io(std::io::ErrorKind::TimedOut.into()))?
}

/// Writes one frame within [`FRAME_TIMEOUT`].
///
/// # Errors
/// See [`FrameError`].
pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &impl Serialize,
) -> Result<(), FrameError> {
    // A frame may carry credentials: its bytes are wiped.
    let bytes = Zeroizing::new(frame::encode(value)?);
    let write = tokio::time::timeout(FRAME_TIMEOUT, stream.write_all(&bytes)).await;
    Ok(write.map_err(|_| FrameError::Io(std::io::ErrorKind::TimedOut.into()))??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_cross_and_torn_ones_are_refused() {
        let (mut a, mut b) = tokio::io::duplex(64);
        write(&mut a, &vec![1, 2]).await.unwrap();
        assert_eq!(read::<Vec<u8>>(&mut b).await.unwrap(), [1, 2]);
        a.write_all(&[9, 0, 0, 0, b'1']).await.unwrap();
        drop(a);
        assert!(matches!(read::<u8>(&mut b).await, Err(FrameError::Io(_))));
        assert!(matches!(read::<u8>(&mut b).await, Err(FrameError::Closed)));
    }

    #[tokio::test]
    async fn an_oversized_frame_is_refused_before_it_is_read() {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        assert!(matches!(
            read::<u8>(&mut b).await,
            Err(FrameError::TooLarge { .. })
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_given_up() {
        let (_a, mut b) = tokio::io::duplex(64);
        let FrameError::Io(error) = read_soon::<u8>(&mut b).await.unwrap_err() else {
            panic!()
        };
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}
