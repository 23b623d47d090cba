use super::*;
use std::sync::mpsc::Sender;

/// A source that several guests have in common.
struct Shared {
    source: Source,
    /// It is this guest's turn when something comes, or nothing can come any more.
    turn: Mutex<Receiver<()>>,
    begun: Arc<AtomicU32>,
    ended: Arc<AtomicU32>,
    hangs_for_faults: bool,
}

impl Shared {
    fn new() -> (Sender<()>, Self) {
        let (give, turn) = channel();
        let [begun, ended] = [(); 2].map(|()| Arc::default());
        let source = Source { delay: Duration::from_millis(1), ..Source::default() };
        (give, Self { source, turn: Mutex::new(turn), begun, ended, hangs_for_faults: false })
    }
}

impl PageSource for Shared {
    fn chunk_pages(&self) -> u32 {
        self.source.chunk_pages()
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        if wanted.is_urgent && self.hangs_for_faults {
            hang();
        }
        self.source.fetch(wanted, fetched)
    }

    fn begin_turn(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let _ = self.turn.lock().unwrap().recv();
    }

    fn end_turn(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn the_rest_comes_in_turns_and_what_is_waited_for_at_once() {
    let (give, source) = Shared::new();
    let (begun, ended) = (Arc::clone(&source.begun), Arc::clone(&source.ended));
    let (pager, memory, ends) = start(lazy(4, 2), source, Spec::default());
    until("it asks for a turn", || begun.load(Ordering::SeqCst) == 1);
    assert_eq!(wrong(&memory, 1000), None);
    drop(pager.hold());
    thread::sleep(A_WHILE);
    assert_eq!(pager.stats().filled_pages, 0);
    give.send(()).unwrap();
    until("it asks for the next", || begun.load(Ordering::SeqCst) == 2);
    thread::sleep(A_WHILE);
    let filled = pager.stats().filled_pages;
    assert!((512..640).contains(&filled), "what two threads take in a turn: {filled}");
    assert_eq!(ended.load(Ordering::SeqCst), 1);
    drop(give);
    complete(&ends);
    assert!((3..5).contains(&begun.load(Ordering::SeqCst)));
    assert_all_right(&memory);
}

#[test]
fn who_hurries_waits_for_no_turn() {
    let (_give, source) = Shared::new();
    let begun = Arc::clone(&source.begun);
    let (pager, _memory, _ends) = start(lazy(4, 2), Shared { hangs_for_faults: true, ..source }, Spec::default());
    until("it asks for a turn", || begun.load(Ordering::SeqCst) == 1);
    pager.hurry();
    // All but what the threads for faults take.
    until("the rest", || pager.missing_pages() == 2 * Tuning::default().fill_pages);
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[test]
fn who_gives_way_to_a_fault_keeps_no_turn_from_others() {
    let (give, source) = Shared::new();
    let (begun, ended) = (Arc::clone(&source.begun), Arc::clone(&source.ended));
    drop(give);
    let source = Shared { hangs_for_faults: true, ..source };
    let (pager, memory, _ends) = start(lazy(64, 2), source, Spec::default());
    until("the fill", || pager.stats().filled_pages > 0);
    let _waiting = reader(&memory, HIGH + 9);
    until("it waits", || pager.stats().faults == 1);
    until("the turn ends", || begun.load(Ordering::SeqCst) == ended.load(Ordering::SeqCst));
    thread::sleep(A_WHILE); // For what the other thread was at.
    let now = || (pager.stats().filled_pages, begun.load(Ordering::SeqCst));
    let before = now();
    thread::sleep(A_WHILE);
    assert_eq!(now(), before);
}
