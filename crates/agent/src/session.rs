//! Exec: a program and the host's end of its streams.
//!
//! One thread and one `poll` per program. The end is the delicate part:
//!
//! * `Exited` comes last, after all that the program wrote. Whoever else holds the pipe (a daemon that it left behind)
//!   is listened to until [`QUIET`] passes without a byte, and not for ever: see [`NOISY`] and [`OWED`].
//! * A host that goes away hangs up: the program's session gets SIGHUP, and its output is thrown away from then on.
//! * A connection that is *torn* (see [`Received::Torn`]) belongs to a fork: this is the child, and its copy of the
//!   program goes on, unheard, with an input on which nothing comes.

use crate::{
    agent::Agent,
    failure,
    launch::{Plan, launch},
    peer::{Inbox, Peer, Received},
    reaper::Child,
};
use pando_wire::agent::{CHUNK, Exec, Exit, Failure, Input, Reply, WindowSize};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Signal, kill_process_group},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

/// After the program's end: how long silence must last to be the end of its output, though others hold the pipe.
const QUIET: Duration = Duration::from_millis(100);

/// After the program's end: how long others may go on writing before they are not listened to any more.
const NOISY: Duration = Duration::from_secs(1);

/// More than the pipes of a program can hold: after reading that much behind its end, none of it was its own.
const OWED: usize = 256 << 10;

/// How much input may wait for a program that does not read, before the host is not read from.
const MAX_PENDING: usize = 1 << 20;

/// End of transmission, which is how a terminal says end of file.
const EOT: u8 = 4;

/// Serves one `Exec` from start to end. The caller ends the connection.
pub(crate) fn serve(agent: &Agent, peer: &Peer, exec: &Exec) -> io::Result<()> {
    match Session::start(agent, peer, exec) {
        Ok(session) => session.run(),
        Err(failure) => peer.reply(&Reply::Failed(failure)),
    }
}

struct Session<'a> {
    peer: &'a Peer,
    /// The host listens.
    connected: bool,
    inbox: Inbox,
    child: Child,
    /// Where input goes; gone once it was closed.
    stdin: Option<OwnedFd>,
    pending: VecDeque<u8>,
    /// Close `stdin` once `pending` is empty.
    stdin_ends: bool,
    /// Where output comes from, standard output first; gone at its end.
    outputs: [Option<OwnedFd>; 2],
    terminal: bool,
    exited: Option<(Exit, Instant)>,
    /// Bytes read since the program's end.
    owed: usize,
}

