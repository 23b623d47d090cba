//! One KVM virtual machine: memory slots, interrupt controllers, timer.

use crate::{SysError, Vcpu};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Three pages that Intel's virtualisation needs and the guest must not touch; directly below the BIOS area.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// What `/dev/kvm` can do.
#[derive(Debug)]
pub struct Kvm(pub(crate) kvm_ioctls::Kvm);

impl Kvm {
    /// Takes over an open `/dev/kvm`.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SysError> {
        // SAFETY: The descriptor is owned, so it is open and nobody else's. If it is not KVM's, every ioctl says so.
        let kvm = unsafe { kvm_ioctls::Kvm::from_raw_fd(fd.into_raw_fd()) };
        const CALL: &str = "use this descriptor as /dev/kvm (KVM_GET_API_VERSION)";
        match kvm.get_api_version() {
            12 => Ok(Self(kvm)),
            -1 => Err(SysError::last(CALL)),
            version => Err(SysError::other(CALL, format!("its version is {version}, not 12"))),
        }
    }

    /// What CPUID can show to a guest here.
    pub fn supported_cpuid(&self) -> Result<kvm_bindings::CpuId, SysError> {
        self.0
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(SysError::kvm("KVM_GET_SUPPORTED_CPUID"))
    }

    /// Whether the LAPIC timer has a TSC-deadline mode. `KVM_GET_SUPPORTED_CPUID` leaves the bit to its caller.
    pub fn has_tsc_deadline_timer(&self) -> bool {
        self.0.check_extension(Cap::TscDeadlineTimer)
    }

    /// The MSRs whose values make up a vCPU's state.
    pub fn msr_indices(&self) -> Result<Vec<u32>, SysError> {
        let list = self.0.get_msr_index_list().map_err(SysError::kvm("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(list.as_slice().to_vec())
    }
}

/// One KVM virtual machine, which keeps its memory for as long as KVM can reach it.
#[derive(Debug)]
pub struct Vm {
    pub(crate) fd: VmFd, // Declared before `memory`, so closed first.
    pub(crate) xsave_len: usize,
    memory: GuestMemoryMmap,
}

impl Vm {
    /// A VM with in-kernel interrupt controllers and timer, and no memory yet.
    pub fn create(kvm: &Kvm) -> Result<Self, SysError> {
        let fd = kvm.0.create_vm().map_err(SysError::kvm("KVM_CREATE_VM"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(SysError::kvm("KVM_SET_TSS_ADDR"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(SysError::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.create_irq_chip().map_err(SysError::kvm("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(SysError::kvm("KVM_CREATE_PIT2"))?;
        let xsave_len = usize::try_from(fd.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self { fd, xsave_len, memory: GuestMemoryMmap::new() })
    }

    /// Shows `memory` to the guest, one slot a region. Called once.
    ///
    /// A safe function: the `Vm` keeps the memory for as long as KVM can reach it.
    pub fn map_memory(&mut self, memory: GuestMemoryMmap) -> Result<(), SysError> {
        self.memory = memory; // First, so that it is kept also when a later slot fails.
        for (slot, region) in self.memory.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32, // A guest has two regions.
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                flags: 0,
            };
            // SAFETY: KVM may reach these pages until the last descriptor of this VM closes. `self.memory` and every
            // `Vcpu::vm` hold them for longer than that.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(SysError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Adds a vCPU. `id` is its APIC id.
    pub fn create_vcpu(self: &Arc<Self>, id: u8) -> Result<Vcpu, SysError> {
        let fd = self.fd.create_vcpu(u64::from(id)).map_err(SysError::kvm("KVM_CREATE_VCPU"))?;
        Vcpu::new(fd, Arc::clone(self))
    }

    /// Sends one edge on interrupt line `gsi`. It has reached the interrupt controller when this returns, so that it
    /// is part of any state read later; an `irqfd` may still be on its way then.
    pub fn pulse_interrupt(&self, gsi: u32) -> Result<(), SysError> {
        self.fd.set_irq_line(gsi, true).map_err(SysError::kvm("KVM_IRQ_LINE"))?;
        self.fd.set_irq_line(gsi, false).map_err(SysError::kvm("KVM_IRQ_LINE"))
    }
}
