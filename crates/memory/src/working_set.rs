//! What a child of a fork has written: the pages that it alone has. And what of that is still there later; and what is there
//! at all.

use crate::pagemap::{ENTRY, EXCLUSIVE, IN_HUGE_PAGE, PAGE, PRESENT, SWAPPED, has};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow::{self, Break, Continue};
use std::os::unix::fs::FileExt;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Entries read at once: whole huge pages of them.
const ENTRIES: usize = 8192;

/// The pages of `memory` that no other process maps, as runs `(first page, pages)`, from this process's own `pagemap`.
/// `None` when there are more than `most`: then it stops looking.
///
/// A whole huge page is left out: where nothing was before, the kernel gives one for the first byte that is written, and
/// who writes into it next is unknown. To copy all of it for each child costs more than the few faults it would save. Not so
/// one that was [made](crate::HugePages::made) of pages that were written, of which `made` has the first pages.
pub fn private_pages(
    memory: &GuestMemoryMmap,
    pagemap: &File,
    made: &BTreeSet<u32>,
    most: u32,
) -> io::Result<Option<Vec<(u32, u32)>>> {
    let mut runs = Runs::default();
    let is_private = |entry: &[u8]| has(entry, EXCLUSIVE);
    let looked = each_huge_page(memory, pagemap, |page, entries| {
        // All of it, and nobody has written that.
        let is_given = !made.contains(&page) && entries.chunks_exact(ENTRY as usize).all(is_private);
        if !is_given {
            runs.add(page, entries, is_private);
        }
        if runs.pages > most { Break(()) } else { Continue(()) }
    });
    Ok(looked?.is_continue().then_some(runs.runs))
}

/// The pages of `memory` that may hold something, as runs `(first page, pages)`, from this process's own `pagemap`: those
/// that are in memory, and those that are swapped out. All others read as zeroes.
pub fn held_pages(memory: &GuestMemoryMmap, pagemap: &File) -> io::Result<Vec<(u32, u32)>> {
    let mut runs = Runs::default();
    let _ = each_huge_page(memory, pagemap, |page, entries| {
        runs.add(page, entries, |entry| has(entry, PRESENT | SWAPPED));
        Continue(())
    })?;
    Ok(runs.runs)
}

