//! From the driver to the tap.

use std::io;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::device::Net;
use super::header::{HEADER_BYTES, Header};
use super::tap::TapQueue;
use super::{ETHERNET_BYTES, MAX_FRAME_BYTES};
use crate::virtio::chain::Chain;
use crate::virtio::{DeviceError, queue};

/// What is looked at, and therefore copied out of guest memory and sent as it was looked at.
const HEAD_BYTES: usize = HEADER_BYTES + ETHERNET_BYTES;
/// Where in that the sender's address is.
const SOURCE: std::ops::Range<usize> = HEADER_BYTES + 6..HEADER_BYTES + 12;

/// What becomes of a chain.
enum Sent {
    /// It goes back: sent, or dropped.
    Over,
    /// It stays: the tap tells when there is room.
    Later,
}

impl<T: TapQueue> Net<T> {
    /// Sends what there is in the transmit queue of `pair`. Returns whether the driver must be interrupted.
    pub(super) fn transmit(
        &mut self,
        pair: usize,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, DeviceError> {
        let before = queue.next_used();
        for _ in 0..queue::available(queue, memory)? {
            if !self.goes_on() || self.ends.get(pair).is_some_and(|end| !end.has_room) {
                break;
            }
            let Some(chain) = queue::pop(queue, memory)? else { break };
            match self.send(pair, &chain)? {
                Sent::Over => queue::give_back(queue, memory, chain.head(), 0)?,
                Sent::Later => {
                    queue.go_to_previous_position();
                    break;
                }
            }
        }
        queue::wants_interrupt(queue, memory, before)
    }

    fn send(&mut self, pair: usize, chain: &Chain<'_>) -> Result<Sent, DeviceError> {
        let Some(end) = self.ends.get_mut(pair) else {
            self.counters.sent_without_link += 1;
            return Ok(Sent::Over);
        };
        let count = &mut self.counters;
        let len = chain.readable_len();
        if len < HEAD_BYTES {
            count.sent_malformed += 1;
            return Ok(Sent::Over);
        }
        if len > HEADER_BYTES + MAX_FRAME_BYTES {
            count.sent_too_long += 1;
            return Ok(Sent::Over);
        }
        let mut head = [0; HEAD_BYTES];
        chain.read_at(0, &mut head)?;
        let Some((claim, _)) = head.split_first_chunk_mut() else { return Ok(Sent::Over) };
        let Ok(header) = Header::claim(claim, len - HEADER_BYTES, self.features) else {
            count.sent_malformed += 1;
            return Ok(Sent::Over);
        };
        *claim = header.to_bytes();
        if head[SOURCE] != self.mac {
            count.sent_as_another += 1;
            return Ok(Sent::Over);
        }
        let mut rest = Vec::new();
        chain.readable_slices(HEAD_BYTES, &mut rest)?;
        loop {
            match end.tap.write(&head, &rest) {
                Ok(()) => count.sent += 1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    end.has_room = false;
                    return Ok(Sent::Later);
                }
                // No frame for the kernel after all, or a tap that is down or gone: so is what is sent.
                Err(_) => count.sent_refused += 1,
            }
            return Ok(Sent::Over);
        }
    }
}
