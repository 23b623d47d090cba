//! What passed the network of a VM, and what was refused.

use super::error::{FleetError, cannot};
use super::{Fleet, blocking};
use crate::monitor::{Monitor, SHORT};
use crate::network::Seen;
use crate::supervisor::Live;
use pando_wire::api::{NetworkMode, Passed, Traffic, Vm};
use pando_wire::control::{Frames, Request, Response};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

impl Fleet {
    /// What passed the network of `vm`, whose monitor is `live`. What cannot be found out is logged, and is nothing: a VM is
    /// looked at also as it ends.
    pub(super) async fn traffic(&self, vm: &Vm, live: Arc<Live>) -> Option<Traffic> {
        if vm.network.mode == NetworkMode::None {
            return None;
        }
        let frames = self.frames(&vm.id).await;
        let fleet = self.clone();
        let seen = blocking(move || {
            let Some(tap) = live.process().tap().map_err(cannot("look at the descriptors of a monitor"))? else {
                return Ok(None);
            };
            Ok(Some(fleet.0.networks.seen(tap.as_fd()).map_err(FleetError::NoNetwork)?))
        });
        match seen.await {
            Ok(seen) => seen.map(|seen| traffic(seen, frames)),
            Err(error) => {
                tracing::debug!(vm = vm.id, error = error.in_one_line(), "cannot look at its network");
                None
            }
        }
    }

    /// What its network card let through no further. A monitor of an earlier build does not tell.
    async fn frames(&self, id: &str) -> Option<Frames> {
        let monitor = Monitor::connect(&self.0.paths.control_socket(id)).ok()?;
        match monitor.call(&Request::Frames, &[], SHORT).await {
            Ok(Response::Frames(frames)) => frames,
            _ => None,
        }
    }
}

/// As the API shows it.
fn traffic(seen: Seen, frames: Option<Frames>) -> Traffic {
    let Seen { outside, sent, received, refused } = seen;
    let passed = |passed: crate::network::Passed| Passed { packets: passed.packets, bytes: passed.bytes };
    let mut refused: BTreeMap<String, u64> = refused.into_iter().filter(|(_, count)| *count > 0).collect();
    let Frames {
        sent_without_link,
        sent_malformed,
        sent_too_long,
        sent_as_another,
        sent_refused,
        received_too_long,
        received_broken,
    } = frames.unwrap_or_default();
    for (reason, count) in [
        ("without_link", sent_without_link),
        ("malformed", sent_malformed),
        ("too_long", sent_too_long),
        ("spoofed_mac", sent_as_another),
        ("not_taken", sent_refused),
        ("no_room", received_too_long),
        ("not_handed_over", received_broken),
    ] {
        if count > 0 {
            // The card and the namespace refuse another's hardware address, whichever sees it first.
            *refused.entry(reason.to_owned()).or_default() += count;
        }
    }
    Traffic { outside: outside.to_string(), sent: passed(sent), received: passed(received), refused }
}
