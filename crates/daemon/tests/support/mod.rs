//! A daemon to test: its own directories, the fake monitor, and a client that holds every answer against the document.

#![allow(dead_code, reason = "not every test file uses all of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail where these do")]

pub(crate) mod program; // what listens in VMs

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use pando_daemon::{Config, ServeError, serve_until};
use pando_wire::api::{ForkReport, Vm};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A daemon that runs, and everything it owns.
pub(crate) struct Daemon {
    pub(crate) config: Config,
    dir: TempDir,
    running: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Daemon {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let mut daemon = Self { config, dir, running: None };
        daemon.start_again().await;
        daemon
    }

    /// Starts it where it was stopped.
    pub(crate) async fn start_again(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let until = async { drop(stopped.await) };
        let task = tokio::spawn(serve_until(self.config.clone(), until));
        self.running = Some(Running { stop, task });
        self.wait().await;
    }

    /// A daemon whose process is another one, which starts with [`Daemon::start_again`] if it shall be this one.
    pub(crate) fn elsewhere() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { config: config(dir.path()), dir, running: None }
    }

    /// Waits until it answers: it listens before it has taken over the VMs of the one before.
    pub(crate) async fn wait(&self) {
        eventually("the daemon answers", async || self.attempt(Method::GET, "/version", Value::Null).await).await;
        // Its VMs are programs, and this computer is not to be changed for them.
        assert!(self.attempt(Method::PUT, "/settings/net", json!({"value": "none"})).await);
    }

    /// Ends it, as SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        let Running { stop, task } = self.running.take().unwrap();
        stop.send(()).unwrap();
        task.await.unwrap().unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = UnixStream::connect(&self.config.socket).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Bytes) -> Response<Incoming> {
        let request =
            Request::builder().method(method).uri(path).header("host", "pando").body(Full::new(body)).unwrap();
        ask(&mut self.connect().await, request).await
    }

    /// Asks a daemon that may be killed meanwhile. Whether there was an answer.
    pub(crate) async fn attempt(&self, method: Method, path: &str, body: Value) -> bool {
        let Ok(stream) = UnixStream::connect(&self.config.socket).await else { return false };
        let Ok((mut sender, connection)) = handshake(TokioIo::new(stream)).await else { return false };
        tokio::spawn(connection);
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let request = Request::builder().method(method.clone()).uri(path).header("host", "pando").body(Full::new(body));
        let answer = sender.send_request(request.unwrap()).await;
        answer.inspect(|answer| assert_documented(&method, path, answer.status())).is_ok()
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        read(self.send(method, path, body).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::PUT, path, body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::DELETE, path, Value::Null).await
    }

    /// Imports an image; the answer is its digest.
    pub(crate) async fn image(&self) -> String {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_data(&mut header, "hello", &b"world"[..]).unwrap();
        let archive = archive.into_inner().unwrap();
        let (status, image) = read(self.send(Method::POST, "/images", archive.into()).await).await;
        assert_eq!(status, 200, "{image}");
        image["digest"].as_str().unwrap().to_owned()
    }

    /// Boots a VM.
    pub(crate) async fn run(&self, name: &str) -> Vm {
        let (status, vm) = self.try_run(name).await;
        assert_eq!(status, 200, "{vm}");
        serde_json::from_value(vm).unwrap()
    }

    pub(crate) async fn try_run(&self, name: &str) -> (StatusCode, Value) {
        let kernel = self.path().join("kernel");
        std::fs::write(&kernel, "no kernel").unwrap();
        let image = self.image().await;
        self.post("/vms", json!({"name": name, "image": image, "kernel": kernel, "env": {"A": "1"}})).await
    }

    /// Forks a VM into children of these names.
    pub(crate) async fn fork(&self, parent: &str, names: &[&str]) -> ForkReport {
        let children: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
        let (status, report) = self.post(&format!("/vms/{parent}/fork"), json!({"children": children})).await;
        assert_eq!(status, 200, "{report}");
        serde_json::from_value(report).unwrap()
    }

    pub(crate) async fn vm(&self, name: &str) -> Vm {
        let (status, vm) = self.get(&format!("/vms/{name}")).await;
        assert_eq!(status, 200, "{vm}");
        serde_json::from_value(vm).unwrap()
    }

    /// All that could be left behind, of this process and below the daemon's folder: descriptors, without those of the
    /// database, which come and go; monitors; mounts; files.
    pub(crate) fn belongings(&self) -> (Vec<String>, usize, String, Vec<PathBuf>) {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        // Sockets and such have numbers in their names.
        let kind = |target: PathBuf| target.to_string_lossy().split(":[").next().unwrap_or_default().to_owned();
        let mut open: Vec<_> = targets.map(kind).filter(|target| !target.contains("pando.db")).collect();
        open.retain(|target| !target.starts_with("/proc/"));
        open.sort();
        let mut files = Vec::new();
        list(self.path(), &mut files);
        files.retain(|file| !file.to_string_lossy().contains("pando.db"));
        files.sort();
        (open, self.monitors(), std::fs::read_to_string("/proc/self/mountinfo").unwrap(), files)
    }

    /// How many monitors this process is to look after, zombies included. Orphans come to it.
    pub(crate) fn monitors(&self) -> usize {
        let ours = format!(" {} ", std::process::id());
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = all.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
        // `pid (name) state parent …`
        let is_ours = |stat: &String| stat.split_once(") ").is_some_and(|(_, rest)| rest[1..].starts_with(&ours));
        stats.filter(|stat| stat.contains("(fake-monitor)") && is_ours(stat)).count()
    }

    pub(crate) fn layer(&self, id: &str) -> PathBuf {
        self.config.state_dir.join("layers").join(id)
    }

    pub(crate) fn sockets(&self, id: &str) -> PathBuf {
        self.config.runtime_dir.join("vms").join(id)
    }
}

