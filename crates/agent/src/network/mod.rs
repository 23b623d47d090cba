//! The guest's end of its network: the interface is set up before the command runs, and what a fork or a sleep has torn
//! is torn here as well.
//!
//! All of it is netlink, by hand: a handful of messages.

mod connections; // which TCP connections lead outside, and their end
mod interface; // lo, eth0, addresses and routes
mod names; // /etc/resolv.conf and /etc/hosts
mod namespaces; // all of the guest's: containers have their own
mod netlink; // messages, there and back
#[cfg(test)]
mod testing; // namespaces with wires between them
#[cfg(test)]
mod tests;

pub(crate) use connections::reset_outside;
pub(crate) use interface::bring_up_loopback;
pub(crate) use names::know_yourself;

use pando_wire::network::{MAC, Network};
use std::{fmt::Display, path::Path};

/// Sets up the interface and who knows names. What cannot be done is one sentence each in what comes back, and keeps
/// nothing else from being done: a VM is of use without its network.
pub(crate) fn set_up(root: &Path, network: &Network) -> Vec<String> {
    let cannot = |what: &str, error: &dyn Display| format!("cannot {what}: {error}");
    let interface = interface::set_up(MAC, network).err().map(|error| cannot("set up the network", &error));
    let names = names::write_resolver(root, network).err().map(|error| cannot("write /etc/resolv.conf", &error));
    interface.into_iter().chain(names).collect()
}
