//! The state of a machine: plain data, from which the same machine can be built again, here or in a child.

use crate::features;
use crate::platform::{PlatformState, PlatformStateV1, PlatformStateV2};
use pando_sys::{VcpuState, VmState};
use pando_wire::saved::Machine;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What says in a store that a state is one of these.
const KIND: &str = "pando-vmm";
/// The version of the encoding: another one for every change of what is in here, however deep. The ones before it are
/// decoded for ever.
///
/// | | |
/// |---|---|
/// | 1 | no balloon |
/// | 2 | a balloon, which may be absent |
/// | 3 | a network card, which may be absent |
const VERSION: u32 = 3;
const ARCH: &str = std::env::consts::ARCH;
/// The most vCPUs of a machine.
const MAX_VCPUS: usize = 32;

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

/// What [`MachineState`] was in an earlier version, with the devices of that.
#[derive(Deserialize)]
struct Earlier<P> {
    vcpus: Vec<VcpuState>,
    vm: VmState,
    platform: P,
    #[serde(with = "indices")]
    msrs: Arc<[u32]>,
}

impl<P: Into<PlatformState>> From<Earlier<P>> for MachineState {
    fn from(state: Earlier<P>) -> Self {
        let Earlier { vcpus, vm, platform, msrs } = state;
        Self { vcpus, vm, platform: platform.into(), msrs }
    }
}

/// A state cannot be encoded: it cannot be.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct EncodeError(#[from] postcard::Error);

/// Why bytes are not the state of a machine that can go on here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Something else wrote them.
    #[error(
        "it is of {kind} version {version} for {arch}, and this build goes on with {KIND} up to version {VERSION} for {ARCH}"
    )]
    Foreign { kind: String, version: u32, arch: String },
    /// They are damaged, or made up.
    #[error("it is not what a machine can have been")]
    Malformed,
}

impl MachineState {
    /// Who can go on with [`MachineState::encode`].
    pub(crate) fn described(&self) -> Machine {
        let shown = self.vcpus.first().map(|vcpu| features::of(&vcpu.cpuid)).unwrap_or_default();
        Machine {
            kind: KIND.into(),
            version: VERSION,
            arch: ARCH.into(),
            cpu_features: shown.into_iter().map(str::to_owned).collect(),
        }
    }

    /// All of it, to be kept for longer than this process.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        Ok(postcard::to_stdvec(self)?)
    }

    /// What was encoded, by this build or one before it. Whether a CPU and devices can have been in this state, they say
    /// themselves when it is put back.
    pub(crate) fn decode(described: &Machine, bytes: &[u8]) -> Result<Self, DecodeError> {
        let Machine { kind, version, arch, .. } = described;
        let foreign = || DecodeError::Foreign { kind: kind.clone(), version: *version, arch: arch.clone() };
        if (kind.as_str(), arch.as_str()) != (KIND, ARCH) {
            return Err(foreign());
        }
        let state = match *version {
            1 => whole::<Earlier<PlatformStateV1>>(bytes)?.into(),
            2 => whole::<Earlier<PlatformStateV2>>(bytes)?.into(),
            VERSION => whole::<Self>(bytes)?,
            _ => return Err(foreign()),
        };
        match (1..=MAX_VCPUS).contains(&state.vcpus.len()) {
            true => Ok(state),
            false => Err(DecodeError::Malformed),
        }
    }

    /// Has the machine go on after a sleep, perhaps one in which the host was another or was booted anew: the guest's
    /// clocks go on from where they were, and its registers are those that it knows of.
    pub(crate) fn wake(&mut self) {
        self.vm.stop_clocks(&mut self.vcpus);
        self.vcpus.iter_mut().for_each(VcpuState::forget_unshown);
    }
}

/// What `bytes` hold, when there is nothing behind it.
fn whole<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError::Malformed),
    }
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