/// Shows the entries of each 2 MiB of `memory`, and which page is the first of them, until it breaks off.
fn each_huge_page(
    memory: &GuestMemoryMmap,
    pagemap: &File,
    mut look: impl FnMut(u32, &[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let mut buffer = vec![0; ENTRIES * ENTRY as usize];
    for region in memory.iter() {
        let (host, guest) = (region.as_ptr() as u64 / PAGE, region.start_addr().raw_value() / PAGE);
        let count = region.len() / PAGE;
        for first in (0..count).step_by(ENTRIES) {
            let len = (count - first).min(ENTRIES as u64);
            let entries = &mut buffer[..(len * ENTRY) as usize];
            pagemap.read_exact_at(entries, (host + first) * ENTRY)?;
            let huge_pages = entries.chunks(IN_HUGE_PAGE * ENTRY as usize);
            for (page, entries) in (guest + first..).step_by(IN_HUGE_PAGE).zip(huge_pages) {
                // RAM ends below 2^44 bytes.
                if look(page as u32, entries).is_break() {
                    return Ok(Break(()));
                }
            }
        }
    }
    Ok(Continue(()))
}

/// What of the pages in `runs` is there, in the same order: what was given back since they were learned is not, nor is what
/// does not exist. To write into it would make a page anew, a huge one even, for a guest that may not want it.
pub fn present_pages(memory: &GuestMemoryMmap, runs: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut present: Vec<(u32, u32)> = Vec::new();
    for &(first, pages) in runs {
        let (start, len) = (GuestAddress(u64::from(first) * PAGE), pages as usize * PAGE as usize);
        let there = pando_sys::present(memory, start, len).unwrap_or_default();
        for (_, page) in there.into_iter().zip(first..).filter(|(is_there, _)| *is_there) {
            match present.last_mut().filter(|run| run.0 + run.1 == page) {
                Some(run) => run.1 += 1,
                None => present.push((page, 1)),
            }
        }
    }
    present
}

/// Runs of pages, and how many pages they have.
#[derive(Default)]
struct Runs {
    runs: Vec<(u32, u32)>,
    pages: u32,
}

impl Runs {
    /// Adds those from `first` on whose entries are wanted.
    fn add(&mut self, first: u32, entries: &[u8], is_wanted: impl Fn(&[u8]) -> bool) {
        let entries = entries.chunks_exact(ENTRY as usize);
        for (page, _) in (first..).zip(entries).filter(|(_, entry)| is_wanted(entry)) {
            self.pages += 1;
            match self.runs.last_mut().filter(|run| run.0 + run.1 == page) {
                Some(run) => run.1 += 1,
                None => self.runs.push((page, 1)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_sys::{HUGE_PAGE, fork, give_back, guest_memory};
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use vm_memory::Bytes;

    const HIGH: u64 = 1 << 32;

    #[test]
    fn what_a_child_wrote_is_private_and_a_huge_page_that_it_was_given_is_not_told() {
        let memory = guest_memory(&[(0, HUGE_PAGE), (HIGH, HUGE_PAGE)]).unwrap();
        (0..HUGE_PAGE).step_by(PAGE as usize).for_each(|at| memory.write_obj(1u64, GuestAddress(HIGH + at)).unwrap());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let write_and_look = |kept: Vec<OwnedFd>| {
            for address in [3 * PAGE, HIGH + 5 * PAGE, HIGH + 6 * PAGE, HIGH + 9 * PAGE] {
                memory.write_obj(7u64, GuestAddress(address)).unwrap();
            }
            let pagemap = File::open("/proc/self/pagemap").unwrap();
            let [all, few] = [512, 2].map(|most| private_pages(&memory, &pagemap, &BTreeSet::new(), most).unwrap());
            let mut theirs = UnixStream::from(kept.into_iter().next().unwrap());
            theirs.write_all(format!("{all:?} {few:?}").as_bytes()).unwrap();
        };
        let (child, _theirs) = fork(vec![theirs.into()], write_and_look).unwrap();
        drop(_theirs);
        let mut told = String::new();
        ours.read_to_string(&mut told).unwrap();
        rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
        let page = (HIGH / PAGE) as u32;
        let [written, with_low] = [vec![], vec![(3, 1)]].map(|mut runs: Vec<(u32, u32)>| {
            runs.extend([(page + 5, 2), (page + 9, 1)]);
            format!("{:?} None", Some(runs))
        });
        // Where there are no huge pages, the page below is one among others.
        assert!([written, with_low].contains(&told), "{told}");
    }

    #[test]
    fn what_a_child_gives_back_is_not_its_own_any_more_and_still_its_parents() {
        let memory = guest_memory(&[(0, HUGE_PAGE)]).unwrap();
        (0..HUGE_PAGE).step_by(PAGE as usize).for_each(|at| memory.write_obj(1u64, GuestAddress(at)).unwrap());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let give_back_and_look = |kept: Vec<OwnedFd>| {
            [3, 4, 5].into_iter().for_each(|page| memory.write_obj(7u64, GuestAddress(page * PAGE)).unwrap());
            give_back(&memory, 4..5).unwrap(); // What it has written.
            give_back(&memory, 8..9).unwrap(); // What it shares.
            let read = [3, 4, 8, 9].map(|page| memory.read_obj::<u64>(GuestAddress(page * PAGE)).unwrap());
            let pagemap = File::open("/proc/self/pagemap").unwrap();
            let private = private_pages(&memory, &pagemap, &BTreeSet::new(), 512).unwrap().unwrap();
            let mut theirs = UnixStream::from(kept.into_iter().next().unwrap());
            theirs.write_all(format!("{read:?} {private:?}").as_bytes()).unwrap();
        };
        let (child, _theirs) = fork(vec![theirs.into()], give_back_and_look).unwrap();
        drop(_theirs);
        let mut told = String::new();
        ours.read_to_string(&mut told).unwrap();
        rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
        assert_eq!(told, "[7, 0, 0, 1] [(3, 1), (5, 1)]");
        let lost =
            (0..HUGE_PAGE).step_by(PAGE as usize).find(|at| memory.read_obj::<u64>(GuestAddress(*at)).unwrap() != 1);
        assert_eq!(lost, None);
    }

    #[test]
    fn every_page_that_is_there_or_swapped_out_is_held_and_none_that_was_given_back() {
        let memory = guest_memory(&[(0, 2 * HUGE_PAGE), (HIGH, HUGE_PAGE)]).unwrap();
        let [huge, high] = [HUGE_PAGE, HIGH].map(|address| (address / PAGE) as u32);
        (0..huge).for_each(|page| memory.write_obj(1u64, GuestAddress(u64::from(page) * PAGE)).unwrap());
        memory.write_obj(1u64, GuestAddress(HIGH + 3 * PAGE)).unwrap();
        give_back(&memory, 5..7).unwrap();
        let held = held_pages(&memory, &File::open("/proc/self/pagemap").unwrap()).unwrap();
        assert_eq!(held[..2], [(0, 5), (7, huge - 7)]);
        // Where there are huge pages it came with others.
        assert_eq!(held.len(), 3);
        assert!((held[2].0..held[2].0 + held[2].1).contains(&(high + 3)), "{held:?}");

        // No host can be made to swap here: a file that says so in the place of the kernel.
        let kernel = tempfile::tempfile().unwrap();
        let entry = |address: u64| memory.get_host_address(GuestAddress(address)).unwrap() as u64 / PAGE * ENTRY;
        kernel
            .write_all_at(&[0; ENTRY as usize], entry(HIGH + HUGE_PAGE - PAGE).max(entry(2 * HUGE_PAGE - PAGE)))
            .unwrap();
        for (page, flag) in [(2, SWAPPED), (3, PRESENT), (4, EXCLUSIVE)] {
            kernel.write_all_at(&u64::to_ne_bytes(flag), entry(HIGH + page * PAGE)).unwrap();
        }
        assert_eq!(held_pages(&memory, &kernel).unwrap(), [(high + 2, 2)]);
    }

    #[test]
    fn of_what_is_expected_only_that_is_made_which_is_there() {
        let memory = guest_memory(&[(0, 2 * HUGE_PAGE)]).unwrap();
        let huge = (HUGE_PAGE / PAGE) as u32;
        (0..2 * huge).for_each(|page| memory.write_obj(1u64, GuestAddress(u64::from(page) * PAGE)).unwrap());
        give_back(&memory, huge..2 * huge).unwrap();
        give_back(&memory, 5..6).unwrap();
        let expected = [(huge + 7, 2), (4, 3), (huge - 1, 2), (9, 1), (10, 1), (u32::MAX, 1)];
        let wanted = [(4, 1), (6, 1), (huge - 1, 1), (9, 2)];
        // Also where they are only shared.
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let look = |kept: Vec<OwnedFd>| {
            let mut theirs = UnixStream::from(kept.into_iter().next().unwrap());
            theirs.write_all(format!("{:?}", present_pages(&memory, &expected)).as_bytes()).unwrap();
        };
        let (child, _theirs) = fork(vec![theirs.into()], look).unwrap();
        drop(_theirs);
        let mut told = String::new();
        ours.read_to_string(&mut told).unwrap();
        rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
        assert_eq!(told, format!("{wanted:?}"));
        assert_eq!(present_pages(&memory, &expected), wanted);
    }
}
