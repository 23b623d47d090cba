//! The end of a log, for an error message.

use std::fs;
use std::path::Path;

/// How many lines are worth showing.
const LINES: usize = 5;

/// The last few lines of the log at `path` that say something, joined by `; `, or that there are none.
///
/// What follows a kernel's `Call Trace:` says nothing to most, and hides what came before. A guest wrote the lines:
/// characters that would steer a terminal are left out.
pub(crate) fn of(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .take_while(|line| !line.contains("Call Trace:"))
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        // QEMU says these about every emulated CPU with virtualization, several times.
        .filter(|line| !line.trim().is_empty() && !line.contains("TCG doesn't support"))
        .collect();
    if lines.is_empty() {
        return "(nothing)".to_owned();
    }
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_short_and_cannot_steer_the_terminal() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(of(file.path()), "(nothing)");
        fs::write(file.path(), "1\n2\n\n3\n4\n5\n\u{1b}[2J6\r\nwarning: TCG doesn't support x\nCall Trace:\n7\n")
            .unwrap();
        assert_eq!(of(file.path()), "2; 3; 4; 5; [2J6");
    }
}
