//! A network card (virtio 1.2, section 5.1) whose other end is a tap of the host: frames go straight between the queues of
//! that tap and guest memory.
//!
//! ```text
//! guest                        this device                               host
//!  │ tx: header, frame ─────────►│ header read once, checked ── writev ──►│ tap
//!  │◄──── rx: header, frame ─────│◄──────────────────────────── readv ────│
//!  │ control: so many pairs ────►│ queues of the tap, in use or not ─────►│
//!  │◄──── config: link, announce │
//! ```
//!
//! Checksums and the cutting of long TCP segments are left to whoever is better at it, so a frame may be 64 KiB long: what
//! the driver accepts of that, the tap is told. What depends on the host's kernel (segmentation of UDP) is not offered: a
//! guest that accepted it may be saved, and go on above another kernel.
//!
//! What a driver asks to send is dropped, and counted, where its header is none that it may send, where it is no frame or
//! one too long, or comes from another address than its own; the device goes on. When the host has no room for a frame,
//! it waits, and all behind it. What arrives is dropped where the driver has buffers, but none for so long a frame;
//! where it has none at all, it waits in the tap, which drops what is more than its queue (`txqueuelen`).
//!
//! Both sides say of which chain they want to hear next (`VIRTIO_F_EVENT_IDX`): a notification of receive buffers is asked
//! for only when there are none, and one of frames to send once per call.
//!
//! Between two calls of `process` no frame is under way, so nothing about them needs saving. A card that is restored has
//! another tap, or none: then its link is down, nothing arrives, and what is sent goes nowhere. With one, a driver that
//! can is asked to announce itself, so that the other end learns its address.
//!
//! Limits: [`MAX_QUEUE_PAIRS`] pairs of queues of 256; frames of [`MAX_FRAME_BYTES`]; one call sends and receives at most
//! 256 frames per queue, and ends between two when it is told to. Not offered: filters of addresses and VLANs, the change
//! of the address, and receive-side scaling.

mod control; // what a driver asks of the card as a whole
mod counters; // what became of frames
mod device; // the card
mod header; // what is said of a frame before it, checked
mod receive; // from the tap to the driver
mod state; // what is saved, and the checks on the way back
mod tap; // the host's end
mod transmit; // from the driver to the tap

pub use counters::Counters;
pub use device::{Net, NetError, NetSpec};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use header::fuzz_header;
pub use state::{NetState, NetStateError};
pub use tap::TapQueue;

/// The most pairs of queues.
pub const MAX_QUEUE_PAIRS: u8 = 8;

/// The longest frame, its Ethernet header and a VLAN's tag included, in bytes.
pub const MAX_FRAME_BYTES: usize = ETHERNET_BYTES + 4 + (64 << 10);

/// Destination, source, type.
const ETHERNET_BYTES: usize = 14;

/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 256;

#[cfg(test)]
mod tests;
