//! One owner per VM: it alone starts, pauses, forks and ends it, on request or because the guest did something.

use crate::complaints::{self, say};
use crate::files::{self, More};
use crate::fork::Inherited;
use crate::gate::lock;
use crate::image::{DiskImage, Image};
use crate::platform::Twin;
use crate::save::SaveError;
use crate::vm::{Vm, micros};
use pando_devices::virtio::net::Counters;
use pando_wire::control::{
    Connection, Ending, Frames, Listener, MAX_CHILDREN, Origin, Phase, Request, Response, Start, StartTimings, Status,
    VERSION, WorkingSet,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// All that can happen to a VM beside a request.
pub(crate) enum Event {
    /// The guest ended.
    Ended(Ending),
    /// The last page of the memory has come.
    MemoryIsThere,
    /// Pages of the memory never will, for this reason. Threads that need one wait for ever.
    MemoryIsLost(String),
}

/// Where threads of the VM leave what the owner must know.
#[derive(Clone)]
pub(crate) struct Events(Arc<(Mutex<VecDeque<Event>>, OwnedFd)>);

impl Events {
    pub(crate) fn new() -> io::Result<Self> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new((Mutex::default(), ready))))
    }

    pub(crate) fn send(&self, event: Event) {
        lock(&self.0.0).push_back(event);
        // It can only fail when the counter is at its limit, and then the owner is as good as awake.
        let _ = rustix::io::write(&self.0.1, &1u64.to_ne_bytes());
    }

    /// The next one. Whoever takes all of them need not be woken for those that came before.
    pub(crate) fn take(&self) -> Option<Event> {
        // There may be nothing to clear.
        let _ = rustix::io::read(&self.0.1, &mut [0u8; 8]);
        lock(&self.0.0).pop_front()
    }
}

/// The monitor of one VM: `pando vmm`. Standard input is its listening control socket.
pub fn main(name: &str) -> ExitCode {
    let listener = match take_stdin() {
        Ok(listener) => listener,
        Err(error) => {
            say(&format!("error: {name}: standard input is not a control socket\n  because: {error}"));
            return ExitCode::FAILURE;
        }
    };
    // Children of forks are the daemon's to look after, and end whenever they do.
    if let Err(error) = pando_sys::disown_children() {
        say(&format!("error: {name}: {error}"));
        return ExitCode::FAILURE;
    }
    live(listener, None)
}

/// The same, for a child of a fork.
pub(crate) fn live_as_child(listener: Listener, inherited: Inherited) -> ! {
    let code = live(listener, Some(inherited));
    std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 1 })
}

