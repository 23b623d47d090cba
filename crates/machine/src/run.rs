//! One command in a throw-away emulated host: started for it, gone after it.

use crate::boot::{self, BootError, Job};
use crate::files;
use crate::kernel::HostKernel;
use crate::qemu::{Lifetime, Qemu};
use crate::shell::{is_variable, quote};
use crate::stream::{self, LineWatch};
use crate::tail;
use crate::tools::ToolError;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// A line of the command's standard output that asks for the power to be cut.
pub const CUT_POWER: &str = "PANDO-CUT-POWER";

/// How often QEMU is looked after while it says nothing.
const POLL: Duration = Duration::from_millis(100);

/// A command, and the emulated host it runs in.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// The program and its arguments. Its standard input is empty.
    pub command: Vec<OsString>,
    /// Variables of the command. Names that no shell could have are left out.
    pub environment: Vec<(OsString, OsString)>,
    /// Folders that the command may write to, at their own paths; it starts in the first one. Sockets cannot live
    /// there. All else of this computer is there too, as it is outside, except `/dev`, `/proc`, `/sys` and
    /// `/run`; what is written there goes with the host.
    pub writable: Vec<PathBuf>,
    /// The host's RAM in MiB.
    pub memory_mib: u32,
    /// How long the whole may take.
    pub limit: Duration,
    /// A raw disk image, `/dev/vda` in there, mounted nowhere.
    pub disk: Option<PathBuf>,
    /// Once the command has written the line [`CUT_POWER`], cut the power after this time: QEMU is killed, and what
    /// the host's kernel had not yet written to `disk` is lost.
    pub cut_power_after: Option<Duration>,
    /// A kernel image to run, its modules beside it as in a kernel package; Debian's, downloaded once, when absent.
    pub kernel: Option<PathBuf>,
    /// Where kernels and their unpacked modules are kept.
    pub cache_dir: PathBuf,
}

/// How a command in an emulated host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With this status, as a shell tells it: 127 when there is no such program, 128 + the signal that killed it.
    Exited(u8),
    /// Not in time.
    TimedOut,
    /// In the dark, as it had asked.
    PowerCut,
}

