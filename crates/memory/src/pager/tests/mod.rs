//! A pager and those who touch its memory: threads of this process in the place of a guest.

mod ahead; // what is expected, several runs at a time
mod discard; // what a balloon takes
mod ends; // sources that fail, and what is left then
mod fork; // half-resident parents
mod load; // reading and writing everything while it comes
mod turns; // the rest, where others want theirs

use super::*;
use pando_sys::guest_memory;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Long enough for whatever a test waits for.
const LIMIT: Duration = Duration::from_secs(60);
/// Long enough for a thread to see what it should not.
const A_WHILE: Duration = Duration::from_millis(200);
/// Where the second region of the memory begins, as it does behind the 32-bit hole.
const HIGH: u32 = 1 << 20;

/// What page `page` holds: its number in every word, mixed with the word's place. Some are zero.
fn word(page: u32, at: u32) -> u64 {
    if is_zero(page) { 0 } else { u64::from(page) << 32 | u64::from(at) << 1 | 1 }
}

/// Single zero pages, and whole huge pages of them.
fn is_zero(page: u32) -> bool {
    page.is_multiple_of(7) || (page / 512) % 5 == 3
}

/// A source in memory, with faults of its own.
#[derive(Default)]
struct Source {
    /// How long a fetch takes.
    delay: Duration,
    /// So many fetches fail first.
    refusals: AtomicU32,
    /// From this fetch on, none returns.
    hangs_from: Option<u32>,
    fetches: AtomicU32,
    /// How often each page was fetched.
    pages: Arc<Mutex<HashMap<u32, u32>>>,
}

impl PageSource for Source {
    fn chunk_pages(&self) -> u32 {
        4
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        let before = self.fetches.fetch_add(1, Ordering::SeqCst);
        if self.hangs_from.is_some_and(|from| before >= from) {
            hang();
        }
        thread::sleep(self.delay);
        if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(FetchError::Transient("the line is cut".into()));
        }
        for page in wanted.pages.clone() {
            *self.pages.lock().unwrap().entry(page).or_default() += 1;
            put(page, fetched)?;
        }
        Ok(())
    }
}

fn hang() -> ! {
    loop {
        thread::park();
    }
}

fn put(page: u32, fetched: &mut Fetched) -> Result<(), TooManyPages> {
    if is_zero(page) {
        return fetched.zeroes(1);
    }
    let words = fetched.data(1)?.as_chunks_mut::<8>().0;
    (0..).zip(words).for_each(|(at, bytes)| *bytes = word(page, at).to_ne_bytes());
    Ok(())
}

/// Memory that has not come yet, in two regions.
fn lazy(low_mib: u64, high_mib: u64) -> Userfault {
    let memory = guest_memory(&[(0, low_mib << 20), (u64::from(HIGH) * PAGE as u64, high_mib << 20)]);
    Userfault::new(memory.unwrap()).unwrap()
}

/// A pager over it, its memory, and how it ends.
fn start(
    userfault: Userfault,
    source: impl PageSource + 'static,
    spec: Spec,
) -> (Pager, GuestMemoryMmap, Receiver<End>) {
    let memory = userfault.memory().clone();
    let (tell, ends) = channel();
    let pager = Pager::start(userfault, source, spec, move |end| tell.send(end).unwrap()).unwrap();
    pager.begin_fill();
    (pager, memory, ends)
}

fn complete(ends: &Receiver<End>) -> Stats {
    match ends.recv_timeout(LIMIT).unwrap() {
        End::Complete(stats) => stats,
        End::Failed(error) => panic!("{error:?}"),
    }
}

fn failure(ends: &Receiver<End>) -> PagerError {
    match ends.recv_timeout(LIMIT).unwrap() {
        End::Complete(stats) => panic!("it is complete: {stats:?}"),
        End::Failed(error) => error,
    }
}

fn at(page: u32, word: u32) -> GuestAddress {
    GuestAddress(u64::from(page) * PAGE as u64 + u64::from(word) * 8)
}

fn read(memory: &GuestMemoryMmap, page: u32, word: u32) -> u64 {
    memory.read_obj(at(page, word)).unwrap()
}

/// The first word of the page that is not what it should be.
fn wrong(memory: &GuestMemoryMmap, page: u32) -> Option<(u32, u32, u64)> {
    let mut bytes = [0; PAGE];
    memory.read_slice(&mut bytes, at(page, 0)).unwrap();
    let words = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
    (0..).zip(words).find(|(at, found)| *found != word(page, *at)).map(|(at, found)| (page, at, found))
}

/// Every page of the memory.
fn all_pages(memory: &GuestMemoryMmap) -> impl Iterator<Item = u32> {
    let runs: Vec<_> = memory.iter().map(|region| (region.start_addr().raw_value(), region.len())).collect();
    runs.into_iter().flat_map(|(start, len)| (start / PAGE as u64..(start + len) / PAGE as u64).map(|page| page as u32))
}

fn assert_all_right(memory: &GuestMemoryMmap) {
    assert_eq!(all_pages(memory).find_map(|page| wrong(memory, page)), None, "page, word, found");
}

/// A thread that reads the first word of a page.
fn reader(memory: &GuestMemoryMmap, page: u32) -> JoinHandle<u64> {
    let memory = memory.clone();
    thread::spawn(move || read(&memory, page, 0))
}

/// Waits for what happens in other threads.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < LIMIT, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Nothing comes but what is waited for: the fill's fetches do not return.
struct OnlyFaults(Source);

impl PageSource for OnlyFaults {
    fn chunk_pages(&self) -> u32 {
        self.0.chunk_pages()
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        if !wanted.is_urgent {
            hang();
        }
        self.0.fetch(wanted, fetched)
    }
}

/// Fetches of this many pages that stay under way keep that many pages from those who need them.
fn small_fill() -> Tuning {
    Tuning { around_pages: 4, fill_pages: 4, ..Tuning::default() }
}