/// Moves the control socket away from descriptor 0: standard descriptors are inherited by every child of a fork, and a
/// child that held its parent's socket would make the parent look alive after its death.
fn take_stdin() -> io::Result<Listener> {
    let listener = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
    rustix::stdio::dup2_stdin(io::stdout().as_fd())?;
    match rustix::net::sockopt::socket_acceptconn(&listener)? {
        true => Ok(Listener::from_fd(listener)),
        false => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

fn live(listener: Listener, inherited: Option<Inherited>) -> ExitCode {
    let ending = Owner::new(listener, inherited).and_then(|mut owner| owner.run());
    match ending {
        Ok(Ending::Crashed(how)) => {
            say(&format!("error: the guest cannot go on\n  because: {how}"));
            ExitCode::FAILURE
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: the monitor cannot go on\n  because: {error}"));
            ExitCode::FAILURE
        }
    }
}

struct Owner {
    listener: Listener,
    connections: Vec<Peer>,
    events: Events,
    /// Until the VM is started; then what it was made from is gone.
    inherited: Option<Inherited>,
    is_child: bool,
    /// It has begun to start from a checkpoint: what is left of that is no place for another start.
    is_restored: bool,
    vm: Option<Vm>,
}

struct Peer {
    connection: Connection,
    watches: bool,
    /// It is answered when all memory is there, and asks for nothing before.
    gathers: bool,
}

impl Owner {
    fn new(listener: Listener, inherited: Option<Inherited>) -> io::Result<Self> {
        let events = Events::new()?;
        let is_child = inherited.is_some();
        Ok(Self { listener, connections: Vec::new(), events, inherited, is_child, is_restored: false, vm: None })
    }

    /// Serves until the VM ends.
    fn run(&mut self) -> io::Result<Ending> {
        loop {
            let ready = self.wait()?;
            let mut ready = ready.into_iter();
            let is_knocking = ready.next() == Some(true);
            while let Some(event) = self.events.take() {
                match event {
                    Event::Ended(ending) => return Ok(self.end(ending)),
                    Event::MemoryIsLost(how) => return Ok(self.end(Ending::Crashed(how))),
                    Event::MemoryIsThere => {
                        self.answer_gathering(&Response::Done);
                        if let Some(arriving) = self.vm.as_ref().and_then(|vm| vm.arriving.as_ref()) {
                            arriving.finish();
                        }
                    }
                }
            }
            ready.next(); // The events, which were just looked at.
            let peers: Vec<bool> = ready.collect();
            // From the last to the first, so that a peer that is removed does not move one still to be served.
            for index in (0..peers.len()).rev().filter(|index| peers[*index]) {
                if let Some(ending) = self.serve(index) {
                    return Ok(self.end(ending));
                }
            }
            if is_knocking {
                self.welcome(); // Last, as it may send one of the others away.
            }
        }
    }

    /// Accepts a connection. When there is no room for one (of descriptors, or of memory), whoever has been silent for
    /// longest makes room: a VM does not end because too many want to know how it is.
    fn welcome(&mut self) {
        let connection = self.listener.accept().and_then(|connection| {
            // A peer that sends and never reads must not stop the VM.
            rustix::io::ioctl_fionbio(&connection, true)?;
            Ok(connection)
        });
        match (connection, self.connections.iter().position(|peer| !peer.watches && !peer.gathers)) {
            (Ok(connection), _) => self.connections.push(Peer { connection, watches: false, gathers: false }),
            (Err(_), Some(silent)) => drop(self.connections.remove(silent)),
            // Nobody here can make room; it may come free elsewhere.
            (Err(_), None) => thread::sleep(Duration::from_millis(10)),
        }
    }

    /// Waits for anything to happen. Which of listener, events and connections are ready, in that order.
    fn wait(&self) -> io::Result<Vec<bool>> {
        let own = [self.listener.as_fd(), self.events.0.1.as_fd()].map(|fd| (fd, PollFlags::IN));
        let connections = self.connections.iter().map(|peer| {
            // That it is gone is told in any case.
            (peer.connection.as_fd(), if peer.gathers { PollFlags::empty() } else { PollFlags::IN })
        });
        let all = own.into_iter().chain(connections);
        let mut fds: Vec<_> = all.map(|(fd, what)| PollFd::from_borrowed_fd(fd, what)).collect();
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => Ok(vec![false; fds.len()]),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect()),
        }
    }

    /// Serves one request of a connection. Returns how the VM ends, if that was the request.
    fn serve(&mut self, index: usize) -> Option<Ending> {
        let received = self.connections[index].connection.receive::<Request>();
        let Ok(Some((request, descriptors))) = received else {
            // It is gone, or speaks another language: either way there is nobody to answer.
            self.connections.remove(index);
            return None;
        };
        let response = match request {
            Request::Kill => {
                self.answer(index, &Response::Done);
                return Some(Ending::Killed);
            }
            Request::Start(start) => self.start(&start, descriptors),
            Request::Fork(fork) => self.fork(fork.children, descriptors),
            Request::Pause => self.with_vm(|vm| vm.pause().map(|()| Response::Done)),
            Request::Resume => self.with_vm(|vm| {
                vm.resume();
                Ok::<_, Refusal>(Response::Done)
            }),
            Request::Status => Response::Status(self.status()),
            Request::Touched => self.touched(descriptors),
            Request::Expect(pages) => self.expect(pages),
            Request::Watch => {
                self.connections[index].watches = true;
                Response::Done
            }
            Request::Save => self.with_seed(|seed| seed.save(None, descriptors).map(|()| Response::Done)),
            Request::SaveSince(earlier) => {
                self.with_seed(|seed| seed.save(Some(earlier), descriptors).map(|()| Response::Done))
            }
            Request::SaveWithoutDisk => {
                self.with_seed(|seed| seed.save_without_disk(descriptors).map(|()| Response::Done))
            }
            Request::DiskSeal => self.with_seed(|seed| seed.disk_seal().map(Response::DiskSeal)),
            Request::Serve(fork) => self.with_vm(|vm| vm.serve(fork.children, descriptors).map(Response::Serving)),
            Request::Vcpus => self.with_vm(|vm| vm.vcpu_places().map(Response::Vcpus)),
            Request::Frames => self.with_vm(|vm| Ok::<_, Refusal>(Response::Frames(vm.platform.frames().map(told)))),
            Request::Flush => self.with_vm(|vm| vm.flush().map(|()| Response::Done)),
            Request::Gather => {
                self.connections[index].gathers = self.is_gathering();
                if self.connections[index].gathers {
                    return None;
                }
                Response::Done
            }
        };
        self.answer(index, &response);
        self.spent()
    }

    /// How a VM ends that has nothing left to start from.
    fn spent(&self) -> Option<Ending> {
        if self.vm.is_some() {
            return None;
        }
        let from = match (self.is_restored, self.is_child && self.inherited.is_none()) {
            (true, _) => "from its checkpoint",
            (false, true) => "as a child of its parent",
            (false, false) => return None,
        };
        Some(Ending::Crashed(format!("it could not be started {from}")))
    }

    fn answer(&mut self, index: usize, response: &Response) {
        if self.connections[index].connection.send(response, &[]).is_err() {
            // It is gone, or does not take its answers: what it would read next is not what it asked for.
            self.connections.remove(index);
        }
    }

    /// Has what is missing of the memory come as fast as it can. Whether anything is; a seed has all, as has who has
    /// nothing yet.
    fn is_gathering(&self) -> bool {
        self.vm.as_ref().and_then(|vm| vm.arriving.as_ref()).is_some_and(|arriving| arriving.hurry())
    }

    /// Answers those who wait for all memory to be there.
    fn answer_gathering(&mut self, response: &Response) {
        for peer in &mut self.connections {
            if std::mem::take(&mut peer.gathers) {
                // Who is gone is told by the next `wait`: nobody is removed here, where `run` may know them by their place.
                let _ = peer.connection.send(response, &[]);
            }
        }
    }

    fn status(&self) -> Status {
        let phase = self.vm.as_ref().map_or(Phase::Created, Vm::phase);
        Status { version: VERSION, pid: std::process::id(), phase }
    }

    fn end(&mut self, ending: Ending) -> Ending {
        let mut why = vec!["the VM has ended before all of its memory was there".to_owned()];
        if let Ending::Crashed(how) = &ending {
            why.push(how.clone());
        }
        self.answer_gathering(&Response::Refused(why));
        for peer in self.connections.iter().filter(|peer| peer.watches) {
            let _ = peer.connection.send(&Response::Ended(ending.clone()), &[]);
        }
        ending
    }

    fn with_vm<E: Error + 'static>(&mut self, action: impl FnOnce(&mut Vm) -> Result<Response, E>) -> Response {
        match self.vm.as_mut() {
            None => refused(&Refusal::NotStarted),
            Some(vm) => action(vm).unwrap_or_else(|error| refused(&error)),
        }
    }

    fn touched(&mut self, descriptors: Vec<OwnedFd>) -> Response {
        let Some(pagemap) = descriptors.into_iter().next().map(File::from) else {
            return refused(&Refusal::Pagemap);
        };
        self.with_vm(|vm| vm.touched(&pagemap).map(Response::Touched))
    }

    fn start(&mut self, start: &Start, descriptors: Vec<OwnedFd>) -> Response {
        if self.vm.is_some() {
            return refused(&Refusal::Started);
        }
        match self.try_start(start, descriptors) {
            Ok((vm, timings)) => {
                self.vm = Some(vm);
                Response::Started(timings)
            }
            Err(error) => refused(error.as_ref()),
        }
    }

    fn try_start(&mut self, start: &Start, descriptors: Vec<OwnedFd>) -> Result<(Vm, StartTimings), Box<dyn Error>> {
        let mut timings = StartTimings::default();
        let (files, more) = files::take(start, descriptors)?;
        if let Some(inherited) = &self.inherited {
            // Nothing is used up yet.
            inherited.image.machine.platform.check_taps(files.taps.len())?;
        }
        // What a monitor says about this VM belongs into this VM's log, also when it was forked from another.
        rustix::stdio::dup2_stderr(&files.console)?;
        let (image, asked, is_new) = match (&start.origin, more, self.inherited.take()) {
            (Origin::Boot(boot), More::Boot(mut from), None) => {
                let asked = Instant::now();
                let disk = match boot.recover_layers {
                    true => DiskImage::Kept { inherited_journals: from.inherited_journals, is_alone: false },
                    false => DiskImage::Fresh { len_bytes: boot.disk_bytes },
                };
                let image =
                    Image::from_kernel(&files.kvm, boot, start.network, &mut from.kernel, &mut from.initramfs, disk)?;
                (image, asked, false)
            }
            (Origin::Checkpoint(restore), More::Checkpoint(connections), None) => {
                let asked = Instant::now();
                self.is_restored = true;
                let image = Image::from_server(&files.kvm, &restore.into(), connections, self.events.clone())?;
                (image, asked, restore.is_twin)
            }
            (Origin::Asleep(asleep), More::Asleep(from), None) => {
                let asked = Instant::now();
                self.is_restored = true;
                let image = Image::from_server(&files.kvm, &asleep.into(), from.connections, self.events.clone())?;
                (image.with_own_disk(from.inherited_journals, asleep.is_alone), asked, false)
            }
            (Origin::Fork, More::Fork, Some(mut inherited)) => {
                timings.seed_us = micros(inherited.born - inherited.asked);
                timings.wait_us = micros(inherited.born.elapsed());
                let unsharing = Instant::now();
                inherited.image.unshare_expected();
                timings.copy_us = micros(unsharing.elapsed());
                (inherited.image, inherited.asked, true)
            }
            (_, _, inherited) => {
                self.inherited = inherited;
                return Err(Refusal::Origin.into());
            }
        };
        let twin = Twin { id: start.generation, is_new };
        let mut vm = Vm::start(image, files, &twin, self.events.clone(), &mut timings)?;
        vm.platform.repeat_interrupts();
        if !stands_still(&start.origin) {
            vm.resume();
        }
        timings.total_us = micros(asked.elapsed());
        if self.is_child {
            vm.begin_huge_pages();
        }
        Ok((vm, timings))
    }

    fn fork(&mut self, children: u32, listeners: Vec<OwnedFd>) -> Response {
        let count = children as usize;
        if !(1..=MAX_CHILDREN).contains(&count) || listeners.len() != count {
            return refused(&Refusal::Children { asked: children, listeners: listeners.len() });
        }
        let forked = match (&mut self.vm, &mut self.inherited) {
            (Some(vm), _) => vm.fork(listeners),
            (None, seed @ Some(_)) => Inherited::fork(seed, listeners),
            (None, None) => return refused(&Refusal::NotStarted),
        };
        forked.map_or_else(|error| refused(&error), Response::Forked)
    }

    fn expect(&mut self, pages: WorkingSet) -> Response {
        match (&mut self.vm, &mut self.inherited) {
            (Some(vm), _) => vm.expected = pages,
            (None, Some(seed)) => seed.image.expected = pages,
            (None, None) => return refused(&Refusal::NotStarted),
        }
        Response::Done
    }

    fn with_seed(&self, work: impl FnOnce(&Inherited) -> Result<Response, SaveError>) -> Response {
        let Some(seed) = &self.inherited else { return refused(&Refusal::NotASeed) };
        work(seed).unwrap_or_else(|error| refused(&error))
    }
}

