//! Starting a program in its own session, as a user, in the cgroup.
//!
//! What has to happen between fork and exec (session, terminal, cgroup, user) happens in a process of its own: the agent
//! starts itself as a helper, and the helper becomes the program. So no code of ours runs in a forked copy of a
//! process with threads, and a failure comes back as a sentence.
//!
//! ```text
//! agent                                    helper (its standard input is one end of a socket pair)
//!  │ three descriptors, Plan ─────────────►│ cgroup, session, terminal, user, directory
//!  │◄──────────── Failure, or end of file ─│ exec closes the socket
//! ```
//!
//! One helper waits ahead of need, in every VM and so in every child of a fork too: a program then costs one exec and not
//! two. Whoever finds none starts its own.

use crate::{
    agent::{Agent, lock},
    failure,
    peer::Peer,
    reaper::Child,
    users,
};
use pando_wire::{
    agent::{Exec, Failure, FailureKind},
    frame,
};
use rustix::{
    fs::Mode,
    io::{Errno, fcntl_dupfd_cloexec},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
    process::{Gid, Pid, Signal, Uid, kill_process},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stdin},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

/// The first argument that makes this binary a helper.
pub const HELPER: &str = "become";

/// How long a helper may take to become a program: it stands still with all others around a fork.
const LIMIT: Duration = Duration::from_secs(60);

/// `PATH` of a program when neither the VM nor the request sets one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program becomes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// Whether standard input is a terminal to be controlled by.
    terminal: bool,
    cgroup: Option<PathBuf>,
}

impl Plan {
    /// What `exec` asks for, in the VM that `agent` serves.
    pub fn new(agent: &Agent, exec: &Exec) -> Result<Self, Failure> {
        if exec.argv.first().is_none_or(String::is_empty) {
            return Err(failure::of(FailureKind::Other, "there is no program to run: the command is empty"));
        }
        let user = users::find(&agent.root, exec.user.as_deref())?;
        let mut env = BTreeMap::from([("PATH".into(), PATH.into()), ("HOME".into(), user.home)]);
        if exec.terminal.is_some() {
            env.insert("TERM".into(), "xterm".into());
        }
        env.extend(agent.identity().env);
        env.extend(exec.env.clone());
        Ok(Self {
            argv: exec.argv.clone(),
            env,
            cwd: exec.cwd.clone().unwrap_or_else(|| "/".into()),
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
            terminal: exec.terminal.is_some(),
            cgroup: agent.cgroup.clone(),
        })
    }

    /// Hands `stream` to the user that the program will be, so that `/dev/stderr` and the like can be opened.
    pub fn give(&self, stream: impl AsFd) {
        // Best effort: not every descriptor has an owner, and the program works without.
        let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
    }
}

/// A helper that waits to be told what to become.
pub(crate) struct Helper {
    child: Child,
    control: OwnedFd,
}

impl Helper {
    fn start(agent: &Agent) -> io::Result<Self> {
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(io::Error::from)?;
        set_socket_timeout(&control, Timeout::Recv, Some(LIMIT))?;
        let mut command = Command::new(&agent.helper);
        command.arg(HELPER).stdin(theirs).stdout(Stdio::null());
        let child = agent.reaper.spawn(&mut command)?;
        // Dropping `command` closes the helper's end in this process, so that its exec is an end of file here.
        drop(command);
        Ok(Self { child, control })
    }

    /// The one that waits, unless somebody ended it, or else a new one.
    fn take(agent: &Agent) -> io::Result<Self> {
        let waiting = lock(&agent.waiting).take();
        match waiting.filter(|helper| helper.child.exit.try_recv().is_err()) {
            Some(helper) => {
                // Somebody may have stopped every process (`kill -STOP -1`).
                let _ = kill_process(helper.child.pid, Signal::CONT);
                Ok(helper)
            }
            None => Self::start(agent),
        }
    }
}

/// Lets a helper wait, if none does.
pub fn prepare(agent: &Agent) {
    let mut waiting = lock(&agent.waiting);
    if waiting.is_none() {
        // Without one, the next program takes longer.
        *waiting = Helper::start(agent).ok();
    }
}

