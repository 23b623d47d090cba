//! A checkpoint: the top object, which names everything a VM was at one instant.

use super::envelope::{self, FileKind, FormatError, HEADER_BYTES};
use super::fields::{Fields, push_blob};
use crate::id::{ID_BYTES, ManifestId, PackId};

/// The longest name of a checkpoint, in bytes.
pub const MAX_NAME_BYTES: usize = 100;

/// Everything a VM was at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its name, which is unique in a store and, where it is to be pushed, in a bucket: 1 to [`MAX_NAME_BYTES`] of
    /// `A-Z a-z 0-9 . _ -`, not beginning with a dot.
    pub name: String,
    /// When it was taken, in milliseconds since 1970.
    pub created_ms: u64,
    /// CPUs and devices.
    pub machine: Machine,
    /// Its RAM. `None` where it has none, as a machine that is to boot.
    pub memory: Option<ManifestId>,
    /// Its disks' layers, in the order that `machine` expects.
    pub disks: Vec<ManifestId>,
}

/// CPUs and devices at that instant, and what a host must have to continue them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// What wrote `state`.
    pub kind: String,
    /// Which version of that.
    pub version: u32,
    /// The architecture of the CPU, as the kernel's `uname -m` has it.
    pub arch: String,
    /// The features of the CPU that the guest was shown, by the names of `/proc/cpuinfo`.
    pub cpu_features: Vec<String>,
    /// The state, which means nothing to the store.
    pub state: Vec<u8>,
}

impl Checkpoint {
    /// The manifests that it needs.
    pub fn manifests(&self) -> impl Iterator<Item = ManifestId> {
        self.memory.into_iter().chain(self.disks.iter().copied())
    }
}

impl Machine {
    /// The features that the guest was shown and `host` lacks.
    pub fn missing_features<'m>(&'m self, host: &[&str]) -> Vec<&'m str> {
        self.cpu_features.iter().map(String::as_str).filter(|feature| !host.contains(feature)).collect()
    }
}

/// A checkpoint as it lies in a store: with the packs that it needed when it was written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredCheckpoint {
    pub(crate) checkpoint: Checkpoint,
    /// Sorted. In a bucket, all that it needs. In a directory a hint, because garbage collection may have moved chunks.
    pub(crate) packs: Vec<PackId>,
}

impl StoredCheckpoint {
    /// The whole file. `None` where a part does not fit in 32 bits of length.
    pub(crate) fn write(&self) -> Option<Vec<u8>> {
        let Checkpoint { name, created_ms, machine, memory, disks } = &self.checkpoint;
        let mut file = vec![0; HEADER_BYTES];
        push_blob(&mut file, name.as_bytes())?;
        file.extend_from_slice(&created_ms.to_le_bytes());
        push_blob(&mut file, machine.kind.as_bytes())?;
        file.extend_from_slice(&machine.version.to_le_bytes());
        push_blob(&mut file, machine.arch.as_bytes())?;
        push_count(&mut file, machine.cpu_features.len())?;
        for feature in &machine.cpu_features {
            push_blob(&mut file, feature.as_bytes())?;
        }
        push_count(&mut file, memory.iter().len())?;
        memory.iter().for_each(|id| file.extend_from_slice(&id.0));
        push_count(&mut file, disks.len())?;
        disks.iter().for_each(|id| file.extend_from_slice(&id.0));
        push_count(&mut file, self.packs.len())?;
        self.packs.iter().for_each(|id| file.extend_from_slice(&id.0));
        push_blob(&mut file, &machine.state)?;
        Some(envelope::seal(FileKind::Checkpoint, file))
    }

    /// Reads a whole file.
    pub(crate) fn read(file: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields(envelope::unseal(FileKind::Checkpoint, file)?);
        let name = fields.text("name")?;
        check_name(&name).map_err(|_| FormatError::Field("name"))?;
        let created_ms = fields.u64()?;
        let kind = fields.text("machine kind")?;
        let version = fields.u32()?;
        let arch = fields.text("architecture")?;
        let cpu_features = fields.count(size_of::<u32>())?;
        let cpu_features = (0..cpu_features).map(|_| fields.text("CPU feature")).collect::<Result<_, _>>()?;
        let mut memory = ids(&mut fields)?.into_iter().map(ManifestId);
        let (memory, more) = (memory.next(), memory.next());
        if more.is_some() {
            return Err(FormatError::Field("number of memories"));
        }
        let disks = ids(&mut fields)?.into_iter().map(ManifestId).collect();
        let packs: Vec<_> = ids(&mut fields)?.into_iter().map(PackId).collect();
        if !packs.is_sorted_by(|one, next| one < next) {
            return Err(FormatError::Field("order of packs"));
        }
        let state = fields.blob()?.to_vec();
        fields.end()?;
        let machine = Machine { kind, version, arch, cpu_features, state };
        Ok(Self { checkpoint: Checkpoint { name, created_ms, machine, memory, disks }, packs })
    }
}

fn push_count(file: &mut Vec<u8>, count: usize) -> Option<()> {
    file.extend_from_slice(&u32::try_from(count).ok()?.to_le_bytes());
    Some(())
}

fn ids(fields: &mut Fields<'_>) -> Result<Vec<[u8; ID_BYTES]>, FormatError> {
    let count = fields.count(ID_BYTES)?;
    (0..count).map(|_| fields.array()).collect()
}

/// A name that no checkpoint can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a checkpoint's name is 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 . _ - and does not begin with a dot: {0:?} is none"
)]
pub struct NameError(pub String);

/// Names are file names, and parts of an object's name in a bucket.
pub(crate) fn check_name(name: &str) -> Result<(), NameError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_fine = (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.');
    if is_fine { Ok(()) } else { Err(NameError(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> StoredCheckpoint {
        let machine = Machine {
            kind: "vm".into(),
            version: 3,
            arch: "x86_64".into(),
            cpu_features: vec!["avx2".into(), "sse4_2".into()],
            state: b"registers".to_vec(),
        };
        let checkpoint = Checkpoint {
            name: "web-1".into(),
            created_ms: 1_700_000_000_000,
            machine,
            memory: Some(ManifestId::of(b"memory")),
            disks: vec![ManifestId::of(b"base"), ManifestId::of(b"top")],
        };
        StoredCheckpoint { checkpoint, packs: vec![PackId([1; 32]), PackId([2; 32])] }
    }

    #[test]
    fn a_checkpoint_reads_back_equal() {
        let file = sample().write().unwrap();
        assert_eq!(StoredCheckpoint::read(&file), Ok(sample()));
    }

    #[test]
    fn whatever_is_cut_off_or_flipped_is_refused() {
        let good = sample().write().unwrap();
        (0..good.len()).for_each(|len| assert!(StoredCheckpoint::read(&good[..len]).is_err(), "cut to {len}"));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(StoredCheckpoint::read(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_feature_that_the_host_lacks_is_named() {
        let machine = sample().checkpoint.machine;
        assert_eq!(machine.missing_features(&["sse4_2", "fma"]), ["avx2"]);
    }

    #[test]
    fn a_name_stays_in_its_directory() {
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "é", &"x".repeat(101)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "web-1.2_x", &"x".repeat(100)] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }
}
