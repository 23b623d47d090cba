//! How all threads of a VM are brought to stand still, and sent off again.
//!
//! ```text
//! owner                        vCPU threads                                device thread
//!  │ close the gate, kick ──────►│ come out of the guest ── count in ──┐     │ finishes its request
//!  │                             │ wait until all are in ◄─────────────┘     │
//!  │◄─────────────────── Parked ─│ read their state, wait for Go             │
//!  │◄──────────────────────────────────────────────────────────── Parked ────│ waits for Go
//!  │ … save, seal, fork …        │      (hold no lock, own nothing half-done)
//!  │ open the gate, Go ─────────►│ run                                       │ runs
//! ```
//!
//! No vCPU reads its state while another may still be in the guest: that one could send it an interrupt, which the
//! state would not have, and a child would wait for it for ever. An interrupt of a device that comes late is another
//! matter: the device's own state has it, and [`Platform::repeat_interrupts`](crate::platform::Platform) sends it again.
//!
//! Built on std's locks and channels: they are futexes, and leave nothing behind in a forked child. `parking_lot` keeps
//! its waiting threads in a global table, which a child would inherit with threads in it that it does not have.

use pando_sys::{SysError, VcpuState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a vCPU usually takes to stand still.
pub(crate) const USUAL_PARK: Duration = Duration::from_micros(300);
/// How long the owner waits for the vCPUs to run again.
const WAKE_LIMIT: Duration = Duration::from_millis(5);
/// How long a vCPU stays in the guest after the one before it, with a fault planted: long enough for it to get on even
/// where there is one CPU for all.
const PLANTED_GAP: Duration = Duration::from_millis(20);

/// Whether threads may run.
pub(crate) struct Gate {
    vcpus: usize,
    closed: Arc<AtomicBool>,
    /// How many vCPUs are out of the guest since the gate closed.
    out: AtomicUsize,
    /// For those who wait for a change of one of these two.
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
    /// A closed gate for so many vCPUs.
    pub(crate) fn new(vcpus: usize) -> Self {
        let (closed, out) = (Arc::new(AtomicBool::new(true)), AtomicUsize::new(0));
        Self { vcpus, closed, out, changed: Default::default(), running: Default::default() }
    }

    /// No vCPU is on its way through [`Gate::wait_until_all_are_out`]: all have parked since the gate closed last.
    pub(crate) fn close(&self) {
        let _guard = lock(&self.changed.0);
        self.out.store(0, Ordering::SeqCst);
        self.closed.store(true, Ordering::SeqCst);
        self.changed.1.notify_all();
    }

    pub(crate) fn open(&self) {
        *lock(&self.running.0) = (0, None);
        self.closed.store(false, Ordering::SeqCst);
    }

    /// Between a kick of one vCPU and of the next, which is at once: only a planted fault takes its time, so that its
    /// window is wide enough to be seen.
    pub(crate) fn between_kicks(&self) {
        if cfg!(feature = "plant-early-read") {
            thread::sleep(PLANTED_GAP);
        }
    }

    /// Set while the gate is closed, for a device that may be at work for long.
    pub(crate) fn closed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.closed)
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

    /// When the last vCPU ran again, after the gate opened. Sleeps meanwhile, so that they can have this CPU too; not
    /// for long, as the host may have none for them.
    pub(crate) fn running_since(&self) -> Instant {
        let counted = lock(&self.running.0);
        let waited = self.running.1.wait_timeout_while(counted, WAKE_LIMIT, |running| running.0 < self.vcpus);
        let (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        running.1.filter(|_| running.0 >= self.vcpus).unwrap_or_else(Instant::now)
    }

    /// For a vCPU's thread, once between a closing of the gate and [`Parked`], when its vCPU is out of the guest.
    /// Returns when that is so of all of them. Awake for as long as it usually takes, like the owner.
    pub(crate) fn wait_until_all_are_out(&self) {
        if cfg!(feature = "plant-early-read") {
            return;
        }
        if self.out.fetch_add(1, Ordering::SeqCst) + 1 >= self.vcpus {
            let _guard = lock(&self.changed.0);
            return self.changed.1.notify_all();
        }
        let begun = Instant::now();
        while begun.elapsed() < USUAL_PARK {
            if self.are_all_out() {
                return;
            }
            thread::yield_now();
        }
        self.wait_until(|| self.are_all_out());
    }

    fn are_all_out(&self) -> bool {
        self.out.load(Ordering::SeqCst) >= self.vcpus
    }

    /// For a thread that has nothing more to run: waits until the gate closes.
    pub(crate) fn wait_until_closed(&self) {
        self.wait_until(|| self.is_closed());
    }

    fn wait_until(&self, is_so: impl Fn() -> bool) {
        let guard = lock(&self.changed.0);
        drop(self.changed.1.wait_while(guard, |()| !is_so()));
    }
}

/// Held by a thread that parks: when it panics, the process ends, as the owner would wait for it for ever. In a release
/// build every panic does that.
pub(crate) struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// Locks, also after a thread panicked with the lock held: what the VM's locks protect is usable at any point, and a
/// guest that goes on beats one that stops.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_reads_before_all_are_out_also_the_second_time() {
        const VCPUS: usize = 3;
        let gate = Gate::new(VCPUS);
        for _ in 0..2 {
            gate.close();
            let out = AtomicUsize::new(0);
            thread::scope(|scope| {
                for id in 0..VCPUS {
                    let (gate, out) = (&gate, &out);
                    scope.spawn(move || {
                        // One is usual, one is late, and the last is so late that the others have gone to sleep.
                        thread::sleep(USUAL_PARK * 40 * id as u32);
                        out.fetch_add(1, Ordering::SeqCst);
                        gate.wait_until_all_are_out();
                        assert_eq!(out.load(Ordering::SeqCst), VCPUS);
                    });
                }
            });
            gate.open();
        }
    }
}
