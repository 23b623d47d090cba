//! How long programs stood still.
//!
//! The heart is a process of its own among the user's programs: around a fork it is stopped and continued with them, so
//! that the gap is what a program feels, and not what the agent does.

use crate::{
    agent::{Agent, lock},
    failure,
    launch::{Plan, launch},
    peer::Peer,
};
use pando_wire::{
    agent::{Exec, Failure, Reply},
    frame,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, SocketFlags, SocketType, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
    process::{Signal, kill_process},
    stdio::stdin,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

/// The first argument that makes this binary a heart.
pub const HELPER: &str = "beat";

/// Between two beats. A gap can thus not be shorter.
const INTERVAL: Duration = Duration::from_millis(1);

/// The same, once nothing longer was seen for [`CALM`] beats: programs go on by then, and a heart that beats on while a
/// fork's children come to life takes the CPU from them. From there on a gap counts when a beat comes [`LATE`], and then
/// from the beat before: up to an interval too long, as nobody knows when in it the gap began, and never too short.
const SLOW_INTERVAL: Duration = Duration::from_millis(20);
const CALM: u32 = 40;
const LATE: Duration = Duration::from_millis(2);

/// How long a heart may take to answer. One that takes longer was stopped by somebody, and is replaced.
const LIMIT: Duration = Duration::from_secs(2);

/// A heart, beating or waiting to.
pub(crate) struct Heartbeat {
    child: crate::reaper::Child,
    control: Peer,
    beats: bool,
}

/// What a heart says, after an empty frame at its first beat.
#[derive(Serialize, Deserialize)]
struct Beats {
    longest_us: u64,
    beats: u64,
}

/// Makes a heart that waits to beat, so that the first fork need not wait for a program to start.
pub(crate) fn prepare(agent: &Agent) -> Result<(), Failure> {
    let mut heart = lock(&agent.heartbeat);
    if heart.is_none() {
        *heart = Some(make(agent)?);
    }
    Ok(())
}

/// Begins to beat. A heart that beats already begins anew.
pub(crate) fn start(agent: &Agent) -> Result<(), Failure> {
    let mut slot = lock(&agent.heartbeat);
    if let Some(heart) = slot.as_mut()
        && heart.wake()
        && heart.calm().and_then(|_| heart.begin()).is_ok()
    {
        return Ok(());
    }
    // There is none, or it does not answer.
    let mut heart = make(agent)?;
    heart.begin().map_err(|error| failure::because("start the heartbeat", error))?;
    *slot = Some(heart);
    Ok(())
}

/// Stops beating.
pub(crate) fn stop(agent: &Agent) -> Reply {
    let calmed = lock(&agent.heartbeat).as_mut().map_or(Ok(None), Heartbeat::calm);
    match calmed {
        Ok(Some(Beats { longest_us, beats })) => Reply::Gap { longest_us, beats },
        Ok(None) => Reply::Failed(failure::of(pando_wire::agent::FailureKind::Other, "no heartbeat was started")),
        Err(error) => {
            lock(&agent.heartbeat).take();
            Reply::Failed(failure::because("ask the heartbeat", error))
        }
    }
}

/// Stops a heart that a child of a fork has from its parent.
pub(crate) fn forget(agent: &Agent) {
    stop(agent);
}

fn make(agent: &Agent) -> Result<Heartbeat, Failure> {
    let cannot = |error: io::Error| failure::because("make a heartbeat", error);
    let argv = vec![agent.helper.to_string_lossy().into_owned(), HELPER.to_owned()];
    let plan = Plan::new(agent, &Exec { argv, ..Exec::default() })?;
    let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| cannot(error.into()))?;
    set_socket_timeout(&control, Timeout::Recv, Some(LIMIT)).map_err(|error| cannot(error.into()))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(cannot)?;
    let child = launch(agent, &plan, [theirs.as_fd(), null.as_fd(), null.as_fd()])?;
    Ok(Heartbeat { child, control: Peer::new(control), beats: false })
}

impl Heartbeat {
    /// Lets it go on, should somebody have stopped every process (`kill -STOP -1`). Whether it is there.
    fn wake(&self) -> bool {
        self.child.exit.try_recv().is_err() && kill_process(self.child.pid, Signal::CONT).is_ok()
    }

    /// Lets it beat, and waits for its first beat, so that no gap after that goes unseen.
    fn begin(&mut self) -> io::Result<()> {
        frame::write(&mut &self.control, &())?;
        let first = frame::read::<()>(&mut &self.control)?;
        self.beats = first.is_some();
        first.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Lets it wait. `None` when it did not beat.
    fn calm(&mut self) -> io::Result<Option<Beats>> {
        if !std::mem::take(&mut self.beats) {
            return Ok(None);
        }
        frame::write(&mut &self.control, &())?;
        let told = frame::read(&mut &self.control)?;
        told.map(Some).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        if self.child.exit.try_recv().is_err() {
            let _ = kill_process(self.child.pid, Signal::KILL);
        }
    }
}

/// What the heart does: whenever its standard input has a word, beat until the next. For `main`.
pub fn beat() -> ! {
    let Ok(control) = rustix::io::fcntl_dupfd_cloexec(stdin(), 3) else { std::process::exit(126) };
    let control = Peer::new(control);
    while let Ok(Some(())) = frame::read(&mut &control) {
        if beat_once_asked(&control).is_err() {
            break;
        }
    }
    std::process::exit(0)
}

/// Beats until the next word, and tells.
fn beat_once_asked(control: &Peer) -> io::Result<()> {
    let mut seen = Beats { longest_us: 0, beats: 0 };
    let mut last = Instant::now();
    frame::write(&mut &*control, &())?;
    let mut calm_beats = 0;
    loop {
        let interval = if calm_beats < CALM { INTERVAL } else { SLOW_INTERVAL };
        let timeout = Timespec { tv_sec: 0, tv_nsec: interval.as_nanos() as _ };
        let asked = poll(&mut [PollFd::new(control, PollFlags::IN)], Some(&timeout)).is_ok_and(|count| count > 0);
        // `Instant` is CLOCK_MONOTONIC: it does not jump when the wall clock is set.
        let now = Instant::now();
        let beat = now - last;
        let gap = if interval > INTERVAL && beat < interval + LATE { INTERVAL } else { beat };
        let gap_us = gap.as_micros().try_into().unwrap_or(u64::MAX);
        calm_beats = if gap_us > seen.longest_us { 0 } else { calm_beats + 1 };
        seen.longest_us = seen.longest_us.max(gap_us);
        seen.beats += 1;
        last = now;
        if asked {
            frame::read::<()>(&mut &*control)?;
            return frame::write(&mut &*control, &seen);
        }
    }
}
