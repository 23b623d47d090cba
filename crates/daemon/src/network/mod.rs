//! Networks of VMs: a namespace for each, made before it is asked for.
//!
//! ```text
//!   guest            the VM's namespace                                the host's namespace
//!  ┌──────┐  queues ┌──────────────────────────────────┐  veth pair  ┌──────────────────────────────┐
//!  │ eth0 ├────────►│ tap0 ─ only the guest's IPv4     ├────────────►│ pando0af10000 ─ not to the   ├──► the world
//!  │ .2   │         │ .1     rules, NAT          up0   │ 10.241.0.0/31 │ host, not to VMs, NAT      │
//!  └──────┘         └──────────────────────────────────┘             └──────────────────────────────┘
//! ```
//!
//! A namespace has no name and nobody in it: **it lives as long as a descriptor of its tap**, which a VM's monitor holds, also
//! when the daemon is gone. With the last one its links, addresses, routes and rules go, so nothing has to be cleaned up, and a
//! daemon that begins has nothing to remember: which addresses are in use, the names of the host's links tell.
//!
//! What stays on the host is one table of nftables, which knows the daemon's links by their group. A daemon that ends takes it
//! away if no VM needs it, and so does the next one ([`Networks::adopt`]) after one that was killed.
//!
//! Limits: IPv4 only; [`READY`] networks are made in advance, and [`MOST_READY`] at most where as many begin at once;
//! [`FLOWS_PER_SECOND`] new flows for each VM; a name that is allowed or denied stands for the addresses that it has when the
//! VM starts, and a VM that may ask for names can tell the outside something by asking.

mod cidr; // addresses as text
mod demand; // how many are to be ready
mod host; // the host's side
mod make; // making one
mod name_server; // who knows names
mod netlink; // links, addresses, routes
mod nft; // running nft
mod policy; // what a VM may reach
mod pool; // those that are ready
mod rules; // what gets through
mod seen; // what passed, and what was refused

pub use cidr::{Cidr, CidrError};
pub use demand::{MOST_READY, READY};
pub use policy::{Destination, DestinationError, MAX_DESTINATIONS, Policy, RATES, Reach};
pub use pool::Expected;
pub use rules::{FLOW_BURST, FLOWS_PER_SECOND};
pub use seen::{Passed, Seen};

use host::Host;
use pando_sys::{NetworkLack, SysError};
use pando_wire::network::MAX_QUEUE_PAIRS;
use pool::Pool;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where VMs have their addresses outside, unless told otherwise.
pub const DEFAULT_RANGE: Cidr = Cidr::of(Ipv4Addr::new(10, 241, 0, 0), 16);
/// What the names of this host's links begin with; behind it is the link's address in eight hexadecimal digits.
const LINKS: &str = "pando";
/// The guest's other end.
const TAP: &str = "tap0";
/// The namespace's way out.
const UPLINK: &str = "up0";
/// The gateway's hardware address: the same for all guests, so that a fork's child may keep what it knows of its neighbour.
const GATEWAY_MAC: [u8; 6] = [0x02, b'P', b'A', b'N', b'D', b'G'];

/// The networks of one daemon.
pub struct Networks {
    pool: Pool,
    host: Host,
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Networks").field("ready", &self.ready()).finish_non_exhaustive()
    }
}

