//! Parents that write beside a child, and children beside a parent: processes of their own, with this one's memory.
//!
//! The kernel makes huge pages, too, once in ten seconds and by rules of its own (khugepaged). So what must not be made is
//! looked for in what we have made, and only what must be huge is looked for in the page tables.

use super::*;
use crate::private_pages;
use pando_sys::{fork, give_back, guest_memory};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use vm_memory::Bytes;

const HUGE: u32 = IN_HUGE_PAGE as u32;
/// As few as a huge page is made of.
const ENOUGH: u32 = DENSE as u32;
/// Long enough for whatever a test waits for.
const LIMIT: Duration = Duration::from_secs(60);
/// Long enough for all to be looked at, also on a computer that is busy.
const LOOKED_AT: Duration = Duration::from_secs(4);

/// Memory of so many huge pages; every page holds its number.
fn memory(huge_pages: u32) -> GuestMemoryMmap {
    let memory = guest_memory(&[(0, u64::from(huge_pages) << 21)]).unwrap();
    (0..huge_pages * HUGE).for_each(|page| write(&memory, page, page));
    memory
}

fn write(memory: &GuestMemoryMmap, page: u32, value: u32) {
    memory.write_obj(value, GuestAddress(u64::from(page) * PAGE)).unwrap();
}

fn read(memory: &GuestMemoryMmap, page: u32) -> u32 {
    memory.read_obj(GuestAddress(u64::from(page) * PAGE)).unwrap()
}

fn pagemap() -> File {
    File::open("/proc/self/pagemap").unwrap()
}

/// Which of the memory's huge pages are mapped as one.
fn huge_ones(memory: &GuestMemoryMmap, of: u32) -> Vec<bool> {
    (0..of).map(|at| is_huge(memory, &pagemap(), at * HUGE).unwrap()).collect()
}

/// How many pages of each of the memory's huge pages this process is said to have written, where `made` were made huge.
fn private(memory: &GuestMemoryMmap, made: &[u32]) -> Vec<usize> {
    let made = made.iter().copied().collect();
    let runs = private_pages(memory, &pagemap(), &made, u32::MAX).unwrap().unwrap();
    let pages: Vec<u32> = runs.iter().flat_map(|run| run.0..run.0 + run.1).collect();
    let of = memory.last_addr().raw_value().div_ceil(pando_sys::HUGE_PAGE) as u32;
    (0..of).map(|at| pages.iter().filter(|page| (at * HUGE..(at + 1) * HUGE).contains(page)).count()).collect()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < LIMIT, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A child of this process.
struct Child {
    pid: Pid,
    socket: UnixStream,
}

/// A child that does `act`, says what came of it, and ends.
fn in_child(act: impl FnOnce(&mut UnixStream) -> String) -> Child {
    let (socket, theirs) = UnixStream::pair().unwrap();
    let (pid, _theirs) = fork(vec![theirs.into()], |kept| {
        let mut socket = UnixStream::from(kept.into_iter().next().unwrap());
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&mut socket)));
        let _ = socket.write_all(said.unwrap_or_else(|_| "it panicked".into()).as_bytes());
        std::process::exit(0)
    })
    .unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    Child { pid, socket }
}

/// A child that lives until it is asked, and then says whether all pages still hold their numbers.
fn sharer(memory: &GuestMemoryMmap, of: u32) -> Child {
    in_child(|socket| {
        let _ = socket.read(&mut [0]);
        format!("{:?}", (0..of * HUGE).find(|page| read(memory, *page) != *page))
    })
}

/// Asks it, and waits for its end.
fn ask(mut child: Child) -> String {
    let mut said = String::new();
    child.socket.shutdown(Shutdown::Write).unwrap();
    child.socket.read_to_string(&mut said).unwrap();
    waitpid(Some(child.pid), WaitOptions::empty()).unwrap();
    said
}

