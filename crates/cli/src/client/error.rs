//! What can go wrong between this program and the daemon.

use pando_wire::api;
use std::io;

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nothing listens there, or it does not let us in.
    #[error("cannot reach the daemon at {host}")]
    Connect {
        /// The socket's path or address.
        host: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The connection ended before the answer was complete.
    #[error("the daemon at {host} broke off")]
    Broken {
        /// The socket's path or address.
        host: String,
        /// What the HTTP client says.
        source: hyper::Error,
    },
    /// The request cannot be put into HTTP.
    #[error("cannot ask the daemon for {path}")]
    Request {
        /// Method and path.
        path: String,
        /// What the HTTP client says.
        source: hyper::http::Error,
    },
    /// The daemon says no, and why.
    #[error("{}", .error.error)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The body.
        error: api::Error,
    },
    /// The daemon says no in words that are not the API's.
    #[error("the daemon answers {status} to {path}")]
    Status {
        /// Method and path.
        path: String,
        /// The HTTP status.
        status: hyper::StatusCode,
    },
    /// The body is not what the API promises.
    #[error("cannot understand the daemon's answer to {path}")]
    Body {
        /// Method and path.
        path: String,
        /// Where it went wrong.
        source: serde_json::Error,
    },
}

impl Error {
    /// The causes that the daemon told, outermost first; they are not sources because they are only text.
    pub(crate) fn told_causes(&self) -> &[String] {
        match self {
            Self::Refused { error, .. } => &error.because,
            _ => &[],
        }
    }

    /// Whether there is no such thing as was asked for. A daemon that does not know the question is another matter.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, error } if error.error != api::NO_ROUTE)
    }
}
