//! The specification's section 4.2, register by register, with a device that does nothing but give chains back.

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::contract::device_contract;
use crate::virtio::testing::{Descriptor, Driver, INDIRECT, MEMORY_BYTES, NEXT, WRITE, read32, write32};
use crate::virtio::{ChainError, DeviceError, VirtioDevice, queue};

const ALL: u64 = 1 << 32 | 0b101;
const READY: u32 = 1 | 2 | 4 | 8;

#[derive(Debug, Default)]
struct Echo {
    active: Option<u64>,
    resets: u32,
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 8]
    }
    fn features(&self) -> u64 {
        ALL
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_config_bytes(&[1, 2, 3, 4], offset, data);
    }
    fn activate(&mut self, features: u64) {
        assert_eq!(self.active.replace(features), None, "activated once");
    }
    fn reset(&mut self) {
        self.active = None;
        self.resets += 1;
    }
    fn process(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        assert!(self.active.is_some(), "processed only while active");
        let mut interrupt = false;
        for queue in queues {
            interrupt |= queue::serve(queue, memory, || true, |chain| Ok(chain.writable_len() as u32))?;
        }
        Ok(interrupt)
    }
}

fn fresh() -> Transport<Echo> {
    Transport::new(Echo::default())
}

fn started() -> (Transport<Echo>, Driver) {
    let mut transport = fresh();
    let driver = Driver::start(&mut transport);
    (transport, driver)
}

/// Gives the device one chain that it must not swallow, and tells why it did not.
fn error_of(mischief: impl FnOnce(&mut Driver)) -> DeviceError {
    let (mut transport, mut driver) = started();
    mischief(&mut driver);
    assert!(transport.process(&driver.memory), "the guest hears of it");
    assert_eq!(read32(&mut transport, 0x70), READY | 0x40, "it needs a reset");
    assert_eq!(read32(&mut transport, 0x60) & 2, 2);
    assert_eq!(transport.device().active, None);
    assert!(!transport.process(&driver.memory), "and does nothing until then");
    let error = transport.take_error().unwrap();
    assert!(transport.take_error().is_none(), "the error is told once");

    let mut driver = Driver::start(&mut transport);
    let buffer = driver.allocate(8);
    driver.offer(0, &[], &[(buffer, 8)]);
    assert!(transport.process(&driver.memory), "after a reset it works again");
    error
}

fn chain_error_of(mischief: impl FnOnce(&mut Driver)) -> ChainError {
    match error_of(mischief) {
        DeviceError::Chain { source } => source,
        other => panic!("{other}"),
    }
}

device_contract!(unconfigured, new: fresh(),
    change: |transport: &mut Transport<Echo>| { let _ = write32(transport, 0x70, 1); },
    restore: |state| Transport::restore(Echo::default(), state).unwrap());

device_contract!(running, new: started().0,
    change: |transport: &mut Transport<Echo>| { let _ = write32(transport, 0x30, 0); },
    restore: |state| Transport::restore(Echo::default(), state).unwrap());

#[test]
fn the_device_says_what_it_is() {
    let mut transport = fresh();
    assert_eq!(read32(&mut transport, 0x00), 0x7472_6976);
    assert_eq!(read32(&mut transport, 0x04), 2);
    assert_eq!(read32(&mut transport, 0x08), 42);
    assert_eq!(read32(&mut transport, 0x0c), u32::from_le_bytes(*b"PNDO"));
    assert_eq!(read32(&mut transport, 0xfc), 0, "the configuration never changes");
    assert_eq!(read32(&mut transport, 0xb0), u32::MAX, "there is no shared memory");
}

#[test]
fn features_are_read_half_by_half() {
    let mut transport = fresh();
    assert_eq!(read32(&mut transport, 0x10), 0b101);
    let _ = write32(&mut transport, 0x14, 1);
    assert_eq!(read32(&mut transport, 0x10), 1);
    let _ = write32(&mut transport, 0x14, 2);
    assert_eq!(read32(&mut transport, 0x10), 0);
}