impl<'a> Session<'a> {
    fn start(agent: &Agent, peer: &'a Peer, exec: &Exec) -> Result<Self, Failure> {
        let plan = Plan::new(agent, exec)?;
        let streams = match exec.terminal {
            Some(size) => Streams::terminal(size),
            None => Streams::pipes(),
        }
        .map_err(|error| failure::because("make the program's streams", error))?;
        let [stdin, stdout, stderr] = &streams.theirs;
        for stream in [stdin, stdout, stderr] {
            plan.give(stream);
        }
        let child = launch(agent, &plan, [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
        Ok(Self {
            peer,
            connected: true,
            inbox: Inbox::default(),
            child,
            stdin: Some(streams.stdin),
            pending: VecDeque::new(),
            stdin_ends: false,
            outputs: streams.outputs,
            terminal: exec.terminal.is_some(),
            exited: None,
            owed: 0,
        })
    }

    fn run(mut self) -> io::Result<()> {
        self.tell(&Reply::Started { pid: self.child.pid.as_raw_pid().unsigned_abs() });
        let mut buffer = vec![0; CHUNK];
        let exit = loop {
            if let Some(exit) = self.finished() {
                break exit;
            }
            let ready = self.wait()?;
            if ready.stdin {
                self.feed();
            }
            for index in 0..self.outputs.len() {
                if ready.outputs[index] {
                    self.forward(index, &mut buffer);
                }
            }
            if ready.peer {
                self.listen(&mut buffer);
            }
            // Last, so that what was readable together with the end has been read.
            if ready.child && self.exited.is_none() {
                let exit = self.child.exit.recv().map_err(|_| io::Error::other("the reaper is gone"))?;
                self.exited = Some((exit, Instant::now()));
            }
            if ready.nothing && self.exited.is_some() {
                self.outputs = [None, None]; // Quiet.
            }
        };
        if self.connected {
            self.peer.reply(&Reply::Exited(exit))?;
        }
        Ok(())
    }

    /// How the program ended, once all that it wrote was read.
    fn finished(&self) -> Option<Exit> {
        let (exit, at) = self.exited?;
        let drained = self.outputs.iter().all(Option::is_none);
        let only_others = self.owed >= OWED && at.elapsed() >= NOISY;
        (drained || only_others).then_some(exit)
    }

    /// Sleeps until something can be done.
    fn wait(&self) -> io::Result<Ready> {
        let no_room = self.pending.len() > MAX_PENDING;
        let listen = if no_room { PollFlags::empty() } else { PollFlags::IN | PollFlags::RDHUP };
        let mut slots = [None; 5];
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(slots.len());
        let watched = [
            self.connected.then(|| (self.peer.as_fd(), listen)),
            self.exited.is_none().then(|| (self.child.pidfd.as_fd(), PollFlags::IN)),
            self.stdin.as_ref().filter(|_| !self.pending.is_empty()).map(|fd| (fd.as_fd(), PollFlags::OUT)),
            self.outputs[0].as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
            self.outputs[1].as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
        ];
        for (slot, watched) in slots.iter_mut().zip(watched) {
            if let Some((fd, flags)) = watched {
                *slot = Some(fds.len());
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
        let quiet = Timespec { tv_sec: 0, tv_nsec: QUIET.as_nanos() as _ };
        let count = match poll(&mut fds, self.exited.map(|_| &quiet)) {
            Ok(count) => count,
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        };
        let ready = |slot: usize| slots[slot].is_some_and(|at| !fds[at].revents().is_empty());
        Ok(Ready {
            peer: ready(0),
            child: ready(1),
            stdin: ready(2),
            outputs: [ready(3), ready(4)],
            nothing: count == 0,
        })
    }

    /// Moves pending input to the program.
    fn feed(&mut self) {
        while let Some(stdin) = &self.stdin {
            let (bytes, _) = self.pending.as_slices();
            if bytes.is_empty() {
                break;
            }
            match rustix::io::write(stdin, bytes) {
                Ok(len) => drop(self.pending.drain(..len)),
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // The program reads no more: what is left is for nobody.
                    self.pending.clear();
                    self.stdin_ends = true;
                }
            }
        }
        if self.stdin_ends && self.pending.is_empty() {
            self.stdin = None;
        }
    }

    /// Moves one chunk of output to the host.
    fn forward(&mut self, index: usize, buffer: &mut [u8]) {
        let Some(output) = &self.outputs[index] else { return };
        match rustix::io::read(output, &mut *buffer) {
            Ok(len) if len > 0 => {
                if self.exited.is_some() {
                    self.owed = self.owed.saturating_add(len);
                }
                let bytes = buffer[..len].to_vec();
                self.tell(&if index == 0 { Reply::Stdout(bytes) } else { Reply::Stderr(bytes) });
            }
            Err(Errno::INTR | Errno::AGAIN) => (),
            // The end; a terminal says it with EIO.
            Ok(_) | Err(_) => self.outputs[index] = None,
        }
    }

    /// Takes what the host sent.
    fn listen(&mut self, buffer: &mut [u8]) {
        match self.peer.receive(buffer) {
            Received::Bytes(len) => {
                self.inbox.push(&buffer[..len]);
                loop {
                    match self.inbox.next() {
                        Ok(Some(input)) => self.obey(input),
                        Ok(None) => break,
                        Err(_) => return self.hang_up(), // It speaks another language.
                    }
                }
            }
            Received::Nothing => (),
            Received::Closed => self.hang_up(),
            Received::Torn => self.connected = false,
        }
    }

    fn obey(&mut self, input: Input) {
        match input {
            Input::Stdin(_) if self.stdin_ends || self.stdin.is_none() => (), // It was closed.
            Input::Stdin(bytes) if bytes.is_empty() && self.terminal => self.pending.push_back(EOT),
            Input::Stdin(bytes) if bytes.is_empty() => self.stdin_ends = true,
            Input::Stdin(bytes) => self.pending.extend(bytes),
            Input::Resize(size) => {
                if let (true, Some(terminal)) = (self.terminal, &self.outputs[0]) {
                    // The kernel tells the program; one that is gone need not know.
                    let _ = tcsetwinsize(terminal, winsize(size));
                }
            }
            Input::Signal(number) => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    self.signal(signal);
                }
            }
        }
        self.feed();
    }

    /// The host is gone.
    fn hang_up(&mut self) {
        self.connected = false;
        self.pending.clear();
        self.stdin_ends = true;
        self.stdin = None;
        if self.terminal {
            // The kernel hangs up the jobs of a terminal that loses its other end.
            self.outputs = [None, None];
        }
        self.signal(Signal::HUP);
    }

    /// To the program's process group, while its pid is certainly its own.
    fn signal(&self, signal: Signal) {
        if self.exited.is_none() {
            let _ = kill_process_group(self.child.pid, signal);
        }
    }

    /// A host that cannot be told is noticed in [`listen`](Self::listen), which knows a fork from a hang-up.
    fn tell(&mut self, reply: &Reply) {
        if self.connected && self.peer.reply(reply).is_err() {
            self.listen(&mut [0; 4096]);
        }
    }
}

#[derive(Default)]
struct Ready {
    peer: bool,
    child: bool,
    stdin: bool,
    outputs: [bool; 2],
    nothing: bool,
}

/// Both ends of a program's streams. Ours do not block.
struct Streams {
    theirs: [OwnedFd; 3],
    stdin: OwnedFd,
    outputs: [Option<OwnedFd>; 2],
}

impl Streams {
    fn pipes() -> io::Result<Self> {
        let (stdin_theirs, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, stdout_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, stderr_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        for ours in [&stdin, &stdout, &stderr] {
            do_not_block(ours)?;
        }
        let theirs = [stdin_theirs, stdout_theirs, stderr_theirs];
        Ok(Self { theirs, stdin, outputs: [Some(stdout), Some(stderr)] })
    }

    fn terminal(size: WindowSize) -> io::Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        tcsetwinsize(&ours, winsize(size))?;
        do_not_block(&ours)?;
        let theirs = [theirs.try_clone()?, theirs.try_clone()?, theirs];
        Ok(Self { theirs, stdin: ours.try_clone()?, outputs: [Some(ours), None] })
    }
}

fn do_not_block(fd: &OwnedFd) -> rustix::io::Result<()> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}