/// The process of the helper that waits, if one does.
pub fn waiting(agent: &Agent) -> Option<Pid> {
    lock(&agent.waiting).as_ref().map(|helper| helper.child.pid)
}

/// Runs the program of `plan` with these as standard input, output and error. Returns once it was executed.
pub fn launch(agent: &Agent, plan: &Plan, stdio: [BorrowedFd<'_>; 3]) -> Result<Child, Failure> {
    let program = plan.argv.first().map_or("", String::as_str);
    let start = || -> io::Result<(Child, OwnedFd)> {
        let Helper { child, control } = Helper::take(agent)?;
        send(&control, &stdio)?;
        Ok((child, control))
    };
    let (child, control) = start().map_err(|error| failure::because(format_args!("start {program}"), error))?;
    let control = Peer::new(control);
    let told = frame::write(&mut &control, plan).and_then(|()| frame::read::<Failure>(&mut &control));
    match told {
        Ok(None) => Ok(child),
        Ok(Some(failure)) => Err(failure),
        Err(error) => {
            let _ = kill_process(child.pid, Signal::KILL); // It may only have been stopped.
            Err(failure::because(format_args!("start {program}"), error))
        }
    }
}

/// What the helper does: become what it is told to. For `main`.
pub fn helper() -> ! {
    let control = match fcntl_dupfd_cloexec(stdin(), 3) {
        Ok(control) => Peer::new(control),
        Err(_) => std::process::exit(126), // Nobody to tell.
    };
    let failure = match become_planned(&control) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let _ = frame::write(&mut &control, &failure);
    std::process::exit(127)
}

fn become_planned(control: &Peer) -> Result<std::convert::Infallible, Failure> {
    let talk = |error: io::Error| failure::because("be told what to run", error);
    let descriptors = receive(control).map_err(talk)?;
    let plan: Option<Plan> = frame::read(&mut &*control).map_err(talk)?;
    let plan = plan.ok_or_else(|| talk(io::ErrorKind::UnexpectedEof.into()))?;
    let Some((program, arguments)) = plan.argv.split_first() else {
        return Err(failure::of(FailureKind::Other, "there is no program to run"));
    };

    // The cgroup first: if it stands still for a fork, so do we, before anything of the user runs.
    if let Some(cgroup) = &plan.cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0").map_err(|error| failure::because("enter the cgroup", error))?;
    }
    let step = |what: &'static str| move |error: Errno| failure::because(what, error);
    rustix::process::setsid().map_err(step("begin a session"))?;
    dup2_stdin(&descriptors[0]).map_err(step("set standard input"))?;
    dup2_stdout(&descriptors[1]).map_err(step("set standard output"))?;
    dup2_stderr(&descriptors[2]).map_err(step("set standard error"))?;
    if plan.terminal {
        rustix::process::ioctl_tiocsctty(stdin()).map_err(step("take the terminal"))?;
    }
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    become_user(&plan).map_err(|error| failure::because(format_args!("become user {}", plan.uid), error))?;
    std::env::set_current_dir(&plan.cwd)
        .map_err(|error| failure::because(format_args!("enter {}", plan.cwd), error))?;

    // `exec` also gives SIGPIPE its default back, which Rust's runtime took.
    let error = Command::new(program).args(arguments).env_clear().envs(&plan.env).exec();
    Err(failure::because(format_args!("run {program}"), error))
}

/// Only this thread changes, and it is the only one.
fn become_user(plan: &Plan) -> rustix::io::Result<()> {
    let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if ids == (plan.uid, plan.gid) && plan.groups.is_empty() && plan.uid != 0 {
        return Ok(()); // Nothing to change, which is as far as tests without root get.
    }
    let groups: Vec<_> = plan.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn send(control: &OwnedFd, stdio: &[BorrowedFd<'_>; 3]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(stdio));
    sendmsg(control, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(control: &Peer) -> io::Result<[OwnedFd; 3]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let received: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    received.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}
