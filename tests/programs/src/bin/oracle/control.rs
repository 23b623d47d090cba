//! The socket: one line asked, then the answer, whose first line is `ok` or `no`.

use crate::state::State;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// How long a check waits for every writer. Long, because an emulated computer may run us.
const CHECK_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);

/// Asks the running oracle; its answer goes to standard output. Success when it says `ok`.
pub(crate) fn ask(socket: &Path, question: &str) -> Result<ExitCode, String> {
    let told = |error: io::Error| format!("cannot ask the oracle at {}: {error}", socket.display());
    let mut stream = UnixStream::connect(socket).map_err(told)?;
    writeln!(stream, "{question}").map_err(told)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(told)?;
    print!("{answer}");
    match answer.lines().next() {
        Some("ok") => Ok(ExitCode::SUCCESS),
        Some("no") => Ok(ExitCode::FAILURE),
        _ => Err("the oracle ended without an answer".to_owned()),
    }
}

/// Answers without end, one at a time.
pub(crate) fn serve(state: &State, socket: &Path) -> Result<ExitCode, String> {
    let told = |error| format!("cannot listen on {}: {error}", socket.display());
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(told(error)),
        _ => (),
    }
    let listener = UnixListener::bind(socket).map_err(told)?;
    loop {
        let (stream, _) = listener.accept().map_err(told)?;
        if let Err(error) = serve_one(state, &stream) {
            eprintln!("oracle: cannot answer: {error}"); // Whoever asked is gone.
        }
    }
}

fn serve_one(state: &State, mut stream: &UnixStream) -> io::Result<()> {
    let mut question = String::new();
    BufReader::new(stream).read_line(&mut question)?;
    let answer = match question.split_whitespace().collect::<Vec<_>>()[..] {
        ["check"] => check(state),
        [verb @ ("side" | "part"), side] => match side.parse() {
            Ok(side) if state.take_side(side) => match verb {
                "side" => "ok\n".to_owned(),
                _ => check(state),
            },
            Ok(_) => "no\ntoo many sides\n".to_owned(),
            Err(error) => format!("no\n{side:?} is no side: {error}\n"),
        },
        _ => format!("no\nwhat is {:?}?\n", question.trim_end()),
    };
    stream.write_all(answer.as_bytes())
}

/// Waits until every writer has looked at all that was there when this began: the rest of its lap, and one more.
fn check(state: &State) -> String {
    let before = state.laps();
    let deadline = Instant::now() + CHECK_LIMIT;
    while state.laps().iter().zip(&before).any(|(now, before)| *now < before + 2) {
        if Instant::now() > deadline {
            let laps = state.laps();
            return format!(
                "no\nsome writer stands still: laps {before:?}, {} s later {laps:?}\n",
                CHECK_LIMIT.as_secs()
            );
        }
        thread::sleep(POLL);
    }
    let (violations, words) = state.violations();
    let laps = state.laps();
    match violations {
        0 => format!("ok\nconsistent: laps {laps:?}, side {}\n", state.side()),
        count => format!("no\n{count} violations, first:\n{}\n", words.join("\n")),
    }
}
