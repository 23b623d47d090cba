//! A daemon that answers what a test tells it to.

use crate::agent;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// A request that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) what: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// What it does with `METHOD /path?query` and a body.
type Answer = dyn Fn(&str, &[u8]) -> (u16, String) + Send + Sync;

/// The daemon. It ends with the test's process.
pub(crate) struct Daemon {
    dir: TempDir,
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Daemon {
    /// Starts it on a Unix socket and a TCP port.
    pub(crate) fn new(answer: impl Fn(&str, &[u8]) -> (u16, String) + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Answer> = Arc::new(answer);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let unix = std::os::unix::net::UnixListener::bind(dir.path().join("p.sock")).unwrap();
        unix.set_nonblocking(true).unwrap();
        let daemon = Self { port: tcp.local_addr().unwrap().port(), dir, asked: asked.clone() };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (unix, tcp) = (UnixListener::from_std(unix).unwrap(), TcpListener::from_std(tcp).unwrap());
                loop {
                    tokio::select! {
                        Ok((stream, _)) = unix.accept() => serve(stream, answer.clone(), asked.clone()),
                        Ok((stream, _)) = tcp.accept() => serve(stream, answer.clone(), asked.clone()),
                    }
                }
            });
        });
        daemon
    }

    /// One that always answers this.
    pub(crate) fn saying(status: u16, body: &str) -> Self {
        let body = body.to_owned();
        Self::new(move |_, _| (status, body.clone()))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("p.sock")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// `METHOD /path?query` of all requests so far.
    pub(crate) fn asked_for(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.what).collect()
    }
}

fn serve<S>(stream: S, answer: Arc<Answer>, asked: Arc<Mutex<Vec<Asked>>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, asked) = (answer.clone(), asked.clone());
        async move { Ok::<_, Infallible>(respond(request, answer, &asked).await) }
    });
    tokio::spawn(async move {
        // A client that breaks off is part of some tests.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    });
}

async fn respond(
    mut request: Request<Incoming>,
    answer: Arc<Answer>,
    asked: &Mutex<Vec<Asked>>,
) -> Response<Full<Bytes>> {
    let what = format!("{} {}", request.method(), request.uri());
    let authorization = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    if request.method() == Method::GET && what.ends_with("/agent") && !what.contains("gone") {
        assert_eq!(request.headers()[UPGRADE], "pando-agent");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move { agent::serve(TokioIo::new(upgrade.await.unwrap())).await });
        let response = Response::builder().status(101).header("connection", "upgrade").header(UPGRADE, "pando-agent");
        return response.body(Full::default()).unwrap();
    }
    let Ok(body) = request.into_body().collect().await else {
        asked.lock().unwrap().push(Asked { what: format!("{what} (broken off)"), authorization, body: Vec::new() });
        return Response::builder().status(400).body(Full::default()).unwrap();
    };
    let body = body.to_bytes().to_vec();
    // In a thread: an answer may wait for the next request.
    let answering = tokio::task::spawn_blocking(move || (answer(&what, &body), what, body));
    let ((status, text), what, body) = answering.await.unwrap();
    asked.lock().unwrap().push(Asked { what, authorization, body });
    Response::builder().status(status).body(Full::from(text)).unwrap()
}