/// Whether a VM that begins so waits for who woke it to have written that down.
fn stands_still(origin: &Origin) -> bool {
    match origin {
        Origin::Boot(_) | Origin::Fork => false,
        Origin::Checkpoint(restore) => !restore.is_twin,
        Origin::Asleep(_) => true,
    }
}

/// Requests that the VM is in no state for.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the VM has not been started")]
    NotStarted,
    #[error("the VM has been started before")]
    Started,
    #[error("only a seed is saved: a child of a fork that has not been started")]
    NotASeed,
    #[error("a forked monitor starts from its fork, and any other from a boot or a checkpoint")]
    Origin,
    #[error("{asked} children with {listeners} sockets; 1 to {MAX_CHILDREN} children have one each")]
    Children { asked: u32, listeners: usize },
    #[error("the pages of a VM are asked for with its pagemap")]
    Pagemap,
}

/// What is told of a network card's counters: what passed, the tap counts too.
fn told(counters: Counters) -> Frames {
    let Counters {
        sent: _,
        received: _,
        sent_without_link,
        sent_malformed,
        sent_too_long,
        sent_as_another,
        sent_refused,
        received_too_long,
        received_broken,
    } = counters;
    Frames {
        sent_without_link,
        sent_malformed,
        sent_too_long,
        sent_as_another,
        sent_refused,
        received_too_long,
        received_broken,
    }
}

fn refused(error: &(dyn Error + 'static)) -> Response {
    Response::Refused(complaints::chain(error))
}