/// A network for one VM.
#[derive(Debug)]
pub struct Taken {
    /// The tap's queues, non-blocking, closed at an exec. The network lives as long as one of them is open in any process.
    pub queues: Vec<OwnedFd>,
    /// The VM's address on this host. Nobody reaches the VM by it; it tells VMs apart in the host's logs.
    pub outside: Ipv4Addr,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// This computer lacks something.
    #[error(transparent)]
    Lack(NetworkLack),
    /// A tap has at least one pair of queues, and not more than it can.
    #[error("a network has 1 to {MAX_QUEUE_PAIRS} pairs of queues, not {0}")]
    Queues(u8),
    /// A limit that is too low or too high.
    #[error("a limit of {0} bytes per second is none: from {least} to {most}", least = RATES.start(), most = RATES.end())]
    Rate(u64),
    /// A contradiction.
    #[error("what is isolated cannot be allowed anything")]
    IsolatedButAllowed,
    /// What nobody has to deny.
    #[error("host and metadata are out of reach unless they are allowed")]
    DeniedTwice,
    /// What no address opens, where a word does.
    #[error("{network} stays out of reach, as {what}: --allow {word} opens that")]
    ClosedButForWord {
        /// What was to be allowed.
        network: Cidr,
        /// What it is.
        what: &'static str,
        /// What to allow instead.
        word: &'static str,
    },
    /// What nothing opens.
    #[error("{network} stays out of reach, as addresses of VMs do")]
    Closed {
        /// What was to be allowed.
        network: Cidr,
    },
    /// Too long a list.
    #[error("{0} networks are allowed or denied, and {MAX_DESTINATIONS} can be")]
    TooManyDestinations(usize),
    /// A name that is allowed or denied has no address.
    #[error("cannot find the address of {name}")]
    Name {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// Its monitor has no tap.
    #[error("its monitor has no network")]
    NoTap,
    /// All addresses are in use.
    #[error("all {pairs} networks of {range} are in use")]
    Full {
        /// The range.
        range: Cidr,
        /// How many VMs it has addresses for.
        pairs: u32,
    },
    /// The range is not free.
    #[error("cannot give VMs addresses of {range}: {by} uses some of them")]
    RangeTaken {
        /// The range.
        range: Cidr,
        /// A link, or a route.
        by: String,
    },
    /// The kernel did not do what it was asked.
    #[error("cannot make a network")]
    Kernel(#[source] SysError),
    /// Links, addresses, routes.
    #[error("cannot {wanted}")]
    Rtnetlink {
        /// What was wanted, as an infinitive.
        wanted: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A setting of the kernel.
    #[error("cannot set {name}")]
    Setting {
        /// Below `/proc/sys`.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// `nft` could not be run.
    #[error("cannot run nft")]
    Nft {
        /// The cause.
        source: io::Error,
    },
    /// `nft` ran, and refused.
    #[error("cannot set up packet filters: nft says {said}")]
    Refused {
        /// Its first line.
        said: String,
    },
    /// No thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The daemon is ending.
    #[error("no networks are made any more")]
    Over,
}

impl NetworkError {
    fn rtnetlink(wanted: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Rtnetlink { wanted, source }
    }
}

impl Networks {
    /// Those of the daemon `owner`, with addresses of `range`: two for each VM. Nothing is done yet.
    pub fn new(owner: &str, range: Cidr) -> Self {
        let host = Host::new(owner, range);
        Self { pool: Pool::new(host.clone()), host }
    }

    /// As [`Networks::new`], where `server` answers VMs' questions for names, and not the first of this host's name servers; or
    /// nobody does, and they are refused at once.
    pub fn with_name_server(owner: &str, range: Cidr, server: Option<Ipv4Addr>) -> Self {
        let host = Host { name_server: server, ..Host::new(owner, range) };
        Self { pool: Pool::new(host.clone()), host }
    }

    /// Whether this computer can have networks at all.
    ///
    /// # Errors
    ///
    /// Says what is missing, and what to do about it.
    pub fn support(&self) -> Result<(), NetworkLack> {
        pando_sys::network_lack().map_or(Ok(()), Err)
    }

    /// Whether there can be such a policy here. For one that is new: of a VM that begins again later, it is not asked again.
    ///
    /// # Errors
    ///
    /// It contradicts itself, or allows what stays out of reach by its address.
    pub fn check(&self, policy: &Policy) -> Result<(), NetworkError> {
        policy.check()?;
        let own = self.host.addresses()?;
        let is_own = |network: Cidr| own.iter().any(|own| network.is_within(Cidr::of(*own, 32)));
        for network in policy.allowed_networks() {
            if network.is_within(policy::METADATA) {
                let what = "link-local addresses are";
                return Err(NetworkError::ClosedButForWord { network, what, word: policy::METADATA_WORD });
            }
            if network.is_within(self.host.range) {
                return Err(NetworkError::Closed { network });
            }
            if is_own(network) {
                let what = "the host's own addresses are";
                return Err(NetworkError::ClosedButForWord { network, what, word: policy::HOST });
            }
        }
        Ok(())
    }

    /// Whether a VM can have one now, which is made for that unless one is ready: some 10 ms. The first changes the host, as
    /// [`Networks::refill`] has it.
    ///
    /// # Errors
    ///
    /// Says why not.
    pub async fn prove(&self) -> Result<(), NetworkError> {
        self.support().map_err(NetworkError::Lack)?;
        self.pool.prove().await
    }

    /// What a daemon does when it begins: the host's table of an earlier one that was killed goes if no VM needs it. If one
    /// does, networks go on to be made. Where there cannot be any, there is nothing to do. Blocks for some milliseconds.
    ///
    /// # Errors
    ///
    /// Fails where the host's links or rules cannot be read or changed.
    pub fn adopt(&self) -> Result<(), NetworkError> {
        if self.support().is_err() {
            return Ok(());
        }
        let mut netlink = netlink::Netlink::open().map_err(NetworkError::rtnetlink("open a socket"))?;
        self.host.retire(&mut netlink)?;
        match self.host.links(&mut netlink)?.is_empty() {
            true => Ok(()),
            false => self.refill(),
        }
    }

    /// Begins to make networks before one is asked for, and does not wait. The first changes the host: there is a table of
    /// rules, and IPv4 forwarding is switched on.
    ///
    /// # Errors
    ///
    /// Fails where something is missing here, or this is over.
    pub fn refill(&self) -> Result<(), NetworkError> {
        self.support().map_err(NetworkError::Lack)?;
        self.pool.wake()
    }

    /// So many VMs are about to begin: what they need and is not ready is begun to be made, and nothing for later ones while the
    /// answer lives. Does not wait. Why there is none is said to who takes it.
    pub fn expect(&self, count: usize) -> Expected {
        self.pool.expect(count)
    }

    /// How many are ready: [`READY`], more after as many VMs began at once.
    pub fn ready(&self) -> usize {
        self.pool.ready()
    }

    /// A network with `pairs` pairs of queues, ready for a VM. Takes well under a millisecond while some are ready and the policy
    /// is the default one, and some 10 ms otherwise.
    ///
    /// # Errors
    ///
    /// Fails where none can be made, or the policy cannot be applied.
    pub async fn take(&self, pairs: u8, policy: &Policy) -> Result<Taken, NetworkError> {
        if !(1..=MAX_QUEUE_PAIRS).contains(&pairs) {
            return Err(NetworkError::Queues(pairs));
        }
        let policy = policy.resolve().await?;
        let namespace = match self.pool.take().await {
            // What is missing says more than what failed for it.
            Err(error) => return Err(pando_sys::network_lack().map_or(error, NetworkError::Lack)),
            Ok(namespace) => namespace,
        };
        let outside = namespace.outside;
        if policy == policy::Resolved::default() {
            return Ok(Taken { queues: namespace.into_queues(pairs)?, outside });
        }
        let host = self.host.clone();
        let work = move || {
            if let Some(tap) = namespace.tap() {
                make::apply(tap, &namespace.link, &host, policy, &BTreeMap::new())?;
            }
            namespace.into_queues(pairs)
        };
        let queues = tokio::task::spawn_blocking(work).await.unwrap_or(Err(NetworkError::Over))?;
        Ok(Taken { queues, outside })
    }

    /// Changes what a VM may reach that has a network, by any queue of its tap: all at once, and what was counted stays. Its
    /// connections go on, but for those to what it may no longer reach.
    ///
    /// # Errors
    ///
    /// The policy cannot be applied; then the one before holds, or what both allow.
    pub async fn change(&self, queue: OwnedFd, policy: &Policy) -> Result<(), NetworkError> {
        let policy = policy.resolve().await?;
        let host = self.host.clone();
        let work = move || {
            let so_far = make::within(queue.as_fd(), nft::counters)?;
            let link = seen::link(queue.as_fd())?;
            make::apply(queue.as_fd(), &link, &host, policy, &so_far)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(NetworkError::Over))
    }

    /// How many packets of a VM were refused, by the name of the reason; by any queue of its tap. Blocks for some milliseconds.
    ///
    /// # Errors
    ///
    /// Fails where the rules of its namespace cannot be read.
    pub fn refused(queue: BorrowedFd<'_>) -> Result<BTreeMap<String, u64>, NetworkError> {
        make::within(queue, nft::counters)
    }

    /// What passed a VM's network since the VM began, and what was refused, by the host too; by any queue of its tap. Blocks for
    /// some 10 ms.
    ///
    /// # Errors
    ///
    /// Fails where its namespace, or the host's rules, cannot be read.
    pub fn seen(&self, queue: BorrowedFd<'_>) -> Result<Seen, NetworkError> {
        seen::seen(queue, &self.host)
    }

    /// The name of the host's link to a VM, by any queue of its tap. Blocks for some milliseconds.
    ///
    /// # Errors
    ///
    /// Fails where its namespace cannot be looked at.
    pub fn link(queue: BorrowedFd<'_>) -> Result<String, NetworkError> {
        seen::link(queue)
    }

    /// The bytes that came for each VM from outside, by the name of its [`link`](Self::link), since that was made. One
    /// question to the kernel for all of them.
    ///
    /// # Errors
    ///
    /// Fails where the kernel does not tell.
    pub fn received(&self) -> Result<HashMap<String, u64>, NetworkError> {
        seen::received(&self.host)
    }

    /// The end: what is ready goes, and the host's table with it if no VM needs it. VMs keep theirs. Blocks for some tenths of a
    /// second.
    pub fn close(&self) {
        self.pool.close();
    }
}
