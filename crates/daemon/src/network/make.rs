//! Making one network namespace.
//!
//! Each is made in a thread of its own, which unshares, sets everything up and ends: what remains of it are descriptors.

use super::cidr::Cidr;
use super::host::{Host, set, set_if_there};
use super::netlink::{Netlink, Peer};
use super::policy::Resolved;
use super::{GATEWAY_MAC, LINKS, NetworkError, TAP, UPLINK, nft, rules};
use pando_sys::{attach_tap, current_network, enter_network, network_of_tap, new_network, tap_file};
use pando_wire::network::{MAC, MAX_QUEUE_PAIRS, Network};
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The loopback's index, in every namespace.
const LOOPBACK: u32 = 1;
/// How long the end of a daemon waits until the kernel has taken away what nobody took.
const RETIRE_LIMIT: Duration = Duration::from_secs(5);

/// A network namespace that is ready. It is gone with the last of these descriptors.
#[derive(Debug)]
pub(super) struct Namespace {
    /// One for each queue that its tap can have; the first is one already.
    files: Vec<OwnedFd>,
    /// The VM's address outside.
    pub(super) outside: Ipv4Addr,
    /// The name of the host's end of its cable.
    pub(super) link: String,
}

/// Makes namespaces, one at a time, beside the namespace in which it was made.
pub(super) struct Maker {
    host: Host,
    namespace: OwnedFd,
    netlink: Netlink,
    common: Arc<Common>,
}

/// What the makers of one host have in common.
#[derive(Default)]
struct Common {
    /// Whether the host is ready.
    is_prepared: Mutex<bool>,
    /// The pair of addresses to try next: those of a VM that ended rest as long as possible.
    next: AtomicU32,
}

impl Maker {
    /// So many for the namespace that the calling thread is in. Nothing is changed there.
    pub(super) fn several(host: &Host, count: usize) -> Result<Vec<Self>, NetworkError> {
        let common = Arc::<Common>::default();
        let one = |_| -> Result<Self, NetworkError> {
            let namespace = current_network().map_err(NetworkError::Kernel)?;
            let netlink = Netlink::open().map_err(NetworkError::rtnetlink("open a socket"))?;
            Ok(Self { host: host.clone(), namespace, netlink, common: Arc::clone(&common) })
        };
        (0..count).map(one).collect()
    }

    /// Makes one, with the rules of a policy that refuses nothing.
    pub(super) fn make(&mut self) -> Result<Namespace, NetworkError> {
        self.prepare()?;
        let (host, namespace, next) = (&self.host, self.namespace.as_fd(), &self.common.next);
        let (made, gateway) = apart(|| inside(host, namespace, next))?;
        self.connect(&made.link, gateway)?;
        Ok(made)
    }

    /// Makes the host ready, unless another one has.
    fn prepare(&mut self) -> Result<(), NetworkError> {
        let mut is_prepared = self.common.is_prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_prepared {
            self.host.prepare(&mut self.netlink)?;
            *is_prepared = true;
        }
        Ok(())
    }

    /// Waits until the kernel has taken away what was made and nobody took, and takes the host's table away if no VM needs it.
    pub(super) fn retire(mut self, unused: Vec<Namespace>) -> Result<(), NetworkError> {
        let names: Vec<_> = unused.into_iter().map(|namespace| namespace.link).collect();
        let deadline = Instant::now() + RETIRE_LIMIT;
        while self.host.links(&mut self.netlink)?.iter().any(|link| names.contains(&link.name)) {
            if Instant::now() > deadline {
                return Ok(()); // The next daemon looks again.
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.host.retire(&mut self.netlink)
    }

    /// Sets up the end that is in the host's namespace.
    fn connect(&mut self, link: &str, address: Ipv4Addr) -> Result<(), NetworkError> {
        set_if_there(&format!("net/ipv6/conf/{link}/disable_ipv6"), "1")?;
        set(&format!("net/ipv4/conf/{link}/rp_filter"), "1")?;
        let failed = || NetworkError::rtnetlink("connect the namespace");
        let index = self.netlink.index(link).map_err(failed())?;
        self.netlink.add_address(index, address, 31).map_err(failed())?;
        self.netlink.up(index).map_err(failed())
    }
}

impl Namespace {
    /// Its tap's queues, as many as asked for, at least one.
    pub(super) fn into_queues(self, count: u8) -> Result<Vec<OwnedFd>, NetworkError> {
        let mut queues = self.files;
        queues.truncate(usize::from(count));
        for file in queues.iter().skip(1) {
            attach_tap(file.as_fd(), TAP).map_err(NetworkError::Kernel)?;
        }
        Ok(queues)
    }

    /// A descriptor that keeps it, and by which it is known.
    pub(super) fn tap(&self) -> Option<BorrowedFd<'_>> {
        self.files.first().map(AsFd::as_fd)
    }
}

/// Replaces the rules of the namespace that `queue`'s tap is in, whose counters have `so_far`, and says to the host whether its
/// `link` may lead to the host itself. At no moment is more open than before or after.
pub(super) fn apply(
    queue: BorrowedFd<'_>,
    link: &str,
    host: &Host,
    mut policy: Resolved,
    so_far: &BTreeMap<String, u64>,
) -> Result<(), NetworkError> {
    if policy.opens_host {
        policy.allow.get_or_insert_default().extend(host.addresses()?.into_iter().map(|own| Cidr::of(own, 32)));
    } else {
        host.close_to(link)?;
    }
    within(queue, || nft::apply(&rules::of_vm(&policy, host.range, host.name_server, so_far)))?;
    if policy.opens_host { host.open_to(link) } else { Ok(()) }
}

/// Runs `work` in the namespace that `queue`'s tap is in.
pub(super) fn within<T: Send>(
    queue: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let namespace = network_of_tap(queue).map_err(NetworkError::Kernel)?;
    apart(|| {
        enter_network(namespace.as_fd()).map_err(NetworkError::Kernel)?;
        work()
    })
}

/// Runs `work` in a thread that may go to another namespace: it does not come back.
fn apart<T: Send>(work: impl FnOnce() -> Result<T, NetworkError> + Send) -> Result<T, NetworkError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work);
        match thread.map_err(NetworkError::Thread)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// All that is done in a new namespace: the namespace, and the address that the host's end is to have.
