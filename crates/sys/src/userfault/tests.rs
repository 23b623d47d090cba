use super::*;
use crate::guest_memory;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use vm_memory::Bytes;

const HIGH: u64 = 1 << 32;
/// Long enough for a thread that does not wait for a page.
const A_WHILE: Duration = Duration::from_millis(200);

fn lazy() -> Arc<Userfault> {
    let memory = guest_memory(&[(0, 2 * HUGE_PAGE), (HIGH, HUGE_PAGE)]).unwrap();
    Arc::new(Userfault::new(memory).unwrap())
}

/// A thread that reads the first number of a page.
fn reader(of: &Userfault, page: u32) -> JoinHandle<u64> {
    let memory = of.memory().clone();
    thread::spawn(move || memory.read_obj(GuestAddress(u64::from(page) * PAGE)).unwrap())
}

/// The next pages that somebody waits for.
fn faults(of: &Userfault) -> Vec<u32> {
    let never = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let mut pages = Vec::new();
    while pages.is_empty() {
        of.wait(never.as_fd(), Duration::from_secs(10));
        of.read_faults(&mut pages).unwrap();
    }
    pages
}

/// How many pages of `run` have a page in the page tables.
fn present(memory: &GuestMemoryMmap, run: Range<u32>) -> usize {
    const PRESENT: u64 = 1 << 63;
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let mut entries = vec![0; 8 * run.len()];
    let at = host_address(memory, &run).unwrap() / PAGE * 8;
    pagemap.read_exact_at(&mut entries, at).unwrap();
    entries.as_chunks().0.iter().filter(|entry| u64::from_ne_bytes(**entry) & PRESENT != 0).count()
}

#[test]
fn a_page_that_is_put_there_is_read_and_the_rest_of_its_huge_page_stays_missing() {
    let lazy = lazy();
    let page = (HIGH / PAGE) as u32 + 5;
    let waiting = reader(&lazy, page);
    assert_eq!(faults(&lazy), [page]);
    assert!(!waiting.is_finished());
    assert_eq!(lazy.copy(page, &[7; PAGE as usize]).unwrap(), 1);
    assert_eq!(waiting.join().unwrap(), 0x0707_0707_0707_0707);
    assert_eq!(present(lazy.memory(), page - 5..page + 507), 1);
    let waiting = reader(&lazy, page + 1);
    assert_eq!(faults(&lazy), [page + 1], "the neighbour is still missing");
    assert_eq!(lazy.zero(page + 1..page + 3).unwrap(), 2);
    assert_eq!(waiting.join().unwrap(), 0);
}

#[test]
fn what_is_there_is_never_replaced() {
    let lazy = lazy();
    lazy.copy(3, &[1; PAGE as usize]).unwrap();
    lazy.memory().write_obj(42u64, GuestAddress(3 * PAGE)).unwrap();
    assert_eq!(lazy.copy(2, &[9; 3 * PAGE as usize]).unwrap(), 2);
    assert_eq!(lazy.zero(1..5).unwrap(), 1);
    let first = |page| lazy.memory().read_obj::<u64>(GuestAddress(page * PAGE)).unwrap();
    assert_eq!([first(1), first(2), first(3), first(4)], [0, 0x0909_0909_0909_0909, 42, 0x0909_0909_0909_0909]);
}

#[test]
fn the_kernel_waits_for_a_page_as_the_process_does() {
    let lazy = lazy();
    let memory = lazy.memory().clone();
    let (ours, theirs) = rustix::pipe::pipe().unwrap();
    let writer = thread::spawn(move || {
        let mut pipe = File::from(theirs);
        memory.write_all_volatile_to(GuestAddress(PAGE), &mut pipe, 8).unwrap();
    });
    assert_eq!(faults(&lazy), [1]);
    lazy.copy(1, &[3; PAGE as usize]).unwrap();
    writer.join().unwrap();
    let mut read = [0; 8];
    rustix::io::read(&ours, &mut read).unwrap();
    assert_eq!(read, [3; 8]);
}

