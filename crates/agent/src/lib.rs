//! PID 1 in the guest: mounts the root disk, serves the host's requests, makes a forked child somebody else.
//!
//! Its own crate because it has another target: a static binary that lies alone in the initramfs. A library besides the
//! program so that everything that is not booting is tested on the host, over a pair of sockets instead of vsock.

mod console; // the only log there is
pub mod init; // from the first instruction to the listening socket
mod modules; // the kernel's drivers
mod network; // its end of the network: set up at the start, torn after a fork
mod root; // mounts, and the move onto the root disk

mod agent; // what all connections share
mod failure; // why a request was not done
mod peer; // one connection: bytes and frames
pub mod server; // connections in, requests to their place

pub mod launch; // starting a program in its own session, as a user, in the cgroup
pub mod reaper; // who waits for whom in PID 1
mod session; // Exec: a program and the host's end of its streams
mod users; // /etc/passwd and /etc/group

mod forward; // Connect: the host's connections to what listens here

mod files; // Put, Get and Stat
pub mod heartbeat; // how long programs stood still
mod identity; // who this VM is, and the fork hooks
mod host_keys; // a twin's own
mod power; // the end
mod freezer; // programs that stand still
mod twins; // the barrier around a fork

pub use agent::Agent;
