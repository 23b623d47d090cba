use super::*;

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// The word of a page that a thread of the load writes to: its own.
const WRITTEN: u32 = 100;

/// Reads and writes pages here and there, and checks each. Which it wrote to.
fn touch(memory: &GuestMemoryMmap, thread: u32, pages: &[u32], touches: usize) -> Vec<u32> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + u64::from(thread));
    let mut written = Vec::new();
    for turn in 0..touches {
        let page = pages[random.below(pages.len())];
        if turn % 3 == 0 {
            memory.write_obj(u64::from(thread) << 56 | 1, at(page, WRITTEN + thread)).unwrap();
            written.push(page);
        }
        for at in [0, 1, 255, 511] {
            assert_eq!(read(memory, page, at), word(page, at), "page {page}, word {at}");
        }
    }
    written
}

fn load(low_mib: u64, high_mib: u64, threads: u32, touches: usize, source: Source) -> Stats {
    let fetched = Arc::clone(&source.pages);
    let (pager, memory, ends) = start(lazy(low_mib, high_mib), source, Spec::default());
    let pages: Vec<u32> = all_pages(&memory).collect();
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let (memory, pages) = (memory.clone(), pages.clone());
            thread::spawn(move || touch(&memory, thread, &pages, touches))
        })
        .collect();
    let written: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    let stats = complete(&ends);
    for (thread, pages) in (0..).zip(&written) {
        for page in pages {
            let address = at(*page, WRITTEN + thread);
            assert_eq!(memory.read_obj::<u64>(address).unwrap(), u64::from(thread) << 56 | 1, "a write was lost");
        }
        for page in pages {
            memory.write_obj(word(*page, WRITTEN + thread), at(*page, WRITTEN + thread)).unwrap();
        }
    }
    assert_all_right(&memory);
    assert!(fetched.lock().unwrap().values().all(|times| *times == 1), "a page was fetched twice");
    assert_eq!(fetched.lock().unwrap().len(), pages.len());
    assert_eq!(stats.faulted_pages + stats.filled_pages, pages.len() as u64);
    assert_eq!(stats.latency.count(), stats.faults, "everybody who waited was answered");
    assert_eq!(stats.zero_pages, pages.iter().filter(|page| is_zero(**page)).count() as u64);
    assert_eq!(stats.bytes, (pages.len() as u64 - stats.zero_pages) * PAGE as u64);
    assert_eq!(pager.missing_pages(), 0);
    stats
}

#[test]
fn every_page_is_right_and_every_write_stays_while_memory_comes() {
    load(48, 16, 8, 4000, Source::default());
}

#[test]
fn every_page_is_right_when_the_source_is_slow() {
    let stats = load(24, 8, 8, 1000, Source { delay: Duration::from_millis(1), ..Source::default() });
    assert!(stats.faults > 100, "{stats:?}");
}

#[test]
fn every_page_of_a_gibibyte_is_right() {
    load(768, 256, 4, 20_000, Source::default());
}

#[test]
fn a_source_that_fails_now_and_then_is_asked_again() {
    let stats = load(4, 2, 2, 100, Source { refusals: 12.into(), ..Source::default() });
    assert_eq!(stats.retries, 12);
}

#[test]
fn a_fault_does_not_wait_for_the_fill() {
    let source = OnlyFaults(Source::default());
    let (pager, memory, _ends) = start(lazy(4, 2), source, Spec { tuning: small_fill(), ..Spec::default() });
    until("the fill is under way", || pager.stats().fetches == u64::from(Tuning::default().fill_threads));
    for page in [1000, HIGH + 5, 1001, 200] {
        assert_eq!(wrong(&memory, page), None);
    }
    // Who waited is woken a moment before it is counted.
    until("all is counted", || pager.stats().faulted_pages == 12);
    let stats = pager.stats();
    assert_eq!((stats.faults, stats.filled_pages), (3, 0), "a neighbour came along");
}

#[test]
fn many_who_wait_for_one_page_cost_one_fetch() {
    let source = Source { delay: A_WHILE, ..Source::default() };
    let fetched = Arc::clone(&source.pages);
    let (pager, memory, _ends) = start(lazy(4, 2), OnlyFaults(source), Spec::default());
    let readers: Vec<_> = (0..8).map(|page| reader(&memory, 600 + page)).collect();
    for (page, reader) in (600..).zip(readers) {
        assert_eq!(reader.join().unwrap(), word(page, 0));
    }
    assert!(fetched.lock().unwrap().values().all(|times| *times == 1));
    assert_eq!(fetched.lock().unwrap().len(), 16, "592 to 607");
    assert!(pager.stats().faults > 1);
}

