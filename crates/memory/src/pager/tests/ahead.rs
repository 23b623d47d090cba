use super::*;
use std::sync::mpsc::Sender;

/// A source with something that happens first when it is asked for this page.
struct At<F>(u32, F, Source);

impl<F: Fn() -> Result<(), FetchError> + Send + Sync> PageSource for At<F> {
    fn chunk_pages(&self) -> u32 {
        self.2.chunk_pages()
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        if wanted.pages.contains(&self.0) {
            (self.1)()?;
        }
        self.2.fetch(wanted, fetched)
    }
}

/// The first pages of runs of 16 that are expected: they are asked for one, two, four, and then eight at a time.
fn firsts() -> impl Iterator<Item = u32> {
    (0..15).map(|at| at * 64)
}

/// Three of the last eight.
const BEFORE: u32 = 512;
const MIDDLE: u32 = 576;
const BEHIND: u32 = 704;

fn expecting() -> Spec {
    let tuning = Tuning { fault_threads: FEWEST_FAULT_THREADS, ..Tuning::default() };
    Spec { expected: firsts().map(|page| (page, 1)).collect(), tuning, ..Spec::default() }
}

/// What waits until the sender is dropped.
fn gate() -> (Sender<()>, impl Fn() -> Result<(), FetchError>) {
    let (open, closed) = channel();
    let closed = Mutex::new(closed);
    let wait = move || {
        let _ = closed.lock().unwrap().recv();
        Ok(())
    };
    (open, wait)
}

/// A pager that waits for [`MIDDLE`] until the sender is dropped, and has nothing but what came before that.
fn waiting_in_the_middle() -> (Sender<()>, Pager, GuestMemoryMmap, Receiver<End>) {
    let (open, wait) = gate();
    let (pager, memory, ends) = start(lazy(4, 2), At(MIDDLE, wait, Source::default()), expecting());
    until("what comes before it", || pager.stats().prefetched_pages == 9 * 16);
    assert_eq!(pager.stats().fetches, 4, "one, two, four, eight");
    (open, pager, memory, ends)
}

#[test]
fn what_is_asked_for_together_is_there_one_by_one() {
    let (open, pager, memory, ends) = waiting_in_the_middle();
    assert_eq!(wrong(&memory, BEFORE), None, "there before all of it is");
    let waiting = reader(&memory, BEHIND);
    until("it waits", || pager.stats().faults == 1);
    drop(open);
    assert_eq!(waiting.join().unwrap(), word(BEHIND, 0));
    assert_eq!(complete(&ends).prefetched_pages, 15 * 16);
    assert_all_right(&memory);
}

#[test]
fn a_source_that_dies_in_the_middle_has_given_what_it_gave_and_no_more() {
    let dies = || Err(FetchError::Final("chunk 1f is damaged".into()));
    let (pager, memory, ends) = start(lazy(4, 2), At(MIDDLE, dies, Source::default()), expecting());
    assert_eq!(failure(&ends).to_string(), "pages 576 to 591 of the guest's memory are lost");
    assert_eq!(pager.stats().prefetched_pages, 9 * 16);
    assert_eq!(wrong(&memory, BEFORE), None);
    let waiting = [reader(&memory, MIDDLE), reader(&memory, BEHIND)];
    thread::sleep(A_WHILE);
    assert!(waiting.iter().all(|reader| !reader.is_finished()), "zeroes were seen");
}

#[test]
fn a_source_that_stops_in_the_middle_ends_the_pager_in_time() {
    let (_open, wait) = gate();
    let mut spec = expecting();
    spec.tuning.stall_limit = Duration::from_millis(400);
    let (_pager, _memory, ends) = start(lazy(4, 2), At(MIDDLE, wait, Source::default()), spec);
    let error = failure(&ends);
    assert!(matches!(&error, PagerError::Stalled { pages, .. } if (576..960).contains(&pages.start)), "{error:?}");
}

#[test]
fn what_came_before_a_failure_is_not_asked_for_again() {
    let refusals = AtomicU32::new(3);
    let fails = move || match refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Err(FetchError::Transient("the line is cut".into())),
        Err(_) => Ok(()),
    };
    let source = Source::default();
    let fetched = Arc::clone(&source.pages);
    let (_pager, memory, ends) = start(lazy(4, 2), At(MIDDLE, fails, source), expecting());
    let stats = complete(&ends);
    assert_eq!((stats.retries, stats.prefetched_pages), (3, 15 * 16));
    assert!(fetched.lock().unwrap().values().all(|times| *times == 1));
    assert_all_right(&memory);
}

#[test]
fn a_page_behind_that_is_discarded_does_not_come() {
    let (open, pager, memory, ends) = waiting_in_the_middle();
    pager.discard(&[(BEHIND, 4)]);
    pando_sys::give_back(&memory, BEHIND..BEHIND + 4).unwrap();
    drop(open);
    let stats = complete(&ends);
    assert_eq!((stats.discarded_pages, stats.prefetched_pages), (4, 15 * 16 - 4));
    assert!((BEHIND..BEHIND + 4).all(|page| read(&memory, page, 0) == 0));
    assert_eq!(wrong(&memory, BEHIND + 4), None);
}

#[test]
fn while_it_is_held_nothing_of_the_others_comes() {
    let (open, pager, memory, ends) = waiting_in_the_middle();
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let there = || crate::private_pages(&memory, &pagemap, &Default::default(), u32::MAX).unwrap().unwrap();
    let held = pager.hold();
    let (missing, before) = (held.missing(), there());
    drop(open);
    thread::sleep(A_WHILE);
    assert_eq!((held.missing(), there()), (missing.clone(), before));
    let is_missing = |page: u32| missing.iter().any(|run| range(*run).contains(&page));
    assert_eq!([BEFORE, MIDDLE, BEHIND].map(is_missing), [false, true, true]);
    drop(held);
    complete(&ends);
    assert_all_right(&memory);
}
