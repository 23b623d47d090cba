//! Checkpoints on their way: into a file or a bucket, and back.

mod intake; // files from elsewhere, believed after every check
mod outgoing; // what a checkpoint needs, held until it is sent
mod names; // how files are called on the way
mod file; // one stream
#[cfg(feature = "bucket")]
mod bucket; // many objects

#[cfg(feature = "bucket")]
pub use bucket::{Bucket, BucketError, BucketSpec, Fetched, Pulled, Pushed, Said, SpecError, Swept};
pub use file::{ExportError, ImportError};
pub use intake::IntakeError;
