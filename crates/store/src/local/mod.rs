//! A store in a directory: where files lie, and how several processes share it.

mod files; // everything that changes the directory
mod directory; // names, and files that are there whole or not at all
mod lock; // garbage collection against everybody else
mod lease; // what a writer works on, so that nothing of it is collected
mod held; // what a reader reads, so that it is not collected either
mod index; // where each chunk lies
mod catalog; // the same for all threads of a process, and as fresh as they need it

pub(crate) use catalog::{Catalog, load as load_index};
pub use directory::FileError;
pub(crate) use directory::{Directory, read};
#[cfg(test)]
pub(crate) use files::Change;
pub(crate) use files::{remove, sync_directory};
pub(crate) use held::{Held, is_held};
pub(crate) use index::Place;
pub(crate) use lease::{Lease, Pins};
pub(crate) use lock::StoreLock;
