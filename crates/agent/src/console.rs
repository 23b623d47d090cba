//! The only log there is: lines on the console.

use std::io::{self, Write};

/// Writes one line. A console that cannot be written to is no reason to stop: `eprintln!` would panic, and PID 1 with it
/// the kernel.
pub(crate) fn say(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "pando-agent: {line}\r");
}
