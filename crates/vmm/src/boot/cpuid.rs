//! What a vCPU says it is: what KVM supports on this host, with its own APIC id and the topology of one socket.

use kvm_bindings::CpuId;

const HYPERVISOR: u32 = 1 << 31; // leaf 1, ECX
const TSC_DEADLINE: u32 = 1 << 24; // leaf 1, ECX
/// Hardware virtualisation. What a guest's own guests are in the middle of is not part of a VM's state here, and would
/// be lost at a fork, so it is not offered.
const VMX: u32 = 1 << 5; // leaf 1, ECX
const SVM: u32 = 1 << 2; // leaf 0x8000_0001, ECX
/// Leaf 0x4000_0001, EAX: KVM_FEATURE_ASYNC_PF, _VMEXIT and _INT. A page that was on its way to the parent would never
/// arrive in the child, so guests are not offered to wait for one.
const ASYNC_PAGE_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// The CPUID of vCPU `id` of `count`.
pub(super) fn for_vcpu(supported: &CpuId, id: u8, count: u8, deadline_timer: bool) -> CpuId {
    let mut cpuid = supported.clone();
    let id_bits = u32::from(count).next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | u32::from(count) << 16 | u32::from(id) << 24;
                entry.ecx = entry.ecx & !VMX | HYPERVISOR;
                if deadline_timer {
                    entry.ecx |= TSC_DEADLINE;
                }
            }
            // Extended topology: one thread a core, all cores in one package.
            0xb | 0x1f => {
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 1 << 8),
                    1 => (id_bits, u32::from(count), 2 << 8 | 1),
                    index => (0, 0, index),
                };
                entry.edx = u32::from(id);
            }
            0x4000_0001 => entry.eax &= !ASYNC_PAGE_FAULTS,
            0x8000_0001 => entry.ecx &= !SVM,
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | id_bits << 12 | (u32::from(count) - 1),
            // AMD's node and core ids.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (u32::from(id), u32::from(id), 0),
            _ => (), // Says nothing about one vCPU.
        }
    }
    cpuid
}
