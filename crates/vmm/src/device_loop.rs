//! One thread for all devices: it sleeps until a guest or a host client wants something, and looks at every queue.
//!
//! A notification is a hint and carries nothing: whoever resumes, restores or forks simply looks at every queue once,
//! so no notification has to be saved, and none can be lost.
//!
//! Asleep, it holds no lock and has nothing half-done: as good as parked. So whoever pauses the VM does not wake it to
//! be told that; it *holds* the sleeper, who finds out should something wake it meanwhile.
//!
//! ```text
//!          lie down                 hold (owner)
//!  AWAKE ───────────► ASLEEP ─────────────────────► HELD
//!    ▲                  │  ▲                          │
//!    └──────────────────┘  └──────────────────────────┘
//!           get up              release (owner)
//! ```

use crate::gate::{EndOnPanic, Gate, Go, Parked};
use crate::platform::Platform;
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, Thread};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const HELD: u8 = 2;

/// The owner's end of the device thread.
pub(crate) struct DeviceThread {
    go: Sender<Go>,
    sleep: Arc<Sleep>,
    thread: Thread,
    is_held: bool,
}

impl DeviceThread {
    /// Call with the gate closed. Whether the thread stands still already; else it says so when it does, as
    /// [`Parked::Devices`].
    pub(crate) fn hold(&mut self) -> bool {
        self.is_held = self.sleep.moves(ASLEEP, HELD);
        self.is_held
    }

    /// Call with the gate open.
    pub(crate) fn go(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.sleep.moves(HELD, ASLEEP);
            self.thread.unpark();
        } else {
            // The thread ends only with the owner.
            let _ = self.go.send(Go);
        }
    }
}

/// Where the device thread is.
struct Sleep(AtomicU8);

impl Sleep {
    fn moves(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// Starts the device thread, parked.
pub(crate) fn spawn(platform: Arc<Platform>, gate: Arc<Gate>, parked: Sender<Parked>) -> io::Result<DeviceThread> {
    let (go, wait) = channel();
    let host = platform.host_fds()?;
    let sleep = Arc::new(Sleep(AtomicU8::new(AWAKE)));
    let theirs = Arc::clone(&sleep);
    let live = move || live(&platform, &gate, &theirs, &parked, &wait, &host);
    let thread = pando_sys::spawn("devices", live)?;
    Ok(DeviceThread { go, sleep, thread, is_held: false })
}

fn live(
    platform: &Platform,
    gate: &Gate,
    sleep: &Sleep,
    parked: &Sender<Parked>,
    wait: &Receiver<Go>,
    host: &[OwnedFd],
) {
    let _end = EndOnPanic;
    let wake = platform.wake_fd();
    // Made once: between falling asleep and getting up there may be a fork, and nothing may be under way then.
    let mut fds = vec![PollFd::new(&wake, PollFlags::IN)];
    fds.extend(host.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
    while wait.recv().is_ok() {
        loop {
            platform.process_devices();
            if gate.is_closed() {
                break;
            }
            sleep.moves(AWAKE, ASLEEP);
            // The gate may have closed before we slept, by someone who therefore waits to be told.
            if gate.is_closed() && sleep.moves(ASLEEP, AWAKE) {
                break;
            }
            // An interrupted wait only means looking at the queues once more.
            let _ = poll(&mut fds, None);
            while !sleep.moves(ASLEEP, AWAKE) {
                thread::park();
            }
            platform.clear_wake();
        }
        if parked.send(Parked::Devices).is_err() {
            return; // The owner is gone, and the process with it.
        }
    }
}
