//! What a fork carries over of a VM beside its vCPUs: interrupt controllers, timer, clock.

use crate::{SysError, Vm};
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use serde::{Deserialize, Serialize};

/// The state of a VM beside its vCPUs, as KVM gives it.
#[derive(Clone, Serialize, Deserialize)]
pub struct VmState {
    /// Both PICs and the I/O APIC.
    irqchips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
    /// The guest's clock with the host time at which it was read: KVM moves it on by what has passed since, so neither
    /// a fork nor a wake makes it jump back or stand still.
    clock: kvm_clock_data,
}

impl Vm {
    /// Reads the state. The vCPUs stand still.
    pub fn state(&self) -> Result<VmState, SysError> {
        let chip = |id| {
            let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(SysError::kvm("KVM_GET_IRQCHIP"))?;
            Ok(chip)
        };
        Ok(VmState {
            irqchips: [chip(KVM_IRQCHIP_PIC_MASTER)?, chip(KVM_IRQCHIP_PIC_SLAVE)?, chip(KVM_IRQCHIP_IOAPIC)?],
            pit: self.fd.get_pit2().map_err(SysError::kvm("KVM_GET_PIT2"))?,
            clock: self.fd.get_clock().map_err(SysError::kvm("KVM_GET_CLOCK"))?,
        })
    }

    /// Puts the state back. No vCPU has run yet.
    pub fn set_state(&self, state: &VmState) -> Result<(), SysError> {
        self.fd.set_pit2(&state.pit).map_err(SysError::kvm("KVM_SET_PIT2"))?;
        for chip in &state.irqchips {
            self.fd.set_irqchip(chip).map_err(SysError::kvm("KVM_SET_IRQCHIP"))?;
        }
        // Of the flags that the read returns, only this one may be set.
        let clock = kvm_clock_data { flags: state.clock.flags & KVM_CLOCK_REALTIME, ..state.clock };
        self.fd.set_clock(&clock).map_err(SysError::kvm("KVM_SET_CLOCK"))
    }
}
