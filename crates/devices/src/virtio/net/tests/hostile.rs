//! Whatever a driver says.

use super::*;
use crate::virtio::DeviceError;

#[test]
fn rings_whose_events_are_outside_memory_stop_the_device() {
    let (available, used) = (4 + 2 * u64::from(QUEUE_SIZE), 4 + 8 * u64::from(QUEUE_SIZE));
    for (register, len) in [(0x90, available), (0xa0, used)] {
        let (mut machine, _wire) = wired();
        machine.driver.negotiate(&mut machine.transport, u64::MAX);
        machine.driver.set_up_queue(&mut machine.transport, TX, QUEUE_SIZE);
        let _ = write32(&mut machine.transport, 0x44, 0);
        let _ = write32(&mut machine.transport, register, (testing::MEMORY_BYTES - len) as u32);
        let _ = write32(&mut machine.transport, 0x44, 1);
        let _ = write32(&mut machine.transport, 0x70, 15);
        machine.transport.process(&machine.driver.memory);
        let error = machine.transport.take_error();
        assert!(matches!(error, Some(DeviceError::QueueOutsideMemory { index: TX })), "{error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The kernel itself says what it makes of what got through.
    #[test]
    fn whatever_a_driver_sends_the_device_goes_on(
        frames in prop::collection::vec((prop::array::uniform12(0u8..), 0u8..2, 0u8..6, 0usize..3000, any::<bool>()), 1..20),
    ) {
        let Some((mut machine, mut far)) = real(1, u64::MAX) else { return Ok(()) };
        for (mut header, flags, kind, len, is_random) in frames {
            if !is_random {
                (header[0], header[1], header[3], header[7], header[9]) = (flags, kind, 0, 0, 0);
            }
            let whole = [&header[..], &frame(MAC, len.max(14))[..len]].concat();
            machine.say(0, &[&whole[..whole.len() / 2], &whole[whole.len() / 2..]]);
            machine.run();
            machine.is_well();
            prop_assert!(machine.driver.take(TX).is_some());
            while next(&mut far).is_some() {}
        }
        machine.say(0, &[&NOTHING, &frame(MAC, 60)]);
        machine.run();
        prop_assert_eq!(&next(&mut far).unwrap()[10..], &frame(MAC, 60)[..]);
    }

    /// Numbers that say when to notify and to interrupt, each side's.
    #[test]
    fn whatever_a_driver_writes_behind_its_rings_every_frame_is_sent(events in prop::collection::vec(any::<(u16, u16)>(), 1..20)) {
        let (mut machine, wire) = wired();
        for (used_event, avail_event) in &events {
            machine.driver.interrupt_at(TX, *used_event);
            machine.driver.notify_at(TX, *avail_event);
            machine.say(0, &[&NOTHING, &frame(MAC, 60)]);
            machine.run();
            machine.is_well();
        }
        prop_assert_eq!(wire.state().from_guest.len(), events.len());
    }

    /// Buffers that are many, small, or somewhere else.
    #[test]
    fn whatever_a_driver_lends_nothing_is_written_beside_it(
        pieces in prop::collection::vec((0u64..300, 0u32..4000), 1..256), len in 14usize..9000, merges: bool,
    ) {
        let wire = Wire::new();
        let mut machine = Machine::with(1, vec![wire.clone()], if merges { u64::MAX } else { NO_MERGING });
        for (index, (page, len)) in (0..).zip(&pieces) {
            let flags = 2 | if index % 7 == 6 { 0 } else { NEXT };
            let address = 0x10_0000 + page * 0x1000;
            machine.driver.describe(RX, index, Descriptor { address, len: *len, flags, next: index + 1 });
        }
        (0..pieces.len() as u16).step_by(7).for_each(|head| machine.driver.make_available(RX, head));
        for _ in 0..3 {
            wire.arrives(&frame(OTHER, len));
        }
        machine.run();
        let lent: u64 = pieces.iter().map(|(_, len)| u64::from(*len)).sum();
        prop_assert!(machine.counters().received * (len as u64 + 12) <= lent);
        prop_assert_eq!(machine.driver.bytes(0x10_0000 + 304 * 0x1000, 0x1000), vec![0; 0x1000]);
    }
}
