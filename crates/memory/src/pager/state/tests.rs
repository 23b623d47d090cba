use super::*;

const CHUNK: u32 = 4;

/// 4096 pages, all missing, and the clock.
fn state(expected: &[(u32, u32)]) -> (State, Instant) {
    let spec = Spec { expected: expected.to_vec(), ..Spec::default() };
    let all = 0..4096;
    let all = std::slice::from_ref(&all);
    let mut state = State::new(all, all, &spec, CHUNK);
    state.begin_fill();
    (state, Instant::now())
}

/// A source's answer: bytes, and zeroes for the pages from `zero_from` on.
fn fetched(pages: &Range<u32>, zero_from: u32) -> Fetched {
    let mut fetched = Fetched::default();
    fetched.begin(pages.clone());
    let data = zero_from.clamp(pages.start, pages.end) - pages.start;
    fetched.data(data).unwrap().fill(1);
    fetched.zeroes(pages.len() as u32 - data).unwrap();
    fetched
}

fn bring(state: &mut State, pages: &Range<u32>, zero_from: u32, now: Instant) -> Vec<Range<u32>> {
    state.begin_install(pages);
    state.settle(pages, &fetched(pages, zero_from), now)
}

/// The one run that is claimed ahead while nothing is known of how long the source takes.
fn ahead(state: &mut State, most: usize, now: Instant) -> Option<Range<u32>> {
    let claimed = state.claim_ahead(most, now);
    assert!(claimed.len() < 2, "{claimed:?}");
    claimed.into_iter().next()
}

#[test]
fn two_faults_with_one_neighbourhood_are_one_fetch() {
    let (mut state, now) = state(&[]);
    assert_eq!(state.fault(100, now), None);
    assert_eq!(state.fault(110, now), None);
    let claimed = state.claim_fault(now).unwrap();
    assert_eq!(claimed, 96..112);
    assert_eq!(state.claim_fault(now), None);
    assert_eq!(state.fault(97, now), None);
    assert_eq!(state.claim_fault(now), None, "it waits for the first one's fetch");
    let later = now + Duration::from_millis(3);
    assert_eq!(bring(&mut state, &claimed, 112, later), []);
    assert_eq!((state.stats.faults, state.stats.fetches, state.stats.latency.count()), (3, 1, 3));
    assert_eq!(state.stats.latency.max(), Duration::from_millis(3));
    assert_eq!(state.missing(), [(0, 96), (112, 4096 - 112)]);
}

#[test]
fn in_a_hurry_the_fill_goes_on_whoever_waits() {
    let (mut state, now) = state(&[]);
    state.fault(100, now);
    assert_eq!(state.claim_fill(now), None);
    state.hurry();
    assert_eq!(state.claim_fill(now), Some(0..64));
    assert_eq!(state.claim_fault(now), Some(96..112), "who waits has its own fetch");
    assert_eq!(state.claim_fill(now), Some(64..96));
    assert_eq!(state.claim_fill(now), Some(112..128));
}

#[test]
fn faults_go_before_the_fill_and_what_is_expected_goes_on() {
    let (mut state, now) = state(&[(500, 1)]);
    state.fault(100, now);
    assert_eq!(state.claim_fill(now), None, "a fault is queued");
    let fault = state.claim_fault(now).unwrap();
    assert_eq!(state.claim_fill(now), None, "a fault is fetched");
    bring(&mut state, &fault, u32::MAX, now);
    assert_eq!(state.claim_fill(now), None, "something is expected");
    assert_eq!(ahead(&mut state, 0, now), None, "the others are for faults");
    let expected = ahead(&mut state, 1, now).unwrap();
    assert_eq!(expected, 496..512, "with what came along the first time");
    assert_eq!(ahead(&mut state, 1, now), None, "one is under way");
    assert_eq!(state.claim_fill(now), None, "what is expected is fetched");
    bring(&mut state, &expected, u32::MAX, now);
    assert_eq!(ahead(&mut state, 1, now), None, "nobody is in a hurry");
    assert_eq!(state.claim_fill(now), Some(0..64));
    assert_eq!(state.claim_fill(now), Some(64..96), "up to what is there");
    assert_eq!(state.claim_fill(now), Some(112..128));
}

#[test]
fn what_is_expected_comes_in_its_order_and_nothing_is_claimed_twice() {
    let (mut state, now) = state(&[(1000, 200), (5, 1), (9, 1), (4095, 9), (u32::MAX, 5), (3, 0)]);
    state.hurry();
    let mut order = Vec::new();
    while let Some(claimed) = ahead(&mut state, usize::MAX, now) {
        order.push(claimed);
    }
    assert_eq!(order[..6], [992..1024, 1024..1088, 1088..1152, 1152..1200, 0..16, 4080..4096]);
    order.sort_by_key(|claimed| claimed.start);
    let ends_meet = order.windows(2).all(|pair| pair[0].end == pair[1].start);
    assert!(ends_meet && order[0].start == 0 && order.last().unwrap().end == 4096, "{order:?}");
}

