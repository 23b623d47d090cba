//! IPv4 networks as text, and the addresses that VMs have outside.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network, such as `10.0.0.0/8`. Its address has no bit set that its prefix does not cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: Ipv4Addr,
    prefix_len: u8,
}

/// A text that is no IPv4 network.
#[derive(Debug, thiserror::Error)]
#[error("{0} is no IPv4 network: 192.0.2.1 and 192.0.2.0/24 are")]
pub struct CidrError(String);

impl Cidr {
    /// The network with this `prefix_len` that `address` is in.
    pub(super) const fn of(address: Ipv4Addr, prefix_len: u8) -> Self {
        assert!(prefix_len <= 32);
        let mask = if prefix_len == 0 { 0 } else { u32::MAX << (32 - prefix_len) };
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask), prefix_len }
    }

    /// Whether an address is in both.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let shorter = self.prefix_len.min(other.prefix_len);
        Self::of(self.address, shorter) == Self::of(other.address, shorter)
    }

    /// Whether all its addresses are in `other`.
    pub(super) fn is_within(self, other: Self) -> bool {
        other.prefix_len <= self.prefix_len && self.overlaps(other)
    }

    /// How many VMs find two addresses each in it.
    pub(super) fn pairs(self) -> u32 {
        match self.prefix_len {
            0 => 1 << 31,
            32 => 0,
            prefix_len => 1 << (31 - prefix_len),
        }
    }

    /// The addresses of pair `index`: the host's end and the VM's.
    pub(super) fn pair(self, index: u32) -> (Ipv4Addr, Ipv4Addr) {
        let first = self.address.to_bits() + 2 * index;
        (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(first + 1))
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix_len) = text.split_once('/').unwrap_or((text, "32"));
        let (address, prefix_len) = (address.parse(), prefix_len.parse());
        match (address, prefix_len) {
            (Ok(address), Ok(prefix_len @ 0..=32)) if Self::of(address, prefix_len).address == address => {
                Ok(Self { address, prefix_len })
            }
            _ => Err(CidrError(text.to_owned())),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_and_what_is_no_network_is_refused() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.1".parse::<Cidr>().unwrap().to_string(), "192.0.2.1/32");
        for text in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "::/0", "a.example", "10.0.0.0/8 }"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_vm_has_a_pair_of_addresses_of_its_own() {
        let range: Cidr = "10.241.0.0/29".parse().unwrap();
        let pairs: Vec<_> = (0..range.pairs()).map(|index| range.pair(index)).collect();
        let last = |pair: &(Ipv4Addr, Ipv4Addr)| (pair.0.octets()[3], pair.1.octets()[3]);
        assert_eq!(pairs.iter().map(last).collect::<Vec<_>>(), [(0, 1), (2, 3), (4, 5), (6, 7)]);
        assert_eq!("10.0.0.1".parse::<Cidr>().unwrap().pairs(), 0);
    }

    #[test]
    fn networks_overlap_when_one_is_in_the_other() {
        let of = |text: &str| text.parse::<Cidr>().unwrap();
        assert!(of("10.0.0.0/8").overlaps(of("10.241.0.0/16")) && of("10.241.0.0/16").overlaps(of("0.0.0.0/0")));
        assert!(!of("10.240.0.0/16").overlaps(of("10.241.0.0/16")));
        assert!(of("10.241.0.0/16").is_within(of("10.0.0.0/8")) && of("10.0.0.0/8").is_within(of("10.0.0.0/8")));
        assert!(!of("10.0.0.0/8").is_within(of("10.241.0.0/16")));
    }
}
