//! What the monitor has to say in the VM's log: standard error, which is the console's.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How often the same thing is said: a guest tries again and again.
const PAUSE: Duration = Duration::from_secs(60);
/// How many different things are known to have been said.
const REMEMBERED: usize = 16;

/// Writes a line. Where it cannot be written, as the disk may be full that it is to tell of, it is of no use to fail.
pub(crate) fn say(line: &str) -> bool {
    matches!(io::stderr().write(format!("{line}\n").as_bytes()), Ok(written) if written > line.len())
}

/// `error` and its causes, outermost first.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut chain = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        chain.push(error.to_string());
        cause = error.source();
    }
    chain
}

/// Says each thing once, and again when it is still so a minute later.
#[derive(Default)]
pub(crate) struct Complaints {
    said: VecDeque<(String, Instant)>,
    /// What could not be written yet.
    unsaid: Option<String>,
}

impl Complaints {
    /// Says `line` with `say`, unless it was said a short time ago.
    pub(crate) fn add(&mut self, line: String, now: Instant, say: impl Fn(&str) -> bool) {
        self.said.retain(|(_, at)| now.duration_since(*at) < PAUSE);
        if self.said.iter().any(|(said, _)| *said == line) {
            return;
        }
        if self.said.len() == REMEMBERED {
            self.said.pop_front();
        }
        if !say(&line) {
            self.unsaid = Some(line.clone());
        }
        self.said.push_back((line, now));
    }

    /// Tries once more to say what could not be said.
    pub(crate) fn retry(&mut self, say: impl Fn(&str) -> bool) {
        self.unsaid.take_if(|line| say(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    #[test]
    fn the_same_thing_is_said_once_a_minute_and_what_could_not_be_said_later() {
        let (lines, is_full) = (RefCell::new(Vec::new()), Cell::new(false));
        let say = |line: &str| {
            if !is_full.get() {
                lines.borrow_mut().push(line.to_owned());
            }
            !is_full.get()
        };
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        for second in 0..=60 {
            let now = start + Duration::from_secs(second);
            complaints.add("no space".into(), now, say);
            complaints.add("cannot read".into(), now, say);
        }
        assert_eq!(lines.take(), ["no space", "cannot read", "no space", "cannot read"]);

        is_full.set(true);
        complaints.add("cannot flush".into(), start, say);
        complaints.retry(say);
        is_full.set(false);
        complaints.retry(say);
        complaints.retry(say);
        assert_eq!(lines.take(), ["cannot flush"]);
    }
}
