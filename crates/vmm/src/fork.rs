//! A live VM becomes several: the point of it all.
//!
//! ```text
//! parent   run ── pause · save · seal · fork(2) · resume ── run
//!                                         │
//! seed                                    └─ frozen memory, no KVM ─ fork(2) × (N - 1) ─ is the last child
//!                                                                      │
//! children                                                             └─ wait for Start ─ Vm::start(Image) ─ run
//! ```
//!
//! A seed whose `Start` does not come is kept: a checkpoint. It can be forked again and again, as it stands still anyway,
//! and written to a store (`save`).
//!
//! The parent pauses once, however many children there are, and for one child memory is forked once. Nothing of the parent's is dropped in the seed or a
//! child: `pando_sys::fork` does not return there, so what the parent's stack still owns is simply never looked at again.
//!
//! A child shares three open files with its parent, and no other: its standard descriptors, until its `Start` gives it
//! a standard error of its own. Standard input and output are what the first monitor of the tree was started with as
//! standard output, `/dev/null`, for all of the tree and for ever. Whatever the daemon opens once and hands to several
//! monitors (`/dev/kvm`, the base, sealed layers) these share with each other; they are only ever used in ways that
//! leave no trace in an open file: ioctls, positioned reads.
//!
//! Whoever dies in between takes nobody along. The parent may end as soon as there is a seed; a seed that ends early
//! leaves the children that it has made, and the sockets of the others close, as a child's does that cannot be forked
//! or that ends before its start is through. Nobody waits for a child: the kernel puts away what is left of one.

use crate::image::{DiskImage, Image};
use crate::machine::MachineState;
use crate::owner;
use crate::vm::{Stopwatch, Vm, micros};
use pando_sys::SysError;
use pando_wire::control::{ForkTimings, Listener, Phase};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// What a child of a fork knows when it begins to live.
pub(crate) struct Inherited {
    pub(crate) image: Image,
    /// When the parent was told to stop.
    pub(crate) asked: Instant,
    /// When the seed had forked this child.
    pub(crate) born: Instant,
}

