//! Previews: what listens on a port of a VM, for a browser, under a name of its own. No network is needed in the VM: all
//! goes over its agent.
//!
//! ```text
//! browser ──http://3000-web.localhost:7080──► listener ► host ► access ► proxy ──Fleet::connect──► the guest's port
//! ```
//!
//! *Invariants.* A name that is not of the domain is not served. Who is not let in wakes nobody, and does not reach the
//! guest. The guest gets requests that were parsed and are written anew, and nothing that lets one in. An answer that was
//! cut short never ends as one that is whole. What all of this means to who uses it: `docs/previews.md`.

mod access; // who is let in
mod body; // an answer on its way out
mod exchange; // a request to a guest, and its answer
mod headers; // what goes on to the other side
mod host; // which VM and port a name means
mod kept; // a connection to a guest, for the next request
mod listener; // connections in, and how long they may be quiet
mod page; // what is said instead of an answer
mod proxy; // one request
mod pulse; // whether a client says anything

pub(crate) use host::{Front, check_domain};
pub(crate) use listener::{Previews, listen, serve};
