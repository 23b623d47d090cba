//! How all threads of a VM are brought to stand still, and sent off again.
//!
//! ```text
//! owner                                 vCPU and device threads
//!  │ close the gate, kick ────────────────►│ finish what they are at, read their state
//!  │◄──────────────────────────── Parked ──│ wait for Go
//!  │ … save, seal, fork …                  │      (hold no lock, own nothing half-done)
//!  │ open the gate, Go ───────────────────►│ run
//! ```
//!
//! Built on std's locks and channels: they are futexes, and leave nothing behind in a forked child. `parking_lot` keeps
//! its waiting threads in a global table, which a child would inherit with threads in it that it does not have.

use pando_sys::{SysError, VcpuState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the owner waits for the vCPUs to run again.
const WAKE_LIMIT: Duration = Duration::from_millis(5);

/// Whether threads may run.
#[derive(Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    changed: (Mutex<()>, Condvar),
    /// How many vCPUs run again since the gate opened, and since when the last of them does.
    running: (Mutex<(usize, Option<Instant>)>, Condvar),
}

/// What a thread sends when it stands still.
pub(crate) enum Parked {
    /// A vCPU, its state, and whether the guest ended on it.
    Vcpu { id: usize, state: Result<Box<VcpuState>, SysError>, has_ended: bool },
    /// The device loop.
    Devices,
}

/// Sent to a thread: run until the gate closes.
pub(crate) struct Go;

impl Gate {
    pub(crate) fn close(&self) {
        let _guard = lock(&self.changed.0);
        self.closed.store(true, Ordering::SeqCst);
        self.changed.1.notify_all();
    }

    pub(crate) fn open(&self) {
        *lock(&self.running.0) = (0, None);
        self.closed.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// For a vCPU's thread that was sent `Go`.
    pub(crate) fn count_running(&self) {
        let mut running = lock(&self.running.0);
        *running = (running.0 + 1, Some(Instant::now()));
        self.running.1.notify_all();
    }

    /// When the last of `vcpus` ran again, after the gate opened. Sleeps meanwhile, so that they can have this CPU too; not
    /// for long, as the host may have none for them.
    pub(crate) fn running_since(&self, vcpus: usize) -> Instant {
        let counted = lock(&self.running.0);
        let waited = self.running.1.wait_timeout_while(counted, WAKE_LIMIT, |running| running.0 < vcpus);
        let (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        running.1.filter(|_| running.0 >= vcpus).unwrap_or_else(Instant::now)
    }

    /// For a thread that has nothing more to run: waits until the gate closes.
    pub(crate) fn wait_until_closed(&self) {
        let mut guard = lock(&self.changed.0);
        while !self.is_closed() {
            guard = self.changed.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Locks, also after a thread panicked with the lock held: what the VM's locks protect is usable at any point, and a
/// guest that goes on beats one that stops.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
