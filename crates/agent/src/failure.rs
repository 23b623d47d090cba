//! From an `io::Error` to what the host is told.

use pando_wire::agent::{Failure, FailureKind};
use std::io;

/// Could not do `what`, because of `error`.
pub(crate) fn because(what: impl std::fmt::Display, error: impl Into<io::Error>) -> Failure {
    let error = error.into();
    let kind = match error.kind() {
        io::ErrorKind::NotFound => FailureKind::NotFound,
        io::ErrorKind::PermissionDenied => FailureKind::NotPermitted,
        _ => FailureKind::Other,
    };
    let mut message = format!("cannot {what}: {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Failure { kind, message }
}

/// A failure of `kind`.
pub(crate) fn of(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}
