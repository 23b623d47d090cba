//! Tests with Linux guests.

use crate::TaskError;
use crate::cargo::{Program, root, target_dir};
use crate::debian;
use crate::host::{self, Place};
use crate::native::{TOY_GUESTS, TOY_GUESTS_RUN};
use crate::prepare::{self, EARLY_READ, Fault, LATE_DISK};
use crate::queue::{self, Task};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tests that themselves start emulated hosts, and so never run in one.
const OUTSIDE: [&str; 2] = ["powercut", "machine"];
/// The toy guests that look at forks. They run natively wherever there is a KVM, and in the emulated host as well: a
/// software KVM has completed an access when it comes back, and so cannot repeat one in a child.
const TOYS: &str = "toy_guest";
/// Those of them that are worth their time in an emulated host when all have run natively: what takes minutes there is
/// about parallel CPUs, of which it has one.
const TOYS_AGAIN: &str = "fork::";
/// What `make demo` shows: `scripts/demo.sh`.
const DEMO: &str = "demo";
/// The tests with a Debian of real programs.
const REAL_PROGRAMS: &str = "programs";
/// Which tests need which `pando` with a fault.
const PLANTED: [(Fault, &[&str]); 2] = [(LATE_DISK, &["oracle", TOYS]), (EARLY_READ, &[TOYS])];
/// How many emulated hosts run at once: one for each core that computers have at least.
const HOSTS: usize = 2;
/// What takes longest begins first, so that all end at about the same time. What is not here, toy guests and new files, goes
/// before.
const LONGEST_FIRST: [&str; 18] = [
    "oracle",
    REAL_PROGRAMS,
    "network",
    "checkpoint",
    "readme",
    "fork",
    "powercut",
    "crash",
    "memory",
    "disk",
    "idle",
    "boot",
    DEMO,
    "previews",
    "cli",
    "publish",
    "ssh",
    "machine",
];
/// What a check leaves out, because each takes minutes of an emulated host. Toy guests and cuts of the store alone run natively
/// and look for the same as the oracle and the power cuts; nothing in a check does so for the other two.
const LONG: [&str; 4] = ["oracle", REAL_PROGRAMS, "powercut", "memory"];
/// RAM of an emulated host: a guest of 4 GiB forks in it.
const MEMORY_MIB: &str = "8192";
/// Tells the tests that nobody else uses the host: they may set its clock.
const OWN_HOST: &str = "PANDO_TESTS_OWN_HOST";
/// What excuses a test program once, in an emulated host: the place where a guest's kernel ends after it got an event at the
/// first instruction of an interrupt's handler, while it still had its program's GS. Each fault there is another one, until the
/// entry stack is full. A test that this ends prints its guest's console.
///
/// Why is read in QEMU's source, and was not reproduced: `helper_vmrun` delivers a guest's interrupt (`SVM_EVTINJ_TYPE_INTR`) and
/// leaves its number as a pending exception, so that it is delivered again if somebody wants that CPU's attention before
/// the next exit. A guest that had just booted ended so as well as one that woke. A fault of ours that delivers an event twice
/// would look the same, and would show by how often this is said. It may also have been flags that CMPXCHG16B left (see
/// `pando_machine`'s `qemu`), which is hidden since: if this is not said any more, it goes.
const EXCUSE: &str = "RIP: 0010:error_entry+0x10/";
/// How long one test program may take in it: one that hangs is named, and those behind it still run.
const LIMIT_SECONDS: &str = "2400";

/// Which tests run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    /// All.
    All,
    /// Those that every change has to pass: all that are not long, and none that shows a planted fault.
    Checked,
    /// Those in these files.
    Of(&'a [String]),
}

impl Which<'_> {
    fn wants(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Checked => !LONG.contains(&name),
            Self::Of(files) => files.iter().any(|file| file == name),
        }
    }

    /// Whether toy guests are among them that run natively where they can.
    fn is_general(&self) -> bool {
        !matches!(self, Self::Of(_))
    }

    fn has_planted(&self) -> bool {
        !matches!(self, Self::Checked)
    }
}

/// A test program, and how it is called.
#[derive(Debug)]
struct Job<'a> {
    program: &'a Program,
    args: Vec<String>,
}

/// Runs the tests in the files named, all when none is, with the arguments behind `--`.
pub(crate) fn named(args: &[String]) -> Result<(), TaskError> {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let (files, more) = (&args[..end], args.get(end + 1..).unwrap_or_default());
    run(if files.is_empty() { Which::All } else { Which::Of(files) }, more)
}

