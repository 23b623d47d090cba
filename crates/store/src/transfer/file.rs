//! Checkpoints in one stream: a tar of the files that they need, each after what it needs.

use super::intake::{Intake, IntakeError};
use super::names::Name;
use super::outgoing::Outgoing;
use crate::format::{FORMAT, FileKind, FormatError, HEADER_BYTES, MAX_PACK_BYTES, StoredCheckpoint, seal, unseal};
use crate::local::FileError;
use crate::store::{CheckpointError, Store};
use std::collections::HashSet;
use std::io::{self, Read, Write};

/// The longest manifest or checkpoint that is taken from elsewhere, in bytes: it is held in memory. The manifest of 300 GiB
/// of RAM is that long.
pub(super) const MAX_OTHER_BYTES: u64 = 1 << 30;

/// Why a checkpoint was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file of it cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A part of it is longer than 32 bits can say.
    #[error("checkpoint {0} is too large to be written down")]
    TooLarge(String),
    /// The stream takes no more.
    #[error("cannot write the stream")]
    Stream(#[source] io::Error),
}

/// Why nothing, or only some checkpoints, were imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file in the stream is not taken.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The stream ends early or is none of ours.
    #[error("cannot read the stream")]
    Stream(#[source] io::Error),
    /// The stream does not begin as one of ours.
    #[error("this is no export of checkpoints")]
    NotOurs,
    /// Something in it is none of ours.
    #[error("the stream has a file {0:?}, which is none of a store's")]
    Unknown(String),
    /// A file is longer than any that a store has.
    #[error("{name} would be {len} bytes long, which no file of a store is")]
    TooLong {
        /// Which.
        name: String,
        /// How long it says it is.
        len: u64,
    },
    /// It ends without a checkpoint.
    #[error("the stream ends before its checkpoint, so it was cut off")]
    CutOff,
}

impl Store {
    /// Writes checkpoints and everything they need into one stream.
    pub fn export(&self, names: &[&str], stream: impl Write) -> Result<(), ExportError> {
        self.export_each(names, stream, |_| Vec::new())
    }

    /// The same, with the working sets of their layers, which the first builds that read streams do not take.
    pub fn export_with_working_sets(&self, names: &[&str], stream: impl Write) -> Result<(), ExportError> {
        self.export_each(names, stream, Outgoing::working_sets)
    }

    fn export_each(
        &self,
        names: &[&str],
        stream: impl Write,
        working_sets: impl Fn(&Outgoing) -> Vec<(Name, Vec<u8>)>,
    ) -> Result<(), ExportError> {
        let mut tar = tar::Builder::new(stream);
        append(&mut tar, &Name::Mark, &seal(FileKind::Store, vec![0; HEADER_BYTES]))?;
        let mut sent = HashSet::new();
        for name in names {
            let outgoing = Outgoing::begin(self, name)?;
            let packs = outgoing.packs().iter().map(|id| Name::Pack(*id));
            let manifests = outgoing.manifests.iter().map(|id| Name::Manifest(*id));
            for file in packs.chain(manifests) {
                let file_name = file.to_string();
                if sent.insert(file_name) {
                    append(&mut tar, &file, &outgoing.read(&file)?)?;
                }
            }
            for (file, bytes) in working_sets(&outgoing) {
                append(&mut tar, &file, &bytes)?;
            }
            let bytes = outgoing.checkpoint_file().ok_or_else(|| ExportError::TooLarge((*name).to_owned()))?;
            append(&mut tar, &Name::Checkpoint((*name).to_owned()), &bytes)?;
        }
        tar.into_inner().and_then(|mut stream| stream.flush()).map_err(ExportError::Stream)
    }

    /// Reads a stream, checking every byte before it is believed, and returns the names of the checkpoints in it. Each is
    /// durable when the next one begins, and there in full or not at all.
    pub fn import(&self, stream: impl Read) -> Result<Vec<String>, ImportError> {
        let intake = Intake::begin(self)?;
        let mut names = Vec::new();
        let mut tar = tar::Archive::new(stream);
        let (mut is_first, mut is_open) = (true, true);
        // Raw: what tar can say beside names and content is read into memory before anything is asked, however long it is.
        for entry in tar.entries().map_err(ImportError::Stream)?.raw(true) {
            let mut entry =
                entry.map_err(|error| if is_first { ImportError::NotOurs } else { ImportError::Stream(error) })?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name: Name =
                path.parse().map_err(|_| if is_first { ImportError::NotOurs } else { ImportError::Unknown(path) })?;
            if is_first != (name == Name::Mark) {
                return Err(ImportError::NotOurs);
            }
            if !entry.header().entry_type().is_file() {
                return Err(ImportError::Unknown(name.to_string()));
            }
            is_first = false;
            let bytes = content(&name, entry.size(), &mut entry)?;
            is_open = !matches!(name, Name::Checkpoint(_));
            match name {
                Name::Mark => mark(&bytes)?,
                Name::Pack(id) if intake.has_pack(id)? => (),
                Name::Pack(id) => intake.pack(id, &bytes)?,
                Name::Manifest(id) if intake.has_manifest(id)? => (),
                Name::Manifest(id) => intake.manifest(id, &bytes)?,
                Name::WorkingSet(id) => intake.working_set(id, &bytes)?,
                Name::Checkpoint(name) => {
                    let file = Name::Checkpoint(name.clone());
                    let stored = StoredCheckpoint::read(&bytes).map_err(|why| IntakeError::format(&file, why))?;
                    if stored.checkpoint.name != name {
                        return Err(IntakeError::format(&file, FormatError::Name).into());
                    }
                    intake.checkpoint(&stored.checkpoint)?;
                    names.push(name);
                }
            }
        }
        match (is_first, is_open) {
            (true, _) => Err(ImportError::NotOurs),
            (_, true) => Err(ImportError::CutOff),
            _ => Ok(names),
        }
    }
}

fn append(tar: &mut tar::Builder<impl Write>, name: &Name, bytes: &[u8]) -> Result<(), ExportError> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    // The checksum is of the whole header, so the name comes first.
    tar.append_data(&mut header, name.to_string(), bytes).map_err(ExportError::Stream)
}

/// All of a file in the stream, of which no more is read than a store's files can have.
fn content(name: &Name, len: u64, entry: &mut impl Read) -> Result<Vec<u8>, ImportError> {
    let most = if let Name::Pack(_) = name { MAX_PACK_BYTES } else { MAX_OTHER_BYTES };
    if len > most {
        return Err(ImportError::TooLong { name: name.to_string(), len });
    }
    let mut bytes = Vec::new();
    entry.take(len).read_to_end(&mut bytes).map_err(ImportError::Stream)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(ImportError::CutOff) }
}

/// The mark says which format all of it has.
fn mark(bytes: &[u8]) -> Result<(), ImportError> {
    let payload = unseal(FileKind::Store, bytes).map_err(|why| IntakeError::format("the stream", why))?;
    const _: () = assert!(FORMAT == 1, "a mark of this format has no payload");
    if payload.is_empty() { Ok(()) } else { Err(IntakeError::format("the stream", FormatError::Length).into()) }
}
