//! What a fork carries over of a VM beside its vCPUs: interrupt controllers, timer, clock.

use crate::vcpu_state::host_tsc;
use crate::{SysError, VcpuState, Vm};
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The state of a VM beside its vCPUs, as KVM gives it.
#[derive(Clone, Serialize, Deserialize)]
pub struct VmState {
    /// Both PICs and the I/O APIC.
    irqchips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
    /// The guest's clock, moved on by what has passed since when it is put back: neither a fork nor a wake makes it jump
    /// back or stand still. KVM does that where it gives the time of day of the reading (`KVM_CLOCK_REALTIME`: where
    /// the host's own clock is the TSC); elsewhere we do.
    clock: kvm_clock_data,
    /// The host's boot-time clock at the reading, in nanoseconds: as KVM's, it goes on while the host sleeps.
    clock_read_at_ns: u64,
    /// The host's TSC then. Nobody needs it who was not there.
    #[serde(skip)]
    host_tsc: u64,
}

impl VmState {
    /// Has the TSC reading of these vCPUs be of when the clock was read, whenever they came to stand still: after a sleep
    /// both go on from their readings, and a guest that compares them would find the time in between as a skew, and its
    /// TSC unstable.
    pub fn read_tscs(&self, vcpus: &mut [VcpuState]) {
        VcpuState::read_tscs_at(vcpus, self.host_tsc);
    }

    /// Has the guest's clock and the TSCs of its vCPUs go on from where they were read, whatever has passed since: a machine
    /// that slept, perhaps on another host.
    pub fn stop_clocks(&mut self, vcpus: &mut [VcpuState]) {
        self.clock.flags = 0; // So that KVM adds nothing.
        let (host_tsc, now_ns) = in_one_go(|| (host_tsc(), boot_time_ns()));
        self.clock_read_at_ns = now_ns;
        VcpuState::stop_tscs_at(vcpus, host_tsc);
    }
}

impl Vm {
    /// Reads the state, the clock last. The vCPUs stand still.
    pub fn state(&self) -> Result<VmState, SysError> {
        let chip = |id| {
            let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(SysError::kvm("KVM_GET_IRQCHIP"))?;
            Ok(chip)
        };
        let irqchips = [chip(KVM_IRQCHIP_PIC_MASTER)?, chip(KVM_IRQCHIP_PIC_SLAVE)?, chip(KVM_IRQCHIP_IOAPIC)?];
        let pit = self.fd.get_pit2().map_err(SysError::kvm("KVM_GET_PIT2"))?;
        let (clock, clock_read_at_ns, host_tsc) = in_one_go(|| (self.fd.get_clock(), boot_time_ns(), host_tsc()));
        let clock = clock.map_err(SysError::kvm("KVM_GET_CLOCK"))?;
        Ok(VmState { irqchips, pit, clock, clock_read_at_ns, host_tsc })
    }

    /// Puts the state back. No vCPU has run yet.
    pub fn set_state(&self, state: &VmState) -> Result<(), SysError> {
        self.fd.set_pit2(&state.pit).map_err(SysError::kvm("KVM_SET_PIT2"))?;
        for chip in &state.irqchips {
            self.fd.set_irqchip(chip).map_err(SysError::kvm("KVM_SET_IRQCHIP"))?;
        }
        // Of the flags that the read returns, only this one may be set.
        let read = kvm_clock_data { flags: state.clock.flags & KVM_CLOCK_REALTIME, ..state.clock };
        let set = in_one_go(|| {
            let since = if read.flags == 0 { boot_time_ns().saturating_sub(state.clock_read_at_ns) } else { 0 };
            self.fd.set_clock(&kvm_clock_data { clock: read.clock.saturating_add(since), ..read })
        });
        set.map_err(SysError::kvm("KVM_SET_CLOCK"))
    }
}

/// Does what is about clocks, again when something came in between: the last time counts.
fn in_one_go<T>(step: impl Fn() -> T) -> T {
    const AT_MOST_NS: u64 = 50_000; // A tenth of what the clocksource watchdog of a guest's kernel lets pass.
    const TIMES: u32 = 8;
    for _ in 1..TIMES {
        let start = boot_time_ns();
        let done = step();
        if boot_time_ns() - start <= AT_MOST_NS {
            return done;
        }
    }
    step()
}

fn boot_time_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is negative, and together they last for centuries.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kvm;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    #[test]
    fn a_clock_that_was_stopped_goes_on_from_where_it_was() {
        let Ok(kvm) = std::fs::File::options().read(true).write(true).open("/dev/kvm") else {
            eprintln!("skipped: no usable /dev/kvm");
            return;
        };
        let kvm = Kvm::from_fd(kvm.into()).unwrap();
        let mut state = Vm::create(&kvm).unwrap().state().unwrap();
        sleep(Duration::from_millis(500));
        let vm = Vm::create(&kvm).unwrap();
        let stopped = Instant::now();
        state.stop_clocks(&mut []);
        vm.set_state(&state).unwrap();
        let passed = Duration::from_nanos(vm.state().unwrap().clock.clock - state.clock.clock);
        assert!(passed <= stopped.elapsed() + Duration::from_millis(20), "{passed:?}");
    }

    #[test]
    fn the_clock_goes_on_while_a_state_waits_to_be_put_back() {
        let Ok(kvm) = std::fs::File::options().read(true).write(true).open("/dev/kvm") else {
            eprintln!("skipped: no usable /dev/kvm");
            return;
        };
        let kvm = Kvm::from_fd(kvm.into()).unwrap();
        let read = Instant::now();
        let before = Vm::create(&kvm).unwrap().state().unwrap();
        let without = VmState { clock: kvm_clock_data { flags: 0, realtime: 0, ..before.clock }, ..before.clone() };
        sleep(Duration::from_millis(100));
        for state in [&before, &without] {
            let vm = Vm::create(&kvm).unwrap();
            vm.set_state(state).unwrap();
            let passed = Duration::from_nanos(vm.state().unwrap().clock.clock - before.clock.clock);
            let (least, most) = (Duration::from_millis(100), read.elapsed() + Duration::from_millis(20));
            assert!(least <= passed && passed <= most, "{passed:?} of {least:?} to {most:?}");
        }
    }
}
