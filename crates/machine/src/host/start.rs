//! Starting the emulated host that stays.

use super::Files;
use super::disk::{self, DiskError};
use super::process::Process;
use super::record::{self, Running};
use crate::boot::{self, BootError, Job};
use crate::files;
use crate::kernel::HostKernel;
use crate::qemu::{ADDRESS, Forward, Lifetime, Qemu};
use crate::shell::quote;
use crate::tail;
use crate::tools::ToolError;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the emulated host may take until its daemon answers.
const LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(250);
/// Where the daemon listens in there.
const DAEMON_PORT: u16 = 7070;
/// What is enough for a few small VMs.
const USUAL_MEMORY_MIB: u32 = 6144;

/// The emulated host to start.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// Where its files are, in a folder `machine`.
    pub state_dir: PathBuf,
    /// Where kernels are. It is writable in there, at its own path.
    pub cache_dir: PathBuf,
    /// The program that is the daemon in there, as `<program> daemon`.
    pub program: PathBuf,
    /// Its RAM in MiB.
    pub memory_mib: u32,
    /// The size of its disk when that is to be made; it then stays as it is.
    pub disk_bytes: u64,
    /// A kernel image, its modules beside it as in a kernel package; Debian's, downloaded once, when absent.
    pub kernel: Option<PathBuf>,
}

/// What a start came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// It runs, and its daemon answers.
    Now(Running),
    /// It ran already.
    Before(Running),
}

/// Why the emulated host does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is nothing to start.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// It has no disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file cannot be used.
    #[error("cannot use {path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One runs whose record this version does not understand.
    #[error(
        "another version of pando started an emulated host, process {process_id}, that runs: `pando machine stop` stops it"
    )]
    OtherVersion {
        /// Its QEMU.
        process_id: u32,
    },
    /// No port of this computer is free, or no memory.
    #[error("cannot prepare the emulated host")]
    Prepare(#[source] io::Error),
    /// QEMU cannot be started or watched.
    #[error("cannot start QEMU")]
    Spawn(#[source] io::Error),
    /// It ended before its daemon answered.
    #[error(
        "the emulated host ended at once ({status}); QEMU said: {qemu}; its kernel: {console}; its daemon: {daemon}"
    )]
    Ended {
        /// How QEMU ended.
        status: ExitStatus,
        /// The last lines of `qemu.log`.
        qemu: String,
        /// The last lines of `console.log`.
        console: String,
        /// The last lines of `daemon.log`.
        daemon: String,
    },
    /// Its daemon did not answer in time; it was ended.
    #[error("the daemon in the emulated host does not answer after {} s; it said: {daemon}", LIMIT.as_secs())]
    Silent {
        /// The last lines of `daemon.log`.
        daemon: String,
    },
}

impl From<ToolError> for StartError {
    fn from(error: ToolError) -> Self {
        Self::Boot(error.into())
    }
}

/// The RAM that an emulated host gets when nobody says how much: 6 GiB, or half of this computer's when that is less.
pub fn default_memory_mib() -> u32 {
    let total = rustix::system::sysinfo();
    let mib = (total.totalram as u64).saturating_mul(u64::from(total.mem_unit)) >> 21;
    u32::try_from(mib).unwrap_or(u32::MAX).clamp(1024, USUAL_MEMORY_MIB)
}

