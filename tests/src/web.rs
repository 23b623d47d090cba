//! What listens in a VM, as a browser sees it: under the URL that the daemon gives it.

use crate::TestVm;
use crate::websocket::WebSocket;
use pando_wire::api::Port;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Until a guest in an emulated host has woken and answered.
const LIMIT: Duration = Duration::from_secs(180);

/// A port of a VM that is open to who has its token.
#[derive(Debug)]
pub struct Page {
    /// The host's name, and the port where the daemon listens, as a request has them.
    pub host: String,
    /// The token.
    pub token: String,
}

impl Page {
    /// Opens `port` of `vm`.
    ///
    /// # Panics
    ///
    /// When the daemon does not.
    pub fn open(vm: &TestVm<'_>, port: u16) -> Self {
        let json = vm.daemon().pando(&["port", "-o", "json", vm.name(), &port.to_string()]).ok();
        let port: Port = serde_json::from_str(&json).expect("a port as JSON");
        let url = port.url.expect("the daemon has previews");
        let host = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).expect("a URL of HTTP");
        Self { host: host.to_owned(), token: port.token.expect("a port that is open to some has a token") }
    }

    /// Where a browser sees `path`, with the token.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}?pando-token={}", self.host, self.token)
    }

    /// The whole answer to a request for `path`.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub fn get(&self, path: &str) -> String {
        let mut stream = self.connect();
        let (host, token) = (&self.host, &self.token);
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nPando-Token: {token}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the daemon takes a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// Begins a WebSocket.
    ///
    /// # Panics
    ///
    /// When the server wants none.
    pub fn web_socket(&self) -> WebSocket {
        WebSocket::begin(self.connect(), &format!("Host: {}\r\nPando-Token: {}\r\n", self.host, self.token))
    }

    /// A connection to the daemon, on which nothing was said yet.
    ///
    /// # Panics
    ///
    /// When it does not listen.
    pub fn connect(&self) -> TcpStream {
        let (_, port) = self.host.rsplit_once(':').expect("a host with a port");
        let stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("the daemon listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        stream
    }
}
