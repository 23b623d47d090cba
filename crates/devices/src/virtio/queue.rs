//! One pass over a queue: it ends after what it found at its start.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::DeviceError;
use super::chain::Chain;

/// Where in a used ring its position is, and its entries; in bytes.
const USED_POSITION_AT: u64 = 2;
const USED_ENTRIES_AT: u64 = 4;
const USED_ENTRY_BYTES: u64 = 8;

/// Answers every chain that is there now, for as long as `goes_on` says so before each. `answer` returns how many bytes
/// it wrote. A queue that the driver does not use has none. Returns whether the driver wants an interrupt for what it
/// got back.
pub(super) fn serve<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    goes_on: impl Fn() -> bool,
    mut answer: impl FnMut(&Chain<'m>) -> Result<u32, DeviceError>,
) -> Result<bool, DeviceError> {
    let mut has_answered = false;
    for _ in 0..available(queue, memory)? {
        if !goes_on() {
            break;
        }
        let Some(chain) = pop(queue, memory)? else { break };
        let written = answer(&chain)?;
        give_back(queue, memory, chain.head(), written)?;
        has_answered = true;
    }
    Ok(has_answered && wants_interrupt(queue, memory)?)
}

/// How many chains are there now: at most the queue's size.
pub(super) fn available(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<u16, DeviceError> {
    if !queue.ready() {
        return Ok(0);
    }
    queue.iter(memory)?; // Refuses an index that is further ahead than the queue is long.
    let index = queue.avail_idx(memory, Ordering::Acquire)?.0;
    Ok(index.wrapping_sub(queue.next_avail()).min(queue.size()))
}

/// Takes the next chain. [`QueueOwnedT::go_to_previous_position`] puts it back.
pub(super) fn pop<'m>(queue: &mut Queue, memory: &'m GuestMemoryMmap) -> Result<Option<Chain<'m>>, DeviceError> {
    let Some(descriptors) = queue.iter(memory)?.next() else { return Ok(None) };
    Ok(Some(Chain::claim(memory, descriptors)?))
}

/// Gives a chain back with `written` bytes in its writable buffers.
pub(super) fn give_back(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    head: u16,
    written: u32,
) -> Result<(), DeviceError> {
    Ok(queue.add_used(memory, head, written)?)
}

/// Gives back chains that belong together, each with so many bytes written: the driver sees all of them or none.
pub(super) fn give_back_together(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    chains: &[(u16, u32)],
) -> Result<(), DeviceError> {
    let mut position = queue.next_used();
    for (head, written) in chains {
        let entry = u64::from(*head) | u64::from(*written) << 32;
        let slot = queue.used_ring() + USED_ENTRIES_AT + USED_ENTRY_BYTES * u64::from(position % queue.size());
        memory.write_obj(entry.to_le(), GuestAddress(slot)).map_err(virtio_queue::Error::GuestMemory)?;
        position = position.wrapping_add(1);
    }
    queue.set_next_used(position);
    // Who sees the position sees the entries before it.
    let at = GuestAddress(queue.used_ring() + USED_POSITION_AT);
    Ok(memory.store(position.to_le(), at, Ordering::Release).map_err(virtio_queue::Error::GuestMemory)?)
}

/// Whether the driver asks to be told of what it got back. Asked after the last [`give_back`].
pub(super) fn wants_interrupt(queue: &Queue, memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
    // A driver that turns interrupts on looks at the ring once more, so only the order of these two matters.
    fence(Ordering::SeqCst);
    let flags: u16 =
        memory.load(GuestAddress(queue.avail_ring()), Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
    Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}
