//! Whether a client says anything: how long its connection may be quiet, and how it is closed.

use rustix::net::sockopt::set_socket_linger;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until};

/// How long a request's head may take, the first one from the connection on.
pub(super) const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection is kept on which nobody asks for anything more.
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// What is known of one client's connection.
#[derive(Debug)]
pub(super) struct Pulse {
    beat: Mutex<Beat>,
    is_cut: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Beat {
    /// Requests that are being answered.
    under_way: usize,
    /// Since when there is none.
    idle_since: Instant,
    /// Since when there is a part of one.
    part_since: Option<Instant>,
    has_asked: bool,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        let beat = Beat { under_way: 0, idle_since: now, part_since: None, has_asked: false };
        Self { beat: Mutex::new(beat), is_cut: AtomicBool::new(false) }
    }

    /// The connection shall end as one that broke: with a reset.
    pub(super) fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    /// A request is here; it is under way until the answer is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        let mut beat = self.lock();
        beat.under_way += 1;
        beat.has_asked = true;
        beat.part_since = None;
        drop(beat);
        UnderWay(Arc::clone(self))
    }

    /// Comes back when the client has been quiet for too long.
    pub(super) async fn stops(&self) {
        loop {
            let deadline = self.lock().deadline();
            match deadline {
                Some(deadline) if deadline <= Instant::now() => return,
                // A part of a request makes it sooner.
                Some(deadline) => sleep_until(deadline.min(Instant::now() + HEAD_LIMIT / 4).into()).await,
                None => sleep(HEAD_LIMIT / 4).await,
            }
        }
    }

    fn heard(&self, now: Instant) {
        let mut beat = self.lock();
        if beat.under_way == 0 {
            beat.part_since.get_or_insert(now);
        }
    }

    fn end(&self, now: Instant) {
        let mut beat = self.lock();
        beat.under_way -= 1;
        beat.idle_since = now;
    }

    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beat {
    /// Until when the client has to say something.
    fn deadline(&self) -> Option<Instant> {
        if self.under_way > 0 {
            return None;
        }
        let idle = self.idle_since + if self.has_asked { IDLE_LIMIT } else { HEAD_LIMIT };
        Some(self.part_since.map_or(idle, |since| idle.min(since + HEAD_LIMIT)))
    }
}

/// That a request is under way.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Pulse>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.end(Instant::now());
    }
}

/// A client's connection, and its pulse.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    pulse: Arc<Pulse>,
}

impl Client {
    pub(super) fn new(stream: TcpStream, pulse: Arc<Pulse>) -> Self {
        Self { stream, pulse }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.pulse.is_cut.load(Ordering::Relaxed) {
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
        if buffer.filled().len() > before {
            self.pulse.heard(Instant::now());
        }
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
        if self.pulse.is_cut.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(())); // What follows is no clean end.
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_ten_seconds_for_a_head_and_sixty_between_two_and_no_limit_within_one() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let pulse = Arc::new(Pulse::new(start));
        let deadline = || pulse.lock().deadline();
        assert_eq!(deadline(), Some(after(10)));
        pulse.heard(after(3));
        assert_eq!(deadline(), Some(after(10)), "the first byte gives no more time");
        let request = pulse.begin();
        assert_eq!(deadline(), None);
        pulse.heard(after(50));
        std::mem::forget(request);
        pulse.end(after(100));
        assert_eq!(deadline(), Some(after(160)));
        pulse.heard(after(120));
        pulse.heard(after(129));
        assert_eq!(deadline(), Some(after(130)));
    }
}
