use super::*;
use pando_sys::fork;
use rustix::process::{Pid, WaitOptions, waitpid};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// Runs `child` in a child of a fork of this process, in which nothing of the parent's is dropped, and gives its pid and
/// what it answers, once it does.
fn in_child(pager: &Pager, child: impl FnOnce(Runs) -> u8) -> (Pid, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let held = pager.hold();
    let missing = held.missing();
    let answering = |kept: Vec<OwnedFd>| {
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| child(missing)));
        tell(kept).write_all(&[answer.unwrap_or(b'!')]).unwrap();
        std::process::exit(0)
    };
    let (child, _theirs) = fork(vec![theirs.into()], answering).unwrap();
    drop(held);
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    (child, ours)
}

/// The one descriptor that a child kept.
fn tell(kept: Vec<OwnedFd>) -> UnixStream {
    kept.into_iter().next().unwrap().into()
}

fn answer((child, mut stream): (Pid, UnixStream)) -> u8 {
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    waitpid(Some(child), WaitOptions::empty()).unwrap();
    answer[0]
}

/// A pager that stands with part of its memory there.
fn half_resident() -> (Pager, GuestMemoryMmap, Receiver<End>) {
    let source = Source { delay: Duration::from_millis(5), ..Source::default() };
    let started = start(lazy(8, 8), source, Spec::default());
    let (pager, memory, _) = &started;
    until("a part is there", || pager.stats().filled_pages > 200);
    memory.write_obj(77u64, at(1, 5)).unwrap();
    memory.write_obj(78u64, at(HIGH + 1, 5)).unwrap();
    started
}

/// What the parent wrote before the fork is there; after that, only what a source gave.
fn is_right(memory: &GuestMemoryMmap) -> bool {
    let were_written = [1, HIGH + 1].map(|page| memory.read_obj::<u64>(at(page, 5)).unwrap());
    [1, HIGH + 1].iter().for_each(|page| memory.write_obj(word(*page, 5), at(*page, 5)).unwrap());
    were_written == [77, 78] && all_pages(memory).all(|page| wrong(memory, page).is_none())
}

#[test]
fn a_child_of_a_half_resident_parent_brings_its_own_memory_and_both_are_right() {
    let (pager, memory, ends) = half_resident();
    let child = in_child(&pager, |missing| {
        let is_half: u32 = missing.iter().map(|run| run.1).sum();
        // Before anybody touches its memory: a userfaultfd, a pager and a source of its own.
        let userfault = Userfault::new(memory.clone()).unwrap();
        let source = Source { delay: Duration::from_micros(100), ..Source::default() };
        let (pager, memory, ends) = start(userfault, source, Spec { missing: Some(missing), ..Spec::default() });
        let was_right_meanwhile = is_right(&memory);
        let stats = complete(&ends);
        let came = stats.filled_pages + stats.faulted_pages;
        std::mem::forget(pager);
        let is_all = (500..4000).contains(&is_half) && came == u64::from(is_half);
        u8::from(was_right_meanwhile && is_all)
    });
    assert_eq!(answer(child), 1);
    complete(&ends);
    assert!(is_right(&memory));
}

#[test]
fn a_child_that_registers_nothing_reads_zeroes_where_its_parent_waits() {
    let (pager, memory, ends) = half_resident();
    let page = HIGH + 2046;
    assert_ne!(word(page, 0), 0);
    let child = in_child(&pager, |missing| {
        let is_missing = missing.iter().any(|run| range(*run).contains(&page));
        u8::from(is_missing && read(&memory, page, 0) == 0)
    });
    assert_eq!(answer(child), 1, "the hazard is real: a child must be told what is missing");
    complete(&ends);
    assert_eq!(wrong(&memory, page), None);
}

