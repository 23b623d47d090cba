//! Published ports: TCP ports of the host that are ports of VMs, for whatever speaks TCP. No network is needed in the VM and
//! no root: all goes over its agent, as previews do.
//!
//! ```text
//! client ──TCP──► listener ─► connection ──stream::reach──► the guest's port          Board: which VM has which
//! ```
//!
//! *Invariants.* A port is listened on as long as there is its VM, whatever state that is in, and belongs to one VM: a
//! fork's child has none. A connection that broke, or that nobody takes, ends with a reset. What all of this means to who
//! uses it: `docs/publish.md`.

mod bind; // a port of the host is taken
mod board; // which VM has which
mod listener; // connections in
mod connection; // one of them
mod client; // its host's end

pub(crate) use bind::{Bound, bind};
pub(crate) use board::Board;
