//! VMs for tests.

use pando_wire::api::{Network, State, Vm};
use std::collections::BTreeMap;

/// A VM of which only the family matters.
pub(crate) fn vm(name: &str, parent: Option<&str>, created_ms: i64) -> Vm {
    Vm {
        id: format!("id-{name}"),
        name: name.to_owned(),
        state: State::Running,
        ending: None,
        parent: parent.map(|parent| format!("id-{parent}")),
        image: "0".repeat(64),
        cpus: 2,
        memory_bytes: 512 << 20,
        command: Vec::new(),
        env: BTreeMap::new(),
        pid: Some(1),
        created_ms,
        owner: String::new(),
        epoch: 1,
        usage: None,
        idle_timeout_ms: None,
        network: Network::default(),
        no_network: None,
        traffic: None,
        sleepless: None,
        published: Vec::new(),
    }
}
