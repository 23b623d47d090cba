use super::*;
use std::error::Error;

/// What a source does wrong.
#[derive(Clone, Copy)]
enum Wrong {
    Less,
    More,
    Nothing,
    Lost,
}

impl PageSource for Wrong {
    fn chunk_pages(&self) -> u32 {
        4
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        let pages = wanted.pages.len() as u32;
        match self {
            Self::Less => fetched.data(pages - 1)?.fill(1),
            Self::More => fetched.data(pages + 1)?.fill(1),
            Self::Nothing => {}
            Self::Lost => return Err(FetchError::Final("chunk 1f is damaged".into())),
        }
        Ok(())
    }
}

/// Nobody who waits, or comes later, sees anything at all.
fn assert_blocked(memory: &GuestMemoryMmap, waiting: JoinHandle<u64>) {
    let late = [reader(memory, 5), reader(memory, HIGH + 3)];
    thread::sleep(A_WHILE);
    assert!(!waiting.is_finished(), "zeroes were seen");
    assert!(late.iter().all(|reader| !reader.is_finished()), "zeroes were seen");
}

#[test]
fn a_source_that_gives_the_wrong_pages_ends_the_pager_and_nobody_sees_zeroes() {
    for (wrong, says) in [
        (Wrong::Less, "1 of the pages 0 to 63 of the guest's memory did not come"),
        (Wrong::Nothing, "64 of the pages 0 to 63 of the guest's memory did not come"),
        (Wrong::More, "pages 0 to 63 of the guest's memory are lost"),
        (Wrong::Lost, "pages 0 to 63 of the guest's memory are lost"),
    ] {
        let tuning = Tuning { fill_threads: 1, ..Tuning::default() };
        let (pager, memory, ends) = start(lazy(2, 2), wrong, Spec { tuning, ..Spec::default() });
        let error = failure(&ends);
        assert_eq!(error.to_string(), says);
        assert_blocked(&memory, reader(&memory, 0));
        assert_eq!(pager.missing_pages(), 1024, "nothing of it was taken");
        drop(pager);
        assert_blocked(&memory, reader(&memory, 0));
    }
}

fn impatient() -> Spec {
    Spec { tuning: Tuning { stall_limit: Duration::from_millis(400), ..small_fill() }, ..Spec::default() }
}

#[test]
fn a_source_that_never_answers_ends_the_pager_in_time() {
    let source = Source { hangs_from: Some(0), ..Source::default() };
    let since = Instant::now();
    let (pager, memory, ends) = start(lazy(2, 2), source, impatient());
    let waiting = reader(&memory, HIGH + 200);
    let error = failure(&ends);
    assert!(matches!(error, PagerError::Stalled { cause: None, .. }), "{error:?}");
    assert!(since.elapsed() >= Duration::from_millis(400));
    assert_blocked(&memory, waiting);
    assert_eq!(pager.missing_pages(), 1024);
}

#[test]
fn a_source_that_only_fails_ends_the_pager_in_time_with_its_last_word() {
    let source = Source { refusals: u32::MAX.into(), ..Source::default() };
    let (pager, memory, ends) = start(lazy(2, 2), source, impatient());
    let waiting = reader(&memory, 400);
    let error = failure(&ends);
    assert!(matches!(error, PagerError::Stalled { .. }), "{error:?}");
    assert_eq!(error.source().unwrap().to_string(), "the line is cut");
    assert_blocked(&memory, waiting);
    let stats = pager.stats();
    assert!((5..100).contains(&stats.retries), "pauses grow: {}", stats.retries);
}

#[test]
fn it_ends_once() {
    let (_pager, _memory, ends) = start(lazy(2, 2), Wrong::Lost, Spec::default());
    failure(&ends);
    assert!(ends.recv_timeout(A_WHILE).is_err(), "the sender is gone or silent");
}

#[test]
fn time_in_which_the_pager_was_held_is_not_the_sources_fault() {
    let source = Source { delay: Duration::from_millis(200), ..Source::default() };
    let spec = Spec { missing: Some(vec![(0, 4)]), ..impatient() };
    let (pager, memory, ends) = start(lazy(2, 2), source, spec);
    until("the fill is under way", || pager.stats().fetches > 0);
    let held = pager.hold();
    thread::sleep(Duration::from_millis(900));
    drop(held);
    complete(&ends);
    assert_eq!(wrong(&memory, 1), None);
}