/// Starts the emulated host of `spec.state_dir` unless it runs, and waits until its daemon answers. `progress` is told
/// what takes long.
///
/// Where that fails, nothing is left running.
pub fn start(spec: &StartSpec, progress: &mut dyn FnMut(&str)) -> Result<Started, StartError> {
    let files = Files::of(&spec.state_dir);
    let failed = |path: PathBuf| move |source| StartError::File { path, source };
    files.create().map_err(failed(files.folder.clone()))?;
    let _lock = files.lock().map_err(failed(files.folder.clone()))?;
    if let Some(running) = record::read(&files) {
        return Ok(Started::Before(running));
    }
    if let Some(process) = record::process(&files) {
        return Err(StartError::OtherVersion { process_id: process.id });
    }
    record::remove(&files);
    fs::create_dir_all(&spec.cache_dir).map_err(failed(spec.cache_dir.clone()))?;
    let cache_dir = spec.cache_dir.canonicalize().map_err(failed(spec.cache_dir.clone()))?;
    let program = spec.program.canonicalize().map_err(failed(spec.program.clone()))?;
    let kernel = HostKernel::find(spec.kernel.as_deref(), &cache_dir, progress).map_err(BootError::from)?;
    // The guests' kernel too: there is no network in there to get one from.
    pando_guest::kernel::Kernel::find(&cache_dir, progress)
        .map_err(|error| BootError::from(crate::KernelError::from(error)))?;
    disk::ensure(&files.disk(), spec.disk_bytes)?;

    let token = files::random().map_err(StartError::Prepare)?;
    let job = Job {
        script: script(&program, &cache_dir, &token),
        writable: vec![cache_dir.clone()],
        marker: "pando: the emulated host's service ended with".to_owned(),
        linger_seconds: 0,
    };
    let initramfs = boot::initramfs(&kernel, &cache_dir, &job, progress)?;
    let initramfs = files::in_memory(&initramfs).map_err(StartError::Prepare)?;
    for log in [files.daemon_log(), files.console_log()] {
        File::create(&log).map_err(failed(log))?;
    }
    let port = free_port().map_err(StartError::Prepare)?;
    let qemu = Qemu {
        kernel: kernel.image,
        initramfs: files::path_for_others(&initramfs),
        memory_mib: spec.memory_mib,
        console: files.console_log(),
        outputs: [files.daemon_log(), files.daemon_log()],
        writable: job.writable,
        control: Some(files.control()),
        disks: vec![files.disk()],
        forward: Some(Forward { from_port: port, to_port: DAEMON_PORT }),
    };
    let log = File::create(files.qemu_log()).map_err(failed(files.qemu_log()))?;
    let mut command = qemu.command(Lifetime::Own)?;
    // A group of its own: what ends a command from the keyboard does not end the host.
    command.current_dir("/").process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut host = Host { child: command.spawn().map_err(StartError::Spawn)?, stays: false };

    let process = Process::of(host.child.id()).ok_or_else(|| StartError::Spawn(io::Error::other("it is gone")))?;
    let started_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let started_ms = i64::try_from(started_ms).unwrap_or(i64::MAX);
    let running = Running { process, port, token, memory_mib: spec.memory_mib, started_ms };
    // Before it answers: an interrupted start leaves a host that can be found and stopped.
    record::write(&files, &running).map_err(failed(files.record()))?;
    progress("starting the emulated host");
    let result = host.wait_for_answer(&files, &running);
    if result.is_err() {
        drop(host);
        record::remove(&files);
    } else {
        host.stays = true;
    }
    result.map(|()| Started::Now(running))
}

/// The job: variables, then the service.
fn script(program: &Path, cache_dir: &Path, token: &str) -> Vec<u8> {
    let port = DAEMON_PORT.to_string();
    let variables: [(&str, &OsStr); 5] = [
        ("program", program.as_os_str()),
        ("address", ADDRESS.as_ref()),
        ("port", port.as_ref()),
        ("token", token.as_ref()),
        ("cache", cache_dir.as_os_str()),
    ];
    let mut script = Vec::new();
    for (name, value) in variables {
        script.extend_from_slice(format!("{name}=").as_bytes());
        quote(value, &mut script);
        script.push(b'\n');
    }
    script.extend_from_slice(include_bytes!("service.sh"));
    script
}

/// A TCP port that nobody uses. Another program may take it before QEMU does; QEMU then says so and ends.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// QEMU, which is killed when this is dropped unless it stays.
struct Host {
    child: Child,
    stays: bool,
}

impl Host {
    fn wait_for_answer(&mut self, files: &Files, running: &Running) -> Result<(), StartError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().map_err(StartError::Spawn)? {
                return Err(StartError::Ended {
                    status,
                    qemu: tail::of(&files.qemu_log()),
                    console: tail::of(&files.console_log()),
                    daemon: tail::of(&files.daemon_log()),
                });
            }
            if running.answers() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(StartError::Silent { daemon: tail::of(&files.daemon_log()) });
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !self.stays {
            // An error means that there is nothing left to end.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_a_script() {
        let script = script(Path::new("/it's/pando"), Path::new("/c"), "t");
        let text = String::from_utf8(script).unwrap();
        assert!(
            text.starts_with("program='/it'\\''s/pando'\naddress='10.0.2.15'\nport='7070'\ntoken='t'\ncache='/c'\n")
        );
        assert!(std::process::Command::new("sh").args(["-n", "-c", &text]).status().unwrap().success());
    }

    #[test]
    fn memory_is_at_most_the_usual_amount() {
        assert!((1024..=USUAL_MEMORY_MIB).contains(&default_memory_mib()));
    }

    #[test]
    fn a_start_without_the_program_names_it_and_leaves_nothing_running() {
        let state = tempfile::tempdir().unwrap();
        let spec = StartSpec {
            state_dir: state.path().to_owned(),
            cache_dir: state.path().join("cache"),
            program: "/no/such/pando".into(),
            memory_mib: 1024,
            disk_bytes: 1 << 30,
            kernel: None,
        };
        let error = start(&spec, &mut |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "cannot use /no/such/pando");
        assert_eq!(super::super::running(state.path()), None);
    }
}
