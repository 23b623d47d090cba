//! A machine that an earlier version stored is one of this version, for ever. docs/snapshot-format.md says how another
//! is added.

use super::fields;
use super::law::{WITNESS, wait_for_laps};
use super::networked::{self, Card};
use super::toys::{MEMORY, Toys};
use crate::fork::Inherited;
use crate::image::{DiskImage, Image};
use crate::machine::MachineState;
use pando_wire::control::WorkingSet;
use pando_wire::saved::Machine;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// The state of the machine in each fixture of `pando-cli`, by its version. A fuzzer begins with them as well.
const STATES: [(u32, &[u8]); 3] = [
    (1, include_bytes!("../../../../fuzz/seeds/machine/1")),
    (2, include_bytes!("../../../../fuzz/seeds/machine/2")),
    (3, include_bytes!("../../../../fuzz/seeds/machine/3")),
];

/// What was in all of them, by the names of [`fields`].
const HELD: &[(&str, &str)] = &[
    ("ioapic.redirection[16]", "0x60"),
    ("ioapic.redirection[17]", "0x61"),
    ("ioapic.redirection[18]", "0x10000"),
    ("msrs[11]", "1263947009"),
    ("pic0.irr", "17"),
    ("pit.channels[0].count", "4660"),
    ("pit.channels[0].mode", "2"),
    ("platform.block.driver_features", "4294967808"),
    ("platform.block.interrupt_status", "1"),
    ("platform.block.queues[0].descriptor_table", "2162688"),
    ("platform.block.queues[0].size", "16"),
    ("platform.block.status", "15"),
    ("platform.rng.queues[0].next_used", "16"),
    ("platform.rng.status", "15"),
    ("platform.serial.divisor_low", "12"),
    ("platform.serial.interrupt_enable", "2"),
    ("platform.serial.line_control", "3"),
    ("platform.serial.scratch", "90"),
    ("platform.vsock[0].queues[2].used_ring", "2177024"),
    ("platform.vsock[0].status", "15"),
    ("platform.vsock[1].guest_cid", "3"),
    ("platform.vsock[1].next_host_port", "1073741824"),
    ("vcpu0.debug_registers.db[0]", "2097152"),
    ("vcpu0.lapic[0x220]", "0x20000"),
    ("vcpu0.lapic[0x230]", "0x3"),
    ("vcpu0.lapic[0x380]", "0x7fffffff"),
    ("vcpu0.mp_state.mp_state", "0"),
    ("vcpu0.msr[0x3b]", "0x1000"),
    ("vcpu0.msr[0x4b564d01]", "0x241001"),
    ("vcpu0.msr[0xc0000081]", "0x7000"),
    ("vcpu0.sregs.cr3", "36864"),
    ("vcpu0.sregs.cr4", "1568"),
    ("vcpu0.sregs.efer", "1280"),
    ("vcpu0.sregs.gdt.base", "1280"),
    ("vcpu0.xcrs.xcrs[0].value", "1"),
    ("vcpu1.sregs.cs.base", "0"),
    ("vcpu2.events.flags", "13"),
    ("vcpu2.lapic[0x320]", "0x20040"),
    ("vcpu2.msr[0x174]", "0x1a"),
    ("vcpu2.msr[0xc0000102]", "0x9002"),
    ("vcpu2.sregs.cs.selector", "16"),
    ("vcpu0.tsc[0]", "0"),
    ("vcpu1.tsc[0]", "0"),
    ("vcpu2.tsc[0]", "0"),
];

/// What was in each, likewise.
const HELD_BY_VERSION: [&[(&str, &str)]; STATES.len()] = [
    &[
        ("clock.clock", "41247837"),
        ("platform.block.queues[0].next_available", "101"),
        ("platform.block.queues[0].next_used", "101"),
        ("platform.vsock[0].queues[0].next_available", "20"),
        ("platform.vsock[0].queues[1].next_used", "20"),
        ("vcpu0.regs.r15", "35"),
        ("vcpu0.regs.r8", "288"),
        ("vcpu0.regs.rip", "2097891"),
        ("vcpu1.regs.rsi", "38"),
        ("vcpu2.regs.rsi", "20"),
        ("vcpu2.regs.rip", "2098022"),
        ("platform.balloon", "\"Absent\""),
        ("platform.network", "\"Absent\""),
    ],
    &[
        ("clock.clock", "59963601"),
        ("platform.block.queues[0].next_available", "75"),
        ("platform.block.queues[0].next_used", "75"),
        ("platform.vsock[0].queues[0].next_available", "21"),
        ("platform.vsock[0].queues[1].next_used", "21"),
        ("vcpu0.regs.r15", "26"),
        ("vcpu0.regs.r8", "216"),
        ("vcpu0.regs.rip", "2097824"),
        ("vcpu1.regs.rsi", "38"),
        ("vcpu2.regs.rsi", "21"),
        ("vcpu2.regs.rip", "2097545"),
        ("platform.balloon.Saved.driver_features", "4294967328"),
        ("platform.balloon.Saved.queues[4].descriptor_table", "2183168"),
        ("platform.balloon.Saved.queues[4].next_available", "16"),
        ("platform.balloon.Saved.queues[4].next_used", "16"),
        ("platform.balloon.Saved.queues[4].ready", "true"),
        ("platform.balloon.Saved.status", "15"),
        ("platform.network", "\"Absent\""),
    ],
    &[
        ("clock.clock", "98924872"),
        ("platform.block.queues[0].next_available", "70"),
        ("platform.block.queues[0].next_used", "70"),
        ("platform.vsock[0].queues[0].next_available", "23"),
        ("platform.vsock[0].queues[1].next_used", "23"),
        ("vcpu0.regs.r15", "25"),
        ("vcpu0.regs.r8", "208"),
        ("vcpu0.regs.rip", "2097952"),
        ("vcpu1.regs.rsi", "128"),
        ("vcpu2.regs.rsi", "23"),
        ("vcpu2.regs.rip", "2097996"),
        ("platform.balloon.Saved.queues[4].next_used", "16"),
        ("platform.balloon.Saved.status", "15"),
        ("platform.network.Saved[0].driver_features", "4569938859"),
        ("platform.network.Saved[0].interrupt_status", "1"),
        ("platform.network.Saved[0].queues[0].descriptor_table", "67108864"),
        ("platform.network.Saved[0].queues[1].next_available", "1"),
        ("platform.network.Saved[0].queues[1].next_used", "1"),
        ("platform.network.Saved[0].queues[6].used_ring", "67215360"),
        ("platform.network.Saved[0].queues[6].ready", "true"),
        ("platform.network.Saved[0].status", "15"),
        ("platform.network.Saved[1].mac[5]", "79"),
        ("platform.network.Saved[1].max_queue_pairs", "3"),
        ("platform.network.Saved[1].mtu", "1500"),
        ("platform.network.Saved[1].queue_pairs", "1"),
        ("platform.network.Saved[1].status", "1"),
    ],
];