#[test]
fn what_was_waited_for_comes_first_the_next_time_and_is_not_waited_for() {
    let touched = [900, 30, HIGH + 77, 31];
    // The fill is stuck in the first pages, which are not among those.
    let spec = Spec { tuning: small_fill(), ..Spec::default() };
    let (pager, memory, _ends) = start(lazy(4, 2), OnlyFaults(Source::default()), spec);
    touched.iter().for_each(|page| assert_eq!(wrong(&memory, *page), None));
    let recorded = pager.recorded();
    assert_eq!(recorded.iter().map(|run| run.0).collect::<Vec<_>>(), [900, 30, HIGH + 77]);

    let source = Source { delay: Duration::from_millis(5), ..Source::default() };
    let spec = Spec { expected: recorded, ..Spec::default() };
    let (pager, memory, ends) = start(lazy(4, 2), source, spec);
    until("what is expected has come", || pager.stats().prefetched_pages == 48);
    touched.iter().for_each(|page| assert_eq!(wrong(&memory, *page), None));
    let waited = pager.recorded();
    assert!(waited.is_empty(), "{waited:?}");
    assert_eq!(complete(&ends).prefetched_pages, 48);
}

#[test]
fn huge_pages_are_made_of_what_came_whole() {
    let source = Whole;
    let (pager, memory, ends) = start(lazy(8, 4), source, Spec::default());
    complete(&ends);
    until("huge pages", || pager.stats().collapsed == 6);
    assert_eq!(all_pages(&memory).find(|page| read(&memory, *page, 9) != u64::from(*page) + 1), None);
}

/// A source without zero pages.
struct Whole;

impl PageSource for Whole {
    fn chunk_pages(&self) -> u32 {
        1
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        let pages = wanted.pages.len() as u32;
        for (page, bytes) in wanted.pages.clone().zip(fetched.data(pages)?.chunks_exact_mut(PAGE)) {
            let words = bytes.as_chunks_mut::<8>().0;
            words.fill((u64::from(page) + 1).to_ne_bytes());
        }
        Ok(())
    }
}

/// A source that never answers who waits for this page, and takes its time for the others.
struct Stuck(u32);

impl PageSource for Stuck {
    fn chunk_pages(&self) -> u32 {
        1
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        if wanted.pages.contains(&self.0) {
            hang();
        }
        thread::sleep(Duration::from_millis(20));
        Whole.fetch(wanted, fetched)
    }
}

#[test]
fn what_is_expected_and_is_not_there_keeps_nothing_back_however_few_threads_there_are() {
    for round in 0..50 {
        let tuning = Tuning { fault_threads: round % 5, fill_threads: 1, ..Tuning::default() };
        let spec = Spec { expected: vec![(3, 1), (u32::MAX, 5)], tuning, ..Spec::default() };
        let (_pager, _memory, ends) = start(lazy(2, 2), Whole, spec);
        assert_eq!(complete(&ends).prefetched_pages, 16);
    }
}

#[test]
fn in_a_hurry_the_rest_comes_while_somebody_waits() {
    let (pager, memory, _ends) = start(lazy(8, 4), Stuck(HIGH + 1020), Spec::default());
    let waiting = reader(&memory, HIGH + 1020);
    until("it waits", || pager.stats().faults == 1);
    thread::sleep(A_WHILE);
    assert!(pager.missing_pages() > 1024, "the fill gave way");
    pager.hurry();
    until("the rest", || pager.missing_pages() == 16);
    assert!(!waiting.is_finished());
}

#[test]
fn nothing_is_fetched_where_nothing_is_missing() {
    let spec = Spec { missing: Some(vec![(512, 3), (HIGH, 1)]), ..Spec::default() };
    let (_pager, memory, ends) = start(lazy(4, 2), Source::default(), spec);
    assert_eq!(complete(&ends).filled_pages, 4);
    assert_eq!([read(&memory, 511, 0), read(&memory, 513, 0), read(&memory, 515, 0)], [0, word(513, 0), 0]);
    let spec = Spec { missing: Some(Vec::new()), ..Spec::default() };
    let (_pager, _memory, ends) = start(lazy(4, 2), Source::default(), spec);
    assert_eq!(complete(&ends).fetches, 0);
}

#[test]
fn pages_that_do_not_exist_are_not_missing() {
    for run in [(1024, 1), (1023, 2), (HIGH + 512, 1), (u32::MAX, 2), (0, u32::MAX)] {
        let spec = Spec { missing: Some(vec![run]), ..Spec::default() };
        let started = Pager::start(lazy(4, 2), Source::default(), spec, |_| ());
        assert!(matches!(started, Err(StartError::Missing(_))), "{run:?}");
    }
}
