//! The driver's side of virtio, for tests and fuzz targets: it may lie where it likes.
//!
//! ```text
//! 0x1_0000 + n · 0x4000   descriptors, available ring (+ 0x1000), used ring (+ 0x2000) of queue n
//! 0x10_0000 …             buffers, handed out one after the other
//! ```
#![allow(clippy::unwrap_used, dead_code, reason = "for tests and fuzz targets only")]

use std::sync::atomic::{Ordering, fence};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::VirtioDevice;
use super::mmio::{Effect, MmioDevice, Transport};

pub(crate) const MEMORY_BYTES: u64 = 16 << 20;
const RINGS_AT: u64 = 0x1_0000;
const RINGS_BYTES: u64 = 0x4000;
const AVAILABLE_AT: u64 = 0x1000;
const USED_AT: u64 = 0x2000;
const BUFFERS_AT: u64 = 0x10_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// One descriptor, as it is in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A driver of one device, with all the memory of its machine.
pub(crate) struct Driver {
    pub(crate) memory: GuestMemoryMmap,
    queues: Vec<DriverQueue>,
    next_buffer: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct DriverQueue {
    size: u16,
    next_descriptor: u16,
    offered: u16,
    /// So much of that the driver has thought of notifying of.
    considered: u16,
    taken: u16,
}

pub(crate) fn read32(device: &mut impl MmioDevice, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

pub(crate) fn write32(device: &mut impl MmioDevice, offset: u64, value: u32) -> Effect {
    device.write(offset, &value.to_le_bytes())
}

/// Lets the device behind `transport` work until it has nothing to do.
pub(crate) fn run<D: VirtioDevice>(transport: &mut Transport<D>, memory: &GuestMemoryMmap) {
    for _ in 0..10_000 {
        transport.process(memory);
        if !host_is_ready(transport) {
            return;
        }
    }
    panic!("the device is woken for what it does not do");
}

/// Whether the device would be woken now.
pub(crate) fn host_is_ready<D: VirtioDevice>(transport: &Transport<D>) -> bool {
    let fd = transport.host_fd().unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

impl Driver {
    /// A driver that has not spoken to its device yet.
    pub(crate) fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap();
        Self { memory, queues: Vec::new(), next_buffer: BUFFERS_AT }
    }

    /// A driver that has brought `transport` up, accepting all that it offers.
    pub(crate) fn start<D: VirtioDevice>(transport: &mut Transport<D>) -> Self {
        let mut driver = Self::new();
        driver.negotiate(transport, u64::MAX);
        let sizes = transport.device().queue_sizes();
        for (index, size) in sizes.iter().enumerate() {
            driver.set_up_queue(transport, index, *size);
        }
        assert_eq!(write32(transport, 0x70, 1 | 2 | 8 | 4), Effect::Notify);
        assert_eq!(read32(transport, 0x70), 1 | 2 | 8 | 4);
        driver
    }

    /// Resets the device and accepts what it offers of `features`.
    pub(crate) fn negotiate<D: VirtioDevice>(&mut self, transport: &mut Transport<D>, features: u64) {
        assert_eq!(write32(transport, 0x70, 0), Effect::Reset);
        let _ = write32(transport, 0x70, 1);
        let _ = write32(transport, 0x70, 1 | 2);
        for half in 0..2 {
            let _ = write32(transport, 0x14, half);
            let offered = read32(transport, 0x10);
            let _ = write32(transport, 0x24, half);
            let _ = write32(transport, 0x20, offered & (features >> (32 * half)) as u32);
        }
        let _ = write32(transport, 0x70, 1 | 2 | 8);
        self.queues = vec![DriverQueue::default(); transport.device().queue_sizes().len()];
    }

    /// Gives the device a queue of `size`.
    pub(crate) fn set_up_queue<D: VirtioDevice>(&mut self, transport: &mut Transport<D>, index: usize, size: u16) {
        self.queues[index].size = size;
        let rings = rings_at(index);
        let _ = write32(transport, 0x30, index as u32);
        let _ = write32(transport, 0x38, u32::from(size));
        for (register, address) in [(0x80, rings), (0x90, rings + AVAILABLE_AT), (0xa0, rings + USED_AT)] {
            let _ = write32(transport, register, address as u32);
            let _ = write32(transport, register + 4, (address >> 32) as u32);
        }
        let _ = write32(transport, 0x44, 1);
    }

    /// Has rings of zeroes, as a driver that comes anew.
    pub(crate) fn clear_rings(&self) {
        self.memory.write_slice(&vec![0; (BUFFERS_AT - RINGS_AT) as usize], GuestAddress(RINGS_AT)).unwrap();
    }

    /// Room for `len` bytes, of zeroes.
    pub(crate) fn allocate(&mut self, len: usize) -> u64 {
        if self.next_buffer + len as u64 > MEMORY_BYTES {
            self.next_buffer = BUFFERS_AT; // By now the first ones have been used.
        }
        let address = self.next_buffer;
        self.next_buffer += len as u64;
        self.memory.write_slice(&vec![0; len], GuestAddress(address)).unwrap();
        address
    }

    /// Memory that holds `bytes`.
    pub(crate) fn place(&mut self, bytes: &[u8]) -> u64 {
        let address = self.allocate(bytes.len());
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
        address
    }

    pub(crate) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Offers a good chain: `readable` and then `writable` buffers, each `(address, len)`. Returns its head.
    pub(crate) fn offer(&mut self, queue: usize, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let count = readable.len() + writable.len();
        let size = self.queues[queue].size;
        let head = self.queues[queue].next_descriptor;
        let flagged = readable.iter().map(|b| (b, 0)).chain(writable.iter().map(|b| (b, WRITE)));
        for (index, ((address, len), flag)) in flagged.enumerate() {
            let at = (head + index as u16) % size;
            let last = index + 1 == count;
            let flags = if last { flag } else { flag | NEXT };
            self.describe(queue, at, Descriptor { address: *address, len: *len, flags, next: (at + 1) % size });
        }
        self.queues[queue].next_descriptor = (head + count as u16) % size;
        self.make_available(queue, head);
        head
    }

    /// Writes one descriptor, whatever it says.
    pub(crate) fn describe(&self, queue: usize, index: u16, descriptor: Descriptor) {
        self.describe_at(rings_at(queue) + u64::from(index) * 16, descriptor);
    }

    /// Writes one descriptor anywhere.
    pub(crate) fn describe_at(&self, address: u64, descriptor: Descriptor) {
        let mut bytes = [0; 16];
        bytes[0..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&descriptor.next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
    }

    /// Puts a chain's head, whatever it is, in the available ring.
    pub(crate) fn make_available(&mut self, queue: usize, head: u16) {
        let ring = rings_at(queue) + AVAILABLE_AT;
        let state = &mut self.queues[queue];
        let slot = u64::from(state.offered % state.size);
        self.memory.write_obj(head, GuestAddress(ring + 4 + 2 * slot)).unwrap();
        state.offered = state.offered.wrapping_add(1);
        self.memory.store(state.offered, GuestAddress(ring + 2), Ordering::Release).unwrap();
    }

    /// Says that there are so many chains in the available ring, however many there are.
    pub(crate) fn claim_available(&mut self, queue: usize, index: u16) {
        self.queues[queue].offered = index;
        self.memory.write_obj(index, GuestAddress(rings_at(queue) + AVAILABLE_AT + 2)).unwrap();
    }

    /// Goes on as a driver that has offered so many chains before, and got all of them back.
    pub(crate) fn begin_at(&mut self, queue: usize, position: u16) {
        let state = &mut self.queues[queue];
        (state.offered, state.considered, state.taken) = (position, position, position);
        for index in [AVAILABLE_AT + 2, USED_AT + 2, self.used_event_at(queue), self.avail_event_at(queue)] {
            self.memory.write_obj(position, GuestAddress(rings_at(queue) + index)).unwrap();
        }
    }

    /// Takes back the chain that was offered last. What this returns offers it again: in the midst of a pass, for one.
    pub(crate) fn withhold(&self, queue: usize) -> Box<dyn FnOnce() + Send> {
        let (memory, offered) = (self.memory.clone(), self.queues[queue].offered);
        let at = GuestAddress(rings_at(queue) + AVAILABLE_AT + 2);
        memory.write_obj(offered.wrapping_sub(1), at).unwrap();
        Box::new(move || memory.store(offered, at, Ordering::Release).unwrap())
    }

    /// Whether the device asks to be notified of what was offered since this was asked last, where `VIRTIO_F_EVENT_IDX` was
    /// accepted.
    pub(crate) fn must_notify(&mut self, queue: usize) -> bool {
        fence(Ordering::SeqCst);
        let event = self.avail_event(queue);
        let state = &mut self.queues[queue];
        let added = state.offered.wrapping_sub(state.considered);
        state.considered = state.offered;
        state.offered.wrapping_sub(event).wrapping_sub(1) < added
    }

    /// The position from which on the device wants notifications.
    pub(crate) fn avail_event(&self, queue: usize) -> u16 {
        self.memory.load(GuestAddress(rings_at(queue) + self.avail_event_at(queue)), Ordering::Relaxed).unwrap()
    }

    /// Asks for an interrupt when the chain of `position` is given back, where `VIRTIO_F_EVENT_IDX` was accepted.
    pub(crate) fn interrupt_at(&self, queue: usize, position: u16) {
        let at = GuestAddress(rings_at(queue) + self.used_event_at(queue));
        self.memory.store(position, at, Ordering::Relaxed).unwrap();
    }

    /// Writes what only the device has to.
    pub(crate) fn notify_at(&self, queue: usize, position: u16) {
        let at = GuestAddress(rings_at(queue) + self.avail_event_at(queue));
        self.memory.store(position, at, Ordering::Relaxed).unwrap();
    }

    /// Asks for an interrupt for the next chain that is given back. Whether it is still to come.
    pub(crate) fn may_sleep(&self, queue: usize) -> bool {
        self.interrupt_at(queue, self.queues[queue].taken);
        fence(Ordering::SeqCst);
        let at = GuestAddress(rings_at(queue) + USED_AT + 2);
        self.memory.load::<u16>(at, Ordering::Acquire).unwrap() == self.queues[queue].taken
    }

    fn used_event_at(&self, queue: usize) -> u64 {
        AVAILABLE_AT + 4 + 2 * u64::from(self.queues[queue].size)
    }

    fn avail_event_at(&self, queue: usize) -> u64 {
        USED_AT + 4 + 8 * u64::from(self.queues[queue].size)
    }

    /// Asks not to be interrupted, or to be.
    pub(crate) fn silence(&self, queue: usize, silent: bool) {
        self.memory.write_obj(u16::from(silent), GuestAddress(rings_at(queue) + AVAILABLE_AT)).unwrap();
    }

    /// The next chain that the device gave back: its head, and how much was written. Asks for an interrupt for the one after
    /// it, as Linux does.
    pub(crate) fn take(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = rings_at(queue) + USED_AT;
        let index: u16 = self.memory.load(GuestAddress(ring + 2), Ordering::Acquire).unwrap();
        let state = &mut self.queues[queue];
        if state.taken == index {
            return None;
        }
        let slot = GuestAddress(ring + 4 + 8 * u64::from(state.taken % state.size));
        state.taken = state.taken.wrapping_add(1);
        let taken = state.taken;
        self.interrupt_at(queue, taken);
        let used: u64 = self.memory.read_obj(slot).unwrap();
        Some((used as u32, (used >> 32) as u32))
    }
}

fn rings_at(queue: usize) -> u64 {
    RINGS_AT + queue as u64 * RINGS_BYTES
}
