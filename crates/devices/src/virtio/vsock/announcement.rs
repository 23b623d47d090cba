//! Telling a guest that its connections are gone, and knowing when it has acted on that.
//!
//! A guest answers the event `TRANSPORT_RESET` by resetting every connected socket that it has at that moment, and it
//! does so independently of the packets that it receives (Linux: in another work item, on another processor maybe). A
//! connection made too early would therefore be reset with the stale ones. But a guest gives the event's buffer back
//! after it has acted on it, so:
//!
//! ```text
//!    due ──► told ──► answered: clients may connect
//!     │        │         ▲
//!     └────────┴─────────┘ the driver resets the device: it has no connections left
//! ```
//!
//! Which of its buffers a guest gives back cannot be seen, only how many: the available ring has to advance once for
//! every event that is unanswered. That count outlives a fork, since a child may be forked while its parent's guest has
//! an event before it that it has not looked at.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::virtio::{DeviceError, queue};

/// The event `TRANSPORT_RESET`: its number is 0.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// What the guest must be told of its connections, and what it has not answered yet.
#[derive(Debug, Default)]
pub(super) struct Announcement {
    due: bool,
    answer_at: Option<u16>,
}

impl Announcement {
    /// A guest that was saved when it had yet to answer at `answer_at`, and that has to be told.
    pub(super) fn due(answer_at: Option<u16>) -> Self {
        Self { due: true, answer_at }
    }

    /// Whether a connection that is made now will last.
    pub(super) fn is_over(&self) -> bool {
        !self.due && self.answer_at.is_none()
    }

    /// See [`VsockState::answer_at`](super::VsockState::answer_at).
    pub(super) fn answer_at(&self) -> Option<u16> {
        self.answer_at
    }

    /// Tells the guest if it must be told and has a buffer for it, and looks whether it has answered. Returns whether
    /// the guest must be interrupted.
    pub(super) fn serve(&mut self, events: &mut Queue, memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        if self.is_over() || !events.ready() {
            return Ok(false);
        }
        let available = events.avail_idx(memory, Ordering::Acquire)?.0;
        if self.answer_at.is_some_and(|at| reached(available, at)) {
            self.answer_at = None;
        }
        if !self.due || queue::available(events, memory)? == 0 {
            return Ok(false);
        }
        let Some(chain) = queue::pop(events, memory)? else { return Ok(false) };
        if chain.writable_len() < TRANSPORT_RESET.len() {
            return Err(DeviceError::NoRoom("an event"));
        }
        let before = events.next_used();
        chain.write_at(0, &TRANSPORT_RESET)?;
        queue::give_back(events, memory, chain.head(), TRANSPORT_RESET.len() as u32)?;
        self.answer_at = Some(self.answer_at.unwrap_or(available).wrapping_add(1));
        self.due = false;
        queue::wants_interrupt(events, memory, before)
    }
}

/// Whether a ring's position, which wraps, is at `goal` or past it. They are never half of the positions apart: a queue
/// is far shorter.
fn reached(position: u16, goal: u16) -> bool {
    position.wrapping_sub(goal) < 1 << 15
}
