//! The barrier around a fork: no program of the user runs between the fork and the moment when this kernel's random
//! numbers are its own.
//!
//! ```text
//! host: ForkBarrier ──► begin the heartbeat, freeze the cgroup of all user programs ──► Done ──► the fork
//!   parent: the host closes the connection                        ──► thaw
//!           it does not: we say so, and a while after that        ──► thaw
//!   child:  virtio-vsock resets the connection (Received::Torn)
//!             the kernel reseeds itself, or Adopt brings a seed,
//!             TCP connections to the outside are ended            ──► thaw
//! ```
//!
//! The kernel reseeds itself when the monitor changes the VM generation id, on a kernel thread of its own: its word in
//! the kernel's log is the proof that it did (`add_vmfork_randomness`). One without a driver for that gets its seed from
//! the host. What a program keeps in its own memory (the state of a user-space generator) is beyond us: that is what
//! fork hooks are for.
//!
//! A machine that wakes from sleep goes through the same: it fell asleep behind a barrier.
//!
//! A child's first instruction may come long after the barrier, and its clock knows. So limits count only time in which
//! this machine ran: see [`Patience`].
//!
//! The cgroup freezer stops what is in the cgroup. A program with root's rights that moves itself elsewhere in the
//! hierarchy is not stopped.

use crate::{
    agent::{Agent, Before, lock},
    console::say,
    failure,
    freezer::Frozen,
    heartbeat, network,
    peer::{Peer, Received},
};
use pando_wire::agent::{BARRIER_LIMIT_MS, BARRIER_NOTICE_MS, FailureKind, RESEED_LIMIT_MS, Reply, SEED};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    mem,
    os::unix::fs::OpenOptionsExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The longest time between two looks, and the most that one costs.
const LOOK: Duration = Duration::from_millis(20);

/// What the kernel says once it reseeded.
const RESEEDED: &[u8] = b"crng reseeded due to virtual machine fork";

/// Serves one `ForkBarrier`.
pub(crate) fn serve(agent: &Agent, peer: &Peer) -> io::Result<()> {
    let mut before = lock(&agent.barrier);
    if let Received::Closed | Received::Torn = peer.receive(&mut [0; 16]) {
        return Ok(()); // The host has given up while another barrier stood.
    }
    *before = Before::default();
    agent.seeded.store(false, Ordering::Release);
    // Its longest gap is then what programs feel of the fork. A fork without that figure is a fork all the same.
    let _ = heartbeat::start(agent);
    let frozen = match Frozen::freeze(agent.cgroup.as_deref()) {
        Ok(frozen) => frozen,
        Err(failure) => return peer.reply(&Reply::Failed(failure)),
    };
    let mut watch = Watch { peer, log: KernelLog::open(), seeded: &agent.seeded };
    peer.reply(&Reply::Done)?;
    let end = watch.wait(Duration::from_millis(BARRIER_LIMIT_MS), Duration::from_millis(RESEED_LIMIT_MS));
    before.reseeded = end == End::Child { reseeded: true };
    before.disconnected = matches!(end, End::Child { .. });
    if before.disconnected {
        disconnect(agent);
    }
    drop(frozen);
    match end {
        End::Host => (),
        End::Nobody => say("nobody ended the fork barrier"),
        End::Child { reseeded } => {
            if !reseeded {
                say("programs go on after the fork with random numbers that other copies have, too");
            }
            heartbeat::forget(agent); // Our parent asked for it, and it costs.
        }
    }
    Ok(())
}

/// Makes this kernel's random numbers its own with what the host sent, and lets programs go on if they waited for that.
/// Then ends what connections the barrier did not, as none was held or this was not seen to be a child. Says whether
/// programs stood still until the random numbers were their own.
pub(crate) fn reseed(agent: &Agent, seed: &[u8; SEED]) -> bool {
    match pando_sys::reseed(seed) {
        Ok(()) => agent.seeded.store(true, Ordering::Release),
        Err(error) => say(failure::because("take on the host's seed", io::Error::other(error)).message),
    }
    // Once programs run; and to be asked about this fork only once.
    let before = mem::take(&mut *lock(&agent.barrier));
    if !before.disconnected {
        disconnect(agent);
    }
    before.reseeded
}

