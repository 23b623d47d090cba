//! One pass over a queue: it ends after what it found at its start.
//!
//! With `VIRTIO_F_EVENT_IDX` (virtio 1.2, sections 2.7.7 to 2.7.10) each side says which chain it wants to hear of next:
//!
//! ```text
//!                   who writes   where                       what it says
//!   avail_event     device       behind the used ring        notify me when you add the chain of this position
//!   used_event      driver       behind the available ring   interrupt me when you give back the chain of this position
//! ```
//!
//! Whoever wants to hear of the next one writes that down, and then looks whether it is there already; whoever adds one
//! writes its index, and then looks what is asked for. So one of the two sees the other, in whatever order they come.
//! Both numbers are guest memory, and all that is decided by them is decided before a pass ends: nothing has to be saved.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::DeviceError;
use super::chain::Chain;

/// Where in a used ring its position is, and its entries; in bytes.
const USED_POSITION_AT: u64 = 2;
const USED_ENTRIES_AT: u64 = 4;
const USED_ENTRY_BYTES: u64 = 8;

/// Where in an available ring its entries are, in bytes.
const AVAILABLE_ENTRIES_AT: u64 = 4;
const AVAILABLE_ENTRY_BYTES: u64 = 2;

/// Answers every chain that is there now, for as long as `goes_on` says so before each. `answer` returns how many bytes
/// it wrote. A queue that the driver does not use has none. Returns whether the driver wants an interrupt for what it
/// got back.
pub(super) fn serve<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    goes_on: impl Fn() -> bool,
    mut answer: impl FnMut(&Chain<'m>) -> Result<u32, DeviceError>,
) -> Result<bool, DeviceError> {
    let before = queue.next_used();
    for _ in 0..available(queue, memory)? {
        if !goes_on() {
            break;
        }
        let Some(chain) = pop(queue, memory)? else { break };
        let written = answer(&chain)?;
        give_back(queue, memory, chain.head(), written)?;
    }
    wants_interrupt(queue, memory, before)
}

