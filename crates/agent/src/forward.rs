//! Connect: the host's connections to what listens in the guest.
//!
//! One thread and one `epoll` for all of them, whatever their number: one that is idle costs two descriptors and no
//! memory to speak of, one whose reader is slow [`CHUNK`] bytes each way. The thread begins with the first.
//!
//! ```text
//! host ──► agent ──connect──► 127.0.0.1:port, or else [::1]:port
//!   ◄── Done, then bytes both ways ──►          or Failed, and the agent closes
//! ```
//!
//! *Invariant.* What ended well ended half by half: a half that is over is passed on as such, and the connection is closed
//! when both are. So an end of both halves at once is a connection that broke, and neither side takes it for the end of
//! what was sent:
//!
//! * The guest's program reset its side: the host's is closed as a whole.
//! * The host went away: the program's side is closed.
//! * The connection is *torn* (see [`Received::Torn`](crate::peer::Received::Torn)): this is the child of a fork. The
//!   program's side is reset, so that a server notices that its client is another VM's now.

use crate::{agent::lock, console::say, failure};
use pando_wire::{
    agent::{Failure, FailureKind, MAX_FORWARDS, Reply},
    frame,
};
use rustix::{
    buffer::spare_capacity,
    event::{
        EventfdFlags, Timespec,
        epoll::{self, Event, EventData, EventFlags},
        eventfd,
    },
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, connect, getpeername, recv, send,
        shutdown, socket_with, sockopt,
    },
};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// Where a program is looked for, in this order. One that listens on any address is found at the first.
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// How much of one direction of a connection waits for who reads it, in bytes, beside what the kernel keeps.
const CHUNK: usize = 32 << 10;

/// How many chunks of a connection are moved before it is the others' turn.
const TURN: usize = 16;

/// How many events are taken from the kernel at once.
const EVENTS_AT_ONCE: usize = 128;

/// The event of a connection that came. Those of connections count up from 0.
const ARRIVAL: u64 = u64::MAX;

/// The host's connections to programs of this guest.
#[derive(Default)]
pub(crate) struct Forwards(Mutex<Option<Arc<Door>>>);

/// Where connections come in.
struct Door {
    arrivals: Mutex<Arrivals>,
    /// Says that there are some.
    bell: OwnedFd,
}

#[derive(Default)]
struct Arrivals {
    new: Vec<(OwnedFd, u16)>,
    /// How many there are, new ones included.
    all: usize,
}

impl Forwards {
    /// Takes over `host`, which asked for a connection to `port`, and answers it.
    pub(crate) fn take(&self, host: OwnedFd, port: u16) {
        if let Err((host, why)) = self.admit(host, port) {
            refuse(host, failure::of(FailureKind::Other, why));
        }
    }

    fn admit(&self, host: OwnedFd, port: u16) -> Result<(), (OwnedFd, String)> {
        let door = match self.door() {
            Ok(door) => door,
            Err(error) => return Err((host, format!("the agent cannot forward connections: {error}"))),
        };
        let mut arrivals = lock(&door.arrivals);
        if arrivals.all >= MAX_FORWARDS {
            return Err((host, format!("the agent forwards {MAX_FORWARDS} connections already")));
        }
        arrivals.all += 1;
        arrivals.new.push((host, port));
        drop(arrivals);
        // Full only after 2^64 of them.
        let _ = rustix::io::write(&door.bell, &1u64.to_ne_bytes());
        Ok(())
    }

    fn door(&self) -> io::Result<Arc<Door>> {
        let mut door = lock(&self.0);
        if let Some(door) = &*door {
            return Ok(Arc::clone(door));
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let new = Arc::new(Door { arrivals: Mutex::default(), bell });
        let mut switchboard = Switchboard::new(Arc::clone(&new))?;
        thread::Builder::new().name("forwards".into()).spawn(move || switchboard.run())?;
        *door = Some(Arc::clone(&new));
        Ok(new)
    }
}

/// Tells the host why not, and ends.
fn refuse(host: OwnedFd, failure: Failure) {
    tell(&host, &Reply::Failed(failure)); // A host that is gone need not know.
    let _ = shutdown(&host, Shutdown::Both);
}

/// All connections, in the thread that moves their bytes.
struct Switchboard {
    door: Arc<Door>,
    epoll: OwnedFd,
    forwards: BTreeMap<u64, Forward>,
    next: u64,
    /// Those that may have something to do. Edges say so, and none is lost as each is worked off until the kernel says
    /// "later".
    ready: Vec<u64>,
    scratch: Vec<u8>,
}

impl Switchboard {
    fn new(door: Arc<Door>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &door.bell, EventData::new_u64(ARRIVAL), EventFlags::IN | EventFlags::ET)?;
        let (forwards, ready, scratch) = (BTreeMap::new(), Vec::new(), vec![0; CHUNK]);
        Ok(Self { door, epoll, forwards, next: 0, ready, scratch })
    }

