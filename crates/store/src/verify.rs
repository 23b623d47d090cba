//! Reading everything, and naming what is damaged and what that affects.

use crate::format::{FormatError, Kind, Manifest, Pack, read_index};
use crate::id::{ChunkId, ManifestId, PackId};
use crate::local::{Directory, FileError, StoreLock, read};
use crate::meter::Meter;
use crate::read::{ReadError, decompress};
use crate::store::{CheckpointError, Store};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use zstd::bulk::Decompressor;

/// What was read, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Checkpoints.
    pub checkpoints: usize,
    /// Manifests.
    pub manifests: usize,
    /// Packs.
    pub packs: usize,
    /// Chunks in them.
    pub chunks: u64,
    /// The length of all that, in bytes.
    pub bytes: u64,
    /// Everything that is wrong.
    pub damage: Vec<Damage>,
}

/// A file that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// The checkpoints that cannot be used in full because of it, sorted.
    pub affected: Vec<String>,
}

impl Store {
    /// Reads every file and checks every byte. Nothing is changed. Others may write and read meanwhile; garbage
    /// collection waits.
    pub fn verify(&self) -> Result<Verified, FileError> {
        self.verify_watched(&Meter::default())
    }

    /// The same, which has `meter` say how far it is: packs count, as nearly all is in them.
    pub fn verify_watched(&self, meter: &Meter) -> Result<Verified, FileError> {
        let directory = &self.inner.directory;
        let _lock = StoreLock::shared(directory)?;
        let mut verify = Verify { directory, meter, found: Verified::default() };
        let checkpoints = verify.checkpoints()?;
        // Without its mark, nobody can open the store.
        if let Err(error) = Directory::open(directory.root()) {
            verify.damaged(error, checkpoints.keys().cloned().collect())?;
        }
        let manifests = verify.manifests(&checkpoints)?;
        let packs = verify.packs()?;
        verify.blame(&checkpoints, &manifests, packs);
        verify.found.damage.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(verify.found)
    }
}

/// Why a checkpoint cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be opened.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Not everything in it can be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Store {
    /// Reads every chunk of a checkpoint from the disk, and checks it: for when the only other copy is about to go. Returns
    /// how many bytes of pages that are.
    pub fn verify_checkpoint(&self, name: &str) -> Result<u64, VerifyError> {
        let open = self.open_checkpoint(name)?;
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        for id in open.checkpoint().manifests() {
            let layer = open.layer(id)?;
            for span in layer.manifest().spans() {
                if span.chunk.is_some_and(|chunk| seen.insert(chunk)) {
                    bytes += layer.check_span(span)? as u64;
                }
            }
        }
        Ok(bytes)
    }
}

struct Verify<'s> {
    directory: &'s Directory,
    meter: &'s Meter,
    found: Verified,
}

/// A checkpoint that can be read.
struct Named {
    manifests: Vec<ManifestId>,
    packs: BTreeSet<PackId>,
}

/// What is known of all packs.
#[derive(Default)]
struct Packs {
    /// The chunks that some pack has as they should be.
    good: HashSet<ChunkId>,
    chunks: u64,
    bad: Vec<BadPack>,
}

struct BadPack {
    id: PackId,
    problem: String,
    /// The chunks that are bad. `None` where what was in it cannot be known.
    chunks: Option<HashSet<ChunkId>>,
}

