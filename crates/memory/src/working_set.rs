//! What a child of a fork has written: the pages that it alone has. And what of that is still there later.

use crate::pagemap::{ENTRY, EXCLUSIVE, IN_HUGE_PAGE, PAGE, has};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
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
                let page = page as u32; // RAM ends below 2^44 bytes.
                runs.add(page, entries, made.contains(&page));
                if runs.pages > most {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some(runs.runs))
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

/// Runs of private pages, and how many pages they have.
#[derive(Default)]
struct Runs {
    runs: Vec<(u32, u32)>,
    pages: u32,
}

impl Runs {
    /// Adds those of one huge page, which begins at `first` and has these `entries`, unless that is all of it and nobody
    /// has written that.
    fn add(&mut self, first: u32, entries: &[u8], is_made: bool) {
        let entries = entries.chunks_exact(ENTRY as usize);
        let is_private = |entry: &[u8]| has(entry, EXCLUSIVE);
        if !is_made && entries.clone().all(is_private) {
            return;
        }
        for (page, _) in (first..).zip(entries).filter(|(_, entry)| is_private(entry)) {
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