#[test]
fn as_much_is_asked_for_at_once_as_comes_soon() {
    let expected: Vec<_> = (0..64).map(|at| (at * 64, 1)).collect();
    let (mut state, now) = state(&expected);
    let sizes = [1, 1, 1, 1, 200, 200, 200, 200].map(|took_ms| {
        let claimed = state.claim_ahead(1, now);
        assert_eq!(state.claim_ahead(1, now), [], "one request is under way");
        for run in &claimed {
            bring(&mut state, run, u32::MAX, now);
        }
        state.came_ahead(Duration::from_millis(took_ms));
        claimed.len()
    });
    assert_eq!(sizes, [1, 2, 4, 8, 8, 4, 2, 1]);
    assert_eq!((state.stats.fetches, state.stats.prefetched_pages), (8, 30 * 16));
}

#[test]
fn what_was_asked_for_together_is_waited_for_from_when_the_last_of_it_came() {
    let (mut state, now) = state(&[(0, 1), (64, 1), (128, 1)]);
    let limit = Duration::from_secs(30);
    state.came_ahead(Duration::ZERO);
    let [first, second] = state.claim_ahead(2, now).try_into().unwrap();
    let [other] = state.claim_ahead(2, now).try_into().unwrap();
    bring(&mut state, &first, u32::MAX, now + limit);
    assert_eq!(state.stalled(now + limit, limit).map(|(pages, _)| pages), None);
    let alone = now + limit + Duration::from_millis(1);
    assert_eq!(state.stalled(alone, limit).map(|(pages, _)| pages), Some(other.clone()), "asked for by itself");
    bring(&mut state, &other, u32::MAX, alone);
    assert_eq!(state.stalled(now + 2 * limit, limit).map(|(pages, _)| pages), None);
    assert_eq!(state.stalled(alone + limit, limit).map(|(pages, _)| pages), Some(second));
}

#[test]
fn nothing_but_what_is_waited_for_or_expected_comes_before_the_fill_begins() {
    let (all, now) = (0..4096, Instant::now());
    let (all, spec) = (std::slice::from_ref(&all), Spec { expected: vec![(500, 1)], ..Spec::default() });
    let mut state = State::new(all, all, &spec, CHUNK);
    let expected = ahead(&mut state, 1, now).unwrap();
    assert_eq!((expected.clone(), bring(&mut state, &expected, u32::MAX, now)), (496..512, Vec::new()));
    state.fault(100, now);
    let fault = state.claim_fault(now).unwrap();
    bring(&mut state, &fault, u32::MAX, now);
    assert_eq!(state.claim_fill(now), None);
    state.begin_fill();
    assert_eq!(state.claim_fill(now), Some(0..64));
}

#[test]
fn what_was_expected_and_came_otherwise_keeps_nothing_back() {
    let (mut state, now) = state(&[(100, 1)]);
    state.fault(100, now);
    let fault = state.claim_fault(now).unwrap();
    bring(&mut state, &fault, u32::MAX, now);
    assert_eq!(state.claim_fill(now), None, "it is not known yet");
    assert_eq!(ahead(&mut state, 1, now), None);
    assert_eq!(state.claim_fill(now), Some(0..64));
}

#[test]
fn what_was_never_missing_is_there_or_zero() {
    let (all, missing) = ([0..4096, 8192..12288], [64..128, 8192..8200]);
    let mut state = State::new(&all, &missing, &Spec::default(), CHUNK);
    let now = Instant::now();
    assert_eq!(state.fault(130, now), Some(128..144), "zero: no fetch");
    assert_eq!(state.fault(8201, now), Some(8200..8208));
    assert_eq!(state.fault(127, now), None);
    assert_eq!(state.claim_fault(now), Some(112..128));
    assert_eq!(state.missing(), [(64, 64), (8192, 8)]);
}

#[test]
fn zeroes_are_put_only_where_somebody_waits_for_them() {
    let (mut state, now) = state(&[]);
    let claimed = state.claim_fill(now).unwrap();
    assert_eq!(state.fault(40, now), None);
    assert_eq!(state.fault(2, now), None);
    assert_eq!(bring(&mut state, &claimed, 32, now).as_slice(), std::slice::from_ref(&(32..48)));
    assert_eq!(state.stats.latency.count(), 1, "the other waits until the zeroes are there");
    state.answered(&(32..48), now);
    assert_eq!(state.stats.latency.count(), 2);
    assert_eq!(state.fault(63, now), Some(48..64), "known to be zero: no fetch");
    assert_eq!(state.fault(63, now), Some(63..64), "late");
    assert_eq!(state.stats.zero_pages, 32);
}