#[test]
fn the_device_learns_what_the_driver_accepted() {
    let mut transport = fresh();
    let mut driver = Driver::new();
    driver.negotiate(&mut transport, 1 << 32 | 0b100);
    assert_eq!(read32(&mut transport, 0x70), 1 | 2 | 8);
    assert_eq!(transport.device().active, None, "not before the driver is ready");
    assert_eq!(write32(&mut transport, 0x70, READY), Effect::Notify);
    assert_eq!(transport.device().active, Some(1 << 32 | 0b100));
}

#[test]
fn features_are_not_ok_without_version_1() {
    let mut transport = fresh();
    Driver::new().negotiate(&mut transport, 0b101);
    assert_eq!(read32(&mut transport, 0x70), 1 | 2);
    assert_eq!(write32(&mut transport, 0x70, READY), Effect::None);
    assert_eq!(read32(&mut transport, 0x70), 1 | 2, "and so the driver cannot be ready");
}

#[test]
fn features_are_not_ok_that_were_not_offered() {
    let mut transport = fresh();
    let _ = write32(&mut transport, 0x70, 1 | 2);
    for (half, features) in [(0, 0b10), (1, 1)] {
        let _ = write32(&mut transport, 0x24, half);
        let _ = write32(&mut transport, 0x20, features);
    }
    let _ = write32(&mut transport, 0x70, 1 | 2 | 8);
    assert_eq!(read32(&mut transport, 0x70), 1 | 2);
}

#[test]
fn features_do_not_change_once_they_are_ok() {
    let mut transport = fresh();
    Driver::new().negotiate(&mut transport, ALL);
    let before = transport.state().driver_features;
    let _ = write32(&mut transport, 0x20, 0);
    assert_eq!(transport.state().driver_features, before);
}

#[test]
fn queues_are_set_up_between_features_ok_and_driver_ok() {
    let mut transport = fresh();
    let mut driver = Driver::new();
    let _ = write32(&mut transport, 0x44, 1);
    assert_eq!(read32(&mut transport, 0x44), 0, "too early");

    driver.negotiate(&mut transport, ALL);
    assert_eq!(read32(&mut transport, 0x34), 16);
    driver.set_up_queue(&mut transport, 1, 4);
    assert_eq!(read32(&mut transport, 0x34), 8);
    assert_eq!(read32(&mut transport, 0x44), 1);
    let ring = transport.state().queues[1];
    assert_eq!((ring.size, ring.descriptor_table, ring.available_ring), (4, 0x1_4000, 0x1_5000));

    let _ = write32(&mut transport, 0x80, 0x8000);
    assert_eq!(transport.state().queues[1], ring, "a queue in use stays as it is");

    let _ = write32(&mut transport, 0x70, READY);
    let _ = write32(&mut transport, 0x30, 0);
    let _ = write32(&mut transport, 0x44, 1);
    assert_eq!(read32(&mut transport, 0x44), 0, "too late");
    let _ = write32(&mut transport, 0x30, 1);
    let _ = write32(&mut transport, 0x44, 0);
    assert_eq!(read32(&mut transport, 0x44), 0, "but a queue may be stopped");
}

#[test]
fn a_queue_takes_addresses_of_64_bits_and_refuses_impossible_sizes() {
    let mut transport = fresh();
    Driver::new().negotiate(&mut transport, ALL);
    for (register, half) in [(0x80, 0x10), (0x84, 2), (0x90, 0x22), (0x94, 3), (0xa0, 0x34), (0xa4, 4)] {
        let _ = write32(&mut transport, register, half);
    }
    for size in [0, 3, 32, 1 << 16, u32::MAX] {
        let _ = write32(&mut transport, 0x38, size);
    }
    let ring = transport.state().queues[0];
    assert_eq!(ring.descriptor_table, 0x2_0000_0010);
    assert_eq!(ring.available_ring, 0x3_0000_0022);
    assert_eq!(ring.used_ring, 0x4_0000_0034);
    assert_eq!(ring.size, 16);
    for register in [0x80, 0x90, 0xa0] {
        let _ = write32(&mut transport, register, 0x1001);
    }
    assert_eq!(transport.state().queues[0], ring, "nor are they unaligned");
}