impl Drop for Daemon {
    /// VMs outlive a daemon, and these must not outlive their test.
    fn drop(&mut self) {
        let vms = self.config.runtime_dir.join("vms");
        for vm in std::fs::read_dir(vms).into_iter().flatten().flatten() {
            if let Ok(monitor) = pando_wire::control::Connection::connect(&vm.path().join("control.sock")) {
                let _ = monitor.send(&pando_wire::control::Request::Kill, &[]);
                let _ = monitor.receive::<pando_wire::control::Response>();
            }
        }
    }
}

/// Where a daemon below `dir` has its things.
pub(crate) fn config(dir: &Path) -> Config {
    let tests = std::env::current_exe().unwrap();
    let monitor = tests.parent().unwrap().parent().unwrap().join("examples/fake-monitor");
    assert!(monitor.exists(), "cargo builds examples before it runs tests");
    Config {
        network_range: pando_daemon::network::DEFAULT_RANGE,
        state_dir: dir.join("state"),
        runtime_dir: dir.join("run"),
        cache_dir: dir.join("cache"),
        socket: dir.join("run/pando.sock"),
        tcp: None,
        previews: None,
        preview_domain: "localhost".into(),
        monitor,
        keep_seeds: Duration::from_mins(10),
        kvm: "/dev/null".into(),
        meminfo: "/proc/meminfo".into(),
    }
}

/// Sends `request`; the answer is one that the document has.
pub(crate) async fn ask(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = sender.send_request(request).await.unwrap();
    assert_documented(&method, &path, response.status());
    response
}

/// That the document says of this route that it may answer so. Of what is no route it says nothing.
#[track_caller]
fn assert_documented(method: &Method, path: &str, status: StatusCode) {
    static PATHS: LazyLock<Value> =
        LazyLock::new(|| serde_json::to_value(pando_daemon::openapi()).unwrap()["paths"].take());
    let path = path.split('?').next().unwrap();
    let is_of = |route: &str| {
        let (route, path) = (route.split('/'), path.split('/'));
        route.clone().count() == path.clone().count() && route.zip(path).all(|(a, b)| a == b || a.starts_with('{'))
    };
    let paths = PATHS.as_object().unwrap();
    let operations = paths.iter().find(|(route, _)| is_of(route)).map(|(_, operations)| operations);
    let operation = operations.and_then(|operations| operations.get(method.as_str().to_lowercase()));
    let is_there = match operation {
        Some(operation) => operation["responses"].get(status.as_str()).is_some(),
        None => status == if operations.is_some() { 405 } else { 404 },
    };
    assert!(is_there, "the document does not say that {method} {path} may be answered with {status}");
}

pub(crate) async fn read(response: Response<Incoming>) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
    (status, body)
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        files.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), files);
        }
    }
}

/// Waits until `happens`, for at most ten seconds.
pub(crate) async fn eventually(what: &str, mut happens: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !happens().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether there is a process `pid`, be it a zombie.
pub(crate) fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

pub(crate) fn signal_kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