/// Runs these, with `more` arguments for each program.
pub(crate) fn run(which: Which, more: &[String]) -> Result<(), TaskError> {
    let wanted = |name: &str| which.wants(name);

    let mut tests = prepare::tests(&["pando-tests"])?;
    tests.retain(|program| program.kind == "test");
    let is_known = |file: &str| [TOYS, DEMO].contains(&file) || tests.iter().any(|program| program.name == file);
    if let Which::Of(files) = which
        && let Some(unknown) = files.iter().find(|file| !is_known(file))
    {
        return Err(TaskError::Usage(format!("there is no tests/tests/{unknown}.rs")));
    }
    tests.retain(|program| wanted(&program.name));

    let mut variables = Vec::new();
    for (fault, tests) in &PLANTED {
        if which.has_planted() && tests.iter().any(|name| wanted(name)) {
            variables.push((fault.variable, prepare::planted(fault)?));
        }
    }
    let pando = prepare::pando()?;
    variables.push(("PANDO_BINARY", pando.clone()));
    variables.push(("PANDO_PROGRAMS", prepare::programs()?));
    let cache = prepare::cache()?;
    if wanted(REAL_PROGRAMS) {
        variables.push(("PANDO_DEBIAN", debian::image(&cache)?));
    }
    variables.push(("PANDO_CACHE_DIR", cache));
    variables.push((TOY_GUESTS_RUN, "1".into()));
    // For the demo, which otherwise takes the `pando` of `make build` and looks for an emulated host itself.
    variables.extend([("PANDO", pando.clone()), ("PANDO_DEMO_INSIDE", "1".into())]);
    let place = host::place(&pando)?;
    let mut toys = if which.is_general() && !host::has_kvm() { prepare::tests(&TOY_GUESTS)? } else { Vec::new() };
    // What runs natively as well has done so, but for those that need a `pando` with a fault: they are ignored there.
    let is_again = which.is_general() && host::has_kvm();
    let toy_guest = if wanted(TOYS) { Some(prepare::toy_guest()?) } else { None };
    if place == Place::EmulatedHost || !is_again {
        toys.extend(toy_guest.clone());
    }

    // Shared state (one boot for many tests) and one CPU: never more than one at a time.
    let guests_args = || ["--ignored", "--test-threads=1"].into_iter().map(str::to_owned).chain(more.iter().cloned());
    let (outside, inside): (Vec<_>, Vec<_>) = tests.iter().partition(|program| OUTSIDE.contains(&&*program.name));
    let job = |program| Job { program, args: guests_args().collect() };
    let toy = |program| {
        let again = is_again.then(|| TOYS_AGAIN.to_owned());
        let planted = which.has_planted().then(|| "--include-ignored".to_owned());
        let args = planted.into_iter().chain(["--test-threads=1".to_owned()]).chain(again);
        Job { program, args: args.chain(more.iter().cloned()).collect() }
    };
    let mut jobs: Vec<_> = toys.iter().map(toy).collect();
    jobs.extend(inside.into_iter().map(job));
    let demo = Program { name: DEMO.into(), kind: "script".into(), path: root().join("scripts/demo.sh") };
    if wanted(DEMO) {
        jobs.push(Job { program: &demo, args: Vec::new() });
    }
    let natively = outside.into_iter().chain(toy_guest.iter().filter(|_| is_again && which.has_planted()));
    let natively: Vec<_> = natively.map(job).collect();
    match place {
        Place::Here => {
            jobs.extend(natively);
            here(&jobs, &variables)
        }
        Place::EmulatedHost => emulated(&pando, &jobs, &natively, &variables),
    }
}

fn here(jobs: &[Job], variables: &[(&str, PathBuf)]) -> Result<(), TaskError> {
    let mut result = Ok(());
    for job in jobs {
        // Whatever becomes of one, the others are heard as well.
        result = result.and(crate::run(&mut command(job, variables)));
    }
    result
}

fn command(Job { program, args }: &Job, variables: &[(&str, PathBuf)]) -> Command {
    let mut command = Command::new(&program.path);
    command.args(args).envs(variables.iter().map(|(name, value)| (name, value)));
    command
}

/// Each of `jobs` in an emulated host of its own, and `natively` what begins those itself.
fn emulated(pando: &Path, jobs: &[Job], natively: &[Job], variables: &[(&str, PathBuf)]) -> Result<(), TaskError> {
    eprintln!("no hardware KVM here: tests with Linux guests run in emulated hosts, which takes its time");
    let mut tasks = jobs.iter().map(|job| in_host(pando, job, variables)).collect::<Result<Vec<_>, _>>()?;
    tasks.extend(natively.iter().map(|job| Task {
        name: job.program.name.clone(),
        command: command(job, variables),
        excuse: Some(EXCUSE),
    }));
    tasks.sort_by_key(|task| LONGEST_FIRST.iter().position(|name| *name == task.name));
    queue::run(tasks, HOSTS)
}

fn in_host(pando: &Path, job: &Job, variables: &[(&str, PathBuf)]) -> Result<Task, TaskError> {
    let name = &job.program.name;
    let dir = target_dir().join("emulated-host").join(name);
    fs::create_dir_all(&dir).map_err(|source| TaskError::File { path: dir.display().to_string(), source })?;
    let mut command = Command::new(pando);
    command.args(["machine", "run", "-m", MEMORY_MIB, "-t", LIMIT_SECONDS, "-w"]).arg(&dir);
    command.args(["--", "env", &format!("{OWN_HOST}=1")]);
    for (name, value) in variables {
        let mut pair = OsString::from(format!("{name}="));
        pair.push(value);
        command.arg(pair);
    }
    command.arg(&job.program.path).args(&job.args);
    // The host's own kernel is in the cache folder as well; root's usual one is the system's.
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    Ok(Task { name: name.clone(), command, excuse: Some(EXCUSE) })
}
