//! A request to a guest, and its answer.

use crate::stream::Upstream;
use bytes::Bytes;
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// How much of an answer's head, and of a body that waits, is kept of one connection, in bytes.
const BUFFER_BYTES: usize = 64 << 10;

/// A client's body, or none.
pub(super) type Body = Either<Incoming, Empty<Bytes>>;

/// A connection to a guest's port. It is there as long as this, or until it is upgraded.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Body>,
    _driver: Driver,
}

/// What drives a connection, which ends with it.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    pub(super) async fn open(stream: UnixStream) -> hyper::Result<Self> {
        let io = TokioIo::new(Upstream::new(stream));
        let (sender, connection) = Builder::new().max_buf_size(BUFFER_BYTES).handshake(io).await?;
        let driver = tokio::spawn(async move {
            // Its errors reach the request that it carries.
            let _ = connection.with_upgrades().await;
        });
        Ok(Self { sender, _driver: Driver(driver) })
    }

    /// Sends a request, as soon as the one before it is through.
    pub(super) async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// Whether nothing more can be sent.
    pub(super) fn has_ended(&self) -> bool {
        self.sender.is_closed()
    }
}
