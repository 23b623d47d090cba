//! Host ↔ guest, over vsock port [`PORT`]: frames of [`crate::frame`].
//!
//! The host connects, sends one [`Request`] and reads [`Reply`]s. Every request has a connection of its own, so a
//! reset of all connections (which is what a child of a fork sees) leaves nothing half-done that another depends on.
//!
//! ```text
//! host                                agent
//!  │ Request::Exec ───────────────────►│
//!  │◄───────────────── Reply::Started  │        or Reply::Failed, and the agent closes
//!  │ Input::Stdin, Resize, Signal ────►│        any number, in any order
//!  │◄──────────── Reply::Stdout/Stderr │        any number
//!  │◄────────────────── Reply::Exited  │        last; the agent closes
//! ```

use crate::network::Network;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The vsock port that the agent listens on.
pub const PORT: u32 = 1024;

/// Counts up with every change of this file that an older peer would misread. [`Reply::Pong`] carries the agent's.
pub const VERSION: u32 = 2;

/// Where the initramfs holds a [`Boot`].
pub const BOOT_PATH: &str = "/pando/boot";

/// The largest chunk of a stream in one frame.
pub const CHUNK: usize = 64 << 10;

/// The first frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Are you there? → `Pong`.
    Ping,
    /// Run a program. → `Started`, output, `Exited`; or `Failed`.
    Exec(Exec),
    /// Write what follows as `Input::Stdin` frames (an empty one ends it): a tar archive, unpacked below the existing
    /// directory `path`. → `Done` or `Failed`.
    Put {
        /// Where to, in the guest; relative paths start at `/`.
        path: String,
    },
    /// Read `path`, a file or a directory, as a tar archive whose entries begin with its last component.
    /// → `Stdout` frames, then `Done`; or `Failed`.
    Get {
        /// What, in the guest.
        path: String,
    },
    /// What is at `path`? → `Stat` or `Failed`.
    Stat {
        /// What, in the guest.
        path: String,
    },
    /// You are a child of a fork: take on this identity. → `Adopted` once the hooks have run.
    Adopt {
        /// Who it is now.
        identity: Identity,
        /// Random bytes that no relative has, for the kernel's random numbers.
        seed: [u8; SEED],
    },
    /// A fork comes: begin to beat, and let every user program stand still. → `Done` once none runs, or `Failed` and
    /// all run.
    ///
    /// They go on when this connection ends. In the parent the host closes it once the fork is over; when that takes
    /// [`BARRIER_LIMIT_MS`], the agent says `Failed` and lets them go on [`BARRIER_NOTICE_MS`] later. In a child the
    /// reset of all connections ends it, and programs go on when the kernel's random numbers differ from the parent's:
    /// when it says so, or with the seed of [`Request::Adopt`]; after [`RESEED_LIMIT_MS`] in any case.
    ForkBarrier,
    /// Stop beating. → `Gap`.
    HeartbeatStop,
    /// Stop the command and power off. → `Done`, and then the VM ends.
    PowerOff,
    /// Set the wall clock. → `Done`.
    SetClock {
        /// Nanoseconds since 1970.
        unix_ns: u64,
    },
    /// Connect to what listens on a TCP port of the guest, at 127.0.0.1 or else at ::1. → `Done`, and from there on the
    /// connection is that one's: bytes and no frames, and either side may end its half. Or `Failed`, of the kind
    /// `NotFound` when nobody listens.
    ///
    /// Both sides end their halves, or the connection broke: an end without a half before it is a reset of the guest's
    /// program. An agent that is older than this request cannot read it and says so.
    Connect {
        /// Which.
        port: u16,
    },
}

/// What an agent cannot do with a request of a newer build, as [`Reply::Failed`] says it: "cannot read the request: …".
pub const UNREADABLE: &str = "read the request";

/// How many connections of [`Request::Connect`] there can be at once. They take no place of other requests.
pub const MAX_FORWARDS: usize = 1024;

/// How long user programs stand still after [`Request::ForkBarrier`] before the agent says that it cannot hold them any
/// longer. Of this limit and the two below, time during which the guest itself was away counts next to nothing.
pub const BARRIER_LIMIT_MS: u64 = 2000;

/// How long after that they go on. A host that has not heard of it when a fork is over knows that the child had at least
/// this long to notice that it is one.
pub const BARRIER_NOTICE_MS: u64 = 1000;

/// How long programs of a child stand still when neither its kernel nor its host changes its random numbers.
pub const RESEED_LIMIT_MS: u64 = 10_000;

/// Bytes of the seed in [`Request::Adopt`].
pub const SEED: usize = 32;

/// A program to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program, looked up in `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Added to the environment of the VM.
    pub env: BTreeMap<String, String>,
    /// `/` when absent.
    pub cwd: Option<String>,
    /// A name in `/etc/passwd` or `uid[:gid]`; root when absent.
    pub user: Option<String>,
    /// With a terminal of this size. Its output is all `Stdout`.
    pub terminal: Option<WindowSize>,
}

/// Of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What the host sends after [`Request::Exec`] and [`Request::Put`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Bytes for standard input; empty closes it.
    Stdin(Vec<u8>),
    /// The terminal has a new size.
    Resize(WindowSize),
    /// A signal for the program's process group, by number.
    Signal(i32),
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// It could not be done. One sentence.
    Failed(Failure),
    /// Answer to `Ping`.
    Pong {
        /// The agent's [`VERSION`].
        version: u32,
        /// The VMGENID-like count of forks that this guest went through: 0 in a VM that was booted.
        generation: u64,
    },
    /// The program runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// Bytes that it wrote to standard output or its terminal.
    Stdout(Vec<u8>),
    /// Bytes that it wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended.
    Exited(Exit),
    /// What a path is.
    Stat {
        /// Whether it is a directory.
        directory: bool,
        /// Size in bytes.
        len: u64,
    },
    /// The longest gap between two beats.
    Gap {
        /// In microseconds.
        longest_us: u64,
        /// How many beats there were.
        beats: u64,
    },
    /// The identity is taken on.
    Adopted {
        /// Whether programs stood still from before the fork until the kernel's random numbers were this VM's own.
        reseeded: bool,
        /// What went wrong with the identity or with the hooks.
        failure: Option<Failure>,
    },
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind, for programs.
    pub kind: FailureKind,
    /// One sentence, for people.
    pub message: String,
}

/// Kinds of failure that a caller tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such program, file or user.
    NotFound,
    /// It is there and may not be used so.
    NotPermitted,
    /// Anything else.
    Other,
}

/// Who a child of a fork is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name, which becomes the hostname.
    pub name: String,
    /// Its id: 32 hexadecimal digits, which become `/etc/machine-id`.
    pub machine_id: String,
    /// Counts the forks since the boot along this line.
    pub generation: u64,
    /// Replaces the VM's environment for every later `Exec`.
    pub env: BTreeMap<String, String>,
}

/// What PID 1 finds in the initramfs at [`BOOT_PATH`], as postcard: the kernel's command line would be too short, and
/// every program in the guest could read it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// As for a child, of generation 0.
    pub identity: Identity,
    /// The command to run once the root disk is mounted, if any. Its output goes to the console.
    pub command: Option<Exec>,
    /// How to set up its network device, if it has one.
    pub network: Option<Network>,
}
