//! From the driver to a made-up tap.

use super::*;

#[test]
fn what_is_sent_arrives_with_what_was_checked() {
    let (mut machine, wire) = wired();
    let sent = frame(MAC, 1514);
    machine.say(0, &[&[&[0xf0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 7, 7][..], &sent[..3]].concat(), &sent[3..70], &sent[70..]]);
    machine.say(0, &[&[&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0][..], &frame(MAC, 9000)].concat()]);
    assert!(machine.transport.process(&machine.driver.memory), "the driver waits for an interrupt");
    let arrived = &wire.state().from_guest;
    assert_eq!(arrived[0], [&NOTHING[..], &sent].concat(), "what means nothing is not passed on");
    assert_eq!(arrived[1], [&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0][..], &frame(MAC, 9000)].concat());
    assert_eq!(machine.driver.take(TX).unwrap().1, 0);
    assert_eq!(machine.driver.take(TX).unwrap().1, 0);
    assert_eq!(machine.transport.device().counters().sent, 2);
}

#[test]
fn what_must_not_be_sent_is_dropped_and_counted_and_the_next_frame_is_sent() {
    let (mut machine, wire) = wired();
    let good = [&NOTHING[..], &frame(MAC, 60)].concat();
    machine.say(0, &[&good[..25]]);
    machine.say(0, &[&good[..3]]);
    machine.driver.offer(TX, &[], &[]); // Not even a descriptor, but the one that was there before.
    machine.driver.offer(TX, &[(0, 0)], &[]);
    machine.say(0, &[&[&[1, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0][..], &frame(MAC, 60)].concat()]);
    machine.say(0, &[&[&NOTHING[..], &frame(OTHER, 60)].concat()]);
    machine.say(0, &[&[&NOTHING[..], &frame(MAC, MAX_FRAME_BYTES + 1)].concat()]);
    machine.say(0, &[&[&NOTHING[..], &frame(MAC, MAX_FRAME_BYTES)].concat()]);
    machine.say(0, &[&good]);
    machine.run();
    machine.is_well();
    let counters = machine.counters();
    assert_eq!((counters.sent_as_another, counters.sent_too_long), (1, 1));
    assert!(counters.sent_malformed >= 4, "{counters:?}");
    let state = wire.state();
    let sent: Vec<_> = state.from_guest.iter().map(Vec::len).collect();
    assert_eq!(sent, [HEADER_BYTES + MAX_FRAME_BYTES, 72]);
}

#[test]
fn what_the_host_refuses_is_dropped_and_what_it_has_no_room_for_waits() {
    let (mut machine, wire) = wired();
    wire.state().refusals.extend([ErrorKind::InvalidInput, ErrorKind::Interrupted, ErrorKind::WouldBlock]);
    for len in [100, 200, 300] {
        machine.say(0, &[&NOTHING, &frame(MAC, len)]);
    }
    machine.run();
    assert_eq!(wire.state().from_guest.len(), 0);
    assert!(machine.driver.take(TX).is_some(), "the first is gone");
    assert_eq!(machine.driver.take(TX), None, "the others wait");
    machine.run();
    assert_eq!(wire.state().from_guest.len(), 0, "nobody asks before the host says so");
    wire.edge();
    machine.run();
    let lens: Vec<_> = wire.state().from_guest.iter().map(Vec::len).collect();
    assert_eq!(lens, [212, 312], "in their order");
    assert_eq!((machine.counters().sent_refused, machine.counters().sent), (1, 2));
}
