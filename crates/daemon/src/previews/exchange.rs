//! A request to a guest, and its answer.

use crate::stream::Upstream;
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// How much of an answer's head, and of a body that waits, is kept of one connection, in bytes.
const BUFFER_BYTES: usize = 64 << 10;

/// What drives a connection, which ends with it.
#[derive(Debug)]
pub(super) struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends `request` on a connection of its own. The connection is there as long as its driver, or until it is upgraded.
pub(super) async fn send<B>(stream: UnixStream, request: Request<B>) -> hyper::Result<(Response<Incoming>, Driver)>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let io = TokioIo::new(Upstream::new(stream));
    let (mut sender, connection) = http1::Builder::new().max_buf_size(BUFFER_BYTES).handshake(io).await?;
    let driver = Driver(tokio::spawn(async move {
        // Its errors reach the request that it carries.
        let _ = connection.with_upgrades().await;
    }));
    Ok((sender.send_request(request).await?, driver))
}
