//! Waiting until other threads have done what they were given.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Which things are not done.
#[derive(Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    open: BTreeSet<u64>,
}

/// One thing that is not done until this is dropped, even by a thread that panics.
pub(super) struct Ticket {
    progress: Arc<Progress>,
    number: u64,
}

impl Progress {
    pub(super) fn ticket(self: &Arc<Self>) -> Ticket {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.next;
        state.next += 1;
        state.open.insert(number);
        Ticket { progress: self.clone(), number }
    }

    /// Waits for everything that has begun by now, and for nothing that begins later: or who waits beside somebody busy
    /// would wait for ever.
    pub(super) fn wait(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = state.next;
        while state.open.first().is_some_and(|first| *first < begun) {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.progress.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.open.remove(&self.number);
        self.progress.done.notify_all();
    }
}