#[test]
fn children_and_their_children_are_right_while_their_parents_memory_comes_and_is_written_to() {
    let (pager, memory, ends) = half_resident();
    let mut children = Vec::new();
    for _ in 0..5 {
        children.push(in_child(&pager, |missing| bring_and_fork(&memory, missing)));
        thread::sleep(Duration::from_millis(20));
    }
    // Not the children's: they were forked before.
    memory.write_obj(1u64, at(HIGH + 9, 9)).unwrap();
    children.into_iter().for_each(|child| assert_eq!(answer(child), 1));
    complete(&ends);
    memory.write_obj(word(HIGH + 9, 9), at(HIGH + 9, 9)).unwrap();
    assert!(is_right(&memory));
}

fn bring_and_fork(memory: &GuestMemoryMmap, missing: Runs) -> u8 {
    let userfault = Userfault::new(memory.clone()).unwrap();
    let source = Source { delay: Duration::from_millis(1), ..Source::default() };
    let (pager, memory, ends) = start(userfault, source, Spec { missing: Some(missing), ..Spec::default() });
    let grandchild = in_child(&pager, |missing| {
        let userfault = Userfault::new(memory.clone()).unwrap();
        let (pager, memory, ends) =
            start(userfault, Source::default(), Spec { missing: Some(missing), ..Spec::default() });
        complete(&ends);
        std::mem::forget(pager);
        u8::from(is_right(&memory))
    });
    let is_right_below = answer(grandchild) == 1;
    complete(&ends);
    std::mem::forget(pager);
    u8::from(is_right_below && is_right(&memory))
}

/// A source that costs nothing, so that putting pages there is all that the pager does.
struct Ones;

impl PageSource for Ones {
    fn chunk_pages(&self) -> u32 {
        4
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        fetched.data(wanted.pages.len() as u32)?.fill(1);
        Ok(())
    }
}

#[test]
fn while_it_is_held_nothing_is_half_there_and_nothing_comes() {
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let tuning = Tuning { fill_pages: 512, ..Tuning::default() };
    let (pager, memory, ends) = start(lazy(128, 2), Ones, Spec { tuning, ..Spec::default() });
    let waiting = reader(&memory, HIGH + 510);
    let there = || crate::private_pages(&memory, &pagemap, &Default::default(), u32::MAX).unwrap().unwrap();
    let mut held_for = 0;
    while ends.try_recv().is_err() {
        let held = pager.hold();
        let (missing, before) = (held.missing(), there());
        let is_there = |page: u32| before.iter().any(|run| range(*run).contains(&page));
        let half_there = missing.iter().flat_map(|run| range(*run)).find(|page| is_there(*page));
        assert_eq!(half_there, None, "a child would not know whether it has this page");
        assert_eq!(there(), before);
        drop(held);
        held_for += 1;
        thread::sleep(Duration::from_micros(300));
    }
    assert!(held_for > 2, "{held_for}");
    assert_eq!(waiting.join().unwrap(), 0x0101_0101_0101_0101);
}

#[test]
fn a_process_with_a_dead_source_ends_at_once_and_nobody_in_it_sees_zeroes() {
    let (pager, _memory, _ends) = half_resident();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let held = pager.hold();
    let (child, theirs) = fork(vec![theirs.into()], |kept| end_with_those_who_wait(&tell(kept))).unwrap();
    drop((held, theirs));
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    let mut seen = Vec::new();
    ours.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, [b'w'; 4], "four threads said that they would wait, and none said what it saw");
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(3));
}

/// In a child: four threads wait for pages that never come; the process ends when the pager says so.
fn end_with_those_who_wait(tell: &UnixStream) -> ! {
    let tuning = Tuning { stall_limit: Duration::from_millis(400), ..small_fill() };
    let source = Source { hangs_from: Some(0), ..Source::default() };
    let (pager, memory, ends) = start(lazy(2, 2), source, Spec { tuning, ..Spec::default() });
    for page in [3, 200, 300, HIGH] {
        let (memory, mut tell) = (memory.clone(), tell.try_clone().unwrap());
        thread::spawn(move || {
            tell.write_all(b"w").unwrap();
            let seen = read(&memory, page, 1);
            tell.write_all(&[b'0' + u8::from(seen != 0)]).unwrap();
        });
    }
    failure(&ends);
    drop(pager);
    std::process::exit(3)
}
