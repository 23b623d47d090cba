//! The host's end of a connection: closed with a reset, unless all went well.

use rustix::net::sockopt::{set_socket_keepalive, set_socket_linger, set_tcp_keepidle};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// After how long without a byte it is asked whether the client is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A client's connection. What ends the client's reading is held back once the client has ended its own half: it is all that
/// is left then, and whether it is true has to be looked at first.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    /// The client has said everything.
    has_ended: bool,
    /// The guest has, after that.
    is_held_back: bool,
    went_well: bool,
}

impl Client {
    pub(super) fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true); // It is slower without.
        // Nobody is kept for ever who went without a word. Without these it takes longer.
        let _ = set_socket_keepalive(&stream, true);
        let _ = set_tcp_keepidle(&stream, KEEPALIVE);
        Self { stream, has_ended: false, is_held_back: false, went_well: false }
    }

    /// Whether the client has still to be told that the guest has said everything.
    pub(super) fn waits_for_end(&self) -> bool {
        self.is_held_back
    }

    /// All went well: the connection ends as such.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        if self.is_held_back {
            self.stream.shutdown().await?;
        }
        self.went_well = true;
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.went_well {
            // Without a linger, closing is a reset.
            let _ = set_socket_linger(&self.stream, Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let is_end = matches!(polled, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        self.has_ended |= is_end && buffer.remaining() > 0;
        polled
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_ended {
            self.is_held_back = true;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
