//! Programs that stand still: the cgroup freezer.

use crate::{console::say, failure};
use pando_wire::agent::Failure;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    path::Path,
    time::{Duration, Instant},
};

/// How long freezing may take. A program in an uninterruptible sleep (waiting for the disk) delays it.
const LIMIT: Duration = Duration::from_secs(1);

/// The longest time between two looks at whether all stand still. The kernel says when that changes.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Programs that stand still until this is dropped.
pub(crate) struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    /// Stops all programs in `cgroup`, or none.
    pub(crate) fn freeze(cgroup: Option<&'a Path>) -> Result<Self, Failure> {
        let cannot = |error| failure::because("make the user's programs stand still", error);
        let cgroup = cgroup.ok_or_else(|| cannot(io::ErrorKind::Unsupported.into()))?;
        let frozen = Self(cgroup);
        fs::write(cgroup.join("cgroup.freeze"), "1").map_err(cannot)?;
        let deadline = Instant::now() + LIMIT;
        let mut events = File::open(cgroup.join("cgroup.events")).map_err(cannot)?;
        loop {
            let mut text = String::new();
            events.read_to_string(&mut text).map_err(cannot)?;
            if text.contains("frozen 1") {
                return Ok(frozen);
            }
            if Instant::now() > deadline {
                return Err(cannot(io::ErrorKind::TimedOut.into()));
            }
            // Interrupted or not, we look again. The kernel tells whoever has read the file; a plain file of a test never
            // changes.
            let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&LOOK));
            events.rewind().map_err(cannot)?;
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.0.join("cgroup.freeze"), "0") {
            say(format_args!("cannot let the user's programs go on: {error}"));
        }
    }
}
