//! A program that was run to its end, with a time limit.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

/// How a program went.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its command line, for messages.
    pub what: String,
    /// Its exit status; 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Run {
    /// Runs `command` with `input` as its standard input.
    ///
    /// # Panics
    ///
    /// When it cannot be started, or does not end within `limit`: it is killed then.
    pub fn of(command: &mut Command, input: &[u8], limit: Duration) -> Self {
        let what = format!("{command:?}");
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
        let (stdin, input) = (child.stdin.take(), input.to_vec());
        let feeder = thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
        let status = wait(&mut child, limit);
        let text = |bytes: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&bytes.join().unwrap_or_default()).into_owned();
        let (stdout, stderr) = (text(stdout), text(stderr));
        let Some(status) = status else {
            panic!("{what} did not end within {limit:?}\nstdout: {stdout}\nstderr: {stderr}");
        };
        let _ = feeder.join(); // A program need not read all of its input.
        Self { what, code: code(status), stdout, stderr, took: start.elapsed() }
    }

    /// Its standard output without the last line's end.
    ///
    /// # Panics
    ///
    /// When it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{} failed\nstdout: {}\nstderr: {}", self.what, self.stdout, self.stderr);
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// Its error message, which must be one clear sentence and its causes.
    ///
    /// # Panics
    ///
    /// When its exit status was another than `code`, or the message has another form.
    #[track_caller]
    pub fn refused(self, code: i32) -> String {
        let Self { what, stdout, stderr, .. } = &self;
        assert_eq!(self.code, code, "{what}\nstdout: {stdout}\nstderr: {stderr}");
        let mut lines = stderr.lines();
        let first = lines.next().unwrap_or_default();
        let sentence = first.strip_prefix("error: ").unwrap_or_default();
        assert!(!sentence.is_empty(), "{what} printed no error: {stderr:?}");
        assert!(!stderr.contains("panicked"), "{what} panicked: {stderr}");
        self.stderr
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes); // What came until then is shown.
        }
        bytes
    })
}

/// How it ended; nothing when it had to be killed.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