/// Ends every TCP connection that leads out of this machine: in a child of a fork they are its parent's, and while it slept
/// the outside has forgotten them.
fn disconnect(agent: &Agent) {
    if agent.on_network
        && let Err(error) = network::reset_outside()
    {
        say(format_args!("programs go on with connections that are not theirs any more: {error}"));
    }
}

/// Why programs go on.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// This is the parent, and its host ended the barrier.
    Host,
    /// This is a child.
    Child {
        /// Whose random numbers are its own.
        reseeded: bool,
    },
    /// Neither can be seen.
    Nobody,
}

/// All that can end a barrier.
struct Watch<'a> {
    peer: &'a Peer,
    log: Option<KernelLog>,
    /// `Adopt` has brought a seed.
    seeded: &'a AtomicBool,
}

/// How far a barrier is.
#[derive(PartialEq, Eq)]
enum Stage {
    /// A fork may come, or has come.
    Held,
    /// The same, and the host was told that this ends.
    Ending,
    /// One has come, and this is a child.
    Child,
}

impl Watch<'_> {
    /// Waits until programs may go on: for the host or a fork for `held`, in a child for a seed for `child`.
    fn wait(&mut self, held: Duration, child: Duration) -> End {
        let mut stage = Stage::Held;
        let mut patience = Patience::of(held);
        loop {
            let says_so = self.log.as_mut().is_some_and(|log| log.says(RESEEDED));
            if says_so || self.seeded.load(Ordering::Acquire) {
                return End::Child { reseeded: true };
            }
            if stage != Stage::Child {
                match self.peer.receive(&mut [0; 16]) {
                    Received::Torn => (stage, patience) = (Stage::Child, Patience::of(child)),
                    // Once we spoke, this may also be a child's device that knows no such connection.
                    Received::Closed | Received::Bytes(_) if stage == Stage::Held => return End::Host,
                    _ => (),
                }
            }
            if patience.is_over() {
                match stage {
                    Stage::Held => {
                        let why = failure::of(FailureKind::Other, "nobody ended the fork barrier");
                        let _ = self.peer.reply(&Reply::Failed(why)); // Who is not there is not told.
                        (stage, patience) = (Stage::Ending, Patience::of(Duration::from_millis(BARRIER_NOTICE_MS)));
                    }
                    Stage::Ending => return End::Nobody,
                    Stage::Child => return End::Child { reseeded: false },
                }
            }
            patience.look(self.log.as_ref().map(|log| &log.0), (stage == Stage::Held).then_some(self.peer));
        }
    }
}

/// How long we still wait, in time that this machine was there for: a look that took longer than it could is one
/// during which the machine was away (it is forked, and its child not yet made), and costs no more than a whole one.
///
/// While programs stand still there is nothing but this to do, so between two looks the kernel comes to all that it has.
struct Patience {
    left: Duration,
    looked: Instant,
}

impl Patience {
    fn of(left: Duration) -> Self {
        Self { left, looked: Instant::now() }
    }

    fn is_over(&self) -> bool {
        self.left.is_zero()
    }

