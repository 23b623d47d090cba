//! A store in a directory: where files lie, and how several processes share it.

mod directory; // names, and files that are there whole or not at all
mod lock; // garbage collection against everybody else
mod lease; // what a process works on, so that nothing of it is collected
mod index; // where each chunk lies

pub use directory::FileError;
pub(crate) use directory::{Directory, read, sync_directory};
pub(crate) use index::{Index, Place, load as load_index};
pub(crate) use lease::{Lease, Pins};
pub(crate) use lock::StoreLock;
