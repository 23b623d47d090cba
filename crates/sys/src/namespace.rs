//! Network namespaces without a name, and the taps that keep them.
//!
//! A file of `/dev/net/tun` holds the namespace in which it was opened. So a namespace that nobody is in lives exactly as long
//! as one of its tap's descriptors, in whatever process; with the last one everything in it is gone.

use crate::SysError;
use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

/// `/dev/net/tun`'s path.
const TUN: &str = "/dev/net/tun";
/// Whether there is forwarding; it is written when the first network is made.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// `_IO('T', 227)`: libc does not have it.
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;

/// Moves the calling thread alone into a new network namespace, with nothing in it but a loopback that is down. It leaves it by
/// its end or by [`enter_network`].
pub fn new_network() -> Result<(), SysError> {
    // SAFETY: It changes what the thread finds when it asks for network things, and neither memory nor descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|error| SysError::io("unshare(CLONE_NEWNET)", error.into()))
}

/// Moves the calling thread alone into the network namespace that `namespace` is a descriptor of.
pub fn enter_network(namespace: BorrowedFd<'_>) -> Result<(), SysError> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .map_err(|error| SysError::io("setns(CLONE_NEWNET)", error.into()))
}

/// The network namespace that the calling thread is in.
pub fn current_network() -> Result<OwnedFd, SysError> {
    open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| SysError::io("open(/proc/thread-self/ns/net)", error.into()))
}

/// A file that can become a queue of a tap in the network namespace that the calling thread is in, which it keeps alive. It
/// does not block, and is closed when a program is executed.
pub fn tap_file() -> Result<OwnedFd, SysError> {
    open(TUN, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|error| SysError::io("open(/dev/net/tun)", error.into()))
}

/// The network namespace that a tap is in, by one of its queues. Needs `CAP_NET_ADMIN` there.
pub fn network_of_tap(queue: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    // SAFETY: It takes no memory of ours.
    match unsafe { libc::ioctl(queue.as_raw_fd(), TUNGETDEVNETNS) } {
        -1 => Err(SysError::last("ioctl(TUNGETDEVNETNS)")),
        // SAFETY: It is a new descriptor (closed at an exec), and nobody else's.
        namespace => Ok(unsafe { OwnedFd::from_raw_fd(namespace) }),
    }
}

/// Why VMs cannot have a network on this computer: a sentence with what to do about it.
#[derive(Debug)]
pub enum NetworkLack {
    /// Not privileged enough.
    Capability(&'static str),
    /// No tap can be opened.
    Tun(io::Error),
    /// The kernel's network settings cannot be written to.
    Settings(io::Error),
    /// There is no `nft`.
    Nft,
}

impl fmt::Display for NetworkLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capability(name) => write!(f, "networks need {name}: run the daemon as root"),
            Self::Tun(why) => write!(f, "networks need {TUN} ({why}): modprobe tun, and let this user open it"),
            Self::Settings(why) => {
                write!(
                    f,
                    "networks need {FORWARDING} ({why}): mount /proc/sys writable, as a privileged container has it"
                )
            }
            Self::Nft => write!(f, "networks need the program nft: apt-get install nftables"),
        }
    }
}

impl std::error::Error for NetworkLack {}

/// What is missing here for networks of VMs, first things first; nothing when they can be made.
pub fn network_lack() -> Option<NetworkLack> {
    let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    for (needed, name) in [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN")] {
        if !held.contains(needed) {
            return Some(NetworkLack::Capability(name));
        }
    }
    let opens = |path| open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(drop).map_err(io::Error::from);
    if let Err(why) = opens(TUN) {
        return Some(NetworkLack::Tun(why));
    }
    if let Err(why) = opens(FORWARDING) {
        return Some(NetworkLack::Settings(why));
    }
    nft().is_none().then_some(NetworkLack::Nft)
}

/// Where the program `nft` is: in `PATH`, or where programs of the administrator are, which `PATH` may lack.
pub fn nft() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join("nft")).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach_tap;
    use rustix::fs::fstat;
    use std::os::fd::AsFd;
    use std::thread;

    /// Runs `test` in a thread of its own, so that whoever runs tests stays where it is.
    fn apart(test: impl FnOnce() + Send + 'static) {
        match network_lack() {
            Some(lack) if !matches!(lack, NetworkLack::Nft) => eprintln!("skipped: {lack}"),
            _ => thread::spawn(test).join().unwrap(),
        }
    }

    #[test]
    fn a_taps_queues_are_one_tap_and_tell_where_it_is() {
        apart(|| {
            let before = fstat(current_network().unwrap()).unwrap().st_ino;
            new_network().unwrap();
            let here = fstat(current_network().unwrap()).unwrap().st_ino;
            assert_ne!(here, before);
            let queues = [tap_file().unwrap(), tap_file().unwrap()];
            for queue in &queues {
                attach_tap(queue.as_fd(), "tap0").unwrap();
                assert_eq!(fstat(network_of_tap(queue.as_fd()).unwrap()).unwrap().st_ino, here);
            }
            assert!(attach_tap(queues[0].as_fd(), "a-name-too-long-").is_err());
        });
    }

    #[test]
    fn a_file_becomes_a_queue_where_it_was_opened_also_in_a_thread_that_is_elsewhere() {
        apart(|| {
            let home = current_network().unwrap();
            new_network().unwrap();
            let there = fstat(current_network().unwrap()).unwrap().st_ino;
            let file = tap_file().unwrap();
            enter_network(home.as_fd()).unwrap();
            attach_tap(file.as_fd(), "tap0").unwrap();
            assert_eq!(fstat(network_of_tap(file.as_fd()).unwrap()).unwrap().st_ino, there);
        });
    }

    #[test]
    fn no_descriptor_of_a_namespace_gets_into_a_program_that_is_executed() {
        apart(|| {
            new_network().unwrap();
            let queue = tap_file().unwrap();
            attach_tap(queue.as_fd(), "tap0").unwrap();
            for file in [current_network().unwrap(), network_of_tap(queue.as_fd()).unwrap(), queue] {
                let flags = rustix::io::fcntl_getfd(&file).unwrap();
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "{file:?}");
            }
        });
    }
}
