//! Checkpoints in a bucket of any S3-compatible store. Async, so for the daemon and not for the monitor.
//!
//! A bucket has the files of a store's directory under the same names. They are immutable, and none relies on a
//! conditional PUT, which not every server honours: those that are named by their content are the same whoever writes
//! them, and a checkpoint's name is unique because its database says so. A checkpoint is written after everything it
//! names, so it is there in full or not at all; and what describes it after that.

mod spec; // which bucket, and as whom
mod error; // what can go wrong, by whose fault
mod objects; // getting and putting them, patiently
mod push; // into the bucket
mod pull; // out of it
mod describe; // what is known of them, beside them
mod collect; // what nobody needs in it
mod attach; // read from it, a pack at a time

pub use collect::Swept;
pub use error::{BucketError, Said};
pub use objects::Bucket;
pub use pull::{Fetched, Pulled};
pub use push::Pushed;
pub use spec::{BucketSpec, SpecError};

/// Objects on their way at once: a request takes 40 ms on many servers, whatever its size.
const AT_ONCE: usize = 8;