/// Why a VM was not forked. It goes on as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForkError {
    /// The state of a vCPU or the interrupt controllers.
    #[error("cannot save the state of the VM")]
    Save(#[source] SysError),
    /// `fork(2)` itself: no memory for the page tables, or a limit on processes.
    #[error("the host has no room for another process")]
    Fork(#[source] SysError),
    /// The guest powered off, reset or crashed just then: its child would be one that nobody knows to be dead.
    #[error("the guest has ended")]
    Ended,
    /// In a child, what is missing would be zeroes.
    #[error("the memory of the VM is still on its way: gather it first")]
    Arriving,
    /// Cannot be: the VM stood still, and did not.
    #[error("the VM did not stand still")]
    NotPaused,
}

impl Vm {
    /// Copies the VM into as many children as there are `listeners`, each of which gets one and waits on it for its
    /// files. A VM that was paused stays so.
    pub(crate) fn fork(&mut self, listeners: Vec<OwnedFd>) -> Result<ForkTimings, ForkError> {
        self.copy(listeners, |image, listeners, asked| grow(image, listeners, asked)).map(|(_seed, timings)| timings)
    }

    /// Copies the VM into one process, which has the descriptors to `keep` and lives as `live` says. The answer is its process
    /// id.
    pub(crate) fn copy(
        &mut self,
        keep: Vec<OwnedFd>,
        live: impl FnOnce(Image, Vec<OwnedFd>, Instant),
    ) -> Result<(u32, ForkTimings), ForkError> {
        let arriving = self.arriving.clone();
        if arriving.as_ref().is_some_and(|arriving| arriving.is_incomplete()) {
            return Err(ForkError::Arriving);
        }
        let huge = self.huge.clone();
        // Before the guest has to stand still, as there may be a huge page in the making, and threads that end.
        let mut held_huge = huge.hold();
        pando_sys::settle();
        let asked = Instant::now();
        let mut clock = Stopwatch(asked);
        let was_running = self.phase() == Phase::Running;
        self.pause().map_err(ForkError::Save)?;
        let mut timings =
            ForkTimings { park_us: clock.lap_us(), expected_pages: self.expected.pages(), ..Default::default() };
        // Memory is there, but may be on its way into huge pages.
        let held = arriving.as_ref().map(|arriving| arriving.pager.hold());
        held_huge.stand_still();
        let in_copy = |image, kept| live(image, kept, asked);
        // Where the parent closes its own ends of what was kept, it runs again.
        let forked = self.fork_paused(keep, in_copy, &mut timings, &mut clock);
        if was_running {
            self.resume();
            let running = self.running_since();
            timings.resume_us = clock.lap_us_at(running);
            timings.pause_us = micros(running - asked);
        } else {
            timings.pause_us = micros(asked.elapsed());
        }
        drop((held, held_huge));
        self.begin_huge_pages();
        forked.map(|(copy, _kept)| (copy, timings))
    }

    /// Everything inside the pause. Returns the copy's process id, and what the parent has no use for any more.
    fn fork_paused(
        &mut self,
        keep: Vec<OwnedFd>,
        live: impl FnOnce(Image, Vec<OwnedFd>),
        timings: &mut ForkTimings,
        clock: &mut Stopwatch,
    ) -> Result<(u32, Vec<OwnedFd>), ForkError> {
        if self.has_ended() {
            return Err(ForkError::Ended);
        }
        let machine = self.machine_state().map_err(ForkError::Save)?.ok_or(ForkError::NotPaused)?;
        timings.save_us = clock.lap_us();
        if !cfg!(feature = "plant-late-disk") {
            self.platform.seal_disk();
        }
        timings.seal_us = clock.lap_us();
        let forked = pando_sys::fork(keep, |kept| live(self.frozen(machine), kept));
        let (copy, kept) = forked.map_err(ForkError::Fork)?;
        timings.fork_us = clock.lap_us();
        Ok((copy.as_raw_nonzero().get().unsigned_abs(), kept))
    }

    /// What the copy has of the VM, in the copy.
    fn frozen(&self, machine: MachineState) -> Image {
        if cfg!(feature = "plant-late-disk") {
            self.platform.seal_disk();
        }
        let Some(disk) = self.platform.take_disk() else { std::process::exit(1) };
        let disk = DiskImage::Sealed(Box::new(disk.into_sealed()));
        let (memory, expected) = (self.memory.clone(), self.expected.clone());
        Image { machine, memory, disk, expected, arriving: None }
    }
}

impl Inherited {
    /// Copies a seed into as many children as there are `listeners`. It has nothing to pause, and stays a seed.
    ///
    /// `seed` is emptied in the child alone.
    pub(crate) fn fork(seed: &mut Option<Self>, listeners: Vec<OwnedFd>) -> Result<ForkTimings, ForkError> {
        let asked = Instant::now();
        let expected_pages = seed.as_ref().map_or(0, |seed| seed.image.expected.pages());
        let in_child = |listeners| match seed.take() {
            Some(seed) => grow(seed.image, listeners, asked),
            None => std::process::exit(1),
        };
        let (_child, _listeners) = pando_sys::fork(listeners, in_child).map_err(ForkError::Fork)?;
        let fork_us = micros(asked.elapsed());
        Ok(ForkTimings { pause_us: fork_us, fork_us, expected_pages, ..Default::default() })
    }
}

/// The seed: forks all children but one, and is that one itself. A child that cannot be forked is one whose listener
/// closes; its siblings live.
fn grow(image: Image, mut listeners: Vec<OwnedFd>, asked: Instant) -> ! {
    let mine = listeners.pop();
    let mut image = Some(image);
    for listener in listeners {
        let _ = pando_sys::fork(vec![listener], |mut kept| live(image.take(), kept.pop(), asked));
    }
    live(image, mine, asked)
}

/// A child, the seed included.
fn live(image: Option<Image>, listener: Option<OwnedFd>, asked: Instant) -> ! {
    let (Some(image), Some(listener)) = (image, listener) else { std::process::exit(1) };
    owner::live_as_child(Listener::from_fd(listener), Inherited { image, asked, born: Instant::now() })
}