fn inside(host: &Host, outer: BorrowedFd<'_>, next: &AtomicU32) -> Result<(Namespace, Ipv4Addr), NetworkError> {
    new_network().map_err(NetworkError::Kernel)?;
    let files: Result<Vec<_>, _> = (0..MAX_QUEUE_PAIRS).map(|_| tap_file()).collect();
    let files = files.map_err(NetworkError::Kernel)?;
    attach_tap(files[0].as_fd(), TAP).map_err(NetworkError::Kernel)?;
    for (name, value) in [
        ("net/ipv4/ip_forward", "1"), // First: it resets others.
        ("net/ipv4/conf/all/rp_filter", "1"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
        ("net/ipv4/icmp_ratelimit", "0"), // Whoever is refused hears of it each time.
    ] {
        set(name, value)?;
    }
    for name in ["net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"] {
        set_if_there(name, "1")?;
    }
    let mut netlink = Netlink::open().map_err(NetworkError::rtnetlink("open a socket"))?;
    let (link, pair) = connect(&mut netlink, host, outer, next)?;
    set_up(&mut netlink, pair).map_err(NetworkError::rtnetlink("set up the namespace"))?;
    nft::apply(&rules::of_vm(&Resolved::default(), host.range, host.name_server, &BTreeMap::new()))?;
    // These are there when a rule that needs them is. A connection that was never seen to begin is none; and one that was is
    // not reset because of a packet that is late.
    set("net/netfilter/nf_conntrack_tcp_loose", "0")?;
    set("net/netfilter/nf_conntrack_tcp_be_liberal", "1")?;
    Ok((Namespace { files, outside: pair.1, link }, pair.0))
}

/// Makes the pair of links. The host's end is named after its address, so the kernel sees to it that no two VMs of a host have
/// the same, whichever daemons they are of.
fn connect(
    netlink: &mut Netlink,
    host: &Host,
    namespace: BorrowedFd<'_>,
    next: &AtomicU32,
) -> Result<(String, (Ipv4Addr, Ipv4Addr)), NetworkError> {
    let pairs = host.range.pairs();
    for _ in 0..pairs {
        let pair = host.range.pair(next.fetch_add(1, Ordering::Relaxed) % pairs);
        let name = link_name(pair.0);
        match netlink.add_veth(UPLINK, &Peer { name: &name, group: host.group, namespace }) {
            Ok(()) => return Ok((name, pair)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (), // Another VM's.
            Err(source) => return Err(NetworkError::Rtnetlink { wanted: "make a veth pair", source }),
        }
    }
    Err(NetworkError::Full { range: host.range, pairs })
}

/// What the host's end with this address is called.
pub(super) fn link_name(address: Ipv4Addr) -> String {
    format!("{LINKS}{:08x}", address.to_bits())
}

fn set_up(netlink: &mut Netlink, (gateway, outside): (Ipv4Addr, Ipv4Addr)) -> io::Result<()> {
    netlink.up(LOOPBACK)?;
    let tap = netlink.index(TAP)?;
    netlink.set_mac(tap, GATEWAY_MAC)?;
    // With one, each of the 256 queues that a tap could have would get memory of its own: 7 MB for each VM.
    netlink.without_queue(tap)?;
    netlink.add_address(tap, Network::GUEST.gateway, Network::GUEST.prefix_len)?;
    netlink.up(tap)?;
    netlink.add_neighbour(tap, Network::GUEST.address, MAC)?;
    let uplink = netlink.index(UPLINK)?;
    netlink.add_address(uplink, outside, 31)?;
    netlink.up(uplink)?;
    netlink.add_default_route(gateway)
}
