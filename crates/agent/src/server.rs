//! Connections in, requests to their place.

use crate::{
    agent::{Agent, lock},
    console::say,
    failure, files, heartbeat, identity, launch,
    peer::Peer,
    power, session, twins,
};
use pando_wire::{
    agent::{FailureKind, PORT, Reply, Request, VERSION},
    frame,
};
use rustix::time::{ClockId, Timespec, clock_settime};
use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener};

/// Connections at a time, each with a thread. A program whose host hung up keeps its place until it ends.
pub const MAX_CONNECTIONS: usize = 256;

/// Listens on [`PORT`]. A listening socket outlives the reset of connections in a child of a fork.
pub fn listen() -> io::Result<VsockListener> {
    VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT)
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
    let place = Place::take(Arc::clone(agent));
    let peer = Arc::new(Peer::new(socket));
    let refuse = |peer: &Peer, why: &str| {
        // Small enough to fit into the socket's buffer: this cannot block.
        let _ = peer.reply(&Reply::Failed(failure::of(FailureKind::Other, why)));
        peer.end();
    };
    let Some(place) = place else {
        return refuse(&peer, &format!("the agent serves {MAX_CONNECTIONS} connections already"));
    };
    let thread = {
        let peer = Arc::clone(&peer);
        thread::Builder::new().name("connection".into()).spawn(move || {
            // An error here is a host that went away, and there is nobody else to tell.
            let _ = serve(&place.0, &peer);
            peer.end();
            // Behind the answer, because nobody waits for this.
            launch::prepare(&place.0);
        })
    };
    if let Err(error) = thread {
        refuse(&peer, &format!("the agent cannot start a thread: {error}"));
    }
}

fn serve(agent: &Agent, peer: &Peer) -> io::Result<()> {
    let request = match frame::read(&mut &*peer) {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(error) => return peer.reply(&Reply::Failed(failure::because("read the request", error))),
    };
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
    }
}

/// One of [`MAX_CONNECTIONS`], given back when dropped.
struct Place(Arc<Agent>);

impl Place {
    fn take(agent: Arc<Agent>) -> Option<Self> {
        let taken = agent.connections.fetch_add(1, Ordering::Relaxed);
        let place = Self(agent); // Before the check, so that a refused one is given back too.
        (taken < MAX_CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
