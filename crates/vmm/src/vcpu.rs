//! A thread per vCPU: run, handle what the guest stops for, park when told.

use crate::gate::{EndOnPanic, Gate, Go, Parked};
use crate::owner::{Event, Events};
use crate::platform::{Access, Platform};
use kvm_bindings::CpuId;
use pando_sys::{Exit, Kicker, Vcpu};
use pando_wire::control::Ending;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// What a vCPU's thread shares with the rest.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) platform: Arc<Platform>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) events: Events,
    pub(crate) parked: Sender<Parked>,
    pub(crate) msrs: Arc<[u32]>,
}

/// The owner's end of a vCPU's thread.
pub(crate) struct VcpuThread {
    pub(crate) kicker: Kicker,
    pub(crate) go: Sender<Go>,
}

/// Starts the thread of vCPU `id`, parked. It shows the guest `cpuid`.
pub(crate) fn spawn(id: usize, vcpu: Vcpu, cpuid: CpuId, context: Context) -> io::Result<VcpuThread> {
    let (go, wait) = channel();
    let kicker = vcpu.kicker();
    pando_sys::spawn(&format!("vcpu{id}"), move || live(id, vcpu, &cpuid, &context, &wait))?;
    Ok(VcpuThread { kicker, go })
}

fn live(id: usize, mut vcpu: Vcpu, cpuid: &CpuId, context: &Context, wait: &Receiver<Go>) {
    let _end = EndOnPanic;
    vcpu.adopt_thread();
    // A guest that has ended never runs again, however often it is paused and resumed until the owner hears of it.
    let mut has_ended = false;
    while wait.recv().is_ok() {
        vcpu.excuse_pause();
        context.gate.count_running();
        if !has_ended && let Some(ending) = run(&mut vcpu, context) {
            has_ended = true;
            context.events.send(Event::Ended(ending));
        }
        if has_ended {
            context.gate.wait_until_closed();
        }
        context.gate.wait_until_all_are_out();
        let state = vcpu.state(&context.msrs, cpuid).map(Box::new);
        if context.parked.send(Parked::Vcpu { id, state, has_ended }).is_err() {
            return; // The owner is gone, and the process with it.
        }
    }
}

/// Runs the guest until the gate closes (`None`) or the guest ends.
///
/// The gate is looked at only between two instructions: after [`Exit::Kicked`], when KVM has completed the access that
/// the last exit was for. A vCPU saved before that would repeat or lose the access in a child.
fn run(vcpu: &mut Vcpu, context: &Context) -> Option<Ending> {
    let platform = &context.platform;
    loop {
        let access = match vcpu.run() {
            Exit::Kicked if context.gate.is_closed() => return None,
            Exit::Kicked | Exit::Again => continue,
            Exit::MmioRead(address, data) => platform.mmio_read(address, data),
            Exit::MmioWrite(address, data) => platform.mmio_write(address, data),
            Exit::PortIn(port, data) => platform.port_in(port, data),
            Exit::PortOut(port, data) => platform.port_out(port, data),
            // Firmware of a PC answers a triple fault with a reset, and guests use it for one.
            Exit::Shutdown => return Some(Ending::Reset),
            Exit::Failed(how) => return Some(Ending::Crashed(how)),
        };
        match access {
            Access::Done => (),
            Access::PowerOff => return Some(Ending::PowerOff),
            Access::Reset => return Some(Ending::Reset),
        }
    }
}
