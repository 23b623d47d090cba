//! Taking turns: of all who read a store for nobody who waits, one works at a time.

use crate::store::Store;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked whether the turn is free, and how long one may last before others go on without.
const PAUSE: Duration = Duration::from_millis(50);
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// The turns of all processes that use a store.
pub struct Turns {
    path: PathBuf,
    /// The last turn that was not waited for to its end.
    stuck: AtomicU64,
}

/// A turn. It ends when this is dropped, or when the process does.
pub struct Turn {
    /// Locked, unless somebody does not let go of it.
    _file: Option<File>,
}

impl Store {
    /// The turns of those who use it.
    pub fn turns(&self) -> Turns {
        Turns { path: self.inner.directory.turn(), stuck: AtomicU64::new(u64::MAX) }
    }
}

impl Turns {
    /// Waits for a turn, while `goes_on`, which takes as long as it is told, says so.
    ///
    /// Turns are a courtesy. So who has one and does not end it, stopped or stalled, is not waited for, and nobody waits
    /// where there is no file to be locked, as in a store that cannot be written to.
    pub fn begin(&self, mut goes_on: impl FnMut(Duration) -> bool) -> Option<Turn> {
        let Ok(file) = File::options().read(true).write(true).create(true).truncate(false).open(&self.path) else {
            return Some(Turn { _file: None });
        };
        let (mut now, mut since) = (number(&file), Instant::now());
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from) {
                Ok(()) => {
                    // Where that fails, nobody sees that turns change, and waits less.
                    let _ = file.write_all_at(&number(&file).wrapping_add(1).to_le_bytes(), 0);
                    return Some(Turn { _file: Some(file) });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(_) => return Some(Turn { _file: None }),
            }
            if number(&file) != now {
                (now, since) = (number(&file), Instant::now());
            }
            if since.elapsed() > STUCK_AFTER {
                self.stuck.store(now, Ordering::Relaxed);
            }
            if self.stuck.load(Ordering::Relaxed) == now {
                return Some(Turn { _file: None });
            }
            if !goes_on(PAUSE) {
                return None;
            }
        }
    }
}

/// Which turn it is, from 1 on.
fn number(file: &File) -> u64 {
    let mut bytes = [0; 8];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    fn waits(wait: Duration) -> bool {
        sleep(wait);
        true
    }

    #[test]
    fn one_at_a_time_has_a_turn_and_who_does_not_want_one_any_more_stops_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path()).unwrap();
        let (one, other) = (store.turns(), store.turns());
        let turn = one.begin(waits).unwrap();
        let mut looks = 0;
        assert!(other.begin(|_| (looks += 1, looks < 5).1).is_none());
        assert_eq!(looks, 5);
        drop(turn);
        assert!(other.begin(|_| false).unwrap()._file.is_some());
    }

    #[test]
    fn turns_that_change_are_waited_for_and_one_that_does_not_end_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path()).unwrap();
        let (one, other) = (store.turns(), store.turns());
        let started = Instant::now();
        let mut turn = one.begin(waits);
        let mut last = started;
        let given_up = other.begin(|wait| {
            // Three turns of 1.5 s, and then one without an end.
            if started.elapsed() < Duration::from_millis(4500) && last.elapsed() > Duration::from_millis(1500) {
                turn = None;
                turn = one.begin(|_| false);
                last = Instant::now();
            }
            waits(wait)
        });
        assert!(given_up.unwrap()._file.is_none());
        assert!(last.elapsed() > STUCK_AFTER && started.elapsed() > Duration::from_secs(5), "{:?}", started.elapsed());
        let again = Instant::now();
        assert!(other.begin(|_| false).unwrap()._file.is_none(), "it is still the same turn");
        assert!(again.elapsed() < PAUSE);
        drop(turn);
        assert!(other.begin(|_| false).unwrap()._file.is_some());
    }

    #[test]
    fn where_nothing_can_be_locked_nobody_waits() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path()).unwrap();
        let turns = store.turns();
        drop((store, directory));
        assert!(turns.begin(|_| false).is_some());
    }
}
