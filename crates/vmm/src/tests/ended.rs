//! A guest that has ended just when somebody wants something of it.

use super::toys::{MEMORY, Toys};
use crate::fork::ForkError;
use crate::owner::Event;
use crate::vm::Vm;
use pando_bench::Guest;
use pando_wire::control::{Ending, Phase};
use std::thread;
use std::time::{Duration, Instant};

/// Tells that it lives, powers off, and tells it again if it goes on.
fn powering_off() -> Guest {
    // mov dx, 0x3f8; out dx, al; mov dx, 0x600; mov al, 0x34; out dx, al; mov dx, 0x3f8; again: out dx, al; jmp again
    const CODE: [u8; 19] = [
        0x66, 0xba, 0xf8, 0x03, 0xee, 0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb,
        0xfd,
    ];
    Guest { kernel: pando_bench::executable(&CODE, &[]), vcpus: 1, memory_bytes: MEMORY, disk_bytes: 4096 }
}

fn ended(toys: &mut Toys) -> Vm {
    let mut vm = toys.boot(&powering_off());
    vm.resume();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match toys.events.take() {
            Some(Event::Ended(ending)) => {
                assert_eq!(ending, Ending::PowerOff);
                return vm;
            }
            Some(Event::MemoryIsThere | Event::MemoryIsLost(_)) => panic!("its memory was there from the beginning"),
            None => assert!(Instant::now() < deadline, "the guest does not power off"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_that_has_ended_is_not_forked() {
    let Some(mut toys) = Toys::new() else { return };
    let mut vm = ended(&mut toys);
    // In the child nobody would know that it has ended.
    let forked = vm.fork(Vec::new());
    assert!(matches!(forked, Err(ForkError::Ended)), "{forked:?}");
    assert_eq!(vm.phase(), Phase::Running, "and is as it was");
}

#[test]
fn a_guest_that_has_ended_does_not_run_on() {
    let Some(mut toys) = Toys::new() else { return };
    let mut vm = ended(&mut toys);
    for _ in 0..3 {
        vm.pause().unwrap();
        vm.resume();
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(toys.console().len(), 1);
    assert!(toys.events.take().is_none(), "it ended once");
}