#[test]
fn a_queue_that_is_not_there_has_no_size() {
    let mut transport = fresh();
    Driver::new().negotiate(&mut transport, ALL);
    for select in [2, u32::MAX] {
        let _ = write32(&mut transport, 0x30, select);
        assert_eq!(read32(&mut transport, 0x34), 0);
        let _ = write32(&mut transport, 0x38, 4);
        let _ = write32(&mut transport, 0x44, 1);
        assert_eq!(read32(&mut transport, 0x44), 0);
    }
}

#[test]
fn a_reset_forgets_everything() {
    let (mut transport, driver) = started();
    assert_eq!(write32(&mut transport, 0x70, 0), Effect::Reset);
    assert_eq!(transport.state(), fresh().state());
    assert_eq!(transport.device().active, None);
    assert!(!transport.process(&driver.memory));
}

#[test]
fn status_bits_are_only_added() {
    let (mut transport, _) = started();
    let _ = write32(&mut transport, 0x70, 1);
    assert_eq!(read32(&mut transport, 0x70), READY);
    let _ = write32(&mut transport, 0x70, 0x40 | 0x10);
    assert_eq!(read32(&mut transport, 0x70), READY, "a driver cannot ask for a reset");
    assert_eq!(write32(&mut transport, 0x70, READY), Effect::None, "nor be ready twice");
}

#[test]
fn a_driver_that_gave_up_is_left_alone() {
    let (mut transport, mut driver) = started();
    let buffer = driver.allocate(8);
    driver.offer(0, &[], &[(buffer, 8)]);
    let _ = write32(&mut transport, 0x70, READY | 0x80);
    assert!(!transport.process(&driver.memory));
    assert_eq!(transport.device().active, None);
}

#[test]
fn a_notification_wakes_the_device() {
    let (mut transport, _) = started();
    assert_eq!(write32(&mut transport, 0x50, 1), Effect::Notify);
    assert_eq!(write32(&mut transport, 0x50, u32::MAX), Effect::Notify, "whatever it says: it is a hint");
}

#[test]
fn an_interrupt_pends_until_it_is_acknowledged() {
    let (mut transport, mut driver) = started();
    assert!(!transport.process(&driver.memory), "nothing to do, no interrupt");
    let buffer = driver.allocate(8);
    let head = driver.offer(1, &[], &[(buffer, 8)]);
    assert!(transport.process(&driver.memory));
    assert_eq!(driver.take(1), Some((head.into(), 8)));
    assert!(transport.interrupt_pending());
    assert_eq!(read32(&mut transport, 0x60), 1);
    let _ = write32(&mut transport, 0x64, 2);
    assert!(transport.interrupt_pending(), "that was another one");
    let _ = write32(&mut transport, 0x64, 1);
    assert!(!transport.interrupt_pending());
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let (mut transport, mut driver) = started();
    driver.silence(0, true);
    let buffer = driver.allocate(8);
    driver.offer(0, &[], &[(buffer, 8)]);
    assert!(!transport.process(&driver.memory));
    assert!(driver.take(0).is_some());
    driver.silence(0, false);
    driver.offer(0, &[], &[(buffer, 8)]);
    assert!(transport.process(&driver.memory));
}

#[test]
fn registers_are_accessed_as_a_whole() {
    let (mut transport, _) = started();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 2), (0x70, 3), (0x70, 0)] {
        let mut data = vec![0xff; len];
        transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "at {offset:#x}");
        assert_eq!(transport.write(offset, &vec![0; len]), Effect::None);
    }
    assert_eq!(read32(&mut transport, 0x01), 0, "an unaligned one is none");
    assert_eq!(write32(&mut transport, 0x72, 0), Effect::None);
    assert_eq!(read32(&mut transport, 0x70), READY, "and nothing has happened");
}

#[test]
fn the_configuration_is_read_at_any_width_and_not_written() {
    let mut transport = fresh();
    let mut read = |offset, len| {
        let mut data = vec![0xff; len];
        transport.read(offset, &mut data);
        data
    };
    assert_eq!(read(0x100, 1), [1]);
    assert_eq!(read(0x102, 4), [3, 4, 0, 0]);
    assert_eq!(read(0x104, 8), [0; 8]);
    assert_eq!(read(u64::MAX, 8), [0; 8]);
    assert_eq!(transport.write(0x100, &[9]), Effect::None);
    assert_eq!(transport.write(u64::MAX, &[9; 8]), Effect::None);
    assert_eq!(read32(&mut transport, 0x100), 0x0403_0201);
}

