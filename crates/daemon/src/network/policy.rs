//! What a VM may reach.

use super::NetworkError;
use super::cidr::Cidr;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// The least and the most that a VM may be limited to, in bytes per second each way.
pub const RATES: std::ops::RangeInclusive<u64> = 1024..=12_500_000_000;
/// The most networks that may be allowed, and that may be denied, names counted as what they stand for.
pub const MAX_DESTINATIONS: usize = 1024;

/// The words that open what no address does.
pub(super) const HOST: &str = "host";
/// See [`HOST`].
pub(super) const METADATA_WORD: &str = "metadata";
/// Link-local addresses, where clouds tell their machines secrets.
pub(super) const METADATA: Cidr = Cidr::of(Ipv4Addr::new(169, 254, 0, 0), 16);

/// What a VM may reach. A default one lets it reach all but the host's own addresses and 169.254.0.0/16, which are reached by
/// [`Destination::Host`] and [`Destination::Metadata`] alone, never by an address; and other VMs, which are out of reach
/// whatever it says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// How far.
    pub reach: Reach,
    /// Unless empty, nothing else may be reached, except who answers questions for names.
    pub allow: Vec<Destination>,
    /// What may not be reached, whatever is allowed.
    pub deny: Vec<Destination>,
    /// How much it may send, and how much it may receive, in bytes per second; see [`RATES`].
    pub bytes_per_second: Option<u64>,
}

/// How far a VM reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    /// Through the host, with the host's address.
    #[default]
    Nat,
    /// Nowhere. It has a network interface all the same.
    Isolated,
}

/// Something to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The host's own addresses that it has when the policy is applied, without those that lead to VMs.
    Host,
    /// 169.254.0.0/16.
    Metadata,
    /// Addresses.
    Network(Cidr),
    /// The IPv4 addresses that a name has when the policy is applied. Those that it gets later are not looked for.
    Name(String),
}

/// A text that is neither an IPv4 network nor a name.
#[derive(Debug, thiserror::Error)]
#[error("{0} is neither an IPv4 network nor a name")]
pub struct DestinationError(String);

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        match text {
            HOST => return Ok(Self::Host),
            METADATA_WORD => return Ok(Self::Metadata),
            _ => (),
        }
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        let is_name_like = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let has_letter = text.bytes().any(|byte| byte.is_ascii_alphabetic());
        match has_letter && text.len() <= 253 && text.bytes().all(is_name_like) {
            true => Ok(Self::Name(text.to_owned())),
            false => Err(DestinationError(text.to_owned())),
        }
    }
}

/// A policy without names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) reach: Reach,
    /// `None` allows all that is not closed.
    pub(super) allow: Option<Vec<Cidr>>,
    /// The host's own addresses are open, as far as they are allowed.
    pub(super) opens_host: bool,
    /// 169.254.0.0/16 is open, and allowed.
    pub(super) opens_metadata: bool,
    pub(super) deny: Vec<Cidr>,
    pub(super) bytes_per_second: Option<u64>,
}

impl Policy {
    /// Whether there can be such a policy.
    ///
    /// # Errors
    ///
    /// It contradicts itself, or has a limit that is none.
    pub fn check(&self) -> Result<(), NetworkError> {
        if let Some(rate) = self.bytes_per_second.filter(|rate| !RATES.contains(rate)) {
            return Err(NetworkError::Rate(rate));
        }
        if self.reach == Reach::Isolated && !self.allow.is_empty() {
            return Err(NetworkError::IsolatedButAllowed);
        }
        if self.deny.iter().any(|denied| matches!(denied, Destination::Host | Destination::Metadata)) {
            return Err(NetworkError::DeniedTwice);
        }
        Ok(())
    }

    /// The addresses and networks that it allows by number.
    pub(super) fn allowed_networks(&self) -> impl Iterator<Item = Cidr> {
        self.allow.iter().filter_map(|allowed| match allowed {
            Destination::Network(network) => Some(*network),
            _ => None, // By a word, or by a name.
        })
    }

