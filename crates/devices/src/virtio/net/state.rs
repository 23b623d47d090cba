//! What is saved of a card, and the checks on the way back.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::{VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};

use super::MAX_QUEUE_PAIRS;

/// Bits of `status` in the configuration.
pub(super) mod status {
    pub(crate) const LINK_UP: u16 = super::VIRTIO_NET_S_LINK_UP as u16;
    /// The driver is to announce itself, and has not said yet that it does.
    pub(crate) const ANNOUNCE: u16 = super::VIRTIO_NET_S_ANNOUNCE as u16;
}

/// The shortest MTU that IPv4 works with.
const MIN_MTU: u16 = 68;

/// A card as it is saved, without its tap. Every field is public, so nothing in it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The longest packet, in bytes.
    pub mtu: u16,
    /// How many pairs of queues it has.
    pub max_queue_pairs: u8,
    /// How many of them the driver uses.
    pub queue_pairs: u8,
    /// `status` of its configuration, as the driver was told.
    pub status: u16,
    /// How often that changed; it wraps.
    pub generation: u32,
}

/// Why a saved card cannot be brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetStateError {
    /// A card cannot have this address: it stands for many, or for none.
    #[error("the saved network card has address {0:02x?}")]
    Mac([u8; 6]),
    /// Nothing gets through.
    #[error("the saved network card has packets of {0} bytes")]
    Mtu(u16),
    /// A card has 1 to 8 pairs of queues, and uses at least one of them.
    #[error("the saved network card uses {used} of {max} pairs of queues")]
    QueuePairs {
        /// In use.
        used: u8,
        /// There.
        max: u8,
    },
    /// There are no such bits.
    #[error("the saved network card has status {0:#x}")]
    Status(u16),
}

impl NetState {
    /// Whether it is the state of a card that can be.
    pub(super) fn check(self) -> Result<Self, NetStateError> {
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return Err(NetStateError::Mac(self.mac));
        }
        if self.mtu < MIN_MTU {
            return Err(NetStateError::Mtu(self.mtu));
        }
        let (used, max) = (self.queue_pairs, self.max_queue_pairs);
        if !(1..=MAX_QUEUE_PAIRS).contains(&max) || !(1..=max).contains(&used) {
            return Err(NetStateError::QueuePairs { used, max });
        }
        if self.status & !(status::LINK_UP | status::ANNOUNCE) != 0 {
            return Err(NetStateError::Status(self.status));
        }
        Ok(self)
    }
}