/// The registers that every CPU and every KVM for x86-64 has, and that the guest uses: the TSC and what is added to it,
/// SYSENTER's and SYSCALL's, KVM's clocks.
const COMMON_MSRS: [u32; 12] = [
    0x10,
    0x3b,
    0x174,
    0x175,
    0x176,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0084,
    0xc000_0102,
    0x4b56_4d00,
    0x4b56_4d01,
];

#[test]
fn a_machine_that_an_earlier_version_stored_is_what_it_was() {
    for ((version, state), held) in STATES.into_iter().zip(HELD_BY_VERSION) {
        let described = Machine { kind: "pando-vmm".into(), version, arch: "x86_64".into(), cpu_features: Vec::new() };
        let machine = MachineState::decode(&described, state).unwrap();
        let fields = fields::of(&machine);
        for (name, held) in HELD.iter().chain(held) {
            assert_eq!(fields.get(*name).map(String::as_str), Some(*held), "{name} of version {version}");
        }
        assert_eq!(machine.vcpus.len(), usize::from(WITNESS.vcpus));
        assert_eq!(machine.msrs[..], COMMON_MSRS);
    }
}

/// The first of two steps: a machine that goes on wherever there is a KVM, as a seed writes it, into the file that
/// `PANDO_FIXTURE` names.
#[test]
#[ignore = "writes what a fixture is made of, once for each version"]
fn write_what_the_fixture_is_made_of() {
    let Some(path) = std::env::var_os("PANDO_FIXTURE") else { return };
    let mut toys = Toys::new().unwrap();
    let _far = networked::with_network(&mut toys).unwrap();
    let mut image = toys.image(&WITNESS.guest(MEMORY));
    mask(&mut image.machine);
    let mut vm = toys.start(image);
    let mut card = Card::come_up(&vm);
    vm.resume();
    card.send(&vm, 60);
    wait_for_laps(&toys, 20);
    vm.pause().unwrap();
    let machine = vm.machine_state().unwrap().unwrap();
    fields::of(&machine).iter().for_each(|(name, held)| println!("    ({name:?}, {held:?}),"));
    vm.platform.seal_disk();
    let disk = DiskImage::Sealed(Box::new(vm.platform.take_disk().unwrap().into_sealed()));
    let (memory, expected) = (vm.memory.clone(), WorkingSet::default());
    let image = Image { machine, memory, disk, expected, arriving: None };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let descriptors = [OwnedFd::from(theirs), toys.data().into()];
    Inherited { image, asked: Instant::now(), born: Instant::now() }.save(None, descriptors.into()).unwrap();
    io::copy(&mut ours, &mut File::create(path).unwrap()).unwrap();
}

/// Leaves of its CPUs what every CPU for x86-64 has.
fn mask(machine: &mut MachineState) {
    machine.msrs = COMMON_MSRS.into();
    for vcpu in &mut machine.vcpus {
        vcpu.msrs.retain(|(index, _)| COMMON_MSRS.contains(index));
        for entry in vcpu.cpuid.as_mut_slice() {
            let masks = match (entry.function, entry.index) {
                (0 | 0x4000_0000 | 0x8000_0000, _) => [u32::MAX; 4],
                (1, _) => [u32::MAX, u32::MAX, 1 << 31, 0x078b_fbff], // A hypervisor; all that 64-bit code relies on.
                (7, 0) => [0, 1 << 1, 0, 0],                          // TSC_ADJUST, which KVM emulates.
                (0x4000_0001, _) => [1 << 3 | 1, 0, 0, 0],            // KVM's clock.
                (0x8000_0001, _) => [0, 0, 0, 1 << 29 | 1 << 20 | 1 << 11], // Long mode, NX, SYSCALL.
                (0x8000_0008, _) => [0xffff, 0, 0, 0],                // The width of addresses.
                _ => [0; 4],
            };
            let registers = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
            registers.into_iter().zip(masks).for_each(|(register, mask)| *register &= mask);
        }
    }
}
