//! Queues in, pages out.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::Queue;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::{FreePages, MAX_INFLATED, PAGE_BYTES, VIRTIO_BALLOON_F_REPORTING};
use crate::virtio::chain::Chain;
use crate::virtio::{COMMON_FEATURES, DeviceError, VirtioDevice, queue};

/// Linux reports 32 ranges at once, and does without where a queue has no room for them.
const QUEUE_SIZE: u16 = 64;

/// A balloon. It has no state: what was given back is simply not there any more.
pub struct Balloon<F> {
    free: F,
    takes_reports: bool,
    halt: Arc<AtomicBool>,
}

impl<F: FreePages> Balloon<F> {
    /// A balloon that gives to `free`. While `halt` is set, no request is begun.
    pub fn new(free: F, halt: Arc<AtomicBool>) -> Self {
        Self { free, takes_reports: false, halt }
    }

    /// The buffers themselves are what is free.
    fn report(&self, chain: &Chain<'_>) -> Result<u32, DeviceError> {
        for (start, len) in chain.writable() {
            let pages = whole_pages(start, len);
            if !pages.is_empty() {
                self.free.give_back(pages);
            }
        }
        Ok(0)
    }

    /// The buffers hold numbers of pages.
    fn inflate(&self, chain: &Chain<'_>, memory: &GuestMemoryMmap) -> Result<u32, DeviceError> {
        let mut numbers = [0; MAX_INFLATED * size_of::<u32>()];
        let len = chain.readable_len().min(numbers.len());
        chain.read_at(0, &mut numbers[..len])?;
        for number in numbers[..len].as_chunks().0 {
            let page = u32::from_le_bytes(*number);
            let start = GuestAddress(u64::from(page) * PAGE_BYTES);
            let is_ram = GuestMemory::check_range(memory, start, PAGE_BYTES as usize, Permissions::ReadWrite);
            if is_ram && let Some(end) = page.checked_add(1) {
                self.free.give_back(page..end);
            }
        }
        Ok(0)
    }
}

impl<F: FreePages> VirtioDevice for Balloon<F> {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    /// Inflations, deflations, statistics, hints, reports: that is how the specification numbers them. Linux counts only
    /// those whose feature it has accepted, so its third queue may be that of the reports.
    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE; 5]
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0); // The host wants no page.
    }

    fn activate(&mut self, features: u64) {
        self.takes_reports = features & 1 << VIRTIO_BALLOON_F_REPORTING != 0;
    }

    fn reset(&mut self) {
        self.takes_reports = false;
    }

    fn process(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        let goes_on = || !self.halt.load(Ordering::SeqCst);
        let mut interrupt = false;
        for (index, queue) in queues.iter_mut().enumerate() {
            interrupt |= match index {
                0 => queue::serve(queue, memory, goes_on, |chain| self.inflate(chain, memory))?,
                1 => queue::serve(queue, memory, goes_on, |_| Ok(0))?, // The pages are there when they are touched.
                _ if self.takes_reports => queue::serve(queue, memory, goes_on, |chain| self.report(chain))?,
                _ => false, // There is no such queue.
            };
        }
        Ok(interrupt)
    }
}

/// The pages that lie in `len` bytes at `start` with all that they are.
fn whole_pages(start: GuestAddress, len: usize) -> Range<u32> {
    let end = start.0.saturating_add(len as u64) / PAGE_BYTES;
    let page = |number| u32::try_from(number).unwrap_or(u32::MAX); // No RAM is that far.
    page(start.0.div_ceil(PAGE_BYTES))..page(end)
}
