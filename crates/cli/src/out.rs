//! Standard output: results and nothing else. Everything else goes to standard error.

use crate::client::Body;
use crate::failure::Failure;
use rustix::termios;
use std::io::{self, IsTerminal, Write};

/// Prints `text` as it is.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// Prints the API's body.
pub(crate) fn json(body: &Body) -> Result<(), Failure> {
    bytes(body.bytes())?;
    if body.bytes().ends_with(b"\n") || body.bytes().is_empty() { Ok(()) } else { bytes(b"\n") }
}

/// Prints `bytes` at once.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(failed)
}

/// Prints `text` on standard error. That nobody reads it is no reason to die.
pub(crate) fn note(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// What a failed write to standard output means.
pub(crate) fn failed(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::nobody_reads();
    }
    Failure::from(error).under("cannot write to standard output")
}

/// How many characters a line may have; `None` when it is not for a terminal, where nothing is cut.
pub(crate) fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    if let Ok(columns) = std::env::var("COLUMNS")
        && let Ok(columns) = columns.parse()
    {
        return Some(columns);
    }
    Some(termios::tcgetwinsize(stdout).map_or(80, |size| usize::from(size.ws_col).max(1)))
}
