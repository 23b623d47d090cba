//! What is saved of a vsock device, and the checks on the way back.

use std::io;

use serde::{Deserialize, Serialize};

use super::FIRST_HOST_PORT;

/// A vsock device as it is saved: none of its connections. Every field is public, so nothing in it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's context id.
    pub guest_cid: u64,
    /// The port that the next client gets. A twin goes on counting, so what the guest still has of its parent's
    /// connections is not taken for a new one.
    pub next_host_port: u32,
    /// Where the event queue's available ring will be once the guest has acted on all that it was told, if it has not
    /// yet.
    pub answer_at: Option<u16>,
}

/// Why a saved vsock device cannot be brought back.
#[derive(Debug, thiserror::Error)]
pub enum VsockRestoreError {
    /// A guest cannot have this context id.
    #[error("the saved vsock device has context id {0}")]
    GuestCid(u64),
    /// A client cannot have this port.
    #[error("the saved vsock device has host port {0}")]
    HostPort(u32),
    /// The host would not have it.
    #[error("cannot set up the vsock device")]
    Host(#[from] io::Error),
}

impl VsockState {
    /// Whether it is the state of a device that can be.
    pub(super) fn check(self) -> Result<Self, VsockRestoreError> {
        if !is_guest_cid(self.guest_cid) {
            return Err(VsockRestoreError::GuestCid(self.guest_cid));
        }
        if !is_host_port(self.next_host_port) {
            return Err(VsockRestoreError::HostPort(self.next_host_port));
        }
        Ok(self)
    }
}

/// The first three context ids and the last of 32 bits mean something else; the rest of the 64 bits is reserved.
pub(super) fn is_guest_cid(cid: u64) -> bool {
    (3..u64::from(u32::MAX)).contains(&cid)
}

/// The last port means "any".
fn is_host_port(port: u32) -> bool {
    (FIRST_HOST_PORT..u32::MAX).contains(&port)
}

/// The port after `port`, round and round.
pub(super) fn next_port(port: u32) -> u32 {
    if port + 1 < u32::MAX { port + 1 } else { FIRST_HOST_PORT }
}
