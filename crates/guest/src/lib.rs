//! What the host puts into a guest: kernel, initramfs, root disk.
//!
//! Its own crate because it carries a binary of another target, and because all of it is tested without KVM.

pub mod agent; // PID 1, as bytes
pub mod apt; // Debian's package manager, with lists of our own
pub mod durable; // what has its name in a cache is whole
pub mod import; // root disks
pub mod initramfs; // PID 1 with the drivers it needs, as the kernel unpacks it
pub mod kernel; // Debian's, or one's own

mod cpio; // the archive that an initramfs is
mod modules; // which drivers, in which order
