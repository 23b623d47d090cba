//! A connection to a guest.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// A connection to what listens in a guest. It breaks with an error, however it was cut: a guest that dies closes both
/// halves at once, and one that has said everything ends its own half.
#[derive(Debug)]
pub(crate) struct Upstream {
    stream: UnixStream,
    has_ended: bool,
}

impl Upstream {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, has_ended: false }
    }

    /// Whether the other side takes nothing any more, though our half has not ended.
    fn is_cut(&self) -> bool {
        let mut both = [PollFd::new(&self.stream, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let looked = poll(&mut both, Some(&at_once));
        !self.has_ended && looked.is_ok() && both[0].revents().contains(PollFlags::HUP)
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let is_end = matches!(polled, Poll::Ready(Ok(()))) && buffer.filled().len() == before && buffer.remaining() > 0;
        if is_end && self.is_cut() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the connection in the VM broke")));
        }
        polled
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.has_ended = true;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_half_that_ended_is_an_end_and_a_connection_that_went_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut upstream = Upstream::new(ours);
        theirs.write_all(b"all").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut said = String::new();
        upstream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "all");

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut upstream = Upstream::new(ours);
        theirs.write_all(b"half").await.unwrap();
        drop(theirs);
        let mut said = Vec::new();
        let error = upstream.read_to_end(&mut said).await.unwrap_err();
        assert_eq!((error.kind(), &*said), (io::ErrorKind::ConnectionReset, &b"half"[..]));
    }

    #[tokio::test]
    async fn after_our_own_half_an_end_of_the_other_is_an_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut upstream = Upstream::new(ours);
        upstream.shutdown().await.unwrap();
        drop(theirs);
        assert_eq!(upstream.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