/// Why a command did not run to an [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is nothing to start.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A folder or file that was named is not there.
    #[error("cannot use {path}")]
    Path {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A temporary file, pipe or thread cannot be made.
    #[error("cannot prepare the emulated host")]
    Prepare(#[source] io::Error),
    /// QEMU cannot be started.
    #[error("cannot start QEMU")]
    Spawn(#[source] io::Error),
    /// QEMU ended before the command did.
    #[error("the emulated host ended before the command did ({status}); QEMU said: {qemu}; its kernel: {console}")]
    Ended {
        /// How QEMU ended.
        status: ExitStatus,
        /// The last lines of its standard error.
        qemu: String,
        /// The last lines of the console.
        console: String,
    },
    /// The command's output cannot be passed on.
    #[error("cannot pass on what the command wrote")]
    Output(#[source] io::Error),
}

impl From<ToolError> for RunError {
    fn from(error: ToolError) -> Self {
        Self::Boot(error.into())
    }
}

/// Runs `spec`'s command, with its outputs copied to this process's as they come. `progress` is told what takes long.
///
/// The host ends with the calling thread, however that ends.
pub fn run(spec: &RunSpec, progress: &mut dyn FnMut(&str)) -> Result<Outcome, RunError> {
    let writable = spec.writable.iter().map(|path| canonical(path)).collect::<Result<Vec<_>, _>>()?;
    let disks = spec.disk.iter().map(|path| canonical(path)).collect::<Result<Vec<_>, _>>()?;
    let kernel = HostKernel::find(spec.kernel.as_deref(), &spec.cache_dir, progress).map_err(BootError::from)?;
    let folder = tempfile::Builder::new().prefix("pando-machine-").tempdir().map_err(RunError::Prepare)?;
    // A line that no command writes by chance.
    let marker = format!("pando-end-{}", files::random().map_err(RunError::Prepare)?);
    let script = script(&spec.command, &spec.environment, writable.first().map(PathBuf::as_path));
    let job = Job { script, writable: writable.clone(), marker: marker.clone(), linger_seconds: 60 };
    let initramfs = boot::initramfs(&kernel, &spec.cache_dir, &job, progress)?;
    let initramfs = files::in_memory(&initramfs).map_err(RunError::Prepare)?;

    let output = io::pipe().map_err(RunError::Prepare)?;
    let errors = io::pipe().map_err(RunError::Prepare)?;
    let console = folder.path().join("console.log");
    let qemu_log = folder.path().join("qemu.log");
    let qemu = Qemu {
        kernel: kernel.image,
        initramfs: files::path_for_others(&initramfs),
        memory_mib: spec.memory_mib,
        console: console.clone(),
        outputs: [files::path_for_others(&output.1), files::path_for_others(&errors.1)],
        writable,
        control: None,
        disks,
        forward: None,
    };
    let mut command = qemu.command(Lifetime::Starter)?;
    let log = File::create(&qemu_log).map_err(RunError::Prepare)?;
    let started = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().map_err(RunError::Spawn)?;
    let mut host = Host { child, deadline: started + spec.limit, cut_at: None };
    let (sender, events) = mpsc::channel();
    let watch = spec.cut_power_after.is_some().then(|| LineWatch::new(CUT_POWER));
    // Both write ends stay open until QEMU is gone, for it opens them by their path at some time of its own.
    let write_ends = [output.1, errors.1];
    pump(output.0, io::stdout(), &marker, watch, sender.clone())?;
    pump(errors.0, io::stderr(), &marker, None, sender)?;

    let outcome = host.follow(&events, spec.cut_power_after)?;
    let status = host.end().map_err(RunError::Spawn)?;
    // With QEMU and these gone nobody writes any more: the rest of both outputs comes, and their ends.
    drop(write_ends);
    let late = drain(&events)?;
    match outcome.or(late.map(Outcome::Exited)) {
        Some(outcome) => Ok(outcome),
        None => Err(RunError::Ended { status, qemu: tail::of(&qemu_log), console: tail::of(&console) }),
    }
}

fn canonical(path: &Path) -> Result<PathBuf, RunError> {
    std::fs::canonicalize(path).map_err(|source| RunError::Path { path: path.to_owned(), source })
}

/// The job: the environment, the folder, the command.
fn script(command: &[OsString], environment: &[(OsString, OsString)], folder: Option<&Path>) -> Vec<u8> {
    let mut script = Vec::new();
    for (name, value) in environment.iter().filter(|(name, _)| is_variable(name)) {
        script.extend_from_slice(b"export ");
        script.extend_from_slice(name.as_encoded_bytes());
        script.push(b'=');
        quote(value, &mut script);
        script.push(b'\n');
    }
    script.extend_from_slice(b"cd ");
    quote(folder.unwrap_or(Path::new("/")).as_os_str(), &mut script);
    script.extend_from_slice(b" || exit 126\nexec");
    for word in command {
        script.push(b' ');
        quote(OsStr::new(word), &mut script);
    }
    script.push(b'\n');
    script
}

/// All that an output can tell.
enum Event {
    /// The line [`CUT_POWER`] came by.
    CutPower,
    /// It is copied: up to its marker, with the status; or as far as it went.
    Ended(Option<u8>),
    /// It cannot be copied.
    Failed(io::Error),
}

/// Starts a thread that copies `from` to `to`.
fn pump(
    from: PipeReader,
    to: impl Write + Send + 'static,
    marker: &str,
    mut watch: Option<LineWatch>,
    events: Sender<Event>,
) -> Result<(), RunError> {
    let marker = marker.to_owned();
    let copy = move || {
        let result = stream::copy(from, to, &marker, |piece| {
            if watch.as_mut().is_some_and(|watch| watch.push(piece)) {
                // Nobody listens any more once the host is gone.
                let _ = events.send(Event::CutPower);
            }
        });
        let _ = events.send(result.map_or_else(Event::Failed, Event::Ended));
    };
    thread::Builder::new().name("output".to_owned()).spawn(copy).map_err(RunError::Prepare)?;
    Ok(())
}

/// QEMU, which is killed when this is dropped.
struct Host {
    child: Child,
    deadline: Instant,
    cut_at: Option<Instant>,
}

impl Host {
    /// Waits for the outcome; `None` when QEMU ended first.
    fn follow(
        &mut self,
        events: &Receiver<Event>,
        cut_power_after: Option<Duration>,
    ) -> Result<Option<Outcome>, RunError> {
        let mut statuses = Vec::new();
        loop {
            let now = Instant::now();
            if self.cut_at.is_some_and(|at| at <= now) {
                return Ok(Some(Outcome::PowerCut));
            }
            if self.deadline <= now {
                return Ok(Some(Outcome::TimedOut));
            }
            let next = self.cut_at.into_iter().fold(self.deadline, Instant::min);
            match events.recv_timeout(POLL.min(next - now)) {
                Ok(Event::CutPower) => self.cut_at = cut_power_after.map(|after| Instant::now() + after),
                Ok(Event::Ended(Some(status))) => statuses.push(status),
                Ok(Event::Ended(None)) => return Ok(None),
                Ok(Event::Failed(error)) => return Err(RunError::Output(error)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    if self.child.try_wait().map_err(RunError::Spawn)?.is_some() {
                        return Ok(None);
                    }
                }
            }
            if let [status, _] = *statuses {
                return Ok(Some(Outcome::Exited(status)));
            }
        }
    }
}

impl Host {
    /// Kills QEMU unless it is gone already, and says how it ended.
    fn end(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // An error means that there is nothing left to end.
        let _ = self.end();
    }
}

/// Waits for both outputs to end, and returns the status that came with the last of them. QEMU may have powered off
/// between two looks at the outputs.
fn drain(events: &Receiver<Event>) -> Result<Option<u8>, RunError> {
    let mut last = None;
    for event in events {
        match event {
            Event::Ended(status) => last = status.or(last),
            Event::Failed(error) => return Err(RunError::Output(error)),
            // It is dark already.
            Event::CutPower => (),
        }
    }
    Ok(last)
}
