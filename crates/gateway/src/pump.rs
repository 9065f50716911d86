//! Moves bytes both ways between two streams, passes each end of stream on, and gives up when neither side has
//! moved a byte for a while.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep_until};

/// When a byte last moved.
#[derive(Debug)]
struct Activity(Mutex<Instant>);

impl Activity {
    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that notes when bytes move.
struct Noted<'a, S> {
    inner: &'a mut S,
    activity: &'a Activity,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut *self.inner).poll_read(context, buffer);
        if result.is_ready() {
            self.activity.touch();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut *self.inner).poll_write(context, bytes);
        if result.is_ready() {
            self.activity.touch();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_shutdown(context)
    }
}

/// Pumps until both directions have ended; returns the bytes moved from `a` to `b` and back.
///
/// # Errors
/// A stream's; `TimedOut` when nothing moved for `idle`.
pub async fn pump<A, B>(a: &mut A, b: &mut B, idle: Duration) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let activity = Activity(Mutex::new(Instant::now()));
    let mut a = Noted {
        inner: a,
        activity: &activity,
    };
    let mut b = Noted {
        inner: b,
        activity: &activity,
    };
    let mut copy = pin!(copy_bidirectional(&mut a, &mut b));
    loop {
        let deadline = activity.last() + idle;
        tokio::select! {
            result = &mut copy => return result,
            () = sleep_until(deadline) => {
                if activity.last() + idle <= Instant::now() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_answer_follows_a_half_closed_request() {
        let ((mut client, mut a), (mut b, mut server)) = (duplex(16), duplex(16));
        let pumped = tokio::spawn(async move { pump(&mut a, &mut b, IDLE).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut request = String::new();
        server.read_to_string(&mut request).await.unwrap();
        assert_eq!(request, "question");
        server
            .write_all(b"an answer longer than the buffer")
            .await
            .unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "an answer longer than the buffer");
        assert_eq!(pumped.await.unwrap().unwrap(), (8, 32));
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_ends_the_pump_and_activity_does_not() {
        let ((mut client, mut a), (mut b, mut server)) = (duplex(16), duplex(16));
        let pumped = tokio::spawn(async move { pump(&mut a, &mut b, IDLE).await });
        for _ in 0..3 {
            tokio::time::sleep(IDLE * 2 / 3).await;
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
        }
        let error = pumped.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
