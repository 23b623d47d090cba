//! What can go wrong between a store and a bucket, by whose fault.

use crate::local::FileError;
use crate::store::CheckpointError;
use crate::transfer::IntakeError;

/// Why a checkpoint was not pushed or pulled. What was sent before is not sent again the next time, and nothing half
/// sent is offered to anybody.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The server does not let us.
    #[error("{bucket} refuses these credentials")]
    Refused {
        /// Which bucket.
        bucket: String,
        /// What it said.
        source: Box<object_store::Error>,
    },
    /// There is no such bucket.
    #[error("there is no bucket {bucket}")]
    NoBucket {
        /// Which.
        bucket: String,
        /// What the server said.
        source: Box<object_store::Error>,
    },
    /// The server is not there, too slow, full or broken.
    #[error("cannot {action} {object} in {bucket}")]
    Unreachable {
        /// What was wanted.
        action: &'static str,
        /// Of what.
        object: String,
        /// Where.
        bucket: String,
        /// What happened.
        source: Box<object_store::Error>,
    },
    /// There are no checkpoints in the bucket.
    #[error("{0} holds no checkpoints")]
    NoStore(String),
    /// There is none of that name in the bucket.
    #[error("no checkpoint in {bucket} is called {checkpoint}")]
    Absent {
        /// Which.
        checkpoint: String,
        /// Where.
        bucket: String,
    },
    /// There is another one of that name in the bucket.
    #[error("there is another checkpoint called {checkpoint} in {bucket} already")]
    Exists {
        /// Which.
        checkpoint: String,
        /// Where.
        bucket: String,
    },
    /// An object is longer than any file of a store.
    #[error("{object} in {bucket} is {len} bytes long, which no file of a store is")]
    TooLong {
        /// Which.
        object: String,
        /// Where.
        bucket: String,
        /// How long it is.
        len: u64,
    },
    /// A part of the checkpoint is longer than 32 bits can say.
    #[error("checkpoint {0} is too large to be written down")]
    TooLarge(String),
    /// An object is not what it should be, or the store here cannot be written.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The checkpoint here cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file here cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// What would talk to it cannot be started.
    #[error("cannot start what talks to the bucket")]
    Runtime(#[source] std::io::Error),
    /// The program is ending.
    #[error("interrupted")]
    Interrupted,
}