#[test]
fn a_long_chain_may_be_in_a_table_of_its_own() {
    let (mut transport, mut driver) = started();
    let (table, buffer) = (driver.allocate(16 * 200), driver.allocate(200));
    for index in 0..200 {
        let flags = if index == 199 { WRITE } else { WRITE | NEXT };
        let descriptor = Descriptor { address: buffer, len: 1, flags, next: index + 1 };
        driver.describe_at(table + 16 * u64::from(index), descriptor);
    }
    driver.describe(0, 3, Descriptor { address: table, len: 16 * 200, flags: INDIRECT, next: 0 });
    driver.make_available(0, 3);
    assert!(transport.process(&driver.memory));
    assert_eq!(driver.take(0), Some((3, 200)));
}

#[test]
fn a_call_ends_after_what_it_found_at_its_start() {
    let (mut transport, mut driver) = started();
    let buffer = driver.allocate(8);
    for round in 0..100_u32 {
        driver.offer(0, &[], &[(buffer, round % 8)]);
        assert!(transport.process(&driver.memory));
        assert_eq!(driver.take(0).unwrap().1, round % 8);
        assert_eq!(driver.take(0), None);
    }
}

#[test]
fn a_chain_that_loops_is_refused() {
    let error = chain_error_of(|driver| {
        driver.describe(0, 0, Descriptor { address: 0x1000, len: 8, flags: NEXT, next: 1 });
        driver.describe(0, 1, Descriptor { address: 0x1000, len: 8, flags: NEXT, next: 0 });
        driver.make_available(0, 0);
    });
    assert_eq!(error, ChainError::Endless { head: 0 });
}

#[test]
fn a_chain_that_leaves_its_table_is_refused() {
    let error = chain_error_of(|driver| {
        driver.describe(0, 2, Descriptor { address: 0x1000, len: 8, flags: NEXT, next: 16 });
        driver.make_available(0, 2);
    });
    assert_eq!(error, ChainError::Endless { head: 2 });
}

#[test]
fn a_head_outside_the_table_is_refused() {
    let error = chain_error_of(|driver| driver.make_available(0, 16));
    assert_eq!(error, ChainError::Endless { head: 16 });
}

#[test]
fn a_table_within_a_table_is_refused() {
    let error = chain_error_of(|driver| {
        let table = driver.allocate(16);
        driver.describe_at(table, Descriptor { address: table, len: 16, flags: INDIRECT, next: 0 });
        driver.describe(0, 0, Descriptor { address: table, len: 16, flags: INDIRECT, next: 0 });
        driver.make_available(0, 0);
    });
    assert_eq!(error, ChainError::Endless { head: 0 });
}

#[test]
fn a_chain_of_more_descriptors_than_any_queue_has_is_refused() {
    let error = chain_error_of(|driver| {
        let table = driver.allocate(16 * 300);
        for index in 0..300 {
            let flags = if index == 299 { 0 } else { NEXT };
            let descriptor = Descriptor { address: 0x1000, len: 1, flags, next: index + 1 };
            driver.describe_at(table + 16 * u64::from(index), descriptor);
        }
        driver.describe(0, 0, Descriptor { address: table, len: 16 * 300, flags: INDIRECT, next: 0 });
        driver.make_available(0, 0);
    });
    assert_eq!(error, ChainError::TooLong { head: 0 });
}

