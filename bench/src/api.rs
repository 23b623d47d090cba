//! A daemon of a benchmark's own, and its API without a program in between whose start would be measured as well.

use pando_wire::api::{ExecReport, ExecRequest, NetworkMode, NetworkRequest, RunRequest, Vm};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{error, fmt};
use tempfile::TempDir;

/// Until the daemon answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What the daemon did not do.
#[derive(Debug)]
pub enum ApiError {
    /// It said no, or could not.
    Refused(String),
    /// Its answer is none that is understood.
    Answer(String),
    /// The host would not.
    Host(io::Error),
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(answer) => write!(f, "the daemon refused: {answer}"),
            Self::Answer(answer) => write!(f, "the daemon answered {answer}"),
            Self::Host(error) => write!(f, "{error}"),
        }
    }
}

impl error::Error for ApiError {}

impl From<io::Error> for ApiError {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// A daemon with folders of its own. Its VMs and files go when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    folder: TempDir,
    pando: PathBuf,
    options: Vec<String>,
    process: Child,
}

impl Daemon {
    /// Starts the `pando` at `pando` as a daemon, with `options` of its own. Its cache, with a kernel in it, is where the
    /// environment says.
    pub fn start(pando: &Path, options: &[&str]) -> Result<Self, ApiError> {
        // Short, because paths of sockets have room for 107 characters.
        let folder = TempDir::with_prefix_in("pb.", "/tmp")?;
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        let process = spawn(pando, folder.path(), &options)?;
        let daemon = Self { folder, pando: pando.to_owned(), options, process };
        daemon.wait()?;
        Ok(daemon)
    }

    /// Kills it, and nobody else.
    pub fn kill(&mut self) -> Result<(), ApiError> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Starts it again if it has ended, with the folders that it had.
    pub fn ensure(&mut self) -> Result<(), ApiError> {
        if self.process.try_wait()?.is_none() {
            return Ok(());
        }
        self.process = spawn(&self.pando, self.folder.path(), &self.options)?;
        self.wait()
    }

    /// Waits until it answers.
    fn wait(&self) -> Result<(), ApiError> {
        let start = Instant::now();
        while let Err(error) = self.call::<Value>("GET", "/version", &()) {
            if start.elapsed() > START_LIMIT {
                return Err(error);
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What it has written to its log.
    pub fn log(&self) -> Result<String, ApiError> {
        Ok(fs::read_to_string(self.folder.path().join("log"))?)
    }

    /// Imports an image of busybox and nothing else; its digest. A VM is booted and removed for it.
    pub fn import(&self) -> Result<String, ApiError> {
        let root = self.folder.path().join("root");
        fs::create_dir_all(root.join("bin"))?;
        fs::create_dir_all(root.join("etc"))?;
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for applet in ["dd", "kill", "cat", "httpd", "nc", "setsid", "sh", "sleep", "true"] {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        let printed =
            self.pando(&["run", "--name", "import", "--net", "none", "-o", "json", &root.display().to_string()])?;
        let vm: Value = parse(printed.as_bytes())?;
        self.remove("import")?;
        let digest = vm.get("image").and_then(Value::as_str).map(str::to_owned);
        digest.ok_or_else(|| ApiError::Answer(vm.to_string()))
    }

    /// The command, which asks this daemon.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.pando);
        command.args(args).env("PANDO_HOST", format!("unix://{}", self.socket().display()));
        command
    }

    /// Runs the command. What it prints.
    pub fn pando(&self, args: &[&str]) -> Result<String, ApiError> {
        let output = self.command(args).output()?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(ApiError::Refused(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }

    /// Boots a VM with one CPU and no network; it answers already.
    pub fn boot(&self, name: &str, image: &str, memory_bytes: u64) -> Result<Vm, ApiError> {
        self.boot_in(name, image, memory_bytes, NetworkMode::None)
    }

    /// The same with a network, or without.
    pub fn boot_in(&self, name: &str, image: &str, memory_bytes: u64, mode: NetworkMode) -> Result<Vm, ApiError> {
        let request = RunRequest {
            name: Some(name.into()),
            image: image.into(),
            cpus: 1,
            memory_bytes,
            disk_bytes: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            kernel: None,
            idle_timeout_ms: None,
            network: NetworkRequest { mode: Some(mode), ..NetworkRequest::default() },
            publish: Vec::new(),
        };
        self.call("POST", "/vms", &request)
    }

    /// Runs a program in a VM to its end; one that fails is an error.
    pub fn exec(&self, name: &str, argv: &[&str]) -> Result<(), ApiError> {
        let request = ExecRequest { argv: argv.iter().map(|&arg| arg.to_owned()).collect(), ..ExecRequest::default() };
        let report: ExecReport = self.call("POST", &format!("/vms/{name}/exec"), &request)?;
        if report.exit == 0 { Ok(()) } else { Err(ApiError::Answer(format!("{argv:?} in {name}: {report:?}"))) }
    }

    /// Ends and removes a VM.
    pub fn remove(&self, name: &str) -> Result<(), ApiError> {
        self.call("DELETE", &format!("/vms/{name}?force=true"), &())
    }

    /// One request with a JSON body.
    pub fn call<A: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<A, ApiError> {
        let body = serde_json::to_vec(body).map_err(|error| ApiError::Answer(error.to_string()))?;
        self.send(method, path, &body)
    }

    /// One request with any body.
    pub fn send<A: DeserializeOwned>(&self, method: &str, path: &str, body: &[u8]) -> Result<A, ApiError> {
        let mut stream = UnixStream::connect(self.socket())?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: pando\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return Err(ApiError::Answer(text.into_owned()));
        };
        match head.split(' ').nth(1) {
            Some("204") => parse(b"null"),
            Some("200") => parse(body.as_bytes()),
            _ => Err(ApiError::Refused(body.to_owned())),
        }
    }

    /// Where it keeps what it has.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("pando.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Whatever cannot be removed any more is gone already.
        let vms: Vec<Value> = self.call("GET", "/vms", &()).unwrap_or_default();
        for name in vms.iter().filter_map(|vm| vm.get("name")?.as_str()) {
            let _ = self.remove(name);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A daemon with folders in `folder`, and its log behind what is there.
fn spawn(pando: &Path, folder: &Path, options: &[String]) -> io::Result<Child> {
    let log = File::options().append(true).create(true).open(folder.join("log"))?;
    Command::new(pando)
        .args(["daemon", "--socket"])
        .arg(folder.join("pando.sock"))
        .args(options)
        .env("PANDO_STATE_DIR", folder.join("state"))
        .env("PANDO_RUNTIME_DIR", folder.join("run"))
        .env("PANDO_TELL_WAITS", "1") // For `checkpoint`: how long guests waited for their memory.
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
}

fn parse<A: DeserializeOwned>(body: &[u8]) -> Result<A, ApiError> {
    serde_json::from_slice(body).map_err(|_| ApiError::Answer(String::from_utf8_lossy(body).into_owned()))
}
