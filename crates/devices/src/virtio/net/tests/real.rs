//! Real taps, where this may make any, with the kernel behind them.

use super::*;

/// TCP over IPv4 with `len` bytes of data, and the header that has it cut and summed up.
fn tcp(source: [u8; 6], len: usize) -> (Vec<u8>, [u8; HEADER_BYTES]) {
    let total = (40 + len) as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = |bytes: &[u8]| {
        let sum: u32 = bytes.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    };
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut segment = vec![0, 80, 0, 90, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    let pseudo = sum(&[&ip[12..20], &[0, 6], &(total - 20).to_be_bytes()].concat());
    segment[16..18].copy_from_slice(&pseudo.to_be_bytes());
    segment.extend((0..len).map(|at| (at % 251) as u8));
    let frame = [&[0xff; 6][..], &source, &[8, 0], &ip, &segment].concat();
    (frame, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0])
}

#[test]
fn frames_go_both_ways_through_a_tap() {
    let Some((mut machine, mut far)) = real(1, u64::MAX) else { return };
    machine.lend(0, 60, 1600);
    for len in [60, 200, 1514] {
        machine.say(0, &[&NOTHING, &frame(MAC, len)]);
        machine.run();
        assert_eq!(next(&mut far).unwrap()[10..], frame(MAC, len));
        far.write_all(&[&[0; 10][..], &frame(OTHER, len)].concat()).unwrap();
        machine.run();
        assert_eq!(machine.hear(0).unwrap().0[HEADER_BYTES..], frame(OTHER, len));
    }
}

#[test]
fn sixty_kilobytes_go_both_ways_in_one_frame() {
    let Some((mut machine, mut far)) = real(1, u64::MAX) else { return };
    machine.lend(0, 100, 1600);
    let (sent, header) = tcp(MAC, 60_000);
    machine.say(0, &[&header, &sent[..5], &sent[5..30_000], &sent[30_000..]]);
    machine.run();
    machine.is_well();
    assert_eq!(machine.counters().sent, 1, "{:?}", machine.counters());
    let arrived = next(&mut far).unwrap();
    assert!(arrived[10..] == sent, "{} of {} bytes", arrived.len(), sent.len());
    assert_eq!(arrived[1], 1, "it is to be cut");

    let (sent, header) = tcp(OTHER, 60_000);
    far.write_all(&[&header[..10], &sent].concat()).unwrap();
    machine.run();
    let (arrived, buffers) = machine.hear(0).unwrap();
    assert!(arrived[HEADER_BYTES..] == sent);
    assert_eq!(arrived[..6], header[..6]);
    assert_eq!(usize::from(buffers), arrived.len().div_ceil(1600));
}

#[test]
fn a_driver_that_does_not_cut_gets_frames_that_are_cut() {
    let Some((mut machine, mut far)) = real(1, NO_SEGMENTS) else { return };
    machine.lend(0, 60, 1600);
    let (sent, header) = tcp(OTHER, 14_480);
    far.write_all(&[&header[..10], &sent].concat()).unwrap();
    machine.run();
    let lens: Vec<_> = std::iter::from_fn(|| machine.hear(0)).map(|(bytes, _)| bytes.len()).collect();
    assert_eq!(lens, [HEADER_BYTES + 1502; 10]);
}

#[test]
fn a_tap_with_several_queues_is_read_in_those_that_the_driver_uses() {
    let Some((mut machine, mut far)) = real(4, u64::MAX) else { return };
    let flows = |machine: &mut Machine<Tap>, far: &mut File, pairs: usize| {
        (0..pairs).for_each(|pair| machine.lend(pair, 32, 1600));
        for flow in 0..32u8 {
            far.write_all(&[&[0; 10][..], &[0xff; 6], &[flow; 6], &[0x88, 0xb5], &[flow; 46]].concat()).unwrap();
        }
        machine.run();
        let heard = (0..4).map(|pair| std::iter::from_fn(|| machine.hear(pair)).count());
        heard.collect::<Vec<_>>()
    };
    assert_eq!(flows(&mut machine, &mut far, 1), [32, 0, 0, 0]);
    assert_eq!(machine.use_pairs(4), 0);
    assert_eq!(flows(&mut machine, &mut far, 4).iter().sum::<usize>(), 32);
    assert_eq!(machine.use_pairs(2), 0);
    let heard = flows(&mut machine, &mut far, 2);
    assert_eq!((heard[0] + heard[1], &heard[2..]), (32, &[0, 0][..]));
}

#[test]
fn a_guest_goes_on_above_another_tap_in_the_middle_of_traffic_and_after_a_reset() {
    let Some((mut parent, mut far)) = real(1, u64::MAX) else { return };
    parent.lend(0, 20, 1600);
    parent.say(0, &[&NOTHING, &frame(MAC, 100)]);
    parent.run();
    assert!(next(&mut far).is_some());
    parent.driver.take(TX).unwrap();
    parent.say(0, &[&NOTHING, &frame(MAC, 101)]);
    far.write_all(&[&[0; 10][..], &frame(OTHER, 102)].concat()).unwrap();

    let Some((taps, mut new_far)) = taps(1) else { return };
    let mut child = parent.fork(taps);
    let (sent, header) = tcp(OTHER, 9_000);
    new_far.write_all(&[&header[..10], &sent].concat()).unwrap();
    child.run();
    assert_eq!(next(&mut new_far).unwrap()[10..], frame(MAC, 101), "what waited in the guest is sent by both");
    assert_eq!(child.hear(0).unwrap().0[HEADER_BYTES..], sent, "what waited in the parent's tap is the parent's");
    assert_eq!(child.hear(0), None);

    new_far.write_all(&[&[0; 10][..], &frame(OTHER, 103)].concat()).unwrap();
    let _ = write32(&mut child.transport, 0x70, 0);
    child.transport.process(&child.driver.memory);
    assert!(!child.host_is_ready(), "without a driver, nobody is woken");
    child.come_up(u64::MAX);
    child.lend(0, 20, 1600);
    child.run();
    assert_eq!(child.hear(0).unwrap().0[HEADER_BYTES..], frame(OTHER, 103));
    child.say(0, &[&NOTHING, &frame(MAC, 104)]);
    child.run();
    assert_eq!(next(&mut new_far).unwrap()[10..], frame(MAC, 104));
}
