//! What crosses a process boundary: a few languages, each a file of plain data.
//!
//! Its own crate because what is here is a compatibility promise: a daemon talks to monitors and agents
//! that were started by an older build.

pub mod agent; // host ↔ guest, over vsock
pub mod api; // anyone ↔ daemon, JSON over HTTP
pub mod control; // daemon ↔ monitor, with descriptors
pub mod duration; // as people write them
pub mod network; // what every guest with a network finds inside
pub mod pages; // monitor ↔ page server, memory as it is touched
pub mod saved; // a seed's bytes on their way into a store
pub mod frame; // length-prefixed postcard on a byte stream
