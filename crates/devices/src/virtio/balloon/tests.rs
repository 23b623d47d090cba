#![expect(clippy::single_range_in_vec_init, reason = "runs of pages, which may be one")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::contract::device_contract;
use crate::virtio::mmio::{MmioDevice, Transport};
use crate::virtio::testing::{Driver, MEMORY_BYTES, read32, write32};

const INFLATIONS: usize = 0;
const DEFLATIONS: usize = 1;
/// By the specification, and as Linux counts.
const REPORTS: [usize; 2] = [4, 2];
const LAST_PAGE: u32 = (MEMORY_BYTES / PAGE_BYTES) as u32 - 1;

impl FreePages for Sender<Range<u32>> {
    fn give_back(&self, pages: Range<u32>) {
        self.send(pages).unwrap();
    }
}

struct Started {
    transport: Transport<Balloon<Sender<Range<u32>>>>,
    driver: Driver,
    taken: Receiver<Range<u32>>,
    halt: Arc<AtomicBool>,
}

impl Started {
    /// What the host is given of what the driver has offered.
    fn taken(&mut self) -> Vec<Range<u32>> {
        self.transport.process(&self.driver.memory);
        self.taken.try_iter().collect()
    }
}

fn started() -> Started {
    let (to_host, taken) = channel();
    let halt = Arc::default();
    let mut transport = Transport::new(Balloon::new(to_host, Arc::clone(&halt)));
    let driver = Driver::start(&mut transport);
    Started { transport, driver, taken, halt }
}

device_contract!(reporting, new: started().transport,
    change: |transport: &mut Transport<_>| { let _ = write32(transport, 0x30, 0); },
    restore: |state| Transport::restore(Balloon::new(channel().0, Arc::default()), state).unwrap());

#[test]
fn it_asks_for_no_page_and_for_reports() {
    let mut balloon = started().transport;
    assert_eq!(read32(&mut balloon, 0x08), 5);
    let _ = write32(&mut balloon, 0x14, 0);
    assert_eq!(read32(&mut balloon, 0x10), 1 << 5 | 1 << 28, "reports, and indirect descriptors");
    for offset in (0x100..0x110).step_by(4) {
        assert_eq!(read32(&mut balloon, offset), 0);
    }
}

#[test]
fn what_is_reported_is_given_back_before_the_driver_has_its_pages_again() {
    for queue in REPORTS {
        let mut balloon = started();
        let head = balloon.driver.offer(queue, &[], &[(0x20_0000, 0x20_0000), (0x60_0000, 0x1000)]);
        assert_eq!(balloon.driver.take(queue), None);
        assert!(balloon.transport.process(&balloon.driver.memory), "the driver waits for an interrupt");
        assert_eq!(balloon.taken.try_iter().collect::<Vec<_>>(), [0x200..0x400, 0x600..0x601]);
        assert_eq!(balloon.driver.take(queue), Some((head.into(), 0)));
    }
}

#[test]
fn of_a_range_its_whole_pages_are_taken() {
    let mut balloon = started();
    let ranges = [(0x20_0001, 0x3000), (0x30_0fff, 0x1001), (0x40_0000, 0xfff), (0x50_0010, 0x20), (0x60_0000, 0)];
    balloon.driver.offer(4, &[], &ranges);
    assert_eq!(balloon.taken(), [0x201..0x203, 0x301..0x302]);
    balloon.driver.offer(4, &[], &[(MEMORY_BYTES - 0x1000, 0x1000)]);
    assert_eq!(balloon.taken(), [LAST_PAGE..LAST_PAGE + 1], "the last page of memory is one");
}

#[test]
fn a_report_of_what_is_not_memory_stops_the_device_and_takes_nothing() {
    for range in
        [(MEMORY_BYTES - 0x1000, 0x2000), (MEMORY_BYTES, 0x1000), (1 << 40, 0x1000), (u64::MAX - 0xfff, 0x2000)]
    {
        let mut balloon = started();
        balloon.driver.offer(4, &[], &[(0x20_0000, 0x1000), range]);
        assert_eq!(balloon.taken(), [], "{range:x?}");
        assert!(balloon.transport.take_error().is_some());
    }
}

#[test]
fn what_a_report_has_for_the_device_to_read_is_not_taken() {
    let mut balloon = started();
    balloon.driver.offer(4, &[(0x20_0000, 0x1000)], &[(0x30_0000, 0x1000)]);
    assert_eq!(balloon.taken(), [0x300..0x301]);
}

#[test]
fn a_driver_that_did_not_accept_reports_makes_none() {
    for queue in REPORTS {
        let mut balloon = started();
        balloon.driver.negotiate(&mut balloon.transport, 1 << 32);
        balloon.driver.set_up_queue(&mut balloon.transport, queue, 16);
        let _ = write32(&mut balloon.transport, 0x70, 15);
        balloon.driver.offer(queue, &[], &[(0x20_0000, 0x1000)]);
        assert_eq!(balloon.taken(), []);
        assert_eq!(balloon.driver.take(queue), None, "there is no such queue");
    }
}

#[test]
fn pages_in_the_balloon_are_given_back_where_they_are_memory() {
    let mut balloon = started();
    let numbers = [0x200, LAST_PAGE, LAST_PAGE + 1, u32::MAX, 0x201].map(u32::to_le_bytes).concat();
    let address = balloon.driver.place(&[&numbers[..], &[7, 7]].concat());
    let head = balloon.driver.offer(INFLATIONS, &[(address, numbers.len() as u32 + 2)], &[]);
    assert_eq!(balloon.taken(), [0x200..0x201, LAST_PAGE..LAST_PAGE + 1, 0x201..0x202]);
    assert_eq!(balloon.driver.take(INFLATIONS), Some((head.into(), 0)));
}

#[test]
fn of_one_inflation_no_more_is_given_back_than_the_limit() {
    let mut balloon = started();
    let numbers = 3u32.to_le_bytes().repeat(MAX_INFLATED + 1);
    let address = balloon.driver.place(&numbers);
    balloon.driver.offer(INFLATIONS, &[(address, numbers.len() as u32)], &[]);
    assert_eq!(balloon.taken().len(), MAX_INFLATED);
}

#[test]
fn the_balloon_may_be_deflated_at_any_time() {
    let mut balloon = started();
    let address = balloon.driver.place(&3u32.to_le_bytes());
    let head = balloon.driver.offer(DEFLATIONS, &[(address, 4)], &[]);
    assert_eq!(balloon.taken(), []);
    assert_eq!(balloon.driver.take(DEFLATIONS), Some((head.into(), 0)));
}

#[test]
fn a_report_that_a_pause_came_before_is_taken_by_parent_and_child() {
    let mut parent = started();
    parent.halt.store(true, Ordering::SeqCst);
    let head = parent.driver.offer(4, &[], &[(0x20_0000, 0x20_0000)]);
    assert_eq!(parent.taken(), []);
    assert_eq!(parent.driver.take(4), None);

    let (to_host, taken) = channel();
    let child = Balloon::new(to_host, Arc::default());
    let mut child = Transport::restore(child, parent.transport.state()).unwrap();
    let copy = Driver::new().memory;
    let all = parent.driver.bytes(0, MEMORY_BYTES as usize);
    copy.write_slice(&all, GuestAddress(0)).unwrap();
    assert!(child.process(&copy));
    assert_eq!(taken.try_iter().collect::<Vec<_>>(), [0x200..0x400]);

    parent.halt.store(false, Ordering::SeqCst);
    assert_eq!(parent.taken(), [0x200..0x400]);
    assert_eq!(parent.driver.take(4), Some((head.into(), 0)));
}