#[test]
fn zeroes_near_a_page_that_somebody_wants_come_along() {
    let (mut state, now) = state(&[(64, 1)]);
    state.fault(2, now);
    for zeroes_come in [true, true, false] {
        let claimed = state.claim_fault(now).or_else(|| ahead(&mut state, 1, now)).or_else(|| state.claim_fill(now));
        let claimed = claimed.unwrap();
        assert_eq!(state.begin_install(&claimed).1, zeroes_come);
        assert_eq!(state.settle(&claimed, &fetched(&claimed, 0), now), []);
    }
    assert_eq!(state.fault(2, now), Some(2..3), "late");
    assert_eq!(state.fault(65, now), Some(65..66), "late");
    assert_eq!(state.fault(17, now), Some(16..32), "known to be zero");
}

#[test]
fn what_is_discarded_does_not_come_however_far_it_is_on_its_way() {
    let (mut state, now) = state(&[]);
    assert_eq!(state.discard(&(8..16), now), []);
    let claimed = state.claim_fill(now).unwrap();
    assert_eq!(claimed, 0..8, "never asked for");
    assert_eq!(state.discard(&(2..4), now), []);
    assert_eq!(state.begin_install(&claimed).0, [0..2, 4..8], "asked for, not put there");
    assert!(state.is_installing_in(&(4..5)) && !state.is_installing_in(&(8..9)));
    assert_eq!(state.discard(&(4..5), now), []);
    state.settle(&claimed, &fetched(&claimed, u32::MAX), now);
    assert_eq!(state.fault(4, now), Some(2..5), "put there, and then given back");
    assert_eq!((state.stats.discarded_pages, state.stats.filled_pages), (11, 5));
    assert!(!state.is_installing());
}

#[test]
fn who_waits_for_a_page_that_is_discarded_gets_zeroes() {
    let (mut state, now) = state(&[]);
    state.fault(9, now);
    assert_eq!(state.discard(&(8..10), now).as_slice(), std::slice::from_ref(&(8..10)));
    state.answered(&(8..10), now);
    assert_eq!(state.claim_fault(now), None);
    assert_eq!(state.stats.latency.count(), 1);
}

#[test]
fn a_fetch_that_takes_too_long_is_noticed_but_not_what_was_held() {
    let (mut state, now) = state(&[]);
    let limit = Duration::from_secs(30);
    let claimed = state.claim_fill(now).unwrap();
    assert!(state.stalled(now + limit, limit).is_none());
    state.postpone(limit);
    assert!(state.stalled(now + 2 * limit, limit).is_none());
    state.note_trouble(&claimed, "no route".into());
    let (pages, trouble) = state.stalled(now + 3 * limit, limit).unwrap();
    assert_eq!((pages, trouble.unwrap().to_string()), (claimed, "no route".to_string()));
}

#[test]
fn what_was_waited_for_is_recorded_once_in_its_order_up_to_a_limit() {
    let (mut state, now) = state(&[]);
    state.recorder.most = 5;
    for page in [7, 8, 100, 7, 9, 3, 4] {
        state.fault(page, now);
    }
    assert_eq!(state.recorded(), [(7, 2), (100, 1), (9, 1), (3, 1)]);
    state.fault(200, now);
    assert_eq!(state.recorded(), []);
}

#[test]
fn only_what_came_nearly_whole_is_worth_a_huge_page() {
    let (mut state, now) = state(&[]);
    while let Some(claimed) = state.claim_fill(now) {
        let zero_from = if claimed.start < 1024 { 960 } else { claimed.start };
        bring(&mut state, &claimed, zero_from, now);
    }
    assert_eq!(state.missing_pages(), 0);
    assert_eq!(state.dense(), [0, 512]);
}

#[test]
fn no_huge_page_is_made_of_what_was_given_back_of() {
    let (mut state, now) = state(&[]);
    while let Some(claimed) = state.claim_fill(now) {
        bring(&mut state, &claimed, claimed.end, now);
    }
    let dense = state.dense();
    assert_eq!((dense[..3].to_vec(), state.is_dense(512)), (vec![0, 512, 1024], true));
    state.discard(&(1023..1025), now);
    assert_eq!([0, 512, 1024].map(|first| state.is_dense(first)), [true, false, false]);
}
