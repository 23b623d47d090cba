//! The daemon's side of the control protocol, without blocking: two hundred VMs must not need two hundred threads.

use crate::ready::{Held, register};
use pando_wire::control::{Connection, Request, Response, Status, VERSION};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{error::Elapsed, sleep, timeout};

/// How long a request may take that does not build a VM.
pub(crate) const SHORT: Duration = Duration::from_secs(10);
/// How long building a VM, or copying one, may take.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Why a monitor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    /// Nobody listens: it has ended.
    #[error("cannot reach its monitor")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the connection to its monitor broke")]
    Broken(#[source] io::Error),
    /// It closed the connection instead of answering: it has ended.
    #[error("its monitor ended")]
    Ended,
    /// It did not answer in time.
    #[error("its monitor did not answer within {} s", .0.as_secs())]
    Late(Duration),
    /// It answered that it cannot. Never empty.
    #[error("{}", .0.first().map_or("its monitor refused", String::as_str))]
    Refused(Vec<String>),
    /// It cannot be watched.
    #[error("cannot take hold of its monitor's process")]
    Process(#[source] io::Error),
    /// It was started by another build, whose language this one does not speak.
    #[error("its monitor speaks version {0} of the control protocol, and this daemon version {VERSION}")]
    Version(u32),
    /// It answered something else than what was asked.
    #[error("its monitor gave an answer that does not belong to the request")]
    Confused,
}

/// A connection to one monitor. Requests and responses take turns.
#[derive(Debug)]
pub(crate) struct Monitor(AsyncFd<Held<Connection>>);

impl Monitor {
    /// Connects to the socket at `path`. Works as soon as it is bound, before a monitor serves it.
    pub(crate) fn connect(path: &Path) -> Result<Self, MonitorError> {
        let connect = || -> io::Result<Self> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            // Never waits: where the queue of the listener is full this is EAGAIN.
            net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(Self(register(Connection::from_fd(socket), Interest::READABLE | Interest::WRITABLE)?))
        };
        connect().map_err(MonitorError::Connect)
    }

    /// Sends `request` and waits for the answer, at most for `limit`. A refusal is an error.
    pub(crate) async fn call(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Response, MonitorError> {
        let answer = async {
            self.send(request, descriptors).await?;
            self.receive().await
        };
        match timeout(limit, answer).await {
            Err(Elapsed { .. }) => Err(MonitorError::Late(limit)),
            Ok(Ok(Response::Refused(chain))) => Err(MonitorError::Refused(chain)),
            Ok(other) => other,
        }
    }

    /// [`Monitor::call`] for requests that are answered by `Done`.
    pub(crate) async fn order(&self, request: &Request) -> Result<(), MonitorError> {
        match self.call(request, &[], SHORT).await? {
            Response::Done => Ok(()),
            _ => Err(MonitorError::Confused),
        }
    }

    /// Asks what the VM is doing. A monitor of another version is an error.
    pub(crate) async fn status(&self) -> Result<Status, MonitorError> {
        match self.call(&Request::Status, &[], SHORT).await? {
            Response::Status(status) if status.version == VERSION => Ok(status),
            Response::Status(status) => Err(MonitorError::Version(status.version)),
            _ => Err(MonitorError::Confused),
        }
    }

    /// Sends one request.
    pub(crate) async fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), MonitorError> {
        loop {
            let sent = self.0.async_io(Interest::WRITABLE, |socket| socket.0.send(request, descriptors)).await;
            match sent {
                Ok(()) => return Ok(()),
                // Too many descriptors of this user are on their way between processes; those who get them take them
                // out of the way. The caller bounds the wait.
                Err(error) if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => {
                    sleep(Duration::from_millis(1)).await;
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// Waits for one response.
    pub(crate) async fn receive(&self) -> Result<Response, MonitorError> {
        match self.0.async_io(Interest::READABLE, |socket| socket.0.receive()).await {
            Ok(Some((response, _no_descriptors))) => Ok(response),
            Ok(None) => Err(MonitorError::Ended),
            Err(error) => Err(broken(error)),
        }
    }
}

fn broken(error: io::Error) -> MonitorError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => MonitorError::Ended,
        _ => MonitorError::Broken(error),
    }
}