#[test]
fn what_was_written_beside_a_child_is_huge_again_and_nothing_else_is_touched() {
    const OF: u32 = 5;
    let memory = memory(OF);
    assert_eq!(huge_ones(&memory, OF), [true; OF as usize], "this host has huge pages");
    let child = sharer(&memory, OF);
    let huge = HugePages::of(memory.clone());
    let new = |page: u32| page + 7_000_000;
    let written = [0..HUGE, HUGE..HUGE + ENOUGH, 2 * HUGE..2 * HUGE + ENOUGH - 1, 4 * HUGE..5 * HUGE];
    written.iter().cloned().flatten().for_each(|page| write(&memory, page, new(page)));
    give_back(&memory, 4 * HUGE + 9..4 * HUGE + 10).unwrap();
    assert_eq!(huge_ones(&memory, OF), [false, false, false, true, false], "the third is shared as a whole");
    huge.begin().unwrap();
    until("two are huge", || huge_ones(&memory, OF)[..2] == [true; 2]);
    thread::sleep(LOOKED_AT);
    // The third has one too few, the fourth is shared, and of the last one was given back.
    assert!(huge.made().is_subset(&[0, HUGE].into()), "{:?}", huge.made());
    let wrong = (0..OF * HUGE).find(|&page| {
        let is_new = written.iter().any(|run| run.contains(&page));
        let right = if page == 4 * HUGE + 9 {
            0
        } else if is_new {
            new(page)
        } else {
            page
        };
        read(&memory, page) != right
    });
    assert_eq!((wrong, ask(child).as_str()), (None, "None"));
}

#[test]
fn a_child_is_given_no_memory_but_for_what_it_has_nearly_all_written() {
    const OF: u32 = 4;
    let memory = memory(OF);
    let child = in_child(|_| {
        let huge = HugePages::of(memory.clone());
        (0..ENOUGH - 1).chain(HUGE..HUGE + ENOUGH).chain([2 * HUGE]).for_each(|page| write(&memory, page, 7));
        huge.begin().unwrap();
        until("one is huge", || huge_ones(&memory, OF)[1]);
        thread::sleep(LOOKED_AT);
        // What was made huge counts as written, to whoever learns what children write.
        let learned = |made: &[u32]| private(&memory, made)[1];
        format!("{} {} {}", huge.made().is_subset(&[HUGE].into()), learned(&[HUGE]), learned(&[]))
    });
    assert_eq!(ask(child), "true 512 0");
    assert_eq!((0..OF * HUGE).find(|page| read(&memory, *page) != *page), None);
}

#[test]
fn a_fork_in_the_middle_stops_it_and_parent_and_child_are_right() {
    const OF: u32 = 64;
    let memory = memory(OF);
    let first = sharer(&memory, OF);
    let huge = HugePages::of(memory.clone());
    (0..OF * HUGE).for_each(|page| write(&memory, page, page + 1));
    huge.begin().unwrap();
    until("some are huge", || !huge.made().is_empty());
    let mut held = huge.hold();
    let all_are_huge = || huge_ones(&memory, OF) == [true; OF as usize];
    let at_the_fork = huge.made();
    assert!((1..OF as usize).contains(&at_the_fork.len()), "{at_the_fork:?}");
    thread::sleep(LOOKED_AT);
    assert_eq!(huge.made(), at_the_fork, "nothing is made while it is held");
    held.stand_still();
    let second = in_child(|_| {
        let huge = HugePages::of(memory.clone());
        let wrong = (0..OF * HUGE).find(|page| read(&memory, *page) != *page + 1);
        (0..OF * HUGE).for_each(|page| write(&memory, page, page + 2));
        huge.begin().unwrap();
        until("all are huge", all_are_huge);
        format!("{wrong:?} {:?}", (0..OF * HUGE).find(|page| read(&memory, *page) != *page + 2))
    });
    drop(held);
    thread::sleep(QUIET / 2);
    assert_eq!(huge.made(), at_the_fork, "nor shortly after");
    assert_eq!(ask(second), "None None");
    until("all are huge", all_are_huge);
    assert_eq!((0..OF * HUGE).find(|page| read(&memory, *page) != *page + 1), None);
    assert_eq!(ask(first), "None");
}

#[test]
fn nothing_is_made_while_pages_are_given_back() {
    let memory = memory(1);
    let child = sharer(&memory, 1);
    let huge = HugePages::of(memory.clone());
    (0..HUGE).for_each(|page| write(&memory, page, page));
    huge.begin().unwrap();
    huge.while_none_is_made(|| {
        thread::sleep(LOOKED_AT);
        give_back(&memory, 5..6).unwrap();
    });
    assert!(huge.made().is_empty(), "it was made while it was there");
    thread::sleep(LOOKED_AT);
    assert_eq!((huge.made(), read(&memory, 5)), (BTreeSet::new(), 0), "it was made after it was given back");
    drop(ask(child));
}
