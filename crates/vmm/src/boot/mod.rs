//! A machine at power-on, as an image like any other: memory with a kernel in it, and the state of vCPUs that are about
//! to enter that kernel.

mod acpi; // what the guest is told about its machine
mod cpuid; // what its CPUs are
mod entry; // the CPU state that the 64-bit boot protocol asks for
mod kernel; // kernel, initramfs, command line and the zero page

use crate::machine::MachineState;
use crate::platform::PlatformState;
use pando_memory::AllocateError;
use pando_sys::{Kvm, SysError, Vm};
use pando_wire::control::{Boot, StartNetwork};
use std::fs::File;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

pub(crate) use acpi::{GENERATION_ADDRESS, RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_POWER_OFF};
pub(crate) use kernel::KernelError;

/// Why a machine cannot be set up for its boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// The number of vCPUs.
    #[error("{0} vCPUs is outside the range of 1 to 32")]
    Vcpus(u8),
    /// The number of queues of the tap.
    #[error("a machine with {vcpus} vCPUs has a network card with {} pairs of queues, not {got}", StartNetwork::of(*.vcpus).queue_pairs)]
    Network {
        /// Of the machine.
        vcpus: u8,
        /// Of the tap.
        got: u8,
    },
    /// The size of the memory, or the host's lack of it.
    #[error(transparent)]
    Memory(#[from] AllocateError),
    /// What was to be loaded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// KVM.
    #[error("cannot set up a vCPU")]
    Vcpu(#[from] SysError),
}

/// Memory with everything loaded, and the machine that will run it.
pub(crate) fn power_on(
    kvm: &Kvm,
    boot: &Boot,
    network: Option<StartNetwork>,
    kernel: &mut File,
    initramfs: &mut File,
) -> Result<(MachineState, GuestMemoryMmap), BootError> {
    if !(1..=32).contains(&boot.vcpus) {
        return Err(BootError::Vcpus(boot.vcpus));
    }
    if let Some(StartNetwork { queue_pairs: got }) = network.filter(|it| *it != StartNetwork::of(boot.vcpus)) {
        return Err(BootError::Network { vcpus: boot.vcpus, got });
    }
    let memory = pando_memory::allocate(boot.memory_bytes)?;
    let entry = kernel::load(&memory, boot.memory_bytes, kernel, initramfs, &boot.command_line)?;
    acpi::write(&memory, boot.vcpus, network.is_some())?;
    entry::write_tables(&memory)?;
    let platform = PlatformState::power_on(network);
    Ok((MachineState { platform, ..machine(kvm, boot.vcpus, entry)? }, memory))
}

/// The state of a machine whose first vCPU is about to enter the kernel.
///
/// KVM itself knows best what a vCPU looks like after a reset, so a VM without memory is made, adjusted, read and
/// dropped. From here on, a boot is a restore.
fn machine(kvm: &Kvm, vcpus: u8, entry: u64) -> Result<MachineState, SysError> {
    let vm = Arc::new(Vm::create(kvm)?);
    let msrs = kvm.msr_indices()?;
    let supported = kvm.supported_cpuid()?;
    let deadline_timer = kvm.has_tsc_deadline_timer();
    // All are made before any is read: their TSCs agree because they were made together.
    let made: Vec<_> = (0..vcpus).map(|id| vm.create_vcpu(id)).collect::<Result<_, _>>()?;
    let mut states = Vec::new();
    for (id, vcpu) in (0..vcpus).zip(&made) {
        let mut state = vcpu.state(&msrs, &cpuid::for_vcpu(&supported, id, vcpus, deadline_timer))?;
        state.tsc = states.first().map_or(state.tsc, |first: &pando_sys::VcpuState| first.tsc);
        entry::wire_local_interrupts(&mut state);
        if id == 0 {
            entry::enter(&mut state, entry);
        }
        states.push(state);
    }
    let msrs = match (made.first(), states.first()) {
        (Some(vcpu), Some(state)) => vcpu.readable_msrs(&state.cpuid, &msrs)?,
        _ => msrs,
    };
    Ok(MachineState { vcpus: states, vm: vm.state()?, platform: PlatformState::default(), msrs: msrs.into() })
}
