//! What a driver asks of the card as a whole: `| class u8 | command u8 | data … |`, answered by a byte.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_ERR, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};

use super::device::Net;
use super::header::has;
use super::tap::TapQueue;
use crate::virtio::DeviceError;
use crate::virtio::chain::Chain;

const OK: u8 = VIRTIO_NET_OK as u8;
const REFUSED: u8 = VIRTIO_NET_ERR as u8;

/// What a driver may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    /// Use so many pairs of queues.
    UsePairs(u16),
    /// It announces itself, as it was asked to.
    Announces,
}

impl Command {
    /// `None` for all that is not offered.
    fn claim(chain: &Chain<'_>, features: u64) -> Result<Option<Self>, DeviceError> {
        let mut bytes = [0; 4];
        let len = chain.readable_len().min(bytes.len());
        chain.read_at(0, &mut bytes[..len])?;
        let [class, command, data @ ..] = bytes;
        let command = match (class.into(), command.into()) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if len == 4 && has(features, VIRTIO_NET_F_MQ) => {
                Some(Self::UsePairs(u16::from_le_bytes(data)))
            }
            (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK)
                if len >= 2 && has(features, VIRTIO_NET_F_GUEST_ANNOUNCE) =>
            {
                Some(Self::Announces)
            }
            _ => None,
        };
        Ok(command)
    }
}

impl<T: TapQueue> Net<T> {
    /// Answers one command. Returns how many bytes that took.
    pub(super) fn command(&mut self, chain: &Chain<'_>) -> Result<u32, DeviceError> {
        if chain.writable_len() == 0 {
            return Err(DeviceError::NoRoom("the answer to a command"));
        }
        let done = match Command::claim(chain, self.features)? {
            Some(Command::UsePairs(pairs)) => self.use_pairs(pairs),
            Some(Command::Announces) => {
                self.has_announced();
                true
            }
            None => false,
        };
        chain.write_at(0, &[if done { OK } else { REFUSED }])?;
        Ok(1)
    }
}
