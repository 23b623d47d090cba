//! Which pages of a seed are those of an earlier seed, without looking at what is in them.
//!
//! Two seeds that were forked from one process, by however many forks, have the same guest memory at the same addresses,
//! and neither changes any more. So a page that both have in one page frame at one time is the same in both, for ever; and
//! the kernel says in `pagemap` which frame a page is in, to whoever may know.
//!
//! It cannot be asked of two processes at one time, and the kernel moves pages: a frame that the one has left may be where
//! the other's page has come. So each is asked twice, in turn, and what the kernel has counted of its moves is to be the same
//! before and after. `docs/snapshot-format.md` says what that leaves.

use crate::pagemap::{ENTRY, FRAME, OF_A_FILE, PAGE, PRESENT, SWAPPED};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// How many pages are asked of at once: so few that the kernel seldom moves any meanwhile, so many that its counters are
/// seldom read.
const BLOCK: u64 = 2048;
/// How often that is tried.
const ATTEMPTS: usize = 4;
/// What the kernel counts when it puts a page into another frame: at a migration, which every kernel that can do it counts, at
/// a collapse into a huge page, and when a page comes back from swap.
const MIGRATIONS: &str = "pgmigrate_success";
const OTHER_MOVES: [&str; 4] = ["thp_collapse_alloc", "pswpin", "zswpin", "swpin_zero"];

/// What is known of a group of pages of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// None of them is there: they are zero.
    Zero,
    /// They are what the earlier seed has there.
    Same,
    /// Nothing, so they are to be read.
    Nothing,
}

/// Two seeds, to be compared.
#[derive(Debug)]
pub struct TwoSeeds {
    earlier: File,
    own: File,
    vmstat: File,
}

impl TwoSeeds {
    /// The `pagemap` of an earlier seed, that of the seed itself, and `/proc/vmstat`. Frames are told to whoever opened the
    /// first two with `CAP_SYS_ADMIN`.
    pub fn new(earlier: File, own: File, vmstat: File) -> Self {
        Self { earlier, own, vmstat }
    }

    /// What is known of `pages`, a whole number of groups of `group` pages that lie in one region of `memory`: runs of
    /// groups, one after the other. Never fails: where page tables cannot be read, also because the earlier seed has just
    /// ended, nothing is known.
    pub fn compare(&self, memory: &GuestMemoryMmap, pages: Range<u64>, group: u64) -> Vec<(Range<u64>, Known)> {
        let mut runs: Vec<(Range<u64>, Known)> = Vec::new();
        let mut first = pages.start;
        while first < pages.end {
            let block = first..pages.end.min(first + BLOCK.next_multiple_of(group));
            let groups = memory.get_host_address(GuestAddress(first * PAGE)).map_or(Vec::new(), |host| {
                self.compare_block(host as u64 / PAGE, (block.end - first) as usize, group as usize)
            });
            let unknown = std::iter::repeat(Known::Nothing);
            for (first, known) in block.clone().step_by(group as usize).zip(groups.into_iter().chain(unknown)) {
                let run = first..block.end.min(first + group);
                match runs.last_mut().filter(|(_, last)| *last == known) {
                    Some((last, _)) => last.end = run.end,
                    None => runs.push((run, known)),
                }
            }
            first = block.end;
        }
        runs
    }

    /// What is known of each group of these pages, by the numbers that they have in this process. Empty where nothing is.
    fn compare_block(&self, first: u64, pages: usize, group: usize) -> Vec<Known> {
        let Ok(own) = entries(&self.own, first, pages) else { return Vec::new() };
        let read = |of| match of {
            Of::Earlier => entries(&self.earlier, first, pages).ok(),
            Of::Own => entries(&self.own, first, pages).ok(),
        };
        let same = (0..ATTEMPTS).find_map(|_| same_pages(read, || moves(&self.vmstat)));
        let same = same.unwrap_or_else(|| vec![false; pages]);
        let known = |(own, same): (&[u64], &[bool])| match same.iter().all(|same| *same) {
            _ if own.iter().all(|entry| is_absent(*entry)) => Known::Zero,
            true => Known::Same,
            false => Known::Nothing,
        };
        own.chunks(group).zip(same.chunks(group)).map(known).collect()
    }
}

/// Whose page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Earlier,
    Own,
}

/// Which pages are the same in both, as their entries are read. `None` where one cannot be read, or the kernel has moved pages
/// meanwhile, or does not say.
fn same_pages(
    mut read: impl FnMut(Of) -> Option<Vec<u64>>,
    mut moves: impl FnMut() -> Option<u64>,
) -> Option<Vec<bool>> {
    let before = moves()?;
    let [a, b, c, d] = [read(Of::Earlier)?, read(Of::Own)?, read(Of::Earlier)?, read(Of::Own)?];
    let is_settled = moves()? == before;
    is_settled.then(|| (0..a.len()).map(|at| is_one_page([a[at], b[at], c[at], d[at]])).collect())
}

/// Entries of `pagemap`.
fn entries(pagemap: &File, first: u64, pages: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; pages * ENTRY as usize];
    pagemap.read_exact_at(&mut bytes, first * ENTRY)?;
    Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_ne_bytes(*entry)).collect())
}

/// There is no page, so it reads as zeroes.
fn is_absent(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) == 0
}

/// Whether these readings, of two processes in turn, are of one page, or all of none.
fn is_one_page(readings: [u64; 4]) -> bool {
    let in_frame = readings[0] & FRAME;
    let is_there =
        |entry: &u64| entry & (PRESENT | SWAPPED | OF_A_FILE) == PRESENT && entry & FRAME == in_frame && in_frame != 0;
    readings.iter().all(|entry| is_absent(*entry)) || readings.iter().all(is_there)
}

/// How often the kernel has put pages of anybody's into other frames. `None` where it does not say.
fn moves(vmstat: &File) -> Option<u64> {
    let mut text = Vec::new();
    let mut part = [0; 8192];
    loop {
        match vmstat.read_at(&mut part, text.len() as u64).ok()? {
            0 => break,
            read => text.extend_from_slice(&part[..read]),
        }
    }
    counted(std::str::from_utf8(&text).ok()?)
}

fn counted(vmstat: &str) -> Option<u64> {
    let lines = vmstat.lines().filter_map(|line| line.split_once(' '));
    let count = |name: &str| lines.clone().find(|line| line.0 == name).map(|line| line.1.parse::<u64>().ok());
    let migrations = count(MIGRATIONS)??;
    // A kernel without these names does not do that.
    OTHER_MOVES.iter().filter_map(|name| count(name)).try_fold(migrations, |sum, count| Some(sum.wrapping_add(count?)))
}

#[cfg(test)]
mod tests;
