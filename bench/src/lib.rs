//! A toy guest and the monitor that runs it: what a fork costs and promises, without an operating system in the way.
//!
//! The guest is 107 bytes of machine code in an ELF file, so it boots like any kernel, runs on a KVM that only emulates
//! the CPU, and checks at every step that its registers and its memory are of one instant.

mod api; // `pando daemon`, driven over its API
mod figures; // medians, and how a figure and its bound are printed
mod monitor; // `pando vmm`, driven over its control socket
mod checkpoint; // the same, kept as a seed, saved and restored
mod toy; // the guest
mod witness; // another one, with several CPUs and devices
mod relay; // and one whose CPUs wait for each other

pub use api::{ApiError, Daemon};
pub use checkpoint::{Copy, Earlier, PageServer, serve, serve_from};
pub use figures::{bound, median, median_of, mib, percentile, row, table, took};
pub use monitor::{Child, Guest, Monitor, MonitorError, usable_kvm};
pub use relay::Relay;
pub use toy::{BROKEN, READY, Toy, executable};
pub use witness::{Told, Witness};
