//! A VM's port, as a browser sees it.

use pando_bench::{ApiError, Daemon};
use pando_wire::api::{Port, PortRequest};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Where the guest's server listens.
const PORT: u16 = 3000;
/// Until a page has come, in an emulated host.
const LIMIT: Duration = Duration::from_secs(180);
/// What a good answer begins with.
const GOOD: &[u8] = b"HTTP/1.1 200 ";

/// Starts a server of one page in a VM.
pub(crate) fn serve(daemon: &Daemon, vm: &str) -> Result<(), ApiError> {
    let serve = format!("echo hello >/run/index.html && httpd -p 127.0.0.1:{PORT} -h /run");
    daemon.exec(vm, &["sh", "-c", &serve])
}

/// A port that is open.
pub(crate) struct Preview {
    /// The daemon's address, of IPv4.
    address: String,
    request: String,
}

impl Preview {
    /// Opens the server's port.
    pub(crate) fn open(daemon: &Daemon, vm: &str) -> Result<Self, ApiError> {
        let port: Port = daemon.call("PUT", &format!("/vms/{vm}/ports/{PORT}"), &PortRequest::default())?;
        let (Some(url), Some(token)) = (&port.url, &port.token) else {
            return Err(ApiError::Answer(format!("{port:?}")));
        };
        let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let at = host.rsplit(':').next().unwrap_or_default();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nPando-Token: {token}\r\nConnection: close\r\n\r\n");
        Ok(Self { address: format!("127.0.0.1:{at}"), request })
    }

    /// Asks for the page, and reads so much of the answer that it is seen to be a good one.
    pub(crate) fn get(&self) -> Result<(), ApiError> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(self.request.as_bytes())?;
        let mut answer = [0; GOOD.len()];
        stream.read_exact(&mut answer)?;
        match answer == *GOOD {
            true => Ok(()),
            false => Err(ApiError::Answer(String::from_utf8_lossy(&answer).into_owned())),
        }
    }
}
