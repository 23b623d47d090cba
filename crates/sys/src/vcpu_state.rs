//! What a fork carries over of a vCPU, and the order in which KVM wants it back.

use crate::{SysError, Vcpu};
use kvm_bindings::{
    CpuId, KVM_MP_STATE_HALTED, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_device_attr, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave, kvm_xsave2,
};
use serde::{Deserialize, Serialize};
use std::mem::size_of;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{fam::FamStruct, ioctl_iow_nr};

/// `KVM_VCPU_TSC_CTRL` and its attribute `KVM_VCPU_TSC_OFFSET` (asm/kvm.h): what the guest's TSC is ahead of the host's.
const TSC_CONTROL: u32 = 0;
const TSC_OFFSET: u64 = 0;
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, kvm_bindings::KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, kvm_bindings::KVMIO, 0xe2, kvm_device_attr);

/// Where a saved area says which components of the extended registers it holds, `XSTATE_BV`: two words (Intel SDM volume 1,
/// 13.4.2).
const XSTATE_BV: usize = 512 / size_of::<u32>();
/// The CPUID leaf that shows which components there are, and those that are there without it: x87 and SSE.
const COMPONENTS: u32 = 0xd;
const LEGACY_COMPONENTS: u64 = 0b11;

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// The state of a vCPU, as KVM gives it.
#[derive(Clone, Serialize, Deserialize)]
pub struct VcpuState {
    /// What CPUID shows.
    pub cpuid: CpuId,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers.
    pub sregs: kvm_sregs,
    /// Model-specific registers, the TSC left out.
    pub msrs: Vec<(u32, u64)>,
    /// The local APIC's registers.
    pub lapic: kvm_lapic_state,
    /// What the guest's TSC is ahead of the host's: the same after a fork, so that time does not jump. Where KVM cannot
    /// tell, the TSC's value.
    pub tsc: Tsc,
    /// The value of the guest's TSC when it was read.
    pub tsc_now: u64,
    xsave: Xsave,
    xcrs: kvm_xcrs,
    debug_registers: kvm_debugregs,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
}

/// Where the guest's TSC stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tsc {
    /// What is added to the host's.
    Offset(u64),
    /// Its value when it was read.
    Value(u64),
}

impl VcpuState {
    /// Whether it waits for an interrupt.
    pub fn is_halted(&self) -> bool {
        self.mp_state.mp_state == KVM_MP_STATE_HALTED
    }

    /// Leaves out of the extended registers what the guest was never shown. It cannot have put anything there; but a KVM
    /// whose CPU has more saves that as well (protection keys, always), and one whose CPU lacks it refuses to have it back.
    pub fn forget_unshown(&mut self) {
        let is_it = |entry: &&kvm_cpuid_entry2| entry.function == COMPONENTS && entry.index == 0;
        let shown =
            self.cpuid.as_slice().iter().find(is_it).map_or(0, |it| u64::from(it.edx) << 32 | u64::from(it.eax));
        let shown = shown | LEGACY_COMPONENTS;
        // SAFETY: The length of the area, which is all that it counts on, stays as it is.
        let area = unsafe { self.xsave.as_mut_fam_struct() };
        let [low, high, ..] = &mut area.xsave.region[XSTATE_BV..] else { return };
        *low &= shown as u32;
        *high &= (shown >> 32) as u32;
    }

    /// Has the first TSC reading be of when the host's was `host_tsc`.
    pub(crate) fn read_tscs_at(vcpus: &mut [Self], host_tsc: u64) {
        if let Some(first) = vcpus.first_mut()
            && let Tsc::Offset(offset) = first.tsc
        {
            first.tsc_now = host_tsc.wrapping_add(offset);
        }
    }

    /// Has the TSCs of a machine's vCPUs go on from where the first was read, whatever the host's has done since: it may
    /// be another host, or have been booted anew. They stay as far from each other as they were.
    pub(crate) fn stop_tscs_at(vcpus: &mut [Self], host_tsc: u64) {
        let Some((Tsc::Offset(offset), now)) = vcpus.first().map(|first| (first.tsc, first.tsc_now)) else {
            return; // Where KVM cannot tell offsets, values are put back.
        };
        let host_then = now.wrapping_sub(offset);
        let shift = host_then.wrapping_sub(host_tsc);
        for vcpu in vcpus {
            if let Tsc::Offset(offset) = &mut vcpu.tsc {
                *offset = offset.wrapping_add(shift);
            }
        }
    }
}

