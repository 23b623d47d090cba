//! The state of a machine: plain data, from which the same machine can be built again, here or in a child.

use crate::platform::PlatformState;
use pando_sys::{VcpuState, VmState};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The state of everything but memory and disk.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// One per vCPU, by id.
    pub(crate) vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer, clock.
    pub(crate) vm: VmState,
    /// Devices.
    pub(crate) platform: PlatformState,
    /// The model-specific registers that make up a vCPU's state on this host.
    #[serde(with = "indices")]
    pub(crate) msrs: Arc<[u32]>,
}

mod indices {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    pub(super) fn serialize<S: Serializer>(indices: &Arc<[u32]>, serializer: S) -> Result<S::Ok, S::Error> {
        indices[..].serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u32]>, D::Error> {
        Ok(Vec::<u32>::deserialize(deserializer)?.into())
    }
}
