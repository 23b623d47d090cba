//! What all connections share.

use crate::{forward::Forwards, heartbeat::Heartbeat, launch::Helper, reaper::Reaper};
use pando_wire::agent::Identity;
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize},
    },
};

/// The agent of one VM.
pub struct Agent {
    /// Waits for every child of this process.
    pub reaper: Arc<Reaper>,
    /// The agent's own binary, to start as a helper.
    pub helper: PathBuf,
    /// The cgroup of all user programs, or none where there are no cgroups.
    pub cgroup: Option<PathBuf>,
    /// `/` in a guest; tests have another.
    pub root: PathBuf,
    /// This machine has a network device: TCP connections that lead outside may be there, and are ended after a fork.
    pub(crate) on_network: bool,
    pub(crate) identity: Mutex<Identity>,
    pub(crate) heartbeat: Mutex<Option<Heartbeat>>,
    /// Held while programs stand still for a fork. What, the last time, was seen to before they went on.
    pub(crate) barrier: Mutex<Before>,
    /// The host has sent a seed since that began.
    pub(crate) seeded: AtomicBool,
    /// What the next program is made from.
    pub(crate) waiting: Mutex<Option<Helper>>,
    /// Connections that wait for the agent to hear what they want, and those that have a thread of it until their end.
    pub(crate) arriving: AtomicUsize,
    pub(crate) connections: AtomicUsize,
    pub(crate) forwards: Forwards,
}

/// What a child of a fork saw to before its programs went on.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Before {
    /// The kernel's random numbers were its own.
    pub(crate) reseeded: bool,
    /// No TCP connection of its parent's led outside.
    pub(crate) disconnected: bool,
}

impl Agent {
    /// The agent of a VM that is nobody yet.
    pub fn new(reaper: Arc<Reaper>, helper: PathBuf, cgroup: Option<PathBuf>, root: PathBuf) -> Self {
        Self {
            reaper,
            helper,
            cgroup,
            root,
            on_network: false,
            identity: Mutex::default(),
            heartbeat: Mutex::default(),
            barrier: Mutex::default(),
            seeded: AtomicBool::new(false),
            waiting: Mutex::default(),
            arriving: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            forwards: Forwards::default(),
        }
    }

    /// The same of a VM that has a network device.
    pub fn on_network(self) -> Self {
        Self { on_network: true, ..self }
    }

    /// Who this VM is now.
    pub fn identity(&self) -> Identity {
        lock(&self.identity).clone()
    }
}

/// Locks also after a thread panicked: the values behind our locks are whole between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
