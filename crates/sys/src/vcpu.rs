//! One vCPU: running it, and what it stops for.

use crate::kick::keep_from_children;
use crate::{Kicker, SysError, Vm};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::ptr;
use std::sync::Arc;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

/// A vCPU. KVM keeps a VM alive while any of its vCPUs is open, so each one holds its `Vm`.
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) fd: VcpuFd, // Declared before `vm`, so closed first.
    kicker: Kicker,
    pub(crate) vm: Arc<Vm>,
}

#[repr(C)]
struct PreFault {
    gpa: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, kvm_bindings::KVMIO, 0xd5, PreFault);

/// Why the guest stopped running. Slices lie in the run page: what is written to them, the guest reads.
#[derive(Debug)]
pub enum Exit<'a> {
    /// It wrote to a port: one access, or several of a string instruction after each other.
    PortOut(u16, &'a [u8]),
    /// It reads from a port.
    PortIn(u16, &'a mut [u8]),
    /// It wrote where no memory is.
    MmioWrite(u64, &'a [u8]),
    /// It reads where no memory is.
    MmioRead(u64, &'a mut [u8]),
    /// [`Kicker::kick`] was called. Whatever the guest was about to do is done: nothing is pending.
    Kicked,
    /// Nothing: run it again.
    Again,
    /// It asked for this with a halt that nothing can end, or a triple fault.
    Shutdown,
    /// KVM cannot go on, and this is what it said.
    Failed(String),
}

impl Vcpu {
    pub(crate) fn new(mut fd: VcpuFd, vm: Arc<Vm>) -> Result<Self, SysError> {
        let kicker = Kicker::new(&fd)?;
        keep_from_children(ptr::from_mut(fd.get_kvm_run()).cast(), vm.fd.run_size())?;
        Ok(Self { fd, kicker, vm })
    }

    /// What stops this vCPU from another thread.
    pub fn kicker(&self) -> Kicker {
        self.kicker.clone()
    }

    /// Says that the current thread runs this vCPU from now on. KVM waits for an RCU grace period when a vCPU changes
    /// its thread, so it stays with one.
    pub fn adopt_thread(&self) {
        self.kicker.adopt_thread();
    }

    /// Runs the guest until it needs something.
    ///
    /// An access that the last exit was for is completed first, also when a kick is pending: after [`Exit::Kicked`] the
    /// registers are those of a guest between two instructions. A kick may be reported without one (a debugger's
    /// signal does it), and one kick may swallow another: whoever kicks sets a flag of its own first, which is looked
    /// at after every `Kicked`.
    pub fn run(&mut self) -> Exit<'_> {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => Exit::PortOut(port, data),
            Ok(VcpuExit::IoIn(port, data)) => Exit::PortIn(port, data),
            Ok(VcpuExit::MmioWrite(address, data)) => Exit::MmioWrite(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => Exit::MmioRead(address, data),
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::Intr) => Exit::Again,
            Ok(other) => Exit::Failed(format!("{other:?}")),
            Err(error) => match error.errno() {
                libc::EINTR => {
                    self.kicker.page.set_immediate_exit(false);
                    Exit::Kicked
                }
                libc::EAGAIN => Exit::Again, // It waited for its start signal, and got it.
                errno => Exit::Failed(format!("KVM_RUN: {}", std::io::Error::from_raw_os_error(errno))),
            },
        }
    }

    /// Maps `len` bytes of guest memory from `start` on for the guest, as if it had read them all: those that this
    /// process has for itself can be written without a further fault. Kernels before 6.11, and KVM without nested page
    /// tables, cannot: an error, and the guest faults as it goes.
    pub fn map_ahead(&self, start: u64, len: u64) -> Result<(), SysError> {
        let mut range = PreFault { gpa: start, size: len, flags: 0, padding: [0; 5] };
        // SAFETY: The ioctl reads and writes one struct of this layout (the kernel's Documentation/virt/kvm/api.rst,
        // KVM_PRE_FAULT_MEMORY), which lives until it returns. It changes no memory of ours.
        match unsafe { ioctl_with_mut_ref(&self.fd, KVM_PRE_FAULT_MEMORY(), &mut range) } {
            0 => Ok(()),
            _ => Err(SysError::last("KVM_PRE_FAULT_MEMORY")),
        }
    }

    /// Sets the vCPU up to run 16-bit code at `address`, below 64 KiB: what a toy guest needs.
    pub fn set_real_mode_entry(&self, address: u16) -> Result<(), SysError> {
        let mut sregs = self.fd.get_sregs().map_err(SysError::kvm("KVM_GET_SREGS"))?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        self.fd.set_sregs(&sregs).map_err(SysError::kvm("KVM_SET_SREGS"))?;
        let regs = kvm_bindings::kvm_regs { rip: u64::from(address), rflags: 2, ..Default::default() };
        self.fd.set_regs(&regs).map_err(SysError::kvm("KVM_SET_REGS"))
    }

    /// Tells the guest's clock that the guest was stopped, so that its watchdogs forgive the time. Before it goes on.
    /// Does nothing in a guest that does not use that clock.
    pub fn excuse_pause(&self) {
        // It fails only for a guest without kvmclock, which has nothing to be told.
        let _ = self.fd.kvmclock_ctrl();
    }
}
