//! A daemon of the test's own.

use crate::guard::Guard;
use crate::vm::TestVm;
use crate::{Run, prepared, rootfs, setting, wait_for};
use pando_wire::api::Vm;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// For one command. A boot in an emulated computer is the longest.
const COMMAND_LIMIT: Duration = Duration::from_secs(330);
/// Until a daemon answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A daemon with folders of its own, in the foreground. Its end takes its VMs and files along.
#[derive(Debug)]
pub struct TestDaemon {
    folder: PathBuf,
    state: PathBuf,
    binary: PathBuf,
    process: Mutex<Child>,
    image: OnceLock<String>,
    told: Mutex<String>,
    _guard: Guard,
}

impl TestDaemon {
    /// The one that most tests of a process share, so that they share one boot.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<TestDaemon> = LazyLock::new(TestDaemon::start);
        &SHARED
    }

    /// One for this test alone.
    pub fn start() -> Self {
        Self::start_with(&prepared(setting::BINARY), None)
    }

    /// One that is this `binary`, and keeps its state in `state`, or where it likes.
    pub fn start_with(binary: &Path, state: Option<&Path>) -> Self {
        // Short, because paths of sockets have room for 107 characters.
        let folder = TempDir::with_prefix_in("pt.", "/tmp").expect("a folder in /tmp").keep();
        let state = state.map_or_else(|| folder.join("state"), Path::to_path_buf);
        let guard = Guard::new(&folder, binary, &host(&folder));
        let process = Mutex::new(spawn(binary, &folder, &state));
        let daemon = Self {
            folder,
            state,
            binary: binary.to_path_buf(),
            process,
            image: OnceLock::new(),
            told: Mutex::default(),
            _guard: guard,
        };
        daemon.wait_until_it_answers();
        // A network costs time, and is there for the tests that ask for one. Binaries of before have none by themselves.
        daemon.pando(&["config", "set", "net", "none"]);
        daemon
    }

    /// Runs `pando` with these arguments.
    pub fn pando<A: AsRef<str>>(&self, args: &[A]) -> Run {
        self.pando_with(args, &[])
    }

    /// The same with standard input.
    pub fn pando_with<A: AsRef<str>>(&self, args: &[A], input: &[u8]) -> Run {
        Run::of(&mut self.command(args), input, COMMAND_LIMIT)
    }

    /// That command, for whoever wants to run it in another way.
    pub fn command<A: AsRef<str>>(&self, args: &[A]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args.iter().map(AsRef::as_ref)).env("PANDO_HOST", host(&self.folder));
        command
    }

    /// The digest of the image that guests of tests begin from.
    ///
    /// # Panics
    ///
    /// When no VM was booted before: that imports it.
    pub fn image(&self) -> &str {
        self.image.get().expect("a VM that was booted before")
    }

    /// Boots a VM with 256 MiB.
    pub fn boot(&self, name: &str) -> TestVm<'_> {
        self.boot_with(name, &["--memory", "256M"], &[])
    }

    /// Boots a VM with these options of `pando run`, and this command.
    pub fn boot_with(&self, name: &str, options: &[&str], command: &[&str]) -> TestVm<'_> {
        let mut args = vec!["run", "--name", name];
        args.extend(options);
        let folder = self.folder.join("rootfs");
        let folder = folder.to_string_lossy();
        args.push(match self.image.get() {
            Some(digest) => digest,
            None => {
                rootfs::build(Path::new(&*folder));
                &folder
            }
        });
        if !command.is_empty() {
            args.push("--");
            args.extend(command);
        }
        self.create(&args, name);
        let vm = TestVm::new(self, name);
        self.image.get_or_init(|| vm.inspect().image);
        vm
    }

    /// Boots a VM from another image than tests usually do, with these options of `pando run`.
    pub fn boot_from(&self, image: &Path, name: &str, options: &[&str]) -> TestVm<'_> {
        let image = image.to_string_lossy();
        let args = [&["run", "--name", name], options, &[&*image]].concat();
        self.create(&args, name);
        TestVm::new(self, name)
    }

    /// Runs `pando` with these arguments, which make the VM `name`. What is known of one that does not come to life is in the log.
    fn create(&self, args: &[&str], name: &str) {
        let run = self.pando(args);
        if run.code != 0 {
            self.tell();
        }
        assert_eq!(run.ok(), name);
    }

    /// A VM by its name, as the daemon sees it.
    pub fn vm(&self, name: &str) -> Option<Vm> {
        let run = self.pando(&["inspect", "-o", "json", name]);
        (run.code == 0).then(|| serde_json::from_str(&run.stdout).expect("a VM as JSON"))
    }

    /// All VMs.
    pub fn vms(&self) -> Vec<Vm> {
        serde_json::from_str(&self.pando(&["ls", "-o", "json"]).ok()).expect("VMs as JSON")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// Where it keeps its state.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Where it keeps its sockets.
    pub fn runtime_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// A folder that goes away with the daemon.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends the daemon alone, with a signal of this name as `kill(1)` has it, and waits for its end.
    pub fn end(&self, signal: &str) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        send(process.id(), signal);
        process.wait().expect("the daemon's end");
    }

    /// Starts it again, on the same state.
    pub fn restart(&self) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = spawn(&self.binary, &self.folder, &self.state);
        self.wait_until_it_answers();
    }

    /// Process ids of monitors that were started by this daemon or one before it, whatever it knows of them.
    pub fn monitors(&self) -> Vec<u32> {
        let ours = format!("PANDO_RUNTIME_DIR={}", self.runtime_dir().display());
        let monitor = |pid: &u32| {
            let has = |file: &str, words: &[u8]| {
                let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                bytes.split(|&byte| byte == 0).any(|word| word == words)
            };
            has("cmdline", b"vmm") && has("environ", ours.as_bytes())
        };
        processes().filter(monitor).collect()
    }

    /// Shows the end of its log, unless it was shown already and is the same.
    pub(crate) fn tell(&self) {
        let log = self.log();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let new = log.strip_prefix(told.as_str()).unwrap_or(&log);
        if !new.is_empty() {
            eprintln!("--- the daemon's log\n{}\n---", tail(new));
        }
        *told = log;
    }

    fn log(&self) -> String {
        let text = fs::read(self.folder.join("daemon.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn wait_until_it_answers(&self) {
        wait_for("the daemon answers", START_LIMIT, || {
            let ended = self.process.lock().unwrap_or_else(PoisonError::into_inner).try_wait();
            if let Ok(Some(status)) = ended {
                panic!("the daemon ended at once ({status}): {}", tail(&self.log()));
            }
            self.pando(&["ls", "-q"]).code == 0
        });
    }
}

/// Sends a signal of this name to a process.
///
/// # Panics
///
/// When the name is none that is known here, or the process is not there.
pub(crate) fn send(pid: u32, signal: &str) {
    let signal = match signal {
        "KILL" => Signal::KILL,
        "TERM" => Signal::TERM,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        _ => panic!("{signal} is no signal that tests send"),
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

/// The last lines of `text`.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

fn spawn(binary: &Path, folder: &Path, state: &Path) -> Child {
    let log = File::options().append(true).create(true).open(folder.join("daemon.log")).expect("the daemon's log");
    let mut command = Command::new(binary);
    command
        .args(["daemon", "--socket", &socket(folder), "--previews", "127.0.0.1:0"])
        .env("PANDO_STATE_DIR", state)
        .env("PANDO_RUNTIME_DIR", folder.join("run"))
        .env("PANDO_CACHE_DIR", prepared(setting::CACHE))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", binary.display()))
}

fn socket(folder: &Path) -> String {
    format!("{}/pando.sock", folder.display())
}

fn host(folder: &Path) -> String {
    format!("unix://{}", socket(folder))
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