pub(crate) fn host_tsc() -> u64 {
    // SAFETY: Every CPU that can run a guest has this instruction. It touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

impl Vcpu {
    /// Reads the state of a vCPU that is not running and has nothing pending ([`Exit::Kicked`](crate::Exit)).
    ///
    /// `msrs` are the registers to read, the TSC among them; those that KVM does not have are left out. `cpuid` is what
    /// the vCPU was given: KVM sees to the few bits of it that follow other registers. The parent of a fork stands still
    /// meanwhile, so nothing is asked twice, and nothing that is known.
    pub fn state(&self, msrs: &[u32], cpuid: &CpuId) -> Result<VcpuState, SysError> {
        let fd = &self.fd;
        // `KVM_GET_MP_STATE` comes first: it makes KVM take in a start signal that waits.
        let mp_state = fd.get_mp_state().map_err(SysError::kvm("KVM_GET_MP_STATE"))?;
        let lapic = fd.get_lapic().map_err(SysError::kvm("KVM_GET_LAPIC"))?;
        let (msrs, tsc_now) = self.saved_msrs(msrs)?;
        Ok(VcpuState {
            cpuid: cpuid.clone(),
            regs: fd.get_regs().map_err(SysError::kvm("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(SysError::kvm("KVM_GET_SREGS"))?,
            msrs,
            lapic,
            tsc: self.tsc_offset().map_or(Tsc::Value(tsc_now), Tsc::Offset),
            tsc_now,
            xsave: self.xsave()?,
            xcrs: fd.get_xcrs().map_err(SysError::kvm("KVM_GET_XCRS"))?,
            debug_registers: fd.get_debug_regs().map_err(SysError::kvm("KVM_GET_DEBUGREGS"))?,
            mp_state,
            events: fd.get_vcpu_events().map_err(SysError::kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Which of `indices` a vCPU has that shows `cpuid`. Of this vCPU nothing else is of use after.
    ///
    /// KVM reads many registers in one call, up to the first that it does not have: to ask for those that are there
    /// makes every later [`Vcpu::state`] several times as quick.
    pub fn readable_msrs(&self, cpuid: &CpuId, indices: &[u32]) -> Result<Vec<u32>, SysError> {
        self.fd.set_cpuid2(cpuid).map_err(SysError::kvm("KVM_SET_CPUID2"))?;
        Ok(self.read_msrs(indices)?.into_iter().map(|msr| msr.0).collect())
    }

    /// Puts the state back. The vCPU has not run yet.
    pub fn set_state(&self, state: &VcpuState) -> Result<(), SysError> {
        let fd = &self.fd;
        // CPUID first: it decides what the registers may hold. The LAPIC before the MSRs: the deadline of its timer is
        // one of them. The TSC before that deadline. Events last: earlier calls may drop a pending one.
        fd.set_cpuid2(&state.cpuid).map_err(SysError::kvm("KVM_SET_CPUID2"))?;
        fd.set_mp_state(state.mp_state).map_err(SysError::kvm("KVM_SET_MP_STATE"))?;
        fd.set_sregs(&state.sregs).map_err(SysError::kvm("KVM_SET_SREGS"))?;
        fd.set_regs(&state.regs).map_err(SysError::kvm("KVM_SET_REGS"))?;
        self.set_xsave(&state.xsave)?;
        fd.set_xcrs(&state.xcrs).map_err(SysError::kvm("KVM_SET_XCRS"))?;
        fd.set_debug_regs(&state.debug_registers).map_err(SysError::kvm("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&state.lapic).map_err(SysError::kvm("KVM_SET_LAPIC"))?;
        match state.tsc {
            Tsc::Offset(offset) => self.set_tsc_offset(offset)?,
            Tsc::Value(value) => self.write_msrs(&[(MSR_TSC, value)])?,
        }
        self.write_msrs(&state.msrs)?;
        fd.set_vcpu_events(&state.events).map_err(SysError::kvm("KVM_SET_VCPU_EVENTS"))
    }

    /// The registers without the TSC, and the TSC.
    fn saved_msrs(&self, indices: &[u32]) -> Result<(Vec<(u32, u64)>, u64), SysError> {
        let mut msrs = self.read_msrs(indices)?;
        let tsc_now = msrs.iter().find(|msr| msr.0 == MSR_TSC).map_or(0, |msr| msr.1);
        // What the guest has added to its TSC stays: to write it from outside moves no clock.
        msrs.retain(|msr| msr.0 != MSR_TSC);
        // A deadline that has passed reads as zero, also while its interrupt is still on its way. One that passes at
        // once sends it again: better an interrupt too many than a timer that never fires.
        for msr in msrs.iter_mut().filter(|msr| msr.0 == MSR_TSC_DEADLINE && msr.1 == 0) {
            msr.1 = tsc_now;
        }
        // In the order of their names but for the deadline, which needs all others in place.
        msrs.sort_by_key(|msr| (msr.0 == MSR_TSC_DEADLINE, msr.0));
        Ok((msrs, tsc_now))
    }

    /// Reads what can be read of `indices`. KVM stops at the first that it does not have; that one is passed over.
    fn read_msrs(&self, indices: &[u32]) -> Result<Vec<(u32, u64)>, SysError> {
        let mut values = Vec::with_capacity(indices.len());
        let mut rest = indices;
        while !rest.is_empty() {
            let entries: Vec<_> =
                rest.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
            let mut msrs = Msrs::from_entries(&entries).map_err(|_| SysError::too_many("KVM_GET_MSRS"))?;
            let got = self.fd.get_msrs(&mut msrs).map_err(SysError::kvm("KVM_GET_MSRS"))?;
            values.extend(msrs.as_slice()[..got].iter().map(|msr| (msr.index, msr.data)));
            rest = rest.get(got + 1..).unwrap_or(&[]);
        }
        Ok(values)
    }

    /// Writes `values` in order. KVM stops at the first that it refuses; one that already has its value is no loss
    /// (registers that only describe the CPU refuse every write), another is an error.
    fn write_msrs(&self, values: &[(u32, u64)]) -> Result<(), SysError> {
        let mut rest = values;
        while !rest.is_empty() {
            let entries: Vec<_> = rest
                .iter()
                .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
                .collect();
            let msrs = Msrs::from_entries(&entries).map_err(|_| SysError::too_many("KVM_SET_MSRS"))?;
            let done = self.fd.set_msrs(&msrs).map_err(SysError::kvm("KVM_SET_MSRS"))?;
            if let Some(refused) = rest.get(done)
                && self.read_msrs(&[refused.0])?.first() != Some(refused)
            {
                return Err(SysError::refused_msr(refused.0));
            }
            rest = rest.get(done + 1..).unwrap_or(&[]);
        }
        Ok(())
    }

    fn xsave(&self) -> Result<Xsave, SysError> {
        let beyond = self.vm.xsave_len.saturating_sub(size_of::<kvm_xsave>());
        let entries = beyond.div_ceil(size_of::<<kvm_xsave2 as FamStruct>::Entry>());
        let mut xsave = Xsave::new(entries).map_err(|_| SysError::too_many("KVM_GET_XSAVE2"))?;
        // SAFETY: `xsave` has the size that KVM_CAP_XSAVE2 told for this VM, rounded up.
        unsafe { self.fd.get_xsave2(&mut xsave) }.map_err(SysError::kvm("KVM_GET_XSAVE2"))?;
        Ok(xsave)
    }

    fn set_xsave(&self, xsave: &Xsave) -> Result<(), SysError> {
        let len = size_of::<kvm_xsave>() + size_of_val(xsave.as_slice());
        if len < self.vm.xsave_len {
            return Err(SysError::too_many("KVM_SET_XSAVE: the saved area is shorter than this CPU's"));
        }
        // SAFETY: `xsave` is at least as long as what KVM_CAP_XSAVE2 told for this VM, which is all that KVM reads.
        unsafe { self.fd.set_xsave2(xsave) }.map_err(SysError::kvm("KVM_SET_XSAVE"))
    }

    /// `None` where KVM does not tell (before Linux 5.16, and some emulations).
    fn tsc_offset(&self) -> Option<u64> {
        let mut offset = 0u64;
        let mut attribute = tsc_attribute(&raw mut offset as u64);
        // SAFETY: The kernel writes eight bytes to `addr`, which is `offset`, alive and exclusively ours.
        let result = unsafe { ioctl_with_mut_ref(&self.fd, KVM_GET_DEVICE_ATTR(), &mut attribute) };
        (result == 0).then_some(offset)
    }

    fn set_tsc_offset(&self, offset: u64) -> Result<(), SysError> {
        let attribute = tsc_attribute(&raw const offset as u64);
        // SAFETY: The kernel reads eight bytes from `addr`, which is `offset`, alive until the call returns.
        match unsafe { ioctl_with_ref(&self.fd, KVM_SET_DEVICE_ATTR(), &attribute) } {
            0 => Ok(()),
            _ => Err(SysError::last("KVM_SET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)")),
        }
    }
}

fn tsc_attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group: TSC_CONTROL, attr: TSC_OFFSET, addr }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_were_stopped_go_on_from_their_readings_and_keep_their_distance() {
        let Ok(kvm) = std::fs::File::options().read(true).write(true).open("/dev/kvm") else {
            eprintln!("skipped: no usable /dev/kvm");
            return;
        };
        const PASSED: u64 = 1 << 40; // Of the host's TSC, since the reading.
        let vm = std::sync::Arc::new(crate::Vm::create(&crate::Kvm::from_fd(kvm.into()).unwrap()).unwrap());
        let read = vm.create_vcpu(0).unwrap().state(&[], &CpuId::new(0).unwrap()).unwrap();
        for host_is_younger in [false, true] {
            let passed = if host_is_younger { PASSED.wrapping_neg() } else { PASSED };
            let offset = 1000u64;
            let tsc_now = host_tsc().wrapping_add(offset).wrapping_sub(passed);
            let vcpu = |ahead| VcpuState { tsc: Tsc::Offset(offset + ahead), tsc_now, ..read.clone() };
            let mut vcpus = [vcpu(0), vcpu(7)];
            VcpuState::stop_tscs_at(&mut vcpus, host_tsc());
            let [first, second] = vcpus.map(|vcpu| match vcpu.tsc {
                Tsc::Offset(offset) => offset,
                Tsc::Value(_) => panic!("it is an offset"),
            });
            let since = host_tsc().wrapping_add(first).wrapping_sub(tsc_now);
            assert!(since < PASSED / 100, "{since} ticks");
            assert_eq!(second.wrapping_sub(first), 7);
        }
    }

    #[test]
    fn the_tsc_of_a_machine_is_of_when_its_clock_was_read() {
        let Ok(kvm) = std::fs::File::options().read(true).write(true).open("/dev/kvm") else {
            eprintln!("skipped: no usable /dev/kvm");
            return;
        };
        let vm = std::sync::Arc::new(crate::Vm::create(&crate::Kvm::from_fd(kvm.into()).unwrap()).unwrap());
        let read = vm.create_vcpu(0).unwrap().state(&[], &CpuId::new(0).unwrap()).unwrap();
        let mut vcpus = [VcpuState { tsc: Tsc::Offset(1000), tsc_now: 0, ..read }];
        let before = host_tsc();
        let state = vm.state().unwrap();
        let after = host_tsc();
        std::thread::sleep(std::time::Duration::from_millis(10));
        state.read_tscs(&mut vcpus);
        assert!((before + 1000..=after + 1000).contains(&vcpus[0].tsc_now));
    }

    #[test]
    fn what_a_guest_was_not_shown_is_left_out_of_its_registers_and_the_rest_is_put_back() {
        const UNKNOWN: u32 = 1 << 30; // A component that no CPU has.
        let Ok(kvm) = std::fs::File::options().read(true).write(true).open("/dev/kvm") else {
            eprintln!("skipped: no usable /dev/kvm");
            return;
        };
        let kvm = crate::Kvm::from_fd(kvm.into()).unwrap();
        let vm = std::sync::Arc::new(crate::Vm::create(&kvm).unwrap());
        let vcpu = vm.create_vcpu(0).unwrap();
        let supported = kvm.supported_cpuid().unwrap();
        let mut state = vcpu.state(&[], &supported).unwrap();
        let held = |state: &VcpuState| state.xsave.as_fam_struct_ref().xsave.region[XSTATE_BV];
        // SAFETY: Its length stays as it is.
        unsafe { state.xsave.as_mut_fam_struct() }.xsave.region[XSTATE_BV] |= UNKNOWN | 0b111;
        assert_eq!(vcpu.set_state(&state).unwrap_err().to_string(), "cannot KVM_SET_XSAVE");
        state.forget_unshown();
        assert_eq!(held(&state) & (UNKNOWN | 0b11), 0b11);
        vcpu.set_state(&state).unwrap();
        state.cpuid = CpuId::new(0).unwrap();
        state.forget_unshown();
        assert_eq!(held(&state), 0b11, "who was shown nothing has what all have");
    }

    #[test]
    fn numbers_match_the_kernel_headers() {
        assert_eq!(KVM_SET_DEVICE_ATTR(), 0x4018_aee1);
        assert_eq!(KVM_GET_DEVICE_ATTR(), 0x4018_aee2);
    }
}
