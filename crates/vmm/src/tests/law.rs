//! The law of a whole VM: saved, restored and saved again it is the same, but for its clocks.

use super::fields::{self, Fields};
use super::toys::{MEMORY, Toys};
use crate::image::{DiskImage, Image};
use crate::machine::MachineState;
use crate::vm::Vm;
use pando_bench::{Told, Witness};
use pando_wire::control::WorkingSet;
use std::thread;
use std::time::{Duration, Instant};

/// What goes on while everything stands still, by the end of its name, and why.
const CLOCKS: [(&str, &str); 6] = [
    ("clock.clock", "the guest's clock moves on by what has passed since it was read"),
    ("clock.realtime", "the host's time of day at the reading"),
    ("clock.host_tsc", "the host's TSC at the reading"),
    (".lapic[0x390]", "the current count of a timer that runs, which is computed from the host's clock"),
    (".msr[0x6e0]", "the TSC's deadline: one that is not set, or is past, is saved as the TSC's value at the reading"),
    ("].count_load_time", "the host's clock when a channel of the PIT began to count, which KVM lets it do again"),
];

/// The guest's devices and CPUs are in use: queues, registers, a timer that runs, interrupts that wait.
pub(super) const WITNESS: Witness = Witness { vcpus: 3, pages: 8, records: 4 };

/// What such a guest has changed since power-on, at least: otherwise the law would hold for an empty machine only.
const IN_USE: [&str; 24] = [
    "vcpu0.regs.r8",
    "vcpu0.sregs.cr4",
    "vcpu0.msr[0x3b]",
    "vcpu0.msr[0x4b564d01]",
    "vcpu0.lapic[0x230]", // The disk's interrupt waits.
    "vcpu1.sregs.cs.base",
    "vcpu2.lapic[0x220]", // One that it sent itself waits.
    "vcpu2.lapic[0x320]",
    "vcpu2.lapic[0x380]",
    "vcpu2.msr[0x174]",
    "vcpu2.msr[0xc0000102]",
    "vcpu2.debug_registers.db[0]",
    "vcpu2.mp_state.mp_state",
    "pic0.irr",
    "pit.channels[0].count",
    "ioapic.redirection[16]",
    "platform.serial.scratch",
    "platform.serial.interrupt_enable",
    "platform.block.queues[0].next_used",
    "platform.block.interrupt_status",
    "platform.vsock[0].queues[0].next_available",
    "platform.vsock[0].status",
    "platform.rng.queues[0].next_used",
    "platform.balloon.Saved.queues[4].next_used",
];

#[test]
fn a_vm_that_is_saved_restored_and_saved_again_is_the_same_but_for_its_clocks() {
    let Some(mut toys) = Toys::new() else { return };
    let mut vm = toys.boot(&WITNESS.guest(MEMORY));
    let power_on = state(&vm).1;
    for _ in 0..4 {
        vm.resume();
        wait_for_laps(&toys, 6);
        vm.pause().unwrap();
        let (machine, before) = state(&vm);
        let used: Vec<_> = fields::differences(&power_on, &before).into_iter().map(|(name, _)| name).collect();
        for name in IN_USE {
            assert!(used.iter().any(|used| used == name), "{name} is as at power-on");
        }
        vm.platform.seal_disk();
        let disk = DiskImage::Sealed(Box::new(vm.platform.take_disk().unwrap().into_sealed()));
        let (memory, expected) = (vm.memory.clone(), WorkingSet::default());
        let mut restored = toys.start(Image { machine, memory, disk, expected, arriving: None });
        restored.read_again().unwrap(); // What it was started with is not what is asked for.
        let mut broken = fields::differences(&before, &state(&restored).1);
        broken.retain(|(name, _)| !CLOCKS.iter().any(|(clock, _)| name.ends_with(clock)));
        assert!(broken.is_empty(), "of {} fields, these changed: {broken:#?}", before.len());
        vm = restored; // The guest, which looks at memory, disk and registers, goes on in it.
    }
}

fn state(vm: &Vm) -> (MachineState, Fields) {
    let machine = vm.machine_state().unwrap().unwrap();
    let fields = fields::of(&machine);
    (machine, fields)
}

/// Waits until every CPU of the youngest VM has made so many laps.
pub(super) fn wait_for_laps(toys: &Toys, wanted: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut laps = [0; WITNESS.vcpus as usize];
    while laps.iter().any(|laps| *laps < wanted) {
        assert!(Instant::now() < deadline, "the guest came to {laps:?} laps");
        thread::sleep(Duration::from_millis(5));
        laps.fill(0);
        for byte in toys.console() {
            match Told::from_byte(byte) {
                Told::Lap(cpu, _) => laps[usize::from(cpu)] += 1,
                Told::Ready(_) => (),
                Told::Broken(cpu, what) => panic!("CPU {cpu}: {what}"),
            }
        }
    }
}
