//! The daemon's API from the other side: HTTP/1.1 over its Unix socket or TCP, one connection per request.

mod error; // what can go wrong
mod host; // which daemon
mod local; // this computer's daemon: where it is, starting it

pub(crate) use error::Error;
use host::Host;

use crate::failure::Failure;
use bytes::Bytes;
use futures_util::Stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use pando_wire::api;
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::net::{TcpStream, UnixStream};

/// What a request carries.
type RequestBody = BoxBody<Bytes, io::Error>;

/// The daemon, as a command sees it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    host: Host,
    /// Whether this is the daemon that nobody asked for by name: this computer's own.
    own: bool,
}

impl Client {
    /// The daemon to use; this computer's own is started when it does not run.
    pub(crate) async fn open() -> Result<Self, Failure> {
        let found = host::find()?;
        let client = Self { host: found.host, own: found.may_start };
        if found.may_start
            && let Err(error) = client.connect().await
            && let Error::Connect { source, .. } = &error
        {
            // Anything else (a socket that is somebody else's) is not cured by another daemon.
            if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                return Err(error.into());
            }
            local::start(&client).await?;
        }
        Ok(client)
    }

    /// The daemon to use if it runs; for whoever must not start anything.
    pub(crate) fn open_without_starting() -> Result<Self, Failure> {
        let found = host::find()?;
        Ok(Self { host: found.host, own: found.may_start })
    }

    /// Refuses to boot a VM where that cannot work, before a daemon is started and an image sent for nothing. A daemon
    /// that was asked for by name is left to find out by itself.
    pub(crate) fn look_at_kvm(&self) -> Result<(), Failure> {
        if self.own { local::look_at_kvm() } else { Ok(()) }
    }

    /// `GET path`, whole body.
    pub(crate) async fn get(&self, path: &str) -> Result<Body, Error> {
        self.whole(Method::GET, path, None, empty()).await
    }

    /// `POST path` without a body.
    pub(crate) async fn post(&self, path: &str) -> Result<Body, Error> {
        self.whole(Method::POST, path, None, empty()).await
    }

    /// `POST path` with a JSON body.
    pub(crate) async fn post_json(&self, path: &str, body: &impl Serialize) -> Result<Body, Error> {
        self.send_json(Method::POST, path, body).await
    }

    /// `PUT path` with a JSON body.
    pub(crate) async fn put_json(&self, path: &str, body: &impl Serialize) -> Result<Body, Error> {
        self.send_json(Method::PUT, path, body).await
    }

    /// `PATCH path` with a JSON body.
    pub(crate) async fn patch_json(&self, path: &str, body: &impl Serialize) -> Result<Body, Error> {
        self.send_json(Method::PATCH, path, body).await
    }

    async fn send_json(&self, method: Method, path: &str, body: &impl Serialize) -> Result<Body, Error> {
        let unsaid = |source| Error::Body { path: format!("{method} {path}"), source };
        let json = serde_json::to_vec(body).map_err(unsaid)?;
        let body = Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed();
        self.whole(method, path, Some("application/json"), body).await
    }

    /// `POST path` with bytes as they come. An error in the stream breaks the connection, so that the daemon cannot
    /// mistake half of it for the whole.
    pub(crate) async fn post_stream<S>(&self, path: &str, stream: S) -> Result<Body, Error>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + Sync + 'static,
    {
        let frames = futures_util::StreamExt::map(stream, |chunk| chunk.map(Frame::data));
        let body = BodyExt::boxed(StreamBody::new(frames));
        self.whole(Method::POST, path, Some("application/octet-stream"), body).await
    }

    /// `DELETE path`.
    pub(crate) async fn delete(&self, path: &str) -> Result<Body, Error> {
        self.whole(Method::DELETE, path, None, empty()).await
    }

    /// `GET path`, the body as it comes.
    pub(crate) async fn stream(&self, path: &str) -> Result<BodyStream, Error> {
        let response = self.send(Method::GET, path, |request| request, empty()).await?;
        Ok(BodyStream { body: response.into_body(), host: self.host.to_string() })
    }

    /// `GET path` as `protocol`: a connection that is no longer HTTP.
    pub(crate) async fn upgrade(&self, path: &str, protocol: &'static str) -> Result<TokioIo<Upgraded>, Error> {
        let asked =
            |request: hyper::http::request::Builder| request.header(CONNECTION, "Upgrade").header(UPGRADE, protocol);
        let response = self.send(Method::GET, path, asked, empty()).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::Status { path: format!("GET {path}"), status: response.status() });
        }
        hyper::upgrade::on(response).await.map(TokioIo::new).map_err(|source| self.broken(source))
    }

    /// Sends a request and reads the whole answer.
    async fn whole(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
        body: RequestBody,
    ) -> Result<Body, Error> {
        let asked = format!("{method} {path}");
        let typed = |request: hyper::http::request::Builder| match content_type {
            Some(content_type) => request.header(CONTENT_TYPE, content_type),
            None => request,
        };
        let response = self.send(method, path, typed, body).await?;
        let bytes = response.into_body().collect().await.map_err(|source| self.broken(source))?.to_bytes();
        Ok(Body { path: asked, bytes })
    }

    /// Sends a request on a connection of its own; an answer that is not a success becomes an error.
    async fn send(
        &self,
        method: Method,
        path: &str,
        complete: impl FnOnce(hyper::http::request::Builder) -> hyper::http::request::Builder,
        body: RequestBody,
    ) -> Result<Response<Incoming>, Error> {
        let asked = format!("{method} {path}");
        let mut request = Request::builder().method(method).uri(path);
        request = match &self.host {
            Host::Unix(_) => request.header(HOST, "pando"),
            Host::Tcp { address, token } => {
                request.header(HOST, address).header(AUTHORIZATION, format!("Bearer {token}"))
            }
        };
        let request = complete(request).body(body).map_err(|source| Error::Request { path: asked.clone(), source })?;

        let mut connection = self.connect().await?;
        let response = connection.send_request(request).await.map_err(|source| self.broken(source))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let bytes = response.into_body().collect().await.map_err(|source| self.broken(source))?.to_bytes();
        Err(match serde_json::from_slice::<api::Error>(&bytes) {
            Ok(error) => Error::Refused { status: status.as_u16(), error },
            Err(_) => Error::Status { path: asked, status },
        })
    }

    /// Connects. The connection lives on in a task of its own until its request is answered.
    async fn connect(&self) -> Result<http1::SendRequest<RequestBody>, Error> {
        let refused = |source| Error::Connect { host: self.host.to_string(), source };
        match &self.host {
            Host::Unix(path) => self.talk(TokioIo::new(UnixStream::connect(path).await.map_err(refused)?)).await,
            Host::Tcp { address, .. } => {
                let stream = TcpStream::connect(address).await.map_err(refused)?;
                stream.set_nodelay(true).map_err(refused)?; // A typed character must not wait for the next.
                self.talk(TokioIo::new(stream)).await
            }
        }
    }

    async fn talk<S>(&self, stream: S) -> Result<http1::SendRequest<RequestBody>, Error>
    where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(stream).await.map_err(|source| self.broken(source))?;
        // Its errors reach the request that it carries.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    fn broken(&self, source: hyper::Error) -> Error {
        Error::Broken { host: self.host.to_string(), source }
    }
}

/// An answer: the API's body, which `-o json` prints as it is.
#[derive(Debug)]
pub(crate) struct Body {
    path: String,
    bytes: Bytes,
}

impl Body {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What they say.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes).map_err(|source| Error::Body { path: self.path.clone(), source })
    }
}

/// An answer that goes on.
#[derive(Debug)]
pub(crate) struct BodyStream {
    body: Incoming,
    host: String,
}

impl BodyStream {
    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| Error::Broken { host: self.host.clone(), source })?;
            // What is not data is a trailer, of which the API has none.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// `name` as one segment of a path: whatever was typed, it cannot reach another route.
pub(crate) fn segment(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
        if plain && name != "." && name != ".." {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn a_name_stays_one_segment_of_the_path() {
        assert_eq!(segment("review.1"), "review.1");
        assert_eq!(segment("a/b?c#d e"), "a%2Fb%3Fc%23d%20e");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("µ"), "%C2%B5");
    }
}