/// How many chains are there now: at most the queue's size. The driver notifies when it adds another.
pub(super) fn available(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<u16, DeviceError> {
    let mut count = available_quietly(queue, memory)?;
    if !queue.ready() || !queue.event_idx_enabled() {
        return Ok(count); // A driver notifies of all that it adds.
    }
    // A driver only adds, so the count changes at most so often. One that does something else misses what it is owed itself.
    for _ in 0..=queue.size() {
        let known = count;
        count = enable_notification(queue, memory, known)?;
        if count == known {
            break;
        }
    }
    Ok(count)
}

/// As [`available`], for a device that is not waiting for more: the driver may add them without a notification.
pub(super) fn available_quietly(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<u16, DeviceError> {
    if !queue.ready() {
        return Ok(0);
    }
    queue.iter(memory)?; // Refuses an index that is further ahead than the queue is long.
    let index = queue.avail_idx(memory, Ordering::Acquire)?.0;
    Ok(index.wrapping_sub(queue.next_avail()).min(queue.size()))
}

/// Has the driver notify when it adds to the next `known` chains. Returns how many there are after it could have learned of
/// that: where it is more than `known`, it may have added them before.
fn enable_notification(queue: &mut Queue, memory: &GuestMemoryMmap, known: u16) -> Result<u16, DeviceError> {
    let at = avail_event_at(queue)?;
    let event = queue.next_avail().wrapping_add(known);
    // What stays as it was is not written: in a fork's child that would cost a page.
    if load(memory, at)? != event {
        memory.store(event.to_le(), at, Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
    }
    // A driver reads the event after it has written the index. So the other way round here.
    fence(Ordering::SeqCst);
    available_quietly(queue, memory)
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

/// Whether the driver asks to be told of what it got back since the used ring's position was `before`: at the start of a
/// pass. Asked after the last [`give_back`].
pub(super) fn wants_interrupt(queue: &Queue, memory: &GuestMemoryMmap, before: u16) -> Result<bool, DeviceError> {
    let now = queue.next_used();
    if now == before {
        return Ok(false);
    }
    // A driver that turns interrupts on looks at the ring once more, so only the order of these two matters.
    fence(Ordering::SeqCst);
    if queue.event_idx_enabled() {
        return Ok(has_passed(load(memory, used_event_at(queue)?)?, before, now));
    }
    let flags = load(memory, GuestAddress(queue.avail_ring()))?;
    Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

/// Whether a ring that went on from `before` to `now` has `event` behind it and had not then. Positions wrap.
fn has_passed(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

fn avail_event_at(queue: &Queue) -> Result<GuestAddress, DeviceError> {
    behind(queue.used_ring(), USED_ENTRIES_AT + USED_ENTRY_BYTES * u64::from(queue.size()))
}

fn used_event_at(queue: &Queue) -> Result<GuestAddress, DeviceError> {
    behind(queue.avail_ring(), AVAILABLE_ENTRIES_AT + AVAILABLE_ENTRY_BYTES * u64::from(queue.size()))
}

fn behind(ring: u64, len_bytes: u64) -> Result<GuestAddress, DeviceError> {
    Ok(GuestAddress(ring).checked_add(len_bytes).ok_or(virtio_queue::Error::AddressOverflow)?)
}

fn load(memory: &GuestMemoryMmap, at: GuestAddress) -> Result<u16, DeviceError> {
    Ok(memory.load(at, Ordering::Relaxed).map(u16::from_le).map_err(virtio_queue::Error::GuestMemory)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::hint::spin_loop;
    use std::sync::atomic::{AtomicBool, AtomicU32};
    use std::thread;
    use virtio_queue::QueueState;

    const SIZE: u16 = 256;
    const AVAILABLE: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const MEMORY_BYTES: usize = 0x4000;

    /// A queue both of whose rings are at `position`, with events, and all the memory there is.
    fn queue(position: u16) -> (Queue, GuestMemoryMmap) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let queue = QueueState {
            max_size: SIZE,
            next_avail: position,
            next_used: position,
            event_idx_enabled: true,
            size: SIZE,
            ready: true,
            desc_table: 0,
            avail_ring: AVAILABLE,
            used_ring: USED,
        };
        offer(&memory, position);
        (queue.try_into().unwrap(), memory)
    }

    /// The driver's index is `index`.
    fn offer(memory: &GuestMemoryMmap, index: u16) {
        memory.write_obj(index, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    fn avail_event(queue: &Queue, memory: &GuestMemoryMmap) -> u16 {
        load(memory, avail_event_at(queue).unwrap()).unwrap()
    }

    proptest! {
        /// Near the place where positions wrap, and near the event, as otherwise hardly any case would matter.
        #[test]
        fn an_interrupt_is_wanted_if_the_chain_of_the_event_was_given_back(
            before in prop_oneof![any::<u16>(), 65_200..=u16::MAX], ahead in -300..300_i16, count in 0..=SIZE,
        ) {
            let (mut queue, memory) = queue(before);
            let event = before.wrapping_add_signed(ahead);
            memory.write_obj(event, used_event_at(&queue).unwrap()).unwrap();
            for _ in 0..count {
                give_back(&mut queue, &memory, 0, 0).unwrap();
            }
            let is_among_them = (0..count).any(|number| before.wrapping_add(number) == event);
            prop_assert_eq!(wants_interrupt(&queue, &memory, before).unwrap(), is_among_them);
        }
    }

    #[test]
    fn a_chain_that_is_added_before_the_driver_can_know_is_there() {
        for position in [0, 7, u16::MAX - 1, u16::MAX] {
            let (mut queue, memory) = queue(position);
            assert_eq!(available_quietly(&mut queue, &memory).unwrap(), 0);
            offer(&memory, position.wrapping_add(2)); // Now, before the event is written.
            assert_eq!(enable_notification(&mut queue, &memory, 0).unwrap(), 2);
            assert_eq!(available(&mut queue, &memory).unwrap(), 2);
            assert_eq!(avail_event(&queue, &memory), position.wrapping_add(2), "the next one is told of");
        }
    }

    #[test]
    fn a_device_that_does_not_wait_for_more_asks_for_nothing() {
        let (mut queue, memory) = queue(3);
        offer(&memory, 8);
        assert_eq!(available_quietly(&mut queue, &memory).unwrap(), 5);
        assert_eq!(avail_event(&queue, &memory), 0);
        queue.set_event_idx(false);
        assert_eq!(available(&mut queue, &memory).unwrap(), 5);
        assert_eq!(avail_event(&queue, &memory), 0, "nor one whose driver knows of no events");
        queue.set_event_idx(true);
        queue.set_ready(false);
        assert_eq!(available(&mut queue, &memory).unwrap(), 0);
        assert_eq!(avail_event(&queue, &memory), 0, "nor one whose driver does not use the queue");
    }

    #[test]
    fn a_chain_that_is_added_at_the_same_time_is_seen_or_told_of() {
        let (mut queue, memory) = queue(0);
        let (avail_event_at, theirs) = (avail_event_at(&queue).unwrap(), memory.clone());
        race(
            |round| {
                queue.set_next_avail(round);
                available(&mut queue, &memory).unwrap() == 1
            },
            |round| {
                theirs.store(round.wrapping_add(1), GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
                fence(Ordering::SeqCst);
                load(&theirs, avail_event_at).unwrap() == round
            },
        );
    }

    #[test]
    fn a_chain_that_is_given_back_at_the_same_time_is_seen_or_told_of() {
        let (mut queue, memory) = queue(0);
        let (used_event_at, theirs) = (used_event_at(&queue).unwrap(), memory.clone());
        memory.write_obj(u16::MAX, used_event_at).unwrap(); // One that is over.
        race(
            |round| {
                give_back(&mut queue, &memory, 0, 0).unwrap();
                wants_interrupt(&queue, &memory, round).unwrap()
            },
            |round| {
                theirs.store(round, used_event_at, Ordering::Relaxed).unwrap();
                fence(Ordering::SeqCst);
                load(&theirs, GuestAddress(USED + USED_POSITION_AT)).unwrap() == round.wrapping_add(1)
            },
        );
    }

    /// Has device and driver act at the same time, round after round: at least one of them has to see what the other did.
    fn race(mut device: impl FnMut(u16) -> bool + Send, mut driver: impl FnMut(u16) -> bool) {
        const ROUNDS: u32 = 100_000;
        let (theirs, ours, has_seen) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
        let mut missed = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    meet(&theirs, &ours, 2 * round - 1);
                    (0..round % 64).for_each(|_| spin_loop()); // The one after the other, too, by a little.
                    has_seen.store(device((round - 1) as u16), Ordering::Relaxed);
                    meet(&theirs, &ours, 2 * round);
                }
            });
            for round in 1..=ROUNDS {
                meet(&ours, &theirs, 2 * round - 1);
                let sees = driver((round - 1) as u16);
                meet(&ours, &theirs, 2 * round);
                missed += u32::from(!sees && !has_seen.load(Ordering::Relaxed));
            }
        });
        assert_eq!(missed, 0, "of {ROUNDS}");
    }

    /// Is at `step`, and waits for the other to be there.
    fn meet(mine: &AtomicU32, other: &AtomicU32, step: u32) {
        mine.store(step, Ordering::SeqCst);
        let mut looks = 0_u32;
        while other.load(Ordering::SeqCst) < step {
            looks += 1;
            if looks.is_multiple_of(1000) {
                thread::yield_now(); // There may be one CPU only.
            }
        }
    }

    #[test]
    fn rings_outside_memory_are_an_error() {
        for ring in [MEMORY_BYTES as u64 - 4, MEMORY_BYTES as u64, u64::MAX - 3] {
            let (good, memory) = queue(0);
            let mut used = Queue::try_from(QueueState { used_ring: ring, ..good.state() }).unwrap();
            assert!(available(&mut used, &memory).is_err(), "{ring:#x}");
            let available = Queue::try_from(QueueState { avail_ring: ring, ..good.state() }).unwrap();
            assert!(wants_interrupt(&available, &memory, 1).is_err(), "{ring:#x}");
        }
    }
}
