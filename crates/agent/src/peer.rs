//! One connection: bytes and frames.

use pando_wire::{
    agent::{Failure, Reply},
    frame,
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown},
};
use serde::de::DeserializeOwned;
use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The host's end of a stream socket: vsock in a guest, a Unix socket in tests.
pub(crate) struct Peer(OwnedFd);

/// What a look at the connection showed.
pub(crate) enum Received {
    /// So many bytes.
    Bytes(usize),
    /// No byte, and the connection is whole.
    Nothing,
    /// The host closed its end.
    Closed,
    /// The connection was torn, by nobody's decision. In a guest this is what a child of a fork sees: virtio-vsock
    /// resets every connection (`ECONNRESET` to who waits, `ENOTCONN` to who comes later), while a host that goes away,
    /// however rudely, reads as an end of file.
    Torn,
}

impl Peer {
    /// Speaks over `socket`, a connected stream socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends one reply, however long that takes.
    pub(crate) fn reply(&self, reply: &Reply) -> io::Result<()> {
        frame::write(&mut &*self, reply)
    }

    /// Sends `Done` or `Failed`.
    pub(crate) fn conclude(&self, outcome: Result<(), Failure>) -> io::Result<()> {
        self.reply(&outcome.map_or_else(Reply::Failed, |()| Reply::Done))
    }

    /// Takes what has arrived, without waiting.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Received {
        loop {
            return match rustix::net::recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => Received::Closed,
                Ok((len, _)) => Received::Bytes(len),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Received::Nothing,
                Err(Errno::CONNRESET | Errno::NOTCONN) => Received::Torn,
                Err(_) => Received::Closed,
            };
        }
    }

    /// Ends the connection for both sides. What was sent before still arrives.
    pub(crate) fn end(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for &Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::net::recv(&self.0, &mut *buffer, RecvFlags::empty()))?.0)
    }
}

impl Write for &Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes on their way to being frames.
#[derive(Default)]
pub(crate) struct Inbox(Vec<u8>);

impl Inbox {
    /// Adds what arrived.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is here.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some((prefix, rest)) = self.0.split_first_chunk::<4>() else { return Ok(None) };
        let len = frame::checked_len(*prefix)?;
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        let message = frame::decode(payload)?;
        self.0.drain(..4 + len);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_wire::agent::Input;

    #[test]
    fn frames_come_out_whole_however_they_were_cut() {
        let sent = [Input::Stdin(vec![7; 300]), Input::Signal(15), Input::Stdin(vec![])];
        let bytes: Vec<u8> = sent.iter().flat_map(|input| frame::encode(input).unwrap()).collect();
        let mut inbox = Inbox::default();
        let mut got = Vec::new();
        for byte in bytes {
            inbox.push(&[byte]);
            while let Some(input) = inbox.next::<Input>().unwrap() {
                got.push(input);
            }
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_by_its_length_alone() {
        let mut inbox = Inbox::default();
        inbox.push(&u32::MAX.to_le_bytes());
        assert!(inbox.next::<Input>().is_err());
    }
}
