//! From the tap to the driver.
//!
//! How long the next frame is, only reading it tells. So as many buffers as the longest frame may need are taken from the
//! queue before; what a frame does not need serves the next one, and is put back in the end.

use std::collections::VecDeque;
use std::io;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::device::Net;
use super::header::{FLAGS_AT, HEADER_BYTES, NUM_BUFFERS_AT, has};
use super::tap::TapQueue;
use super::{ETHERNET_BYTES, MAX_FRAME_BYTES, QUEUE_SIZE};
use crate::virtio::chain::Chain;
use crate::virtio::{DeviceError, queue};

/// What a driver lends for frames to come.
struct Lent<'m> {
    chains: VecDeque<Chain<'m>>,
    /// Bytes of all.
    room: usize,
    /// How many more of the queue may be taken in this call.
    left: u16,
}

impl<T: TapQueue> Net<T> {
    /// Receives what waits in the tap's queue of `pair`. Returns whether the driver must be interrupted.
    pub(super) fn receive(
        &mut self,
        pair: usize,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, DeviceError> {
        if !self.ends.get(pair).is_some_and(|end| end.has_frames) {
            return Ok(false);
        }
        let before = queue.next_used();
        let mut lent = Lent { chains: VecDeque::new(), room: 0, left: queue::available_quietly(queue, memory)? };
        let mut attempts = QUEUE_SIZE;
        while self.goes_on() && self.ends[pair].has_frames {
            lent.take(self.room_needed(), queue, memory)?;
            if lent.chains.is_empty() {
                self.wait_for_buffers(pair, queue, memory)?;
                break;
            }
            if attempts == 0 {
                self.watch_again(pair)?; // Frames that find no place take no buffers, so there may be any number.
                break;
            }
            attempts -= 1;
            let Some(len) = self.read(pair, &lent)? else { continue };
            let used = lent.fill(len, has(self.features, VIRTIO_NET_F_GUEST_CSUM))?;
            queue::give_back_together(queue, memory, &used)?;
            self.counters.received += 1;
        }
        for _ in &lent.chains {
            queue.go_to_previous_position();
        }
        queue::wants_interrupt(queue, memory, before)
    }

    /// Has the driver tell when it lends more. Until now it had no need to: what it has lent meanwhile is there for another
    /// call.
    fn wait_for_buffers(&self, pair: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<(), DeviceError> {
        if queue::available(queue, memory)? > 0 {
            self.watch_again(pair)?;
        }
        Ok(())
    }

    /// Bytes that the next frame may have, with its header. A driver that does not merge buffers has each of them so long.
    fn room_needed(&self) -> usize {
        let is_long = has(self.features, VIRTIO_NET_F_GUEST_TSO4) || has(self.features, VIRTIO_NET_F_GUEST_TSO6);
        match (has(self.features, VIRTIO_NET_F_MRG_RXBUF), is_long) {
            (false, _) => 1,
            (true, false) => HEADER_BYTES + ETHERNET_BYTES + 4 + usize::from(self.mtu),
            (true, true) => HEADER_BYTES + MAX_FRAME_BYTES,
        }
    }

    /// Reads the next frame. `None` when there is none, or none that could be read as a whole.
    fn read(&mut self, pair: usize, lent: &Lent<'_>) -> Result<Option<usize>, DeviceError> {
        let merges = has(self.features, VIRTIO_NET_F_MRG_RXBUF);
        let mut slices = Vec::new();
        let mut room = 0;
        for (index, chain) in lent.chains.iter().enumerate() {
            let fits = slices.len() + chain.writable().count() < pando_sys::MAX_PIECES;
            if index > 0 && (!merges || !fits) {
                break;
            }
            chain.writable_slices(&mut slices)?;
            room += chain.writable_len();
        }
        let end = &mut self.ends[pair];
        match end.tap.read(&slices) {
            Ok(len) if len > room => self.counters.received_too_long += 1,
            Ok(len) if len >= HEADER_BYTES => return Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => end.has_frames = false,
            Err(error) => {
                // Of a tap that is gone nothing more comes.
                end.has_frames = error.kind() == io::ErrorKind::InvalidInput;
                self.counters.received_broken += 1;
            }
            Ok(_) => self.counters.received_broken += 1,
        }
        Ok(None)
    }
}

impl<'m> Lent<'m> {
    /// Takes chains out of `queue` until there is room for `wanted` bytes.
    fn take(&mut self, wanted: usize, queue: &mut Queue, memory: &'m GuestMemoryMmap) -> Result<(), DeviceError> {
        while self.room < wanted && self.left > 0 {
            let Some(chain) = queue::pop(queue, memory)? else { break };
            self.left -= 1;
            if chain.writable_len() < HEADER_BYTES {
                return Err(DeviceError::NoRoom("the header of a frame"));
            }
            self.room += chain.writable_len();
            self.chains.push_back(chain);
        }
        Ok(())
    }

    /// A frame of `len` bytes with its header was read into the first chains: completes the header. Returns which chains
    /// these are, and how much of each.
    fn fill(&mut self, len: usize, knows_checksums: bool) -> Result<Vec<(u16, u32)>, DeviceError> {
        let mut used = Vec::new();
        let mut rest = len;
        while rest > 0 {
            let Some(chain) = self.chains.get(used.len()) else { break };
            let count = rest.min(chain.writable_len());
            rest -= count;
            used.push((chain.head(), count as u32)); // At most a frame.
        }
        if let Some(first) = self.chains.front() {
            first.write_at(NUM_BUFFERS_AT, &(used.len() as u16).to_le_bytes())?; // At most the queue.
            if !knows_checksums {
                first.write_at(FLAGS_AT, &[0])?; // The tap may say that a checksum is right, unasked.
            }
        }
        self.room -= self.chains.drain(..used.len()).map(|chain| chain.writable_len()).sum::<usize>();
        Ok(used)
    }
}
