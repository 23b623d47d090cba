//! What a daemon knows of a checkpoint, and the store does not, on its way to another daemon: ahead of the pages in an
//! export, and beside the checkpoint in a bucket. It is read first, so that what cannot be taken is refused before pages
//! are.

use super::super::error::FleetError;
use super::super::names;
use crate::db::Checkpoint;
use pando_wire::api::{CheckpointState, Network};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read};
use uuid::Uuid;

/// How an export begins.
const MARK: [u8; 16] = *b"pando checkpoint";
/// The only format there is.
const FORMAT: u32 = 1;
/// The longest description, in bytes: it is held in memory.
const MAX_BYTES: u32 = 4 << 20;

/// Why what was sent or lies in a bucket is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum DescriptionError {
    /// It ends early, or does not arrive.
    #[error("cannot read the export")]
    Read(#[source] io::Error),
    /// It begins otherwise.
    #[error("this is no export of a checkpoint")]
    NotOurs,
    /// A later build wrote it.
    #[error("its description is of format {0}, and this build reads up to {FORMAT}: a newer pando is needed")]
    Newer(u32),
    /// A bit of it is another one, or it says what cannot be.
    #[error("its description is damaged")]
    Damaged,
}

/// What a daemon knows of a checkpoint, wherever that is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) id: String,
    pub(super) name: String,
    vm: String,
    vm_name: String,
    generation: u64,
    pub(super) image: String,
    cpus: u8,
    memory_bytes: u64,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    user: Option<String>,
    kernel: Option<String>,
    created_ms: i64,
    /// None in one of an earlier build.
    #[serde(default)]
    network: Network,
}

impl Description {
    pub(super) fn of(checkpoint: Checkpoint) -> Self {
        let Checkpoint { id, name, vm, vm_name, generation, image, cpus, memory_bytes, .. } = checkpoint;
        let Checkpoint { command, env, cwd, user, kernel, created_ms, network, .. } = checkpoint;
        Self {
            id,
            name,
            vm,
            vm_name,
            generation,
            image,
            cpus,
            memory_bytes,
            command,
            env,
            cwd,
            user,
            kernel,
            created_ms,
            network,
        }
    }

    /// As it is here while it arrives, under this name.
    pub(super) fn arriving(self, name: String, owner: String) -> Checkpoint {
        Checkpoint {
            id: self.id,
            name,
            vm: self.vm,
            vm_name: self.vm_name,
            state: CheckpointState::Saving,
            problem: None,
            generation: self.generation,
            image: self.image,
            cpus: self.cpus,
            memory_bytes: self.memory_bytes,
            command: self.command,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            kernel: self.kernel,
            network: self.network,
            logical_bytes: None,
            stored_bytes: None,
            hashed_bytes: None,
            created_ms: self.created_ms,
            owner,
            epoch: 1,
        }
    }

    /// Its bytes: mark, format, length, hash, JSON.
    pub(super) fn write(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let len = u32::try_from(json.len()).ok().filter(|&len| len <= MAX_BYTES);
        let len = len.ok_or_else(|| io::Error::other("what is known of it is too long to be exported"))?;
        let hash = blake3::hash(&json);
        Ok([&MARK[..], &FORMAT.to_le_bytes(), &len.to_le_bytes(), hash.as_bytes(), &json].concat())
    }

