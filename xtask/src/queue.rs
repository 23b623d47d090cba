//! Long commands, several at once, each with its name before every line that it prints.

use crate::TaskError;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// A command that waits for its turn.
#[derive(Debug)]
pub(crate) struct Task {
    /// What its lines begin with.
    pub(crate) name: String,
    pub(crate) command: Command,
    /// What excuses it once: if it fails and a line of it has this, it runs once more.
    pub(crate) excuse: Option<&'static str>,
}

/// Runs all, in order, `at_once` of them side by side. Fails, after the last has ended, when one did, and names those.
pub(crate) fn run(tasks: Vec<Task>, at_once: usize) -> Result<(), TaskError> {
    let waiting = Mutex::new(tasks.into_iter());
    let failed = Mutex::new(Vec::new());
    let take = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(Task { name, mut command, excuse }) = take() {
            let mut ended = one(&name, &mut command, excuse);
            if matches!(ended, Ended::Excused) {
                eprintln!("[{name}] --- once more, because of: {}", excuse.unwrap_or_default());
                ended = one(&name, &mut command, None);
            }
            if !matches!(ended, Ended::Well) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(name);
            }
        }
    };
    thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(work))));
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        none if none.is_empty() => Ok(()),
        failed => Err(TaskError::FailedOf(failed.join(", "))),
    }
}

enum Ended {
    Well,
    Badly,
    /// Badly, and with the excuse.
    Excused,
}

/// Runs one, and says how that ended, and after how long.
fn one(name: &str, command: &mut Command, excuse: Option<&str>) -> Ended {
    eprintln!("[{name}] $ {command:?}");
    let begun = Instant::now();
    let mut is_excused = false;
    let ended = forward(name, command, |line| is_excused |= excuse.is_some_and(|excuse| line.contains(excuse)));
    let seconds = begun.elapsed().as_secs();
    match &ended {
        Ok(status) => eprintln!("[{name}] --- {status}, {seconds} s"),
        Err(error) => eprintln!("[{name}] --- cannot be run: {error}"),
    }
    match ended.is_ok_and(|status| status.success()) {
        true => Ended::Well,
        false if is_excused => Ended::Excused,
        false => Ended::Badly,
    }
}

/// Both of its streams become lines of our standard output: they belong together more than apart. `look` sees each.
fn forward(name: &str, command: &mut Command, mut look: impl FnMut(&str)) -> io::Result<ExitStatus> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // The command holds the write ends, and with them the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        look(&text);
        writeln!(io::stdout().lock(), "[{name}] {}", text.trim_end_matches('\n'))?;
        line.clear();
    }
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn task(name: &str, script: &str) -> Task {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Task { name: name.into(), command, excuse: None }
    }

    /// Waits for a file, 10 s at most.
    fn until(file: &Path) -> String {
        format!("n=0; until [ -e {0} ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; sleep 0.05; done", file.display())
    }

    #[test]
    fn those_that_fail_are_named_and_all_others_run() {
        let folder = tempfile::tempdir().unwrap();
        let ran = folder.path().join("ran");
        let touch = format!("touch {}", ran.display());
        let tasks = vec![task("one", "exit 3"), task("two", "exit 4"), task("three", &touch)];
        assert_eq!(run(tasks, 1).unwrap_err().to_string(), "failed: one, two");
        assert!(ran.exists());
        run(vec![task("one", "true"), task("two", "echo said; echo so >&2")], 2).unwrap();
    }

    #[test]
    fn what_has_an_excuse_runs_once_more_and_not_twice() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let runs = |says: &str, excuse, status: u8| {
            let script =
                format!("echo {says}; echo >> {0}; exit $(( $(wc -l < {0}) == 2 ? {status} : 1 ))", count.display());
            let is_well = run(vec![Task { excuse, ..task("one", &script) }], 1).is_ok();
            let runs = std::fs::read_to_string(&count).unwrap().len();
            std::fs::remove_file(&count).unwrap();
            (is_well, runs)
        };
        assert_eq!(runs("a storm came", Some("storm"), 0), (true, 2));
        assert_eq!(runs("a storm came", Some("storm"), 1), (false, 2));
        assert_eq!(runs("nothing came", Some("storm"), 0), (false, 1));
        assert_eq!(runs("a storm came", None, 0), (false, 1));
    }

    #[test]
    fn so_many_run_side_by_side_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second, third] = ["1", "2", "3"].map(|name| folder.path().join(name));
        let meet = |own: &Path, other: &Path| format!("touch {}; {}", own.display(), until(other));
        // The third would be there when the second looks, if three ran.
        let late = format!("sleep 0.3; [ ! -e {} ] && {}", third.display(), meet(&second, &first));
        let tasks = vec![task("one", &meet(&first, &second)), task("two", &late)];
        let last = task("three", &format!("touch {}", third.display()));
        run(tasks.into_iter().chain([last]).collect(), 2).unwrap();
    }
}