impl Verify<'_> {
    fn checkpoints(&mut self) -> Result<BTreeMap<String, Named>, FileError> {
        let mut named = BTreeMap::new();
        for name in self.directory.list_checkpoints()? {
            match self.directory.read_checkpoint(&name) {
                Ok(stored) => {
                    self.found.checkpoints += 1;
                    let manifests = stored.checkpoint.manifests().collect();
                    named.insert(name, Named { manifests, packs: stored.packs.into_iter().collect() });
                }
                Err(error) if error.is_absent() => (), // Removed just now.
                Err(error) => self.damaged(error, vec![name])?,
            }
        }
        Ok(named)
    }

    fn manifests(&mut self, checkpoints: &BTreeMap<String, Named>) -> Result<HashMap<ManifestId, Manifest>, FileError> {
        let mut wanted: BTreeSet<ManifestId> = self.directory.list_manifests()?.into_iter().collect();
        wanted.extend(checkpoints.values().flat_map(|named| &named.manifests));
        let mut manifests = HashMap::new();
        for id in wanted {
            let path = self.directory.manifest(id);
            let read = read(&path).and_then(|bytes| {
                let manifest = Manifest::read(id, &bytes).map_err(|why| FileError::format(&path, why))?;
                Ok((manifest, bytes.len()))
            });
            match read {
                Ok((manifest, len)) => {
                    self.found.manifests += 1;
                    self.found.bytes += len as u64;
                    manifests.insert(id, manifest);
                }
                Err(error) => {
                    let names = |named: &Named| named.manifests.contains(&id);
                    let affected = checkpoints.iter().filter(|(_, named)| names(named)).map(|(name, _)| name.clone());
                    self.damaged(error, affected.collect())?;
                }
            }
        }
        Ok(manifests)
    }

    fn packs(&mut self) -> Result<Packs, FileError> {
        let mut packs = Packs::default();
        let ids = self.directory.list_packs()?;
        self.meter.expect(ids.len());
        for id in ids {
            match read(&self.directory.pack(id)) {
                Ok(file) => {
                    self.found.packs += 1;
                    self.found.bytes += file.len() as u64;
                    self.pack(id, &file, &mut packs)?;
                }
                Err(error) if is_unreadable(&error) => {
                    packs.bad.push(BadPack { id, problem: sentence(&error), chunks: None });
                }
                Err(error) => return Err(error),
            }
            self.meter.one_more();
        }
        self.found.chunks = packs.chunks;
        Ok(packs)
    }

    /// What is wrong with a pack, if anything, and which of its chunks can be read all the same.
    fn pack(&self, id: PackId, file: &[u8], packs: &mut Packs) -> Result<(), FileError> {
        let read = Pack::read(id, file).map(|pack| pack.index);
        let index = match &read {
            Ok(index) => Some(index.clone()),
            Err(FormatError::Newer(_)) => None,
            // A reader takes no pack whose length is wrong.
            Err(_) => read_index(file).ok().filter(|index| index.file_len == file.len() as u64),
        };
        let Some(index) = index else {
            let problem = read.err().map_or_else(String::new, |why| why.to_string());
            packs.bad.push(BadPack { id, problem, chunks: None });
            return Ok(());
        };
        let mut decompressor =
            Decompressor::new().map_err(|error| FileError::io("decompress", &self.directory.pack(id), error))?;
        let mut bad = HashSet::new();
        for entry in &index.entries {
            let (raw, spare) = decompress(decompressor, entry, file[entry.range()].to_vec());
            decompressor = spare;
            let into = if raw.is_some() { &mut packs.good } else { &mut bad };
            into.insert(entry.id);
        }
        packs.chunks += index.entries.len() as u64;
        let problem = match read {
            Err(why) => why.to_string(),
            Ok(_) if bad.is_empty() => return Ok(()),
            // Only a writer that was wrong leaves this behind.
            Ok(_) => format!("{} of its chunks are not what they are named after", bad.len()),
        };
        packs.bad.push(BadPack { id, problem, chunks: Some(bad) });
        Ok(())
    }

    /// Says which checkpoints lack chunks, and which damaged pack that comes from, where that can be known.
    fn blame(
        &mut self,
        checkpoints: &BTreeMap<String, Named>,
        manifests: &HashMap<ManifestId, Manifest>,
        packs: Packs,
    ) {
        let Packs { good, bad, .. } = packs;
        let mut lost_of: HashMap<PackId, BTreeSet<String>> = HashMap::new();
        for (name, named) in checkpoints {
            let mut lost = [(Kind::Memory, 0u64), (Kind::Disk, 0u64)];
            for manifest in named.manifests.iter().filter_map(|id| manifests.get(id)) {
                for span in manifest.spans() {
                    let Some(chunk) = span.chunk.filter(|chunk| !good.contains(chunk)) else { continue };
                    let mut blamed = bad.iter().filter(|pack| match &pack.chunks {
                        Some(chunks) => chunks.contains(&chunk),
                        None => named.packs.contains(&pack.id),
                    });
                    match blamed.next() {
                        Some(pack) => drop(lost_of.entry(pack.id).or_default().insert(name.clone())),
                        None => lost.iter_mut().filter(|(kind, _)| *kind == manifest.kind()).for_each(|(_, pages)| {
                            *pages += u64::from(span.data.count_ones());
                        }),
                    }
                }
            }
            for (kind, pages) in lost.into_iter().filter(|(_, pages)| *pages > 0) {
                let of = if kind == Kind::Memory { "memory" } else { "disks" };
                let problem = format!("no pack has {pages} pages of its {of}");
                self.found.damage.push(Damage {
                    path: self.directory.checkpoint(name),
                    problem,
                    affected: vec![name.clone()],
                });
            }
        }
        for BadPack { id, problem, .. } in bad {
            let affected = lost_of.remove(&id).unwrap_or_default().into_iter().collect();
            self.found.damage.push(Damage { path: self.directory.pack(id), problem, affected });
        }
    }

    /// Notes an error about a file. Other errors end the verification.
    fn damaged(&mut self, error: FileError, affected: Vec<String>) -> Result<(), FileError> {
        let problem = sentence(&error);
        match error {
            FileError::Damaged { path, .. } | FileError::Newer { path, .. } => {
                self.found.damage.push(Damage { path, problem, affected });
                Ok(())
            }
            FileError::Io { ref path, .. } if is_unreadable(&error) => {
                self.found.damage.push(Damage { path: path.clone(), problem, affected });
                Ok(())
            }
            error => Err(error),
        }
    }
}

/// Whether a file is gone or its sectors are.
fn is_unreadable(error: &FileError) -> bool {
    let is_bad_sector = |source: &io::Error| source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    error.is_absent() || matches!(error, FileError::Io { source, .. } if is_bad_sector(source))
}

/// An error without its path, which is told beside it.
fn sentence(error: &FileError) -> String {
    match error {
        FileError::Io { source, .. } if error.is_absent() => format!("it is missing: {source}"),
        FileError::Io { source, .. } => format!("it cannot be read: {source}"),
        FileError::Newer { found, .. } => FormatError::Newer(*found).to_string(),
        FileError::Damaged { source, .. } => source.to_string(),
    }
}
