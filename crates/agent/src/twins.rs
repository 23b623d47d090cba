//! The barrier around a fork: no program of the user runs between the fork and the moment when this kernel's random
//! numbers are its own.
//!
//! ```text
//! host: ForkBarrier ──► begin the heartbeat, freeze the cgroup of all user programs ──► Done ──► the fork
//!   parent: the host closes the connection                       ──► thaw
//!   child:  virtio-vsock resets the connection (Received::Torn)  ──► reseed, thaw
//!   neither within BARRIER_LIMIT_MS                              ──► thaw
//! ```
//!
//! The kernel reseeds itself when the monitor changes the VM generation id, on a kernel thread of its own: its word in
//! the kernel's log is the proof that it did (`add_vmfork_randomness`), and is waited for. Besides, bytes of the child's
//! own virtio-rng go into the pool. What a program keeps in its own memory (the state of a user-space generator) is
//! beyond us: that is what fork hooks are for.
//!
//! The cgroup freezer stops what is in the cgroup. A program with root's rights that moves itself elsewhere in the
//! hierarchy is not stopped.

use crate::{
    agent::{Agent, lock},
    console::say,
    failure, heartbeat,
    peer::{Peer, Received},
};
use pando_wire::agent::{BARRIER_LIMIT_MS, Failure, Reply};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long freezing may take. A program in an uninterruptible sleep (waiting for the disk) delays it.
const FREEZE_LIMIT: Duration = Duration::from_secs(1);

/// The longest time between two looks at whether all are frozen, and at the kernel's log. Both say when they change.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// How long a child waits for its kernel to reseed. Over it, programs go on and the console says so.
const RESEED_LIMIT: Duration = Duration::from_millis(250);

/// What the kernel says once it did.
const RESEEDED: &[u8] = b"crng reseeded due to virtual machine fork";

/// More than the driver of virtio-rng holds from before the fork, which parent and child have in common.
const FRESH: usize = 128;

/// Serves one `ForkBarrier`.
pub(crate) fn serve(agent: &Agent, peer: &Peer) -> io::Result<()> {
    let _one_at_a_time = lock(&agent.barrier);
    // Its longest gap is then what programs feel of the fork. A fork without that figure is a fork all the same.
    let _ = heartbeat::start(agent);
    let frozen = match Frozen::freeze(agent.cgroup.as_deref()) {
        Ok(frozen) => frozen,
        Err(failure) => return peer.reply(&Reply::Failed(failure)),
    };
    let kernel_log = KernelLog::open();
    peer.reply(&Reply::Done)?;
    let limit =
        Timespec { tv_sec: (BARRIER_LIMIT_MS / 1000) as _, tv_nsec: (BARRIER_LIMIT_MS % 1000 * 1_000_000) as _ };
    let ended = poll(&mut [PollFd::new(peer, PollFlags::IN | PollFlags::RDHUP)], Some(&limit));
    let received = peer.receive(&mut [0; 16]);
    match received {
        Received::Torn => reseed(kernel_log),
        Received::Closed | Received::Bytes(_) => (),
        Received::Nothing => say(format_args!("nobody ended the fork barrier: {ended:?}")),
    }
    drop(frozen);
    if let Received::Torn = received {
        heartbeat::forget(agent); // Our parent asked for it, and it costs.
    }
    Ok(())
}

/// Makes this kernel's random numbers its own, or says on the console that it could not be seen to happen.
fn reseed(kernel_log: Option<KernelLog>) {
    // Not needed when the kernel reseeds, and all that can be done when it does not: so no failure is of interest.
    let _ = mix_in_fresh_bytes();
    let reseeded = kernel_log.is_some_and(|mut log| log.wait_for(RESEEDED, RESEED_LIMIT));
    if !reseeded {
        say("the kernel did not say that it reseeded its random numbers after the fork");
    }
}

fn mix_in_fresh_bytes() -> io::Result<()> {
    let mut bytes = [0; FRESH];
    let mut source = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open("/dev/hwrng")?;
    source.read_exact(&mut bytes)?;
    File::options().write(true).open("/dev/urandom")?.write_all(&bytes)
}

/// Programs that stand still until this is dropped.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn freeze(cgroup: Option<&'a Path>) -> Result<Self, Failure> {
        let cannot = |error| failure::because("make the user's programs stand still", error);
        let cgroup = cgroup.ok_or_else(|| cannot(io::ErrorKind::Unsupported.into()))?;
        let frozen = Self(cgroup);
        fs::write(cgroup.join("cgroup.freeze"), "1").map_err(cannot)?;
        let deadline = Instant::now() + FREEZE_LIMIT;
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
            // The kernel says when the file changes, to whoever has read it; a plain file of a test never does.
            wait(&events, PollFlags::PRI);
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

/// The kernel's log from the moment of opening on.
struct KernelLog(File);

impl KernelLog {
    fn open() -> Option<Self> {
        let mut file =
            File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open("/dev/kmsg").ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// Whether a line with `words` comes within `limit`.
    fn wait_for(&mut self, words: &[u8], limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut line = [0; 8192]; // The longest that the kernel hands out.
        loop {
            match self.0.read(&mut line) {
                Ok(len) if line[..len].windows(words.len()).any(|window| window == words) => return true,
                Ok(len) if len > 0 => (), // Another line; there may be more.
                // Lines were overwritten before we read them; the next read goes on behind them.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => (),
                Ok(_) => thread::sleep(Duration::from_millis(1)), // Not the kernel's log but a file, at its end.
                Err(_) => wait(&self.0, PollFlags::IN),
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }
}

/// Waits until `file` has something, for [`LOOK`] at most.
fn wait(file: &File, what: PollFlags) {
    // Interrupted or not, the caller looks again.
    let _ = poll(&mut [PollFd::new(file, what)], Some(&LOOK));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's log, but ours.
    fn log() -> (KernelLog, File) {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let writer = File::options().append(true).open(&path).unwrap();
        (KernelLog(File::open(&path).unwrap()), writer)
    }

    #[test]
    fn the_kernels_word_ends_the_wait() {
        let (mut log, mut writer) = log();
        let waiting = thread::spawn(move || {
            let began = Instant::now();
            (log.wait_for(RESEEDED, Duration::from_secs(10)), began.elapsed())
        });
        thread::sleep(Duration::from_millis(50));
        writer.write_all(b"5,301,98,-;random: crng reseeded due to virtual machine fork\n").unwrap();
        let (seen, after) = waiting.join().unwrap();
        assert!(seen && after < Duration::from_secs(5), "{after:?}");
    }

    #[test]
    fn other_words_however_many_do_not_and_the_wait_is_bounded() {
        let (mut log, mut writer) = log();
        for _ in 0..10_000 {
            writer.write_all(b"5,301,98,-;random: crng reseeded on system resumption\n").unwrap();
        }
        let began = Instant::now();
        assert!(!log.wait_for(RESEEDED, Duration::from_millis(50)));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
