//! Writing checkpoints.
//!
//! ```text
//! Layer ──jobs of 512 KiB──► 2 threads: hash, look up, compress ──► one open pack ──full packs──► 4 threads: write, sync
//! ```

mod tuning; // sizes and levels
mod error; // what can go wrong
mod progress; // waiting for other threads
mod shared; // what the threads share: the open pack, what is claimed, the first error
mod compress; // a chunk becomes part of a pack, once
mod layer; // pages go in, in order
mod writer; // threads, and the order in which a checkpoint becomes durable

pub use error::WriteError;
pub use layer::LayerWriter;
pub use tuning::Tuning;
pub use writer::Writer;
