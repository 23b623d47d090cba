//! The CPU state that Linux's 64-bit boot protocol asks for (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"):
//! long mode, an identity map, flat segments, RSI at the zero page.

use super::kernel::{KernelError, ZERO_PAGE};
use kvm_bindings::kvm_segment;
use pando_sys::VcpuState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const GDT: u64 = 0x500;
const STACK: u64 = 0x8ff0;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
/// One page for each GiB.
const PAGE_DIRECTORIES: u64 = 0x1_0000;
/// How many GiB are mapped: more than the protocol asks for, as a kernel may look at all of a small machine.
const MAPPED_GIB: u64 = 8;

/// Null, unused, 64-bit code, data: the selectors 0x10 and 0x18 are the protocol's.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

const PRESENT_WRITABLE: u64 = 0b11;
const HUGE: u64 = 1 << 7;

const CR0_PROTECTED: u64 = 1;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;

/// Where the LAPIC keeps its local interrupt pins, and what they are to deliver at power-on.
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
const DELIVER_EXTINT: u8 = 0x7;
const DELIVER_NMI: u8 = 0x4;

/// Writes the descriptor table and the identity map.
pub(super) fn write_tables(memory: &GuestMemoryMmap) -> Result<(), KernelError> {
    let put = |value: u64, at: u64| memory.write_obj(value, GuestAddress(at)).map_err(KernelError::Tables);
    for (index, descriptor) in (0u64..).zip(DESCRIPTORS) {
        put(descriptor, GDT + index * 8)?;
    }
    put(PDPT | PRESENT_WRITABLE, PML4)?;
    for gib in 0..MAPPED_GIB {
        put((PAGE_DIRECTORIES + gib * 0x1000) | PRESENT_WRITABLE, PDPT + gib * 8)?;
    }
    for page in 0..MAPPED_GIB * 512 {
        put(page << 21 | PRESENT_WRITABLE | HUGE, PAGE_DIRECTORIES + page * 8)?;
    }
    Ok(())
}

/// Sets a vCPU to begin at `entry`.
pub(super) fn enter(state: &mut VcpuState, entry: u64) {
    let sregs = &mut state.sregs;
    let data = segment(DATA_SELECTOR, 0x3, 0);
    sregs.cs = segment(CODE_SELECTOR, 0xb, 1);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (size_of_val(&DESCRIPTORS) - 1) as u16;
    sregs.cr0 |= CR0_PROTECTED | CR0_PAGING;
    sregs.cr3 = PML4;
    sregs.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer |= EFER_LONG_MODE;
    state.regs.rip = entry;
    state.regs.rsi = ZERO_PAGE;
    state.regs.rsp = STACK;
    state.regs.rflags = 2; // The bit that is always set.
}

fn segment(selector: u16, kind: u8, long: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Sends external interrupts and NMIs through to the CPU, as firmware does.
pub(super) fn wire_local_interrupts(state: &mut VcpuState) {
    for (pin, mode) in [(LINT0, DELIVER_EXTINT), (LINT1, DELIVER_NMI)] {
        // Bits 8 to 10 of the register: the low bits of its second byte.
        let byte = &mut state.lapic.regs[pin + 1];
        *byte = (*byte as u8 & !0x7 | mode) as _;
    }
}