    fn run(&mut self) {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            if let Err(error) = self.wait(&mut events) {
                // Short of memory: it may pass, and there is nobody else to forward.
                say(format_args!("cannot wait for connections: {error}"));
                thread::sleep(Duration::from_millis(10));
            }
            for token in std::mem::take(&mut self.ready) {
                self.work(token);
            }
        }
    }

    /// Notes what can be worked at. Waits for something if there is nothing.
    fn wait(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), (!self.ready.is_empty()).then_some(&at_once)) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
        for event in events.iter() {
            match event.data.u64() {
                ARRIVAL => self.arrive(),
                token if self.ready.contains(&token) => (),
                token => self.ready.push(token),
            }
        }
        Ok(())
    }

    fn arrive(&mut self) {
        for (host, port) in std::mem::take(&mut lock(&self.door.arrivals).new) {
            let token = self.next;
            self.next += 1;
            match Forward::begin(Line { epoll: &self.epoll, token }, &host, port) {
                Ok((local, attempt)) => {
                    self.forwards.insert(token, Forward::new(host, local, port, attempt));
                    self.ready.push(token);
                }
                Err(failure) => {
                    refuse(host, failure);
                    self.leave();
                }
            }
        }
    }

    fn work(&mut self, token: u64) {
        // What has ended may be heard of once more.
        let Some(forward) = self.forwards.get_mut(&token) else { return };
        match forward.work(Line { epoll: &self.epoll, token }, &mut self.scratch) {
            Progress::Later => (),
            Progress::More => self.ready.push(token),
            Progress::Over => {
                self.forwards.remove(&token);
                self.leave();
            }
        }
    }

    /// One place is free again.
    fn leave(&self) {
        lock(&self.door.arrivals).all -= 1;
    }
}

/// What came of some work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The kernel will say when there is more to do.
    Later,
    /// There is more to do, and it is the others' turn.
    More,
    /// The connection is over.
    Over,
}

/// Where the kernel tells of a connection, and as which.
#[derive(Clone, Copy)]
struct Line<'a> {
    epoll: &'a OwnedFd,
    token: u64,
}

impl Line<'_> {
    fn watch(self, socket: &OwnedFd) -> rustix::io::Result<()> {
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(self.epoll, socket, EventData::new_u64(self.token), edges)
    }
}

/// One connection of the host and the one to a program. Dropping closes both.
struct Forward {
    host: OwnedFd,
    local: OwnedFd,
    port: u16,
    /// Which of [`ADDRESSES`] the kernel connects to, until it has.
    attempt: Option<usize>,
    /// From the host to the program, and back.
    inward: Flow,
    outward: Flow,
}

impl Forward {
    fn new(host: OwnedFd, local: OwnedFd, port: u16, attempt: usize) -> Self {
        Self { host, local, port, attempt: Some(attempt), inward: Flow::default(), outward: Flow::default() }
    }

    /// Begins to connect to `port` for `host`: the socket, and to which address.
    fn begin(line: Line<'_>, host: &OwnedFd, port: u16) -> Result<(OwnedFd, usize), Failure> {
        let watched = fcntl_getfl(host)
            .and_then(|flags| fcntl_setfl(host, flags | OFlags::NONBLOCK))
            .and_then(|()| line.watch(host));
        watched.map_err(|error| failure::because("forward a connection", error))?;
        dial(line, port, 0)
    }

    fn work(&mut self, line: Line<'_>, scratch: &mut [u8]) -> Progress {
        if let Some(attempt) = self.attempt {
            match self.connect(line, attempt) {
                Progress::More => (),
                progress => return progress,
            }
        }
        // What a program says while it dies comes before the news of its death.
        let outward = match self.outward.carry(&self.local, &self.host, scratch) {
            Ok(progress) => progress,
            Err(Broken::To(error)) if is_torn(error) => return self.tear(),
            Err(_) => return Progress::Over,
        };
        let inward = match self.inward.carry(&self.host, &self.local, scratch) {
            Ok(progress) => progress,
            Err(Broken::From(error)) if is_torn(error) => return self.tear(),
            Err(Broken::From(_)) => return Progress::Over,
            Err(Broken::To(_)) => {
                // It takes nothing more, and may have said something before. Its end is no good one, unless it was there.
                self.inward.is_over = true;
                self.outward.ends_badly = true;
                return if self.outward.is_over { Progress::Over } else { Progress::More };
            }
        };
        match (outward, inward) {
            (Progress::Over, Progress::Over) => Progress::Over,
            _ if self.inward.is_over && !hears(&self.host) => Progress::Over,
            (Progress::More, _) | (_, Progress::More) => Progress::More,
            _ => Progress::Later,
        }
    }

