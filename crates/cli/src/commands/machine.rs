//! `pando machine`.

use crate::context::Context;
use crate::failure::{self, Failure, TIMED_OUT};
use crate::render::{self, Table};
use crate::{out, parse};
use clap::{Args as ClapArgs, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use pando_daemon::Config;
use pando_machine::host::{self, Running, StartSpec, Started, Stopped};
use pando_machine::{Outcome, RunSpec};
use serde::Serialize;
use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Status of a command whose power was cut, as of one that was killed.
const POWER_CUT: u8 = 137;

/// Start, stop and use an emulated host, for a computer without usable KVM.
#[derive(ClapArgs)]
#[command(after_help = "\
An emulated host is QEMU without hardware help: 10 to 20 times slower than this computer, on one CPU. While one \
runs, and this computer has no hardware KVM, all other commands talk to the daemon in it.

Examples:
  pando machine start               # then: pando run, fork, exec as everywhere
  pando machine run -- dmesg        # one command in a throw-away host")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Start(StartArgs),
    Stop(StopArgs),
    Status(StatusArgs),
    Run(RunArgs),
}

/// Start the emulated host, and wait until the daemon in it answers.
#[derive(ClapArgs)]
#[command(after_help = "\
Its VMs and images are on a disk of its own in the state directory, which outlives it. It has no way out to the \
network.

Examples:
  pando machine start
  pando machine start -m 12288")]
struct StartArgs {
    /// RAM of the host [default: 6144, or half of this computer's when that is less].
    #[arg(short, long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(512..))]
    memory: Option<u32>,
    /// Size of its disk, which takes only the space that is used; for the first start.
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = parse::size)]
    disk_size: u64,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// Power off all VMs in the emulated host, and then the host.
#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  pando machine stop")]
struct StopArgs {}

/// Tell whether the emulated host runs.
///
/// Exit status: 0 when it does, 3 when it does not.
#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  pando machine status\n  pando machine status -o json")]
struct StatusArgs {}

/// Run one command in a throw-away emulated host, which sees this computer's files and has a real /dev/kvm.
#[derive(ClapArgs)]
#[command(after_help = "\
The command starts in the first --writable directory, with this environment, no input, no network. All files of \
this computer are there; what is written outside the --writable directories goes with the host, and /tmp and /run \
begin empty. Sockets belong there.

Exit status: the command's own; 124 when --timeout is over; 137 when the power was cut; 1 when there is no host.

Examples:
  pando machine run -- ls -l /dev/kvm
  pando machine run -m 8192 -t 1h -w target -- target/debug/some-tests
  pando machine run --disk disk.img --kill-after 500ms -- ./test.sh")]
struct RunArgs {
    /// RAM of the host.
    #[arg(short, long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(512..))]
    memory: u32,
    /// How long the whole may take.
    #[arg(short, long, value_name = "DURATION", default_value = "10m", value_parser = parse::duration)]
    timeout: Duration,
    /// A directory that the command may write to; may be given several times [default: the current one].
    #[arg(short, long, value_name = "DIR")]
    writable: Vec<PathBuf>,
    /// A raw disk image, /dev/vda in there, mounted nowhere.
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Cut the host's power this long after the command wrote the line PANDO-CUT-POWER to its output.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    kill_after: Option<Duration>,
    #[command(flatten)]
    kernel: KernelArgs,
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(ClapArgs)]
struct KernelArgs {
    /// The host's kernel, its modules beside it as in a kernel package [default: Debian's, downloaded once].
    #[arg(long, value_name = "FILE", env = "PANDO_MACHINE_KERNEL")]
    kernel: Option<PathBuf>,
}

impl Args {
    /// What the output is, where that can be no JSON of ours.
    pub(super) fn prints_something_else(&self) -> Option<&'static str> {
        matches!(self.command, Command::Run(_)).then_some("what its command prints")
    }
}

pub(super) fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Start(args) => start(args, context),
        Command::Stop(StopArgs {}) => stop(context),
        Command::Status(StatusArgs {}) => status(context),
        Command::Run(args) => run_command(args),
    }
}

fn start(args: StartArgs, context: &Context) -> Result<ExitCode, Failure> {
    let config = Config::default_paths();
    let spec = StartSpec {
        state_dir: config.state_dir,
        cache_dir: config.cache_dir,
        program: env::current_exe()?,
        memory_mib: args.memory.unwrap_or_else(host::default_memory_mib),
        disk_bytes: args.disk_size,
        kernel: args.kernel.kernel,
    };
    // Drawn on a terminal only.
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}, {elapsed}")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let result = host::start(&spec, &mut |step| bar.set_message(step.to_owned()));
    bar.finish_and_clear();
    let running = match result? {
        Started::Now(running) => running,
        Started::Before(running) => {
            out::note("note: it runs already\n");
            running
        }
    };
    print(&Status::of(Some(&running)), context)?;
    Ok(ExitCode::SUCCESS)
}