    /// Waits for the kernel to speak, for a word from the host, or until the next look is due.
    fn look(&mut self, log: Option<&File>, peer: Option<&Peer>) {
        let log = log.map(|log| PollFd::new(log, PollFlags::IN));
        let peer = peer.map(|peer| PollFd::new(peer, PollFlags::IN | PollFlags::RDHUP));
        let mut both: Vec<_> = log.into_iter().chain(peer).collect();
        let limit = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as _ };
        let _ = poll(&mut both, Some(&limit)); // Interrupted or not, the caller looks.
        let now = Instant::now();
        self.charge(now - self.looked);
        self.looked = now;
    }

    fn charge(&mut self, took: Duration) {
        self.left = self.left.saturating_sub(took.min(LOOK));
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

    /// Whether a line with `words` has come since the last look.
    fn says(&mut self, words: &[u8]) -> bool {
        let mut line = [0; 8192]; // The longest that the kernel hands out.
        loop {
            match self.0.read(&mut line) {
                Ok(0) => {
                    thread::sleep(Duration::from_millis(1)); // Not the kernel's log but a file, at its end.
                    return false;
                }
                Ok(len) if line[..len].windows(words.len()).any(|window| window == words) => return true,
                Ok(_) => (), // Another line; there may be more.
                // Lines were overwritten before we read them; the next read goes on behind them.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => (),
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        os::{fd::OwnedFd, unix::net::UnixStream},
    };

    /// A host, the agent's end of its connection, and a kernel's log that is ours.
    struct Setting {
        host: UnixStream,
        peer: Peer,
        log: Option<KernelLog>,
        kernel: File,
        seeded: AtomicBool,
    }

    impl Setting {
        fn new() -> Self {
            let (host, guest) = UnixStream::pair().unwrap();
            let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            let kernel = File::options().append(true).open(&path).unwrap();
            let log = Some(KernelLog(File::open(&path).unwrap()));
            Self { host, peer: Peer::new(OwnedFd::from(guest)), log, kernel, seeded: AtomicBool::new(false) }
        }

        /// As a child of a fork sees it: a Unix socket that is closed with bytes unread resets its other side.
        fn tear(&mut self) {
            self.peer.reply(&Reply::Done).unwrap();
            self.host = UnixStream::pair().unwrap().0;
        }

        fn wait(&mut self, held_ms: u64, child_ms: u64) -> (End, Duration) {
            let mut watch = Watch { peer: &self.peer, log: self.log.take(), seeded: &self.seeded };
            let began = Instant::now();
            let end = watch.wait(Duration::from_millis(held_ms), Duration::from_millis(child_ms));
            (end, began.elapsed())
        }
    }

    const LONG: u64 = 60_000;

    #[test]
    fn a_child_waits_for_its_kernels_word() {
        let mut setting = Setting::new();
        setting.tear();
        let mut kernel = setting.kernel.try_clone().unwrap();
        let speaking = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            kernel.write_all(b"5,301,98,-;random: crng reseeded due to virtual machine fork\n").unwrap();
        });
        let (end, after) = setting.wait(LONG, LONG);
        speaking.join().unwrap();
        assert_eq!(end, End::Child { reseeded: true });
        assert!((Duration::from_millis(200)..Duration::from_secs(20)).contains(&after), "{after:?}");
    }

    #[test]
    fn a_seed_from_the_host_does_as_well() {
        let mut setting = Setting::new();
        setting.tear();
        setting.seeded.store(true, Ordering::Release);
        assert_eq!(setting.wait(LONG, LONG).0, End::Child { reseeded: true });
    }

    #[test]
    fn other_words_however_many_are_no_proof_and_the_wait_is_bounded() {
        let mut setting = Setting::new();
        setting.tear();
        for _ in 0..10_000 {
            setting.kernel.write_all(b"5,301,98,-;random: crng reseeded on system resumption\n").unwrap();
        }
        let (end, after) = setting.wait(LONG, 100);
        assert_eq!(end, End::Child { reseeded: false });
        assert!(after < Duration::from_secs(20), "{after:?}");
    }

    #[test]
    fn a_child_that_notices_late_is_a_child_also_when_the_barrier_is_about_to_end() {
        let mut setting = Setting::new();
        let (host, guest) = UnixStream::pair().unwrap();
        setting.peer = Peer::new(OwnedFd::from(guest));
        let tearing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300)); // After the word to the host, which is unread.
            drop(host);
        });
        assert_eq!(setting.wait(100, 100).0, End::Child { reseeded: false });
        tearing.join().unwrap();
    }

    #[test]
    fn time_that_the_machine_was_away_costs_one_look() {
        let mut patience = Patience::of(Duration::from_millis(BARRIER_LIMIT_MS));
        patience.charge(Duration::from_secs(3600));
        assert_eq!(patience.left, Duration::from_millis(BARRIER_LIMIT_MS) - LOOK);
    }
}
