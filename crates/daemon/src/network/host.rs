//! The host's side: one table for all VMs of a daemon, forwarding, and what is left of earlier ones.

use super::cidr::Cidr;
use super::name_server::name_server;
use super::netlink::{Link, Netlink};
use super::{LINKS, NetworkError, nft, rules};
use std::fs;
use std::io;
use std::net::Ipv4Addr;

/// A route with a shorter prefix is a default one, or half of one as VPNs have them, and not in the way.
const LEAST_PREFIX: u8 = 8;

/// What all networks of one daemon have in common on the host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// Its table's name.
    pub(super) table: String,
    /// The group that its links are in: by it, its table knows them.
    pub(super) group: u32,
    /// Where VMs have their outside addresses.
    pub(super) range: Cidr,
    /// Who answers VMs' questions for names.
    pub(super) name_server: Option<Ipv4Addr>,
}

impl Host {
    /// That of the daemon `owner`. Nothing is changed.
    pub(super) fn new(owner: &str, range: Cidr) -> Self {
        // Two daemons of one host get the same group once in two thousand million hosts; 0 is where all other links are.
        let [a, b, c, d, ..] = *blake3::hash(owner.as_bytes()).as_bytes();
        let group = (u32::from_be_bytes([a, b, c, d]) | 1).max(3);
        Self { table: format!("{LINKS}_{group:08x}"), group, range, name_server: name_server() }
    }

    /// The group of the links by which VMs may reach the host itself: a link keeps it, whatever becomes of the daemon.
    pub(super) fn open_group(&self) -> u32 {
        self.group ^ 1 // One is odd and the other even, and neither is 0.
    }

    /// The host's own addresses by which a VM can be let reach it: not those of links to VMs, and not the loopback's.
    pub(super) fn addresses(&self) -> Result<Vec<Ipv4Addr>, NetworkError> {
        let failed = || NetworkError::rtnetlink("list the host's addresses");
        let all = Netlink::open().and_then(|mut netlink| netlink.addresses()).map_err(failed())?;
        let is_closed = |own: Ipv4Addr| own.is_loopback() || Cidr::of(own, 32).is_within(self.range);
        Ok(all.into_iter().map(|(_, own)| own).filter(|own| !is_closed(*own)).collect())
    }

    /// Whether a link leads to a VM of this daemon's.
    pub(super) fn has(&self, link: &Link) -> bool {
        link.name.starts_with(LINKS) && link.group | 1 == self.group
    }

    /// Lets the VM behind `link` reach the host itself.
    pub(super) fn open_to(&self, link: &str) -> Result<(), NetworkError> {
        self.regroup(link, self.open_group())
    }

    /// Does not let it.
    pub(super) fn close_to(&self, link: &str) -> Result<(), NetworkError> {
        self.regroup(link, self.group)
    }

    fn regroup(&self, link: &str, group: u32) -> Result<(), NetworkError> {
        let work = || {
            let mut netlink = Netlink::open()?;
            let index = netlink.index(link)?;
            netlink.set_group(index, group)
        };
        work().map_err(NetworkError::rtnetlink("say whether a VM reaches the host"))
    }

    /// Makes the host ready for the first network: its table, new or in the place of an earlier daemon's, and forwarding.
    pub(super) fn prepare(&self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        self.check_range(netlink)?;
        nft::apply(&rules::of_host(self))?;
        // Last: between forwarding and a table that refuses, nothing may get through.
        const FORWARDING: &str = "net/ipv4/ip_forward";
        if read_setting(FORWARDING).is_ok_and(|now| now.trim() == "1") {
            return Ok(());
        }
        tracing::info!("switching IPv4 forwarding on for this host: VMs need it");
        set(FORWARDING, "1")
    }

    /// Takes the table away, if there is one, unless a VM needs it.
    pub(super) fn retire(&self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        match self.links(netlink)?.is_empty() && nft::inet_tables()?.contains(&self.table) {
            true => nft::apply(&rules::without_host(&self.table)),
            false => Ok(()),
        }
    }

    /// The links of this daemon's VMs, and of an earlier one's.
    pub(super) fn links(&self, netlink: &mut Netlink) -> Result<Vec<Link>, NetworkError> {
        let links = netlink.links().map_err(NetworkError::rtnetlink("list the links"))?;
        Ok(links.into_iter().filter(|link| self.has(link)).collect())
    }

    /// Refuses a range that somebody else uses: VMs would cut the host off from it.
    fn check_range(&self, netlink: &mut Netlink) -> Result<(), NetworkError> {
        let links = netlink.links().map_err(NetworkError::rtnetlink("list the links"))?;
        let routes = netlink.routes().map_err(NetworkError::rtnetlink("list the routes"))?;
        for (to, prefix_len, index) in routes {
            let link = links.iter().find(|link| Some(link.index) == index);
            let is_ours = link.is_some_and(|link| link.name.starts_with(LINKS));
            if prefix_len >= LEAST_PREFIX && !is_ours && self.range.overlaps(Cidr::of(to, prefix_len)) {
                let by = link.map_or_else(|| "a route".to_owned(), |link| link.name.clone());
                return Err(NetworkError::RangeTaken { range: self.range, by });
            }
        }
        Ok(())
    }
}

/// Writes one of the kernel's settings, of the namespace that the calling thread is in.
pub(super) fn set(name: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(format!("/proc/sys/{name}"), value)
        .map_err(|source| NetworkError::Setting { name: name.to_owned(), source })
}

/// As [`set`]; a kernel that does not have it has nothing to set: one without IPv6.
pub(super) fn set_if_there(name: &str, value: &str) -> Result<(), NetworkError> {
    match set(name, value) {
        Err(NetworkError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn read_setting(name: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/sys/{name}"))
}
