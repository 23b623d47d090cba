//! `moto_server`: the S3 server of these tests, one for each of them.

use pando_store::BucketSpec;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BUCKET: &str = "pando-test";
/// Python takes its time to start where much else runs.
const START: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
}

/// Where `scripts/setup tests` puts it: beside what cargo builds.
fn program() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let installed = target.join("moto/bin/moto_server");
    let named = std::env::var_os("PANDO_MOTO_SERVER").map(PathBuf::from);
    let found = named.into_iter().chain([installed]).find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("there is no moto_server in {}: run scripts/setup tests", target.join("moto").display())
    })
}

impl Server {
    /// A server with an empty bucket, which believes everybody.
    pub(crate) fn start() -> Self {
        // Free a moment ago, and nobody else is given it so soon.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { process: start(address), address }
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// The same address, and the bucket is empty.
    pub(crate) fn restart(&mut self) {
        self.process = start(self.address);
    }

    pub(crate) fn spec(&self, prefix: &str) -> BucketSpec {
        spec(self.address, prefix)
    }

    /// From now on, only who it has given a key may do anything; and it has given none.
    pub(crate) fn ask_for_credentials(&self) {
        let answer = request(self.address, "POST", "/moto-api/reset-auth", b"0").unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
    }

    /// Puts an object into the bucket, past everything that is tested here.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let answer = request(self.address, "PUT", &format!("/{BUCKET}/{name}"), bytes).unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
    }

    /// Takes one away, past everything.
    pub(crate) fn delete(&self, name: &str) {
        let answer = request(self.address, "DELETE", &format!("/{BUCKET}/{name}"), b"").unwrap();
        assert!(answer.contains("204 "), "{answer}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Impatient, so that tests end.
pub(crate) fn spec(address: SocketAddr, prefix: &str) -> BucketSpec {
    BucketSpec {
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(format!("http://{address}")),
        region: "us-east-1".to_owned(),
        access_key: "somebody".to_owned(),
        secret_key: "something".to_owned(),
        session_token: None,
        timeout: Duration::from_secs(4),
        patience: Duration::from_secs(3),
    }
}

fn start(address: SocketAddr) -> Child {
    let mut command = Command::new(program());
    command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
    let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    loop {
        match request(address, "PUT", &format!("/{BUCKET}"), b"") {
            Ok(answer) if answer.contains("200 OK") => return process,
            answer => assert!(begun.elapsed() < START, "moto_server does not start: {answer:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One request of HTTP, as somebody whom nobody checks.
fn request(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(START))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\nAuthorization: \
         AWS4-HMAC-SHA256 Credential=somebody/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