    /// Looks names up. What [`Destination::Host`] stands for is still missing among what is allowed.
    pub(super) async fn resolve(&self) -> Result<Resolved, NetworkError> {
        self.check()?;
        let allow = resolve(&self.allow).await?;
        let allow = (!self.allow.is_empty()).then_some(allow);
        Ok(Resolved {
            reach: self.reach,
            allow,
            opens_host: self.allow.contains(&Destination::Host),
            opens_metadata: self.allow.contains(&Destination::Metadata),
            deny: resolve(&self.deny).await?,
            bytes_per_second: self.bytes_per_second,
        })
    }
}

/// A name that nobody knows is an error: a list that is shorter than it looks would let through what it should not.
async fn resolve(destinations: &[Destination]) -> Result<Vec<Cidr>, NetworkError> {
    let mut networks = Vec::new();
    for destination in destinations {
        match destination {
            Destination::Host => (), // Looked for where the host is.
            Destination::Metadata => networks.push(METADATA),
            Destination::Network(network) => networks.push(*network),
            Destination::Name(name) => {
                let failed = |source| NetworkError::Name { name: name.clone(), source };
                let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(failed)?;
                let before = networks.len();
                networks.extend(found.filter_map(|address| match address.ip() {
                    IpAddr::V4(address) => Some(Cidr::of(address, 32)),
                    IpAddr::V6(_) => None, // VMs have none.
                }));
                if networks.len() == before {
                    return Err(failed(std::io::Error::other("it has no IPv4 address")));
                }
            }
        }
    }
    match networks.len() {
        0..=MAX_DESTINATIONS => Ok(networks),
        count => Err(NetworkError::TooManyDestinations(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(texts: &[&str]) -> Vec<Destination> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_destination_is_a_network_or_a_name_and_nothing_that_a_rule_would_read_otherwise() {
        assert!(matches!("10.0.0.0/8".parse(), Ok(Destination::Network(_))));
        assert!(matches!("a-b.example.org".parse(), Ok(Destination::Name(_))));
        for text in ["", "10.0.0.1/8", "300.1.1.1", "a b", "a;b", "a}", "10.0.0.0/99"] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_policy_that_means_nothing_is_refused() {
        let policy = |policy: Policy| async move { policy.resolve().await.unwrap_err().to_string() };
        let slow = policy(Policy { bytes_per_second: Some(0), ..Policy::default() }).await;
        assert_eq!(slow, "a limit of 0 bytes per second is none: from 1024 to 12500000000");
        let both = policy(Policy { reach: Reach::Isolated, allow: destinations(&["1.1.1.1"]), ..Policy::default() });
        assert_eq!(both.await, "what is isolated cannot be allowed anything");
        let many = Policy { deny: vec!["1.1.1.1".parse().unwrap(); MAX_DESTINATIONS + 1], ..Policy::default() };
        assert!(matches!(many.resolve().await, Err(NetworkError::TooManyDestinations(1025))));
        // Longer than a label can be: nobody has to be asked for it.
        let unknown = Policy { deny: destinations(&[&"x".repeat(64)]), ..Policy::default() };
        assert!(matches!(unknown.resolve().await, Err(NetworkError::Name { .. })));
    }

    #[tokio::test]
    async fn what_stays_closed_is_opened_by_its_word_alone() {
        let some = |texts: &[&str]| Policy { allow: destinations(texts), ..Policy::default() };
        let all = some(&["0.0.0.0/0", "169.254.0.0/16"]).resolve().await.unwrap();
        assert!(!all.opens_host && !all.opens_metadata);
        let both = some(&["host", "metadata"]).resolve().await.unwrap();
        assert!(both.opens_host && both.opens_metadata);
        assert_eq!(both.allow, Some(vec![METADATA]), "and nothing else is reached");
        let denied = Policy { deny: destinations(&["host"]), ..Policy::default() }.check().unwrap_err();
        assert_eq!(denied.to_string(), "host and metadata are out of reach unless they are allowed");
    }

    #[tokio::test]
    async fn a_list_that_allows_nothing_yet_is_not_one_that_allows_all() {
        let none = Policy::default().resolve().await.unwrap();
        assert_eq!(none, Resolved::default());
        let some = Policy { allow: destinations(&["localhost"]), ..Policy::default() }.resolve().await.unwrap();
        assert_eq!(some.allow.unwrap()[0].to_string(), "127.0.0.1/32");
    }
}
