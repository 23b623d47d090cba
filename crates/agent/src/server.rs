//! Connections in, requests to their place.

use crate::{
    agent::{Agent, lock},
    console::say,
    failure, files, heartbeat, identity, launch,
    peer::Peer,
    power, session, twins,
};
use pando_wire::{
    agent::{FailureKind, MAX_FORWARDS, PORT, Reply, Request, UNREADABLE, VERSION},
    frame,
};
use rustix::time::{ClockId, Timespec, clock_settime};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener};

/// Requests at a time, each with a thread. A program whose host hung up keeps its place until it ends. What is forwarded
/// has no thread, and takes none of these places.
pub const MAX_CONNECTIONS: usize = 256;

/// Connections of which the agent has not heard yet what they want, each with a thread until then. As many as can want
/// something at all.
pub const MAX_ARRIVING: usize = MAX_CONNECTIONS + MAX_FORWARDS;

/// Connections that the kernel keeps until they are accepted. A host that makes as many at once as there can be finds none
/// refused.
const BACKLOG: i32 = MAX_ARRIVING as i32;

/// Listens on [`PORT`]. A listening socket outlives the reset of connections in a child of a fork.
pub fn listen() -> io::Result<VsockListener> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT)?;
    // Again, as the crate knows one backlog only.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Serves the host whenever it comes, for ever, and nobody else.
pub fn accept(agent: &Arc<Agent>, listener: &VsockListener) -> ! {
    loop {
        match listener.accept() {
            Ok((stream, from)) if from.cid() == VMADDR_CID_HOST => admit(agent, OwnedFd::from(stream)),
            // A program of the guest, over a kernel's vsock loopback: it would become root by asking.
            Ok(_) => (),
            Err(error) => {
                // Short of memory or descriptors: it may pass.
                say(format_args!("cannot accept a connection: {error}"));
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Serves one connection on a thread of its own, or refuses it.
pub fn admit(agent: &Arc<Agent>, socket: OwnedFd) {
    let place = Place::take(agent, |agent| &agent.arriving, MAX_ARRIVING);
    let peer = Arc::new(Peer::new(socket));
    let Some(place) = place else { return refuse(&peer, format_args!("{MAX_ARRIVING} connections wait already")) };
    let thread = {
        let (peer, agent) = (Arc::clone(&peer), Arc::clone(agent));
        thread::Builder::new().name("connection".into()).spawn(move || {
            // An error here is a host that went away, and there is nobody else to tell.
            match hear(&peer) {
                Ok(Some(Request::Connect { port })) => forward(&agent, &peer, port),
                Ok(Some(request)) => {
                    drop(place);
                    take_place(&agent, &peer, request);
                }
                Ok(None) | Err(_) => peer.end(),
            }
        })
    };
    if let Err(error) = thread {
        refuse(&peer, format_args!("the agent cannot start a thread: {error}"));
    }
}

/// Says why not, which is small enough to fit into the socket's buffer: this cannot block.
fn refuse(peer: &Peer, why: impl std::fmt::Display) {
    let _ = peer.reply(&Reply::Failed(failure::of(FailureKind::Other, why.to_string())));
    peer.end();
}

/// The request of a connection; none if it has no intelligible one.
fn hear(peer: &Peer) -> io::Result<Option<Request>> {
    match frame::read(&mut &*peer) {
        Err(error) => {
            peer.reply(&Reply::Failed(failure::because(UNREADABLE, error)))?;
            Ok(None)
        }
        heard => heard,
    }
}

/// Hands the connection on.
fn forward(agent: &Agent, peer: &Peer, port: u16) {
    match peer.as_fd().try_clone_to_owned() {
        Ok(host) => agent.forwards.take(host, port),
        Err(error) => refuse(peer, format_args!("the agent cannot forward connections: {error}")),
    }
}

/// Serves a request if there is a place for it.
fn take_place(agent: &Arc<Agent>, peer: &Peer, request: Request) {
    let Some(_place) = Place::take(agent, |agent| &agent.connections, MAX_CONNECTIONS) else {
        return refuse(peer, format_args!("the agent serves {MAX_CONNECTIONS} connections already"));
    };
    let _ = serve(agent, peer, request);
    peer.end();
    // Behind the answer, because nobody waits for this.
    launch::prepare(agent);
}

fn serve(agent: &Agent, peer: &Peer, request: Request) -> io::Result<()> {
    match request {
        Request::Ping => peer.reply(&Reply::Pong { version: VERSION, generation: agent.identity().generation }),
        Request::Exec(exec) => session::serve(agent, peer, &exec),
        Request::Put { path } => files::put(&agent.root, peer, &path),
        Request::Get { path } => files::get(&agent.root, peer, &path),
        Request::Stat { path } => files::stat(&agent.root, peer, &path),
        Request::Adopt { identity, seed } => peer.reply(&identity::adopt(agent, identity, &seed)),
        Request::HeartbeatStop => peer.reply(&heartbeat::stop(agent)),
        Request::PowerOff => {
            let told = peer.reply(&Reply::Done);
            peer.end();
            // Once is enough, and nobody may freeze programs that are to end.
            let _alone = lock(&agent.barrier);
            power::off();
            told
        }
        Request::SetClock { unix_ns } => {
            let time = Timespec {
                tv_sec: (unix_ns / 1_000_000_000) as _,  // Fits: 2^64 ns are 584 years.
                tv_nsec: (unix_ns % 1_000_000_000) as _, // Fits: less than a billion.
            };
            let set = clock_settime(ClockId::Realtime, time);
            peer.conclude(set.map_err(|error| failure::because("set the clock", error)))
        }
        Request::ForkBarrier => twins::serve(agent, peer),
        // It was handed on before.
        Request::Connect { .. } => Ok(()),
    }
}

/// One of a limited number of places, given back when dropped.
struct Place {
    agent: Arc<Agent>,
    counter: fn(&Agent) -> &AtomicUsize,
}

impl Place {
    fn take(agent: &Arc<Agent>, counter: fn(&Agent) -> &AtomicUsize, limit: usize) -> Option<Self> {
        let taken = counter(agent).fetch_add(1, Ordering::Relaxed);
        let place = Self { agent: Arc::clone(agent), counter }; // Before the check, so that a refused one is given back too.
        (taken < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.counter)(&self.agent).fetch_sub(1, Ordering::Relaxed);
    }
}
