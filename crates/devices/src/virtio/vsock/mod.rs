//! Streams between host and guest (virtio 1.2, section 5.10), in user space: on the host a Unix socket stands for the
//! guest's ports, so any number of guests, twins among them, may have one context id.
//!
//! ```text
//! host client                     this device                        guest
//!  │ connect to the Unix socket ───►│
//!  │ "CONNECT 1024\n" ─────────────►│ REQUEST  host port → 1024 ──────►│ listening on 1024
//!  │◄──────── "OK 1073741824\n"     │◄──────────────────────  RESPONSE │
//!  │◄── a stream of bytes, either side may end its half ──────────────►│
//! ```
//!
//! A refused client finds its connection closed before any `OK`. There is no time-out: a client that will not wait
//! closes its socket, and the guest is told.
//!
//! Limits: streams only; only the host connects (a guest's own REQUEST is answered with RST, since there is nowhere to
//! connect it to); [`MAX_CONNECTIONS`] at once, further clients are closed; [`BUFFER_BYTES`] wait for a slow client
//! before the guest has to.
//!
//! What is saved is a port counter: connections do not outlive their monitor. A guest that is restored or is a fork's
//! child is told so by an event, and nothing connects to it until it has acted on that: see `announcement`.
//!
//! Start at `device`; `connection` is one client's life.

mod announcement; // telling a guest that its connections are gone
mod connection; // one client's life
mod credit; // who may send how much
mod device; // queues and sockets in, queues and sockets out
mod greeting; // "CONNECT 1024\n", however slowly it comes
mod packet; // what the guest sends, checked
mod socket; // reading and writing a client without waiting
mod state; // what is saved, and the checks on the way back

pub use device::Vsock;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use packet::fuzz_header;
pub use state::{VsockRestoreError, VsockState};

/// The most connections at once, those included that are being made or ended: the 1024 that the agent forwards, its 256
/// requests, and room for those that come and go.
pub const MAX_CONNECTIONS: usize = 1535;

/// How much of what a guest sent may wait for one client to read it, in bytes.
pub const BUFFER_BYTES: u32 = 256 << 10;

/// The host's context id.
const HOST_CID: u64 = 2;

/// The first port that stands for a client. Lower ones look like those of services.
const FIRST_HOST_PORT: u32 = 1 << 30;

#[cfg(test)]
mod tests;
