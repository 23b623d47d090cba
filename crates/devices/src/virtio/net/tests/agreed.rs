//! What driver and tap agree on: offloads, pairs of queues, commands.

use super::*;

#[test]
fn the_tap_leaves_to_the_driver_what_it_accepted_and_nothing_after_a_reset() {
    let (mut machine, wire) = wired();
    assert_eq!(wire.state().offloads, Some(ALL));
    let _ = write32(&mut machine.transport, 0x70, 0);
    assert_eq!(wire.state().offloads, Some(Offloads::default()));
    machine.come_up(!(1 << 8 | 1 << 9));
    assert_eq!(wire.state().offloads, Some(Offloads { checksum: true, tso4: true, ..Offloads::default() }));
    let other = Wire::new();
    let _child = machine.fork(vec![other.clone()]);
    assert_eq!(other.state().offloads, Some(Offloads { checksum: true, tso4: true, ..Offloads::default() }));
}

#[test]
fn the_driver_says_how_many_pairs_it_uses_and_the_tap_fills_those_only() {
    let wires = wires(3);
    let mut machine = Machine::with(3, wires.clone(), u64::MAX);
    let attached = || wires.iter().map(|wire| wire.state().attached.unwrap()).collect::<Vec<_>>();
    assert_eq!(attached(), [true, false, false]);
    machine.say(1, &[&NOTHING, &frame(MAC, 60)]);
    machine.run();
    assert_eq!(machine.counters().sent, 0, "the second pair is not in use yet");
    assert_eq!(machine.use_pairs(2), 0);
    assert_eq!(attached(), [true, true, false]);
    assert_eq!(wires[1].state().from_guest.len(), 1);
    machine.lend(1, 1, 1600);
    wires[1].arrives(&frame(OTHER, 60));
    machine.run();
    assert!(machine.hear(1).is_some());
    for wrong in [0, 4, 256, u16::MAX] {
        assert_eq!(machine.use_pairs(wrong), 1, "{wrong}");
        assert_eq!(attached(), [true, true, false]);
    }
    wires[2].state().attaching_fails = true;
    assert_eq!(machine.use_pairs(3), 1, "the host would not");
    assert_eq!(attached(), [true, true, false]);
    assert_eq!(machine.use_pairs(1), 0);
    assert_eq!(attached(), [true, false, false]);

    assert_eq!(machine.use_pairs(2), 0);
    let _ = write32(&mut machine.transport, 0x70, 0);
    assert_eq!(attached(), [true, false, false], "as for a driver that comes");
}

#[test]
fn a_driver_without_several_pairs_has_its_control_queue_behind_the_first() {
    let mut machine = Machine::with(3, wires(3), NO_PAIRS);
    assert_eq!(machine.command(2, &[4, 0, 2, 0]), 1, "it knows of no pairs");
    assert_eq!(machine.command(2, &[3, 0]), 0);
}

#[test]
fn what_is_not_offered_is_refused() {
    let mut machine = Machine::with(2, wires(2), u64::MAX);
    let commands: [&[u8]; 9] =
        [&[], &[4], &[4, 0], &[4, 0, 2], &[0, 0, 1], &[1, 1, 2, 2, 2, 2, 2, 2], &[2, 0, 1, 0], &[4, 1, 2, 0], &[9; 40]];
    for command in commands {
        let asked = machine.driver.place(&[command, &[0]].concat());
        let answer = machine.driver.place(&[0x77]);
        machine.driver.offer(4, &[(asked, command.len() as u32)], &[(answer, 1)]);
        machine.run();
        assert_eq!(machine.driver.bytes(answer, 1), [1], "{command:?}");
    }
    let asked = machine.driver.place(&[4, 0, 2, 0]);
    machine.driver.offer(4, &[(asked, 4)], &[]);
    machine.run();
    assert!(machine.transport.take_error().is_some(), "without room for an answer");
}
