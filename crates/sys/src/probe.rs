//! How fast this computer's KVM is: hardware runs an instruction in well under a nanosecond, a KVM that emulates the
//! CPU takes hundreds of them.

use crate::{Exit, Kvm, SysError, Vm, guest_memory};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// How many instructions [`run`] executes, about.
pub const INSTRUCTIONS: u32 = 2 * 20_000;

/// Runs a loop of [`INSTRUCTIONS`] instructions in a guest of its own and says how long it took.
pub fn run(kvm: OwnedFd) -> Result<Duration, SysError> {
    // mov cx, 20000; loop: dec cx; jnz loop; out 0x10, al
    const CODE: [u8; 8] = [0xb9, 0x20, 0x4e, 0x49, 0x75, 0xfd, 0xe6, 0x10];
    let kvm = Kvm::from_fd(kvm)?;
    let memory = guest_memory(&[(0, crate::HUGE_PAGE)])?;
    memory.write_slice(&CODE, GuestAddress(0x1000)).map_err(|_| SysError::too_many("write the toy guest"))?;
    let mut vm = Vm::create(&kvm)?;
    vm.map_memory(memory)?;
    let mut vcpu = Arc::new(vm).create_vcpu(0)?;
    vcpu.set_real_mode_entry(0x1000)?;
    let started = Instant::now();
    loop {
        match vcpu.run() {
            Exit::Again | Exit::Kicked => continue,
            Exit::PortOut(0x10, _) => return Ok(started.elapsed()),
            other => return Err(SysError::other("run a toy guest", format!("{other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toy_guest_runs_to_its_end() {
        let Ok(kvm) = std::fs::File::options().read(true).write(true).open("/dev/kvm") else {
            eprintln!("skipped: no usable /dev/kvm");
            return;
        };
        assert!(run(kvm.into()).unwrap() > Duration::ZERO);
    }
}
