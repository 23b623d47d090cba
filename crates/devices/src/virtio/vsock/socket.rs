//! Reading and writing a client without ever waiting for it.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// What became of an attempt to read or write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// This many bytes, never zero.
    Bytes(usize),
    /// Not now: the socket tells when.
    Later,
    /// Never again: the client has ended this direction, or is gone.
    Ended,
}

/// Reads what there is.
pub(super) fn read(stream: &UnixStream, buffer: &mut [u8]) -> Progress {
    receive(stream, buffer, RecvFlags::DONTWAIT)
}

/// Reads what there is, and leaves it there.
pub(super) fn peek(stream: &UnixStream, buffer: &mut [u8]) -> Progress {
    receive(stream, buffer, RecvFlags::DONTWAIT | RecvFlags::PEEK)
}

/// Writes what there is room for. `data` is not empty.
pub(super) fn write(stream: &UnixStream, data: &[u8]) -> Progress {
    progress(|| send(stream, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
}

/// Ends both directions, for every process that has this socket, and lets the client read what was written to it:
/// with unread bytes of its own left behind, it would see an error instead of the end.
pub(super) fn close(stream: &UnixStream) {
    // Already ended by the client, if that fails.
    let _: io::Result<()> = stream.shutdown(std::net::Shutdown::Both);
    let mut unread = [0; 4096];
    while let Progress::Bytes(_) = read(stream, &mut unread) {}
}

fn receive(stream: &UnixStream, buffer: &mut [u8], flags: RecvFlags) -> Progress {
    progress(|| recv(stream, &mut *buffer, flags).map(|(count, _)| count))
}

fn progress(mut attempt: impl FnMut() -> Result<usize, Errno>) -> Progress {
    loop {
        return match attempt() {
            Ok(0) => Progress::Ended,
            Ok(count) => Progress::Bytes(count),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Progress::Later,
            Err(_) => Progress::Ended, // Whatever it is, this stream will not get over it.
        };
    }
}
