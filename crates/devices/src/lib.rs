//! Models of chips: a serial port, and virtio devices behind virtio-mmio.
//!
//! Its own crate because all of it can be tested without KVM.
//!
//! *Invariant: nothing here starts a thread, opens a file or reads the clock.* Sockets, disks and memory come in from
//! the caller, so a fork cannot surprise a device: what it is can be saved as plain data, and what it holds is given to
//! it anew.

pub mod serial; // a 16550
pub mod virtio; // block, vsock, rng, balloon and net, and the transport before them

#[cfg(test)]
mod contract; // the laws that every saved state keeps
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz; // one entry point per thing that a guest or a file can lie about

#[cfg(any(test, feature = "fuzzing"))]
pub use fuzz::{fuzz_balloon, fuzz_block, fuzz_net, fuzz_state, fuzz_vsock};