    /// Looks how connecting goes; `More` when it is done and the host knows.
    fn connect(&mut self, line: Line<'_>, mut attempt: usize) -> Progress {
        if !hears(&self.host) {
            return Progress::Over;
        }
        loop {
            let error = match sockopt::socket_error(&self.local) {
                Ok(Ok(())) if getpeername(&self.local).is_err() => return Progress::Later, // It is not there yet.
                Ok(Ok(())) => {
                    self.attempt = None;
                    return if tell(&self.host, &Reply::Done) { Progress::More } else { Progress::Over };
                }
                Ok(Err(error)) | Err(error) => error,
            };
            let next = match is_nobody(error) {
                true => dial(line, self.port, attempt + 1),
                false => Err(failure::because(format_args!("connect to port {}", self.port), error)),
            };
            match next {
                Ok((local, next)) => (self.local, self.attempt, attempt) = (local, Some(next), next),
                Err(failure) => {
                    tell(&self.host, &Reply::Failed(failure)); // A host that is gone need not know.
                    let _ = shutdown(&self.host, Shutdown::Both);
                    return Progress::Over;
                }
            }
        }
    }

    /// This is a child: what listens shall notice. Without a linger, closing is a reset.
    fn tear(&self) -> Progress {
        let _ = sockopt::set_socket_linger(&self.local, Some(Duration::ZERO));
        Progress::Over
    }
}

/// Begins to connect to `port` at one of [`ADDRESSES`], of which the first `skipped` are not asked.
fn dial(line: Line<'_>, port: u16, skipped: usize) -> Result<(OwnedFd, usize), Failure> {
    for (attempt, address) in ADDRESSES.iter().enumerate().skip(skipped) {
        match dial_one(line, SocketAddr::new(*address, port)) {
            Ok(local) => return Ok((local, attempt)),
            Err(error) if is_nobody(error) => (),
            Err(error) => return Err(failure::because(format_args!("connect to port {port}"), error)),
        }
    }
    Err(failure::of(FailureKind::NotFound, format!("nobody listens on port {port}")))
}

fn dial_one(line: Line<'_>, address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => line.watch(&socket).map(|()| socket),
        Err(error) => Err(error),
    }
}

/// Whether nobody listens there. A kernel without IPv6 has nobody at its address.
fn is_nobody(error: Errno) -> bool {
    matches!(error, Errno::CONNREFUSED | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL | Errno::NETUNREACH)
}

/// Whether the host's connection was torn: see [`Received::Torn`](crate::peer::Received::Torn).
fn is_torn(error: Errno) -> bool {
    matches!(error, Errno::CONNRESET | Errno::NOTCONN)
}

/// Whether the host still takes something.
fn hears(host: &OwnedFd) -> bool {
    send(host, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
}

/// Sends a reply that is small enough for any socket's buffer. Whether the host is there.
fn tell(host: &OwnedFd, reply: &Reply) -> bool {
    let frame = frame::encode(reply).unwrap_or_default();
    send(host, &frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Ok(frame.len())
}

/// One direction of a connection.
#[derive(Default)]
struct Flow {
    /// What was read and not written yet.
    pending: Vec<u8>,
    /// No more will be read.
    is_at_end: bool,
    /// And that was passed on.
    is_over: bool,
    /// Its end is the connection's breaking.
    ends_badly: bool,
}

/// Which of the two ends of a direction broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    From(Errno),
    To(Errno),
}

impl Flow {
    /// Moves what can be moved.
    fn carry(&mut self, from: &OwnedFd, to: &OwnedFd, scratch: &mut [u8]) -> Result<Progress, Broken> {
        for _ in 0..TURN {
            if self.is_over {
                return Ok(Progress::Over);
            }
            let pending = std::mem::take(&mut self.pending);
            self.write(to, &pending)?;
            if !self.pending.is_empty() {
                return Ok(Progress::Later);
            }
            if self.is_at_end {
                shutdown(to, Shutdown::Write).map_err(Broken::To)?;
                self.is_over = true;
                return Ok(Progress::Over);
            }
            match recv(from, &mut *scratch, RecvFlags::DONTWAIT) {
                Ok((0, _)) if self.ends_badly => return Err(Broken::From(Errno::CONNRESET)),
                Ok((0, _)) => self.is_at_end = true,
                Ok((len, _)) => self.write(to, &scratch[..len])?,
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return Ok(Progress::Later),
                Err(error) => return Err(Broken::From(error)),
            }
        }
        Ok(Progress::More)
    }

    /// Writes what can be written; the rest waits.
    fn write(&mut self, to: &OwnedFd, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match send(to, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(len) => bytes = &bytes[len..],
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => {
                    self.pending = bytes.to_vec();
                    return Ok(());
                }
                Err(error) => return Err(Broken::To(error)),
            }
        }
        Ok(())
    }
}
