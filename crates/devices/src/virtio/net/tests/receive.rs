//! From a made-up tap to the driver.

use super::*;

#[test]
fn what_arrives_is_in_one_buffer_or_in_as_many_as_it_needs() {
    let (mut machine, wire) = wired();
    machine.lend(0, 60, 1600);
    let lens = [60, 1588, 1589, 4000, MAX_FRAME_BYTES];
    for len in lens {
        wire.arrives(&frame(OTHER, len));
    }
    assert!(machine.transport.process(&machine.driver.memory), "the driver waits for an interrupt");
    for (len, buffers) in lens.into_iter().zip([1, 1, 2, 3, 41]) {
        let (bytes, count) = machine.hear(0).unwrap();
        assert!(bytes[HEADER_BYTES..] == frame(OTHER, len), "{len}");
        assert_eq!(count, buffers);
    }
    assert_eq!(machine.hear(0), None);
    machine.run();
    // The buffers that were not needed are there for what comes next.
    wire.arrives(&frame(OTHER, 1588 + 10 * 1600));
    machine.run();
    assert_eq!(machine.hear(0).unwrap().1, 11);
    assert_eq!(machine.buffers[RX].len(), 60 - 48 - 11);
    assert_eq!(machine.counters().received, 6);
}

#[test]
fn without_a_buffer_what_arrives_waits_and_wakes_nobody() {
    let (mut machine, wire) = wired();
    machine.run();
    for len in [100, 200] {
        wire.arrives(&frame(OTHER, len));
    }
    machine.run();
    assert_eq!(wire.state().to_guest.len(), 2, "it was not read");
    machine.lend(0, 1, 1600);
    machine.run();
    assert_eq!(machine.hear(0).unwrap().0.len(), 112);
    assert_eq!(wire.state().to_guest.len(), 1);
    machine.lend(0, 1, 1600);
    machine.run();
    assert_eq!(machine.hear(0).unwrap().0.len(), 212);
}

#[test]
fn what_is_too_long_for_the_buffers_is_dropped_and_the_next_frame_has_them() {
    for (features, buffers, len) in [(u64::MAX, 2, 3300), (NO_MERGING, 5, 1600)] {
        let wire = Wire::new();
        let mut machine = Machine::with(1, vec![wire.clone()], features);
        machine.lend(0, buffers, 1600);
        wire.arrives(&frame(OTHER, len));
        wire.arrives(&frame(OTHER, 500));
        machine.run();
        assert_eq!(machine.hear(0).unwrap(), ([&NOTHING[..10], &[1, 0], &frame(OTHER, 500)].concat(), 1));
        assert_eq!((machine.counters().received_too_long, machine.counters().received), (1, 1));
    }
}

#[test]
fn frames_that_find_no_place_do_not_keep_the_device_from_others() {
    let (mut machine, wire) = wired();
    machine.lend(0, 1, 1600);
    for _ in 0..1000 {
        wire.arrives(&frame(OTHER, 1700));
    }
    machine.transport.process(&machine.driver.memory);
    assert_eq!(machine.counters().received_too_long, u64::from(QUEUE_SIZE), "so many in one call");
    assert!(machine.host_is_ready(), "and there are more");
    machine.run();
    assert_eq!(machine.counters().received_too_long, 1000);
}

#[test]
fn a_frame_that_the_host_cannot_hand_over_costs_only_itself_and_a_tap_that_is_gone_is_left_alone() {
    let (mut machine, wire) = wired();
    machine.lend(0, 4, 1600);
    wire.state().to_guest.extend([Err(ErrorKind::InvalidInput.into()), Ok(vec![0; 5])]);
    wire.arrives(&frame(OTHER, 100));
    machine.run();
    assert!(machine.hear(0).is_some());
    wire.state().to_guest.extend((0..5).map(|_| Err(ErrorKind::NotConnected.into())));
    wire.edge();
    machine.run();
    assert_eq!(machine.counters().received_broken, 3, "it is not asked again and again");
    machine.is_well();
}

#[test]
fn a_driver_that_knows_no_checksums_is_not_told_of_any() {
    for (features, flags) in [(u64::MAX, 2), (!(1 << 1) & NO_SEGMENTS, 0)] {
        let wire = Wire::new();
        let mut machine = Machine::with(1, vec![wire.clone()], features);
        machine.lend(0, 1, 1600);
        wire.state().to_guest.push_back(Ok([&[2; 1][..], &[0; 11], &frame(OTHER, 60)].concat()));
        wire.edge();
        machine.run();
        assert_eq!(machine.hear(0).unwrap().0[0], flags);
    }
}

#[test]
fn a_buffer_without_room_for_a_header_stops_the_device() {
    let (mut machine, wire) = wired();
    machine.lend(0, 1, HEADER_BYTES as u32 - 1);
    wire.arrives(&frame(OTHER, 60));
    machine.run();
    assert!(machine.transport.take_error().is_some());
}
