//! Several long commands at once, each with its name before every line that it prints.

use crate::TaskError;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

/// A command that runs beside others.
#[derive(Debug)]
pub(crate) struct Lane {
    /// What its lines begin with.
    pub(crate) name: &'static str,
    pub(crate) command: Command,
}

/// Runs all at once. Waits for the last, and fails when one did.
pub(crate) fn run(lanes: Vec<Lane>) -> Result<(), TaskError> {
    let runs: Vec<_> = lanes.into_iter().map(|lane| (lane.name, thread::spawn(move || one(lane)))).collect();
    let ended = |(name, run): (_, thread::JoinHandle<_>)| {
        run.join().unwrap_or_else(|_| Err(TaskError::Output(format!("lane {name}"))))
    };
    let results: Vec<Result<(), TaskError>> = runs.into_iter().map(ended).collect();
    results.into_iter().collect()
}

fn one(Lane { name, mut command }: Lane) -> Result<(), TaskError> {
    eprintln!("[{name}] $ {command:?}");
    let program = command.get_program().to_string_lossy().into_owned();
    let status = forward(name, &mut command).map_err(|source| TaskError::Start { program: program.clone(), source })?;
    if status.success() { Ok(()) } else { Err(TaskError::Failed { what: format!("[{name}] {program}"), status }) }
}

/// Both of its streams become lines of our standard output: they belong together more than apart.
fn forward(name: &str, command: &mut Command) -> io::Result<ExitStatus> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // The command holds the write ends, and with them the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        writeln!(io::stdout().lock(), "[{name}] {}", text.trim_end_matches('\n'))?;
        line.clear();
    }
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(name: &'static str, script: &str) -> Lane {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Lane { name, command }
    }

    #[test]
    fn a_lane_that_fails_fails_all_after_the_others_ran() {
        let folder = tempfile::tempdir().unwrap();
        let ran = folder.path().join("ran");
        let late = format!("sleep 0.2; touch {}", ran.display());
        let result = run(vec![lane("one", "exit 3"), lane("two", &late)]);
        assert!(result.unwrap_err().to_string().contains("[one]"));
        assert!(ran.exists());
        run(vec![lane("one", "true"), lane("two", "echo said; echo so >&2")]).unwrap();
    }
}