#[test]
fn nothing_outside_of_the_memory_is_touched() {
    let lazy = lazy();
    let last = (2 * HUGE_PAGE / PAGE) as u32 - 1;
    assert!(lazy.copy(last, &[1; 2 * PAGE as usize]).is_err(), "beyond a region");
    assert!(lazy.copy(last + 1, &[1; PAGE as usize]).is_err(), "between two");
    assert!(lazy.copy(u32::MAX, &[1; PAGE as usize]).is_err());
    assert!(lazy.copy(0, &[1; 100]).is_err(), "not a page");
    assert!(lazy.zero(last..last + 2).is_err());
    assert!(collapse(lazy.memory(), last).is_err());
    assert!(collapse(lazy.memory(), u32::MAX).is_err());
    assert!(give_back(lazy.memory(), last..last + 2).is_err());
    assert_eq!(present(lazy.memory(), 0..last + 1), 0);
}

#[test]
fn who_waits_goes_on_waiting_when_the_owner_is_dropped() {
    let lazy = lazy();
    let waiting = reader(&lazy, 8);
    assert_eq!(faults(&lazy), [8]);
    let memory = lazy.memory().clone();
    drop(lazy);
    let late = thread::spawn(move || memory.read_obj::<u64>(GuestAddress(9 * PAGE)).unwrap());
    thread::sleep(A_WHILE);
    assert!(!waiting.is_finished(), "zeroes were seen");
    assert!(!late.is_finished(), "zeroes were seen");
}

#[test]
fn what_is_missing_reads_as_zeroes_after_the_end() {
    let lazy = lazy();
    lazy.copy(1, &[5; PAGE as usize]).unwrap();
    let waiting = reader(&lazy, 0);
    faults(&lazy);
    lazy.unregister().unwrap();
    assert_eq!(waiting.join().unwrap(), 0);
    assert_eq!(lazy.memory().read_obj::<u64>(GuestAddress(PAGE)).unwrap(), 0x0505_0505_0505_0505);
    assert_eq!(lazy.memory().read_obj::<u64>(GuestAddress(HIGH)).unwrap(), 0);
}

#[test]
fn collapsing_keeps_the_content() {
    let lazy = lazy();
    lazy.copy(0, &[5; HUGE_PAGE as usize]).unwrap();
    lazy.unregister().unwrap();
    collapse(lazy.memory(), 0).unwrap();
    assert_eq!(lazy.memory().read_obj::<u64>(GuestAddress(511 * PAGE)).unwrap(), 0x0505_0505_0505_0505);
}

#[test]
fn a_page_that_is_given_back_is_missing_again() {
    let lazy = lazy();
    lazy.copy(4, &[5; PAGE as usize]).unwrap();
    give_back(lazy.memory(), 4..5).unwrap();
    let waiting = reader(&lazy, 4);
    assert_eq!(faults(&lazy), [4]);
    lazy.zero(4..5).unwrap();
    assert_eq!(waiting.join().unwrap(), 0);
}

#[test]
fn the_device_gives_the_same() {
    let device = match File::options().read(true).write(true).open("/dev/userfaultfd") {
        Ok(device) => device,
        Err(error) => return eprintln!("skipped: no /dev/userfaultfd ({error})"),
    };
    let memory = guest_memory(&[(0, HUGE_PAGE)]).unwrap();
    let lazy = Userfault::from_device(device.as_fd(), memory).unwrap();
    let waiting = reader(&lazy, 1);
    assert_eq!(faults(&lazy), [1]);
    lazy.zero(1..2).unwrap();
    assert_eq!(waiting.join().unwrap(), 0);
    let other = File::open("/dev/null").unwrap();
    assert!(Userfault::from_device(other.as_fd(), guest_memory(&[(0, HUGE_PAGE)]).unwrap()).is_err());
}

/// The kernel wakes those who wait before it forgets the registration. Who began to wait in between would have done so
/// for ever: seen in one run of ten of the pager's tests.
#[test]
fn who_begins_to_wait_at_the_end_is_woken_too() {
    for turn in 0..2000u64 {
        let lazy = lazy();
        let readers = [0, 1, 600].map(|page| reader(&lazy, page));
        for _ in 0..turn % 40 {
            thread::yield_now();
        }
        lazy.unregister().unwrap();
        let since = std::time::Instant::now();
        while !readers.iter().all(JoinHandle::is_finished) {
            assert!(since.elapsed() < Duration::from_secs(20), "turn {turn}: somebody waits for ever");
            thread::yield_now();
        }
    }
}
