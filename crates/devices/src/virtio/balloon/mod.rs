//! What the guest does not use goes back to the host (virtio 1.2, section 5.5): a balloon that is never inflated, for
//! its reports of free pages.
//!
//! ```text
//! guest                                    this device                     host
//!  │ these ranges are free ───────────────►│ their whole pages ───────────►│ takes them
//!  │ (and stay so until they come back)    │                               │
//!  │◄────────────────────────── they are ──│◄──────────────────────────────│
//! ```
//!
//! The host asks for no page (`num_pages` is 0). A guest that inflates its balloon all the same gives these pages as it
//! would give others, and may deflate it whenever it likes.
//!
//! A page that was given back reads as zeroes. A guest that relies on what it leaves in free pages (`init_on_free`,
//! poisoned pages) says so with `PAGE_POISON`; it is not offered, so that such a guest reports nothing rather than have
//! the host write its poison into pages that it took away.

mod device; // queues in, pages out

use std::ops::Range;

pub use device::Balloon;

/// A page, as the specification and guest-physical page numbers have it, in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// The most pages of one inflation that are given back, all that Linux sends at once. Further ones stay where they are.
pub const MAX_INFLATED: usize = 256;

/// The driver reports free pages. `virtio-bindings` has no balloon.
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// Takes what a guest does not use.
pub trait FreePages: Send {
    /// Takes pages `pages` of guest-physical memory, all of them RAM and not none. They read as zeroes from then on, or as
    /// before where the host has no use for them.
    ///
    /// The guest's CPUs run. Its driver leaves these pages alone until this has returned; one that does not loses what it
    /// wrote there.
    fn give_back(&self, pages: Range<u32>);
}

#[cfg(test)]
mod tests;
