//! What `make` and CI call.
//!
//! ```text
//! cargo xtask test                     lint, native, guests: everything
//! cargo xtask check                    the same without what takes long: what CI runs
//! cargo xtask lint                     format, clippy, documentation
//! cargo xtask native                   tests that need no Linux guest
//! cargo xtask guests [FILE ...] [-- ARG ...]
//!                                      tests with Linux guests: those in tests/tests/FILE.rs, toy_guest, demo, or all;
//!                                      what is behind -- goes to every test program, such as a part of a test's name
//! cargo xtask kernel                   get the kernel of guests; prints the cache folder it is in
//! cargo xtask debian                   make the Debian of tests/tests/programs; prints where it is
//! ```

mod cargo; // cargo, and what it built
mod debian; // a root file system with real programs
mod guests; // tests with Linux guests
mod host; // where those run
mod lint; // what is looked at without being run
mod native; // tests that need no Linux guest
mod prepare; // what tests with guests need
mod queue; // long commands, several at once

use guests::Which;
use std::process::{Command, ExitCode, ExitStatus};

const USAGE: &str =
    "usage: cargo xtask test | check | lint | native | guests [FILE ...] [-- ARG ...] | kernel | debian";

/// Why a task did not succeed.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    /// A program cannot be started.
    #[error("cannot start {program}")]
    Start { program: String, source: std::io::Error },
    /// A program failed; it has said why itself.
    #[error("{what} failed ({status})")]
    Failed { what: String, status: ExitStatus },
    /// Of several programs, these failed; each has said why itself.
    #[error("failed: {0}")]
    FailedOf(String),
    /// A file cannot be used.
    #[error("cannot use {path}")]
    File { path: String, source: std::io::Error },
    /// What a program printed is not understood.
    #[error("cannot understand what {0} printed")]
    Output(String),
    /// The kernel of guests.
    #[error(transparent)]
    Kernel(#[from] pando_guest::kernel::KernelError),
    /// What guests start from.
    #[error(transparent)]
    Initramfs(#[from] pando_guest::initramfs::InitramfsError),
    /// Packages of Debian.
    #[error("cannot get packages of Debian: {0}; this needs its apt and a network once")]
    Debian(String),
    /// Nowhere to run guests.
    #[error("this computer can run no Linux guest:\n{0}")]
    NoHost(String),
    /// Wrong arguments.
    #[error("{0}")]
    Usage(String),
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = args.split_first().map_or(("", &[][..]), |(task, rest)| (task.as_str(), rest));
    let result = match (task, rest) {
        ("test", []) => all(Which::All),
        ("check", []) => all(Which::Checked),
        ("lint", []) => lint::run(),
        ("native", []) => native::run(),
        ("guests", rest) => guests::named(rest),
        ("kernel", []) => prepare::cache().map(|dir| println!("{}", dir.display())),
        ("debian", []) => {
            prepare::cache().and_then(|dir| debian::image(&dir)).map(|image| println!("{}", image.display()))
        }
        _ => Err(TaskError::Usage(USAGE.to_owned())),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::from(if matches!(error, TaskError::Usage(_)) { 2 } else { 1 })
}

/// Lint, tests, and of those with Linux guests these: the quick first.
fn all(which: Which) -> Result<(), TaskError> {
    lint::run()?;
    native::run()?;
    guests::run(which, &[])
}

/// Runs a program, having said so.
fn run(command: &mut Command) -> Result<(), TaskError> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let what = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    eprintln!("$ {what}");
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|source| TaskError::Start { program, source })?;
    if status.success() { Ok(()) } else { Err(TaskError::Failed { what, status }) }
}
