//! Where a guest is that does not go on.

use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{Guest, Monitor, Toy, executable};
use pando_wire::control::{Request, Response, VcpuPlace};
use std::thread;
use std::time::{Duration, Instant};

/// Where a toy's code is.
const CODE: u64 = 0x20_0000;

fn place(monitor: &Monitor) -> VcpuPlace {
    match monitor.ask(&Request::Vcpus).unwrap() {
        Response::Vcpus(places) if places.len() == 1 => places[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_monitor_tells_where_its_vcpus_are_and_the_guest_goes_on() {
    if !needs_kvm() {
        return;
    }
    let monitor = Monitor::boot(PANDO.as_ref(), &Toy::walking(16), MEMORY).unwrap();
    let deadline = Instant::now() + LIMIT;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let place = place(&monitor);
        assert!((CODE..CODE + 4096).contains(&place.rip) && !place.is_halted, "{place:x?}");
        seen.push(place.rip);
        seen.dedup();
        assert!(Instant::now() < deadline, "always at {seen:x?}");
    }
    monitor.ask(&Request::Pause).unwrap();
    assert_eq!(place(&monitor), place(&monitor), "one that was paused stays so");

    // hlt, with interrupts off.
    let kernel = executable(&[0xf4], &[]);
    let halted = Guest { kernel, vcpus: 1, memory_bytes: MEMORY, disk_bytes: 1 << 20 };
    let halted = Monitor::boot_guest(PANDO.as_ref(), &halted).unwrap();
    while !place(&halted).is_halted {
        assert!(Instant::now() < deadline, "{}", halted.last_seen());
        thread::sleep(Duration::from_millis(1));
    }
    let VcpuPlace { rip, rflags, .. } = place(&halted);
    assert_eq!((rip, rflags & 1 << 9), (CODE + 1, 0));
}
