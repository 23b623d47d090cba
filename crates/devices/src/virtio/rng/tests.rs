use super::*;
use crate::virtio::mmio::{MmioDevice, Transport};
use crate::virtio::testing::Driver;

fn started() -> (Transport<Rng>, Driver) {
    let mut transport = Transport::new(Rng::new());
    let driver = Driver::start(&mut transport);
    (transport, driver)
}

#[test]
fn a_buffer_comes_back_full_of_random_bytes() {
    let (mut transport, mut driver) = started();
    let buffer = driver.allocate(4096);
    let head = driver.offer(0, &[], &[(buffer, 100), (buffer + 1000, 3000)]);
    assert!(transport.process(&driver.memory));
    assert_eq!(driver.take(0), Some((head.into(), 3100)));
    assert!(driver.bytes(buffer + 1000, 3000).iter().filter(|byte| **byte == 0).count() < 100);
    assert_eq!(driver.bytes(buffer + 100, 900), vec![0; 900], "and nothing else is touched");
    assert!(!transport.process(&driver.memory), "there is nothing left to do");
}

#[test]
fn no_request_gets_more_than_the_limit() {
    let (mut transport, mut driver) = started();
    let buffer = driver.allocate(1 << 20);
    driver.offer(0, &[], &[(buffer, 1 << 20)]);
    assert!(transport.process(&driver.memory));
    assert_eq!(driver.take(0).unwrap().1, MAX_RANDOM_BYTES as u32);
}

#[test]
fn a_request_without_room_gets_nothing() {
    let (mut transport, mut driver) = started();
    let buffer = driver.allocate(16);
    driver.offer(0, &[(buffer, 16)], &[]);
    driver.offer(0, &[], &[(buffer, 0)]);
    assert!(transport.process(&driver.memory));
    assert_eq!(driver.take(0).unwrap().1, 0);
    assert_eq!(driver.take(0).unwrap().1, 0);
}
