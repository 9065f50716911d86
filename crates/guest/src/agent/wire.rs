//! [`enclos_api::frame`] over tokio's streams.

use enclos_api::frame::{self, FrameError};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// Reads one frame. Its bytes may hold credentials and are wiped.
pub(super) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, FrameError> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut body = Zeroizing::new(vec![0; frame::body_len(prefix)?]);
    stream.read_exact(&mut body).await?;
    frame::decode(&body)
}

/// Writes one frame.
pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &impl Serialize,
) -> Result<(), FrameError> {
    Ok(stream.write_all(&frame::encode(value)?).await?)
}