fn stop(context: &Context) -> Result<ExitCode, Failure> {
    match host::stop(&Config::default_paths().state_dir)? {
        Stopped::PoweredOff => (),
        Stopped::Killed => out::note("note: it did not power off in time and was killed\n"),
        Stopped::Before => out::note("note: it did not run\n"),
    }
    if context.json() {
        print(&Status::of(None), context)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn status(context: &Context) -> Result<ExitCode, Failure> {
    let running = host::running(&Config::default_paths().state_dir);
    print(&Status::of(running.as_ref()), context)?;
    Ok(if running.is_some() { ExitCode::SUCCESS } else { ExitCode::from(failure::NOT_FOUND) })
}

/// What is told about the emulated host; not its token.
#[derive(Serialize)]
struct Status {
    /// `running`, `starting` (its daemon does not answer yet) or `stopped`.
    state: &'static str,
    address: Option<String>,
    memory_mib: Option<u32>,
    process_id: Option<u32>,
    started_ms: Option<i64>,
}

impl Status {
    fn of(running: Option<&Running>) -> Self {
        let state = match running {
            Some(running) if running.answers() => "running",
            Some(_) => "starting",
            None => "stopped",
        };
        Self {
            state,
            address: running.map(Running::address),
            memory_mib: running.map(|running| running.memory_mib),
            process_id: running.map(Running::process_id),
            started_ms: running.map(|running| running.started_ms),
        }
    }

    fn render(&self) -> String {
        let mut table = Table::new(["STATE", "ADDRESS", "MEMORY", "PROCESS", "STARTED"]);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.row(vec![
            self.state.to_owned(),
            or_dash(self.address.clone()),
            or_dash(self.memory_mib.map(|mib| render::bytes(u64::from(mib) << 20))),
            or_dash(self.process_id.map(|id| id.to_string())),
            or_dash(self.started_ms.map(render::timestamp)),
        ]);
        table.render(None)
    }
}

fn print(status: &Status, context: &Context) -> Result<(), Failure> {
    if context.json() {
        out::print(&format!("{}\n", serde_json::to_string(status)?))
    } else {
        out::print(&status.render())
    }
}

fn run_command(args: RunArgs) -> Result<ExitCode, Failure> {
    let mut writable = args.writable;
    if writable.is_empty() {
        writable.push(env::current_dir()?);
    }
    let spec = RunSpec {
        command: args.command,
        environment: environment(),
        writable,
        memory_mib: args.memory,
        limit: args.timeout,
        disk: args.disk,
        cut_power_after: args.kill_after,
        kernel: args.kernel.kernel,
        cache_dir: Config::default_paths().cache_dir,
    };
    let outcome = pando_machine::run(&spec, &mut tell)?;
    match outcome {
        Outcome::Exited(status) => Ok(ExitCode::from(status)),
        Outcome::TimedOut => {
            Err(Failure::new(format!("it did not end within {:?}", args.timeout)).with_code(TIMED_OUT))
        }
        Outcome::PowerCut => Ok(ExitCode::from(POWER_CUT)),
    }
}

/// The environment of this process, without what is about folders and daemons that are not there inside.
fn environment() -> Vec<(OsString, OsString)> {
    const LEFT_OUT: [&str; 5] = ["TMPDIR", "XDG_RUNTIME_DIR", "PANDO_RUNTIME_DIR", "PANDO_HOST", "PANDO_TOKEN"];
    env::vars_os().filter(|(name, _)| LEFT_OUT.iter().all(|left_out| name != left_out)).collect()
}

/// Says what takes long, to a person.
fn tell(step: &str) {
    if io::stderr().is_terminal() {
        out::note(&format!("{step} ...\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_a_line_whether_the_host_runs_or_not() {
        let running = Status {
            state: "running",
            address: Some("127.0.0.1:40123".to_owned()),
            memory_mib: Some(6144),
            process_id: Some(4711),
            started_ms: Some(1_778_311_809_000),
        };
        assert_eq!(
            running.render(),
            "\
STATE    ADDRESS          MEMORY  PROCESS  STARTED
running  127.0.0.1:40123  6 GiB   4711     2026-05-09 07:30:09
"
        );
        assert_eq!(
            Status::of(None).render(),
            "STATE    ADDRESS  MEMORY  PROCESS  STARTED\nstopped  -        -       -        -\n"
        );
    }
}
