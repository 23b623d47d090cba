//! What can go wrong between a store and a bucket, by whose fault.

use crate::local::FileError;
use crate::store::CheckpointError;
use crate::transfer::IntakeError;
use std::error::Error;
use std::time::Duration;

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
        source: Said,
    },
    /// There is no such bucket.
    #[error("there is no bucket {bucket}")]
    NoBucket {
        /// Which.
        bucket: String,
        /// What the server said.
        source: Said,
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
        source: Said,
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

/// What a server or the way to it said, in one line. Of a body there is only its code and message: servers repeat the
/// request in it, headers included. Never a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Said(String);

impl Said {
    /// The error and its causes, without `keys`.
    pub(super) fn new(error: &(dyn Error + 'static), keys: &[&str]) -> Self {
        let causes = std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string);
        let mut line = String::new();
        for cause in causes.map(|cause| without_body(&cause)) {
            // Many repeat their cause.
            if !line.contains(&cause) {
                line = if line.is_empty() { cause } else { format!("{line}: {cause}") };
            }
        }
        let keys = keys.iter().filter(|key| !key.is_empty());
        Self(keys.fold(line, |line, key| line.replace(key, "…")))
    }

    /// Nothing, for so long.
    pub(super) fn late(limit: Duration) -> Self {
        Self(format!("it has not come for {limit:?}"))
    }
}

/// In one line, with code and message for all that follows the first `<`.
fn without_body(text: &str) -> String {
    let (said, body) = text.split_once('<').map_or((text, ""), |(said, _)| (said, &text[said.len()..]));
    let field = |open: &str, close: &str| Some(body.split_once(open)?.1.split_once(close)?.0);
    let fields = [field("<Code>", "</Code>"), field("<Message>", "</Message>")];
    let words = [Some(said)].into_iter().chain(fields).flatten().flat_map(str::split_whitespace);
    words.collect::<Vec<_>>().join(" ").trim_end_matches(':').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_server_that_repeats_the_request_does_not_get_a_key_into_an_error() {
        let body = "403 Forbidden: <?xml version=\"1.0\"?>\n<Error><Code>InvalidToken</Code>\n<Message>AKID has no \
                    TOKEN</Message><Token-0>TOKEN</Token-0><Bytes>54 4f 4b</Bytes></Error>";
        let said = Said::new(&io::Error::other(body), &["AKID", "SECRET", "TOKEN", ""]);
        assert_eq!(said.to_string(), "403 Forbidden: InvalidToken … has no …");
    }

    #[test]
    fn causes_are_told_once_and_in_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot connect: refused\nby all")]
        struct Outer(#[source] io::Error);
        assert_eq!(Said::new(&Outer(io::Error::other("refused")), &[]).to_string(), "cannot connect: refused by all");
        assert_eq!(
            Said::new(&Outer(io::Error::other("away")), &[]).to_string(),
            "cannot connect: refused by all: away"
        );
    }
}
