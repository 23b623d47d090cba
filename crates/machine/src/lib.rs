//! The emulated host, for computers without usable KVM, and the doctor, which tells which computers those are.
//!
//! Its own crate because its tests need neither KVM nor a guest.

pub mod doctor; // what this computer offers to VMs
pub mod host; // the emulated host that stays, with a daemon in it
mod run; // one command in a throw-away emulated host

mod boot; // from QEMU's start to the job
mod files; // what QEMU opens by a path and no disk holds
mod initramfs; // what the emulated host's Linux starts from
mod kernel; // that Linux and its modules
mod qemu; // QEMU's command line
mod stream; // output that ends with a status

mod shell; // quoting for the scripts that run in there
mod tail; // the end of a log, for an error message
mod tools; // programs of this computer, and the packages they come from

pub use boot::BootError;
pub use kernel::KernelError;
pub use run::{CUT_POWER, Outcome, RunError, RunSpec, run};
pub use tools::ToolError;
