//! What a guest is told, and what answers it, when it stands still or its devices are busy.

use super::law::{WITNESS, wait_for_laps};
use super::toys::{MEMORY, Toys};
use crate::gate::lock;
use crate::vm::Vm;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

/// Where the witness has KVM's clock of its first CPU, the others' behind it; `pvclock_vcpu_time_info` of the kernel.
const CLOCKS: u64 = 0x24_1000;
const CLOCK_BYTES: u64 = 64;
const FLAGS_AT: u64 = 29;
const GUEST_STOPPED: u8 = 2;

#[test]
fn a_guest_that_goes_on_is_told_that_it_stood_still() {
    let Some(mut toys) = Toys::new() else { return };
    let mut vm = toys.boot(&WITNESS.guest(MEMORY));
    let told = |vm: &Vm| {
        (0..u64::from(WITNESS.vcpus))
            .filter(|cpu| {
                let flags: u8 = vm.memory.read_obj(GuestAddress(CLOCKS + cpu * CLOCK_BYTES + FLAGS_AT)).unwrap();
                flags & GUEST_STOPPED != 0
            })
            .count()
    };
    vm.resume();
    wait_for_laps(&toys, 2);
    assert_eq!(told(&vm), 0, "nobody has stopped it yet");
    vm.pause().unwrap();
    vm.resume();
    wait_for_laps(&toys, 4);
    assert_eq!(told(&vm), usize::from(WITNESS.vcpus));
}

#[test]
fn a_cpu_does_not_wait_for_a_disk_that_is_at_work() {
    const BLOCK: u64 = 0xd000_1000;
    let Some(mut toys) = Toys::new() else { return };
    let vm = toys.boot(&WITNESS.guest(MEMORY));
    let platform = Arc::clone(&vm.platform);
    let at_work = lock(&vm.platform.block);
    let (answered, is_answered) = channel();
    let cpu = thread::spawn(move || {
        let _ = platform.mmio_write(BLOCK + 0x50, &[0; 4]);
        let _ = platform.mmio_read(BLOCK + 0x60, &mut [0; 4]);
        let _ = platform.mmio_write(BLOCK + 0x64, &[1, 0, 0, 0]);
        answered.send(()).unwrap();
    });
    let is_answered = is_answered.recv_timeout(Duration::from_secs(10));
    drop(at_work);
    cpu.join().unwrap();
    is_answered.unwrap();
}
