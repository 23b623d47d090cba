//! The program and what came of it.

use crate::daemon::Daemon;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program, with nothing of this environment but a path.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pando"));
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("COLUMNS", "80");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The program, talking to `daemon`.
pub(crate) fn with(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    command.env("PANDO_HOST", format!("unix://{}", daemon.socket().display())).current_dir(daemon.dir());
    command
}

/// Runs the program against `daemon` until it ends.
pub(crate) fn run(daemon: &Daemon, arguments: &[&str]) -> Outcome {
    outcome(with(daemon, arguments).output().unwrap())
}

/// The same with something on standard input.
pub(crate) fn run_with_stdin(daemon: &Daemon, arguments: &[&str], stdin: Vec<u8>) -> Outcome {
    let mut child = with(daemon, arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // In a thread: the program may write before it has read all.
    let writer = std::thread::spawn(move || pipe.write_all(&stdin));
    let outcome = wait(child);
    writer.join().unwrap().unwrap();
    outcome
}

/// Waits for a program that was started.
pub(crate) fn wait(child: Child) -> Outcome {
    outcome(child.wait_with_output().unwrap())
}

fn outcome(output: Output) -> Outcome {
    Outcome {
        code: output.status.code().expect("the program exits and is not killed"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What is expected of a command.
pub(crate) fn is(code: i32, stdout: &str, stderr: &str) -> Outcome {
    Outcome { code, stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}
