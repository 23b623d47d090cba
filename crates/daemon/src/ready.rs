//! Waiting for descriptors that tokio has no type for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Something whose descriptor is open, and the same, for as long as it lives: that is what [`AsFd`] means, and what
/// `AsRawFd` alone does not.
#[derive(Debug)]
pub(crate) struct Held<T>(pub(crate) T);

impl<T: AsFd> AsRawFd for Held<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers `inner` with the runtime.
#[expect(deprecated, reason = "unsound for types that lie about their descriptor, which `Held` does not let in")]
pub(crate) fn register<T: AsFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<Held<T>>> {
    AsyncFd::with_interest(Held(inner), interest)
}