#[test]
fn a_buffer_outside_memory_is_refused() {
    for (address, len) in [(MEMORY_BYTES - 4, 8), (MEMORY_BYTES, 1), (u64::MAX - 3, 8), (u64::MAX, 1), (0, u32::MAX)] {
        let error = chain_error_of(|driver| {
            driver.offer(0, &[(address, len)], &[]);
        });
        assert_eq!(error, ChainError::OutsideMemory { start: address, len });
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_refused() {
    let error = chain_error_of(|driver| {
        driver.describe(0, 0, Descriptor { address: 0x1000, len: 8, flags: WRITE | NEXT, next: 1 });
        driver.describe(0, 1, Descriptor { address: 0x1000, len: 8, flags: 0, next: 0 });
        driver.make_available(0, 0);
    });
    assert_eq!(error, ChainError::Order { head: 0 });
}

#[test]
fn an_index_further_ahead_than_the_queue_is_long_is_refused() {
    let error = error_of(|driver| driver.claim_available(0, 17));
    assert!(matches!(error, DeviceError::Ring { source: virtio_queue::Error::InvalidAvailRingIndex }), "{error}");
}

#[test]
fn a_queue_outside_memory_is_refused() {
    let mut transport = fresh();
    let mut driver = Driver::new();
    driver.negotiate(&mut transport, ALL);
    driver.set_up_queue(&mut transport, 0, 16);
    let _ = write32(&mut transport, 0x30, 1);
    let _ = write32(&mut transport, 0xa4, 0xffff_ffff);
    let _ = write32(&mut transport, 0x44, 1);
    let _ = write32(&mut transport, 0x70, READY);
    assert!(transport.process(&driver.memory));
    assert!(matches!(transport.take_error(), Some(DeviceError::QueueOutsideMemory { index: 1 })));
}

#[test]
fn a_restored_device_goes_on_where_it_was() {
    let (mut transport, mut driver) = started();
    let buffer = driver.allocate(8);
    driver.offer(0, &[], &[(buffer, 8)]);
    assert!(transport.process(&driver.memory));
    driver.offer(0, &[], &[(buffer, 5)]);

    let mut twin = Transport::restore(Echo::default(), transport.state()).unwrap();
    assert_eq!(twin.device().active, Some(ALL));
    assert!(twin.interrupt_pending(), "what the guest had not acknowledged");
    assert!(twin.process(&driver.memory), "no notification is needed");
    assert_eq!(driver.take(0).unwrap().1, 8);
    assert_eq!(driver.take(0).unwrap().1, 5);
}

#[test]
fn a_device_that_was_not_running_is_not_activated() {
    let mut transport = fresh();
    Driver::new().negotiate(&mut transport, ALL);
    let twin = Transport::restore(Echo::default(), transport.state()).unwrap();
    assert_eq!(twin.device().active, None);
    let mut broken = started().0.state();
    broken.status |= 0x40;
    assert_eq!(Transport::restore(Echo::default(), broken).unwrap().device().active, None);
}

#[test]
fn a_tampered_state_is_refused_by_name() {
    use TransportStateError as Refused;
    let spoilt = |spoil: fn(&mut TransportState)| {
        let mut state = started().0.state();
        spoil(&mut state);
        Transport::restore(Echo::default(), state).err().unwrap()
    };
    assert_eq!(spoilt(|state| state.device_type = 1), Refused::DeviceType { found: 1, wanted: 42 });
    assert_eq!(spoilt(|state| state.status |= 0x10), Refused::Status(READY | 0x10));
    assert_eq!(spoilt(|state| state.status = 1 | 2 | 4), Refused::Status(7));
    assert_eq!(spoilt(|state| state.status = 0x40), Refused::Status(0x40));
    assert_eq!(spoilt(|state| state.driver_features = 0b101), Refused::Features(0b101));
    assert_eq!(spoilt(|state| state.driver_features |= 2), Refused::Features(ALL | 2));
    assert_eq!(spoilt(|state| state.interrupt_status = 4), Refused::Interrupts(4));
    assert_eq!(spoilt(|state| state.queues.truncate(1)), Refused::QueueCount { found: 1, wanted: 2 });
    assert_eq!(spoilt(|state| state.status = 1 | 2), Refused::QueueTooEarly { index: 0 });
    let queue = |spoil| match spoilt(spoil) {
        Refused::Queue { index: 1, .. } => (),
        other => panic!("{other}"),
    };
    queue(|state| state.queues[1].size = 16);
    queue(|state| state.queues[1].size = 0);
    queue(|state| state.queues[1].size = 3);
    queue(|state| state.queues[1].descriptor_table += 8);
    queue(|state| state.queues[1].available_ring += 1);
    queue(|state| state.queues[1].used_ring += 2);
}