    /// Reads one, and nothing behind it.
    pub(super) fn read(stream: &mut impl Read) -> Result<Self, DescriptionError> {
        let mut mark = [0; MARK.len()];
        match stream.read_exact(&mut mark) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(DescriptionError::NotOurs),
            read => read.map_err(DescriptionError::Read)?,
        }
        if mark != MARK {
            return Err(DescriptionError::NotOurs);
        }
        match number(stream)? {
            FORMAT => (),
            newer if newer > FORMAT => return Err(DescriptionError::Newer(newer)),
            _ => return Err(DescriptionError::Damaged),
        }
        let len = number(stream)?;
        if len > MAX_BYTES {
            return Err(DescriptionError::Damaged);
        }
        let mut hash = [0; 32];
        stream.read_exact(&mut hash).map_err(DescriptionError::Read)?;
        let mut json = vec![0; len as usize];
        stream.read_exact(&mut json).map_err(DescriptionError::Read)?;
        if blake3::hash(&json) != hash {
            return Err(DescriptionError::Damaged);
        }
        let description: Self = serde_json::from_slice(&json).map_err(|_| DescriptionError::Damaged)?;
        if description.is_possible() { Ok(description) } else { Err(DescriptionError::Damaged) }
    }

    /// Reads one that is all of `bytes`.
    pub(super) fn read_whole(mut bytes: &[u8]) -> Result<Self, DescriptionError> {
        match Self::read(&mut bytes) {
            Ok(description) if bytes.is_empty() => Ok(description),
            Err(newer @ DescriptionError::Newer(_)) => Err(newer),
            _ => Err(DescriptionError::Damaged),
        }
    }

    /// Whether this daemon could have written it. Its id is the name of files here.
    fn is_possible(&self) -> bool {
        is_id(&self.id) && is_id(&self.vm) && names::check(&self.name).is_ok() && self.cpus > 0
    }
}

/// Whether this is a checkpoint's or VM's id, as daemons write it.
pub(super) fn is_id(id: &str) -> bool {
    Uuid::try_parse(id).is_ok_and(|uuid| uuid.to_string() == id)
}

fn number(stream: &mut impl Read) -> Result<u32, DescriptionError> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).map_err(DescriptionError::Read)?;
    Ok(u32::from_le_bytes(bytes))
}

impl From<DescriptionError> for FleetError {
    fn from(error: DescriptionError) -> Self {
        Self::NoExport(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_wire::api::NetworkMode;

    fn example() -> Description {
        Description {
            id: Uuid::now_v7().to_string(),
            name: "warm".into(),
            vm: Uuid::now_v7().to_string(),
            vm_name: "web".into(),
            generation: 3,
            image: "image".into(),
            cpus: 2,
            memory_bytes: 128 << 20,
            command: vec!["sh".into()],
            env: [("A".into(), "1".into())].into(),
            cwd: Some("/srv".into()),
            user: None,
            kernel: None,
            created_ms: 7,
            network: Network { mode: NetworkMode::Nat, ..Network::default() },
        }
    }

    #[test]
    fn a_description_comes_back_and_nothing_behind_it_is_read() {
        let written = example();
        let stream = [written.write().unwrap(), b"pages".to_vec()].concat();
        let mut rest = &stream[..];
        assert_eq!(Description::read(&mut rest).unwrap(), written);
        assert_eq!(rest, b"pages");
    }

    #[test]
    fn one_that_is_cut_or_has_any_bit_flipped_is_refused() {
        let whole = example().write().unwrap();
        for len in 0..whole.len() {
            assert!(Description::read(&mut &whole[..len]).is_err(), "cut at {len}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Description::read(&mut &flipped[..]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_object_is_one_description_and_nothing_else() {
        let written = example();
        let whole = written.write().unwrap();
        assert_eq!(Description::read_whole(&whole).unwrap(), written);
        let longer = [&whole[..], b"x"].concat();
        for wrong in [&longer[..], &whole[1..], b"", &whole[..whole.len() - 1]] {
            assert!(matches!(Description::read_whole(wrong), Err(DescriptionError::Damaged)));
        }
        let mut newer = whole;
        newer[MARK.len()] = 2;
        let refused = Description::read_whole(&newer).unwrap_err().to_string();
        assert_eq!(refused, "its description is of format 2, and this build reads up to 1: a newer pando is needed");
    }

    #[test]
    fn what_no_daemon_writes_is_refused() {
        let lies: [fn(&mut Description); 4] = [
            |it| it.id = "../../pando.db".into(),
            |it| it.vm = "no id".into(),
            |it| it.name = "No name".into(),
            |it| it.cpus = 0,
        ];
        for lie in lies {
            let mut told = example();
            lie(&mut told);
            let refused = Description::read(&mut &told.write().unwrap()[..]);
            assert!(matches!(refused, Err(DescriptionError::Damaged)), "{told:?}");
        }
    }
}
