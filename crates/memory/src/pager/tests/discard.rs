use super::*;
use pando_sys::give_back;

#[test]
fn a_page_that_was_discarded_is_zero_and_never_fetched() {
    let source = Source { delay: Duration::from_millis(1), ..Source::default() };
    let fetched = Arc::clone(&source.pages);
    let (pager, memory, ends) = start(lazy(8, 2), source, Spec::default());
    // The last pages: the fill has not come so far.
    let run = (HIGH + 300, 100);
    pager.discard(&[run]);
    give_back(&memory, range(run)).unwrap();
    assert_eq!(read(&memory, HIGH + 301, 0), 0, "while memory comes");
    complete(&ends);
    for page in range(run) {
        assert_eq!(read(&memory, page, 0), 0, "page {page}");
        assert!(!fetched.lock().unwrap().contains_key(&page), "page {page}");
    }
    assert_eq!(wrong(&memory, HIGH + 299), None);
    assert_eq!(wrong(&memory, HIGH + 400), None);
}

#[test]
fn a_page_that_is_on_its_way_when_it_is_discarded_does_not_come() {
    let source = Source { delay: A_WHILE, ..Source::default() };
    let (pager, memory, ends) = start(lazy(2, 2), source, Spec { tuning: small_fill(), ..Spec::default() });
    until("the fill is under way", || pager.stats().fetches > 0);
    pager.discard(&[(1, 2)]);
    give_back(&memory, 1..3).unwrap();
    // Nobody wants to wait for all of it.
    pager.discard(&[(8, 504), (HIGH, 512)]);
    complete(&ends);
    assert_eq!([read(&memory, 1, 0), read(&memory, 2, 0), read(&memory, 3, 0)], [0, 0, word(3, 0)]);
}

#[test]
fn who_waits_for_a_page_that_is_discarded_sees_zeroes() {
    let source = Source { hangs_from: Some(0), ..Source::default() };
    let (pager, memory, ends) = start(lazy(2, 2), source, Spec::default());
    let waiting = reader(&memory, HIGH + 9);
    until("it waits", || pager.stats().faults == 1);
    pager.discard(&[(HIGH + 8, 4)]);
    assert_eq!(waiting.join().unwrap(), 0);
    let waiting = reader(&memory, 300);
    until("it waits", || pager.stats().faults == 2);
    pager.discard(&[(0, 512), (HIGH, 512)]);
    assert_eq!(waiting.join().unwrap(), 0);
    assert_eq!(complete(&ends).discarded_pages, 1024, "that is all there was");
}

#[test]
fn pages_that_are_taken_while_they_are_put_there_never_show_old_content() {
    for _ in 0..8 {
        let tuning = Tuning { fill_pages: 256, ..Tuning::default() };
        let (pager, memory, ends) = start(lazy(32, 2), Source::default(), Spec { tuning, ..Spec::default() });
        let all = all_pages(&memory).count() as u32;
        while ends.try_recv().is_err() {
            // Where the fill is now.
            let first = (all - pager.missing_pages()).min(32 * 256 - 128);
            pager.discard(&[(first, 128)]);
            give_back(&memory, first..first + 128).unwrap();
            for page in first..first + 128 {
                assert_eq!(read(&memory, page, 3), 0, "page {page}");
            }
        }
    }
}
