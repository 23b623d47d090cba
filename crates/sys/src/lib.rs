//! The host kernel: KVM, guest memory's mappings, kicks, `fork(2)` and network namespaces; and the one call that the agent in
//! a guest needs.
//!
//! Its own crate because it is the only one that may say `unsafe`. Everything that leaves it is safe to call: a [`Vm`]
//! keeps its memory, a [`Vcpu`] keeps its `Vm`, and no bare KVM descriptor gets out.

#![expect(unsafe_code, reason = "the one place that talks to the kernel")]

mod error; // which call, and what the kernel said
mod memory; // guest RAM: private anonymous memory, huge pages
mod huge; // whether it still is in huge pages
mod vm; // one KVM virtual machine
mod vm_state; // what of it a fork carries over
mod vcpu; // one vCPU: running it and what it stops for
mod vcpu_state; // what of it a fork carries over
mod kick; // stopping a vCPU from another thread
mod crew; // threads of a process that forks
mod process; // fork(2) and what a child may keep
mod threads; // what a process is at
mod tap; // frames between a tap and guest memory
mod namespace; // network namespaces and taps
mod random; // the agent's: the kernel's random numbers
mod userfault; // guest RAM that arrives lazily
pub mod probe; // how fast this computer's KVM is

pub use crew::{settle, spawn};
pub use error::SysError;
pub use huge::{is_huge, minor_faults};
pub use kick::Kicker;
pub use memory::{HUGE_PAGE, guest_memory, present, unshare};
pub use namespace::{
    NetworkLack, current_network, enter_network, network_lack, network_of_tap, new_network, nft, tap_file,
};
pub use process::{disown_children, fork, give_way, is_one_file};
pub use random::reseed;
pub use tap::{MAX_PIECES, Offloads, Tap, attach_tap, testing as tap_testing};
pub use threads::threads;
pub use userfault::{Userfault, collapse, give_back};
pub use vcpu::{Exit, Vcpu};
pub use vcpu_state::{Tsc, VcpuState};
pub use vm::{Kvm, Vm};
pub use vm_state::VmState;
