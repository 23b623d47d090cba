//! A port of the host is taken, before there is the VM that it is for.

use pando_wire::api::Publish;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// A port of the host for a VM.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Which, and of the VM. The host's is known, unless it is not listened on.
    pub(crate) port: Publish,
    /// What listens there, or why nothing does.
    pub(super) listener: io::Result<TcpListener>,
}

/// Listens on `port`, or on a free port where that is 0. Nobody is served before [`super::Board::serve`], and who connects
/// waits.
pub(crate) async fn bind(port: Publish) -> Bound {
    let bound = TcpListener::bind(SocketAddr::new(port.address, port.host_port)).await;
    match bound.and_then(|listener| Ok((listener.local_addr()?.port(), listener))) {
        Ok((host_port, listener)) => Bound { port: Publish { host_port, ..port }, listener: Ok(listener) },
        Err(error) => Bound { port, listener: Err(error) },
    }
}

impl Bound {
    /// Why nothing listens there, when that is so.
    pub(super) fn problem(&self) -> Option<String> {
        let at = SocketAddr::new(self.port.address, self.port.host_port);
        self.listener.as_ref().err().map(|error| format!("cannot listen on {at}: {error}"))
    }

    /// The same, or why nothing listens there.
    pub(crate) fn listens(self) -> io::Result<Self> {
        let Self { port, listener } = self;
        listener.map(|listener| Self { port, listener: Ok(listener) })
    }
}
