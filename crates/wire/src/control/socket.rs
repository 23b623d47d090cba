//! Packets with descriptors attached, on a `SOCK_SEQPACKET` Unix socket. Blocking; no path is opened here but by
//! [`Listener::bind`] and [`Connection::connect`], which the daemon alone calls.

use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The most descriptors in one packet (`SCM_MAX_FD` of the kernel).
const MAX_DESCRIPTORS: usize = 253;
/// The longest packet; requests and responses are far shorter.
const MAX_PACKET: usize = 64 << 10;

/// A listening control socket.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Binds `path`, which must not exist.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = seqpacket()?;
        net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        net::listen(&socket, 64)?;
        Ok(Self(socket))
    }

    /// Takes over a socket that listens already.
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Waits for a connection.
    pub fn accept(&self) -> io::Result<Connection> {
        Ok(Connection(net::accept_with(&self.0, SocketFlags::CLOEXEC)?))
    }

    /// Gives the socket away, to be passed on.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One connection. Requests and responses take turns.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Connects to a monitor's socket.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = seqpacket()?;
        net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Takes over a socket that is connected already. Where it does not block, neither do the methods here.
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends one message with `descriptors`.
    pub fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(invalid)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(invalid(format!("{} descriptors are over the limit of {MAX_DESCRIPTORS}", descriptors.len())));
        }
        net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for one message. `None` when the peer is gone.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        let message = postcard::from_bytes(&bytes[..got.bytes]).map_err(invalid)?;
        Ok(Some((message, descriptors)))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
