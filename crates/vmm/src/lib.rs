//! One VM: how it begins, runs, pauses, forks, and is saved and restored. `pando vmm` is this crate and nothing else.
//!
//! Read `image` for what a VM is, `vm` for its life, `fork` for the point of it all, `owner` for who may ask for what.

mod boot; // a machine at power-on
mod machine; // the state of vCPUs, interrupt controllers and devices
mod features; // what of a CPU a guest depends on
mod image; // everything a VM is at one instant
mod files; // the descriptors that a VM is given
mod platform; // devices, and where the guest finds them
mod gate; // how all threads are brought to stand still
mod free_pages; // where the pages go that a guest does not use
mod vcpu; // a thread per vCPU
mod device_loop; // one thread for all devices
mod vm; // start, pause, resume
mod fork; // a live VM becomes several
mod save; // a seed writes what it is
mod serve; // a copy serves those that pull from it
mod server; // where pages of a saved VM come from
mod restore; // a saved VM as an image
mod complaints; // what the monitor says in the VM's log
mod owner; // one owner per VM: the control socket and what the guest does by itself
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz; // whatever a store says that a machine was

#[cfg(test)]
mod tests; // what is promised of a VM, held against toy guests

#[cfg(any(test, feature = "fuzzing"))]
pub use fuzz::fuzz_machine;
pub use owner::main;
