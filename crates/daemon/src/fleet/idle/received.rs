//! What came for VMs from outside, as the host's links to them have counted it.

use crate::db::Record;
use crate::fleet::error::{FleetError, cannot};
use crate::fleet::{Fleet, blocking};
use crate::network::Networks;
use crate::supervisor::Live;
use pando_wire::api::NetworkMode;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Bytes, by the name of the link.
pub(super) type Received = HashMap<String, u64>;

impl Fleet {
    /// What was received by all links, if any of `vms` has one. Where it cannot be seen it is nothing: who computes on what it
    /// receives is at work all the same.
    pub(super) async fn received(&self, vms: &[Record]) -> Received {
        if !vms.iter().any(is_on_network) {
            return Received::new();
        }
        let fleet = self.clone();
        let received = blocking(move || fleet.0.networks.received().map_err(FleetError::NoNetwork)).await;
        received.unwrap_or_else(|error| {
            tracing::debug!(error = error.in_one_line(), "cannot see what VMs receive");
            Received::new()
        })
    }

    /// The host's link to `vm`, whose monitor is `live`.
    pub(super) async fn link_to(&self, vm: &Record, live: Arc<Live>) -> Option<String> {
        if !is_on_network(vm) {
            return None;
        }
        let link = blocking(move || {
            let tap = live.process().tap().map_err(cannot("look at the descriptors of a monitor"))?;
            tap.map(|tap| Networks::link(tap.as_fd()).map_err(FleetError::NoNetwork)).transpose()
        });
        link.await.unwrap_or_else(|error| {
            tracing::debug!(vm = vm.id, error = error.in_one_line(), "cannot see what it receives");
            None
        })
    }
}

fn is_on_network(vm: &Record) -> bool {
    vm.network.mode != NetworkMode::None
}
