//! Waiting until other threads have done what they were given.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// How many things are not done.
#[derive(Default)]
pub(super) struct Progress {
    open: Mutex<usize>,
    done: Condvar,
}

/// One thing that is not done until this is dropped, even by a thread that panics.
pub(super) struct Ticket(Arc<Progress>);

impl Progress {
    pub(super) fn ticket(self: &Arc<Self>) -> Ticket {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Ticket(self.clone())
    }

    pub(super) fn wait(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while *open > 0 {
            open = self.done.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open -= 1;
        if *open == 0 {
            self.0.done.notify_all();
        }
    }
}
