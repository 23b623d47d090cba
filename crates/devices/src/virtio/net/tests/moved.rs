//! A card that was saved, above another tap or above none.

use super::*;

#[test]
fn a_child_without_a_tap_is_told_that_its_link_is_down_and_sends_into_nothing() {
    let (parent, _wire) = wired();
    let mut child = parent.fork::<Wire>(Vec::new());
    assert_eq!(child.status(), LINK_UP, "it has not been told yet");
    let generation = read32(&mut child.transport, 0xfc);
    child.say(0, &[&NOTHING, &frame(MAC, 60)]);
    child.lend(0, 1, 1600);
    assert!(child.transport.process(&child.driver.memory));
    assert_eq!(read32(&mut child.transport, 0x60), 1 | 2, "a used buffer, and news of the configuration");
    assert_eq!(child.status(), 0);
    assert_ne!(read32(&mut child.transport, 0xfc), generation);
    assert!(child.driver.take(TX).is_some());
    assert_eq!(child.counters().sent_without_link, 1);
    let _ = write32(&mut child.transport, 0x64, 3);
    assert!(!child.transport.process(&child.driver.memory), "it is told once");

    let wire = Wire::new();
    let mut again = child.fork(vec![wire.clone()]);
    again.run();
    assert_eq!(again.status(), LINK_UP | ANNOUNCE);
    wire.arrives(&frame(OTHER, 60));
    again.run();
    assert!(again.hear(0).is_some(), "in the buffer that was lent without a link");
}

#[test]
fn a_child_goes_on_with_its_pairs_and_announces_itself() {
    let mut parent = Machine::with(2, wires(2), u64::MAX);
    assert_eq!(parent.use_pairs(2), 0);
    parent.lend(1, 2, 1600);
    parent.halt.store(true, Ordering::SeqCst);
    parent.say(1, &[&NOTHING, &frame(MAC, 77)]);
    parent.run();
    assert_eq!(parent.counters().sent, 0, "no frame is begun any more");

    let wires = wires(2);
    let mut child = parent.fork(wires.clone());
    assert!(wires.iter().all(|wire| wire.state().attached.unwrap()));
    wires[1].arrives(&frame(OTHER, 60));
    assert!(child.transport.process(&child.driver.memory));
    assert_eq!(wires[1].state().from_guest.len(), 1, "what waited is sent");
    assert!(child.hear(1).is_some());
    assert_eq!(read32(&mut child.transport, 0x60) & 2, 2);
    assert_eq!(child.status(), LINK_UP | ANNOUNCE);
    assert_eq!(child.command(4, &[3, 0]), 0);
    assert_eq!(child.status(), LINK_UP);

    let mut grandchild = child.fork::<Wire>(Vec::new());
    grandchild.run();
    assert_eq!(grandchild.status(), 0);
}

#[test]
fn a_driver_that_cannot_announce_itself_is_not_asked_to() {
    for without in [!(1 << 21), !(1 << 17) & NO_PAIRS] {
        let wire = Wire::new();
        let parent = Machine::with(1, vec![wire], without);
        let mut child = parent.fork(wires(1));
        child.run();
        assert_eq!(child.status(), LINK_UP);
        assert_eq!(read32(&mut child.transport, 0x60), 0);
    }
}

#[test]
fn a_parent_goes_on_where_it_stood_still() {
    let (mut parent, wire) = wired();
    parent.lend(0, 4, 1600);
    parent.halt.store(true, Ordering::SeqCst);
    parent.say(0, &[&NOTHING, &frame(MAC, 60)]);
    wire.arrives(&frame(OTHER, 60));
    parent.run();
    assert_eq!((parent.counters().sent, parent.counters().received), (0, 0));
    parent.halt.store(false, Ordering::SeqCst);
    parent.run();
    assert_eq!((parent.counters().sent, parent.counters().received), (1, 1));
    assert_eq!(parent.status(), LINK_UP, "it has not moved");
}

#[test]
fn a_card_that_cannot_be_is_refused() {
    let good = Machine::with(2, wires(2), u64::MAX).transport.device().state();
    let refused = |state: NetState| match Net::restore(state, wires(2), Arc::default()) {
        Err(NetError::State(error)) => error,
        _ => panic!("{state:?} was not refused"),
    };
    assert_eq!(refused(NetState { mac: [1; 6], ..good }), NetStateError::Mac([1; 6]));
    assert_eq!(refused(NetState { mac: [0; 6], ..good }), NetStateError::Mac([0; 6]));
    assert_eq!(refused(NetState { mtu: 67, ..good }), NetStateError::Mtu(67));
    for (used, max) in [(1, 0), (0, 2), (3, 2), (1, 9)] {
        let state = NetState { queue_pairs: used, max_queue_pairs: max, ..good };
        assert_eq!(refused(state), NetStateError::QueuePairs { used, max });
    }
    assert_eq!(refused(NetState { status: 4, ..good }), NetStateError::Status(4));
    for taps in [1, 3] {
        let got = usize::from(taps);
        let refused = Net::restore(good, wires(taps), Arc::default());
        assert!(matches!(refused, Err(NetError::Taps { got: it, wanted: 2 }) if it == got));
    }
}
