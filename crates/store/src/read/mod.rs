//! Reading checkpoints, a page at a time and from any number of threads.

mod error; // what is missing, and what that affects
mod cache; // chunks that were read lately
mod chunk; // from a pack to checked bytes
mod source; // checkpoints that are elsewhere
mod layer; // pages of a layer
mod checkpoint; // a checkpoint that stays while it is read
mod turn; // who reads ahead of need

pub use checkpoint::OpenCheckpoint;
pub(crate) use chunk::{ChunkReader, decompress};
pub use error::ReadError;
pub use layer::{Layer, Location};
#[cfg(feature = "bucket")]
pub(crate) use source::Source;
pub use turn::{Turn, Turns};
