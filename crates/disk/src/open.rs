//! Creating a disk, and finding one again after its monitor or the whole host died.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::disk::{Base, Disk, Inherited, Own, Pending, whole_slots};
use crate::files::Files;
use crate::journal::{Header, Journal, JournalError, LayerId, Replayed, replay};
use crate::map::BlockMap;
use crate::{BLOCK_BYTES, MAX_DISK_BYTES, MAX_LAYERS, MAX_SLOTS};

/// Why a disk cannot be had from the files given.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The size is none that a disk can have.
    #[error(
        "a disk of {len_bytes} bytes is not possible: wanted a multiple of {BLOCK_BYTES}, at most {MAX_DISK_BYTES}"
    )]
    Length {
        /// The size asked for, or found in a journal.
        len_bytes: u64,
    },
    /// The disk would not hold its base.
    #[error("a disk of {len_bytes} bytes is smaller than its base of {base_bytes} bytes")]
    BaseLonger {
        /// The disk's size.
        len_bytes: u64,
        /// The base's size.
        base_bytes: u64,
    },
    /// The base has another size than when the disk was created.
    #[error("the disk's base has {found} bytes, and had {recorded} when the disk was created")]
    BaseChanged {
        /// Its size now.
        found: u64,
        /// Its size then.
        recorded: u64,
    },
    /// The tree of forks is too deep.
    #[error("the disk would have {layers} layers, and {MAX_LAYERS} are possible")]
    TooDeep {
        /// How many layers, the own one included.
        layers: usize,
    },
    /// The wrong number of files was given.
    #[error("the disk inherits {wanted} layers, and {found} {what} were given")]
    Inherited {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A file that is to hold a new layer holds something already.
    #[error("{what} is not empty: it has {found_bytes} bytes")]
    NotEmpty {
        /// Which file.
        what: &'static str,
        /// Its size.
        found_bytes: u64,
    },
    /// An inherited layer's data file is shorter than it was at the fork.
    #[error("the data file of layer {ordinal} has {found_bytes} bytes, and had at least {wanted_bytes} at the fork")]
    ShortLayer {
        /// Which layer, 0 being the oldest.
        ordinal: usize,
        /// Its size now.
        found_bytes: u64,
        /// Its size then, at the least.
        wanted_bytes: u64,
    },
    /// A journal cannot be used.
    #[error("cannot use the map journal of layer {ordinal}")]
    Journal {
        /// Which layer, 0 being the oldest.
        ordinal: usize,
        /// The cause.
        source: JournalError,
    },
    /// A journal is whole, but not that of the ancestor which the disk was forked from.
    #[error("the map journal given for layer {ordinal} belongs to another layer")]
    Foreign {
        /// Which layer, 0 being the oldest.
        ordinal: usize,
    },
    /// An ancestor's journal is damaged in the part that was durable before the fork.
    #[error(
        "the map journal of layer {ordinal} is valid for {valid_bytes} bytes, and was for {wanted_bytes} at the fork"
    )]
    Damaged {
        /// Which layer, 0 being the oldest.
        ordinal: usize,
        /// How much of it is valid.
        valid_bytes: u64,
        /// How much was, at the fork.
        wanted_bytes: u64,
    },
    /// The host has no memory for the map.
    #[error("no memory for the map of a disk of {len_bytes} bytes")]
    NoMemory {
        /// The disk's size.
        len_bytes: u64,
    },
    /// A file's size could not be asked for.
    #[error("cannot look at {what}")]
    Look {
        /// Which file.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A journal could not be begun or cut.
    #[error("cannot write {what}")]
    Write {
        /// Which file.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("no random bytes for the name of a new layer")]
    Random {
        /// The cause.
        source: io::Error,
    },
}

impl Disk {
    /// A new disk of `len_bytes`: what the base holds, and zeroes behind it. Its layer is empty, and durable.
    ///
    /// # Errors
    ///
    /// Fails where `len_bytes` is no possible size or less than the base's, where the layer's files are not empty, where
    /// `files.inherited` is not empty, or where the journal cannot be written.
    pub fn create(files: Files, len_bytes: u64) -> Result<Self, OpenError> {
        check_inherited(0, files.inherited.len())?;
        check_empty("the new disk layer", &files.data)?;
        check_empty("the new disk map journal", &files.journal)?;
        let base_len_bytes = length("the disk's base", &files.base)?;
        let map = new_map(len_bytes, base_len_bytes)?;

        let header = Header { id: new_layer_id()?, len_bytes, base_len_bytes, ancestors: Vec::new() };
        let life = header.id; // Nobody else can have had it.
        let journal = Journal::create(files.journal, &header)
            .and_then(|mut journal| journal.sync().map(|()| journal))
            .map_err(|source| OpenError::Write { what: "the new disk map journal", source })?;
        Ok(Self {
            len_bytes,
            life,
            base: Base { file: files.base, len_bytes: base_len_bytes },
            inherited: Vec::new(),
            own: Own { data: files.data, next_slot: 0, frozen: 0, unsynced: false },
            journal,
            map,
            pending: Pending::default(),
            broken: false,
            dropped_journal_bytes: 0,
        })
    }

    /// A disk as its last flush left it, and perhaps some of what was written after that.
    ///
    /// `inherited_journals` are the map journals of the inherited layers, oldest first, open for reading. What follows
    /// the last valid record of the own journal is cut off; see [`Disk::dropped_journal_bytes`].
    ///
    /// Everything found in the own layer is frozen: children of the disk's earlier life may still read it. Where nobody does,
    /// [`Disk::thaw`] follows.
    ///
    /// # Errors
    ///
    /// Fails where the files are not those of one disk, a journal is damaged other than at its end, or it says what
    /// cannot be; see [`OpenError`]. Nothing is changed then.
    pub fn recover(files: Files, inherited_journals: Vec<File>) -> Result<Self, OpenError> {
        let ordinal = files.inherited.len();
        let mut own_input = Positioned::all(&files.journal, ordinal)?;
        let header = Header::read(&mut own_input).map_err(|source| OpenError::Journal { ordinal, source })?;
        check_inherited(header.ancestors.len(), files.inherited.len())?;
        if header.ancestors.len() != inherited_journals.len() {
            return Err(OpenError::Inherited {
                what: "map journals",
                found: inherited_journals.len(),
                wanted: header.ancestors.len(),
            });
        }
        let base_len_bytes = length("the disk's base", &files.base)?;
        if base_len_bytes != header.base_len_bytes {
            return Err(OpenError::BaseChanged { found: base_len_bytes, recorded: header.base_len_bytes });
        }
        let mut map = new_map(header.len_bytes, base_len_bytes)?;

        let mut slots = Vec::with_capacity(ordinal + 1);
        for data in &files.inherited {
            slots.push(whole_slots(length("an inherited disk layer", data)?));
        }
        for (ordinal, journal) in inherited_journals.iter().enumerate() {
            replay_ancestor(ordinal, journal, &header, &slots, &mut map)?;
        }
        let own_bytes = length("the disk layer", &files.data)?;
        slots.push(whole_slots(own_bytes));
        let replayed = replay(&mut own_input, &header, &slots, &mut map)
            .map_err(|source| OpenError::Journal { ordinal, source })?;

        let journal_bytes = length("the disk map journal", &files.journal)?;
        let dropped_journal_bytes = journal_bytes.saturating_sub(replayed.end);
        let journal = Journal::resume(files.journal, &header, &replayed)
            .map_err(|source| OpenError::Write { what: "the disk map journal", source })?;
        // A child may have journalled slots of this layer that this journal never named. They are in the data file, whole.
        let next_slot = whole_slots(own_bytes).min(MAX_SLOTS);
        let inherited = (files.inherited.into_iter().zip(header.ancestors).zip(slots))
            .map(|((data, layer), slots)| Inherited { data, layer, slots, unsynced: true })
            .collect();
        Ok(Self {
            len_bytes: header.len_bytes,
            life: new_layer_id()?,
            base: Base { file: files.base, len_bytes: base_len_bytes },
            inherited,
            // What was written in place after the last flush is in the page cache at best.
            own: Own { data: files.data, next_slot, frozen: next_slot, unsynced: true },
            journal,
            map,
            pending: Pending::default(),
            broken: false,
            dropped_journal_bytes,
        })
    }
}

/// Replays what an ancestor's journal had at the fork that `own` tells of.
fn replay_ancestor(
    ordinal: usize,
    journal: &File,
    own: &Header,
    slots: &[u64],
    map: &mut BlockMap,
) -> Result<(), OpenError> {
    let wanted_bytes = own.ancestors[ordinal].journal_bytes;
    if wanted_bytes == 0 {
        return Ok(()); // Nothing of it was durable at the fork, so its child's journal has all of it.
    }
    let mut input = Positioned::part(journal, wanted_bytes);
    let header = Header::read(&mut input).map_err(|source| OpenError::Journal { ordinal, source })?;
    let is_this_ancestor = header.id == own.ancestors[ordinal].id
        && header.ancestors == own.ancestors[..ordinal]
        && header.len_bytes == own.len_bytes
        && header.base_len_bytes == own.base_len_bytes;
    if !is_this_ancestor {
        return Err(OpenError::Foreign { ordinal });
    }
    let Replayed { end, .. } = replay(&mut input, &header, &slots[..=ordinal], map)
        .map_err(|source| OpenError::Journal { ordinal, source })?;
    if end != wanted_bytes {
        return Err(OpenError::Damaged { ordinal, valid_bytes: end, wanted_bytes });
    }
    Ok(())
}

/// An empty map for a disk of `len_bytes`, which must be a possible size.
fn new_map(len_bytes: u64, base_bytes: u64) -> Result<BlockMap, OpenError> {
    let is_possible = len_bytes.is_multiple_of(BLOCK_BYTES) && (BLOCK_BYTES..=MAX_DISK_BYTES).contains(&len_bytes);
    if !is_possible {
        return Err(OpenError::Length { len_bytes });
    }
    if len_bytes < base_bytes {
        return Err(OpenError::BaseLonger { len_bytes, base_bytes });
    }
    let blocks = usize::try_from(len_bytes / BLOCK_BYTES).ok();
    blocks.and_then(BlockMap::new).ok_or(OpenError::NoMemory { len_bytes })
}

pub(crate) fn check_inherited(wanted: usize, found: usize) -> Result<(), OpenError> {
    if wanted != found {
        return Err(OpenError::Inherited { what: "data files", found, wanted });
    }
    Ok(())
}

pub(crate) fn check_empty(what: &'static str, file: &File) -> Result<(), OpenError> {
    match length(what, file)? {
        0 => Ok(()),
        found_bytes => Err(OpenError::NotEmpty { what, found_bytes }),
    }
}

pub(crate) fn length(what: &'static str, file: &File) -> Result<u64, OpenError> {
    file.metadata().map(|metadata| metadata.len()).map_err(|source| OpenError::Look { what, source })
}

/// A name for a layer that no other layer has.
pub(crate) fn new_layer_id() -> Result<LayerId, OpenError> {
    let mut id = LayerId::default();
    // 16 bytes never come in two parts: the kernel interrupts only longer requests.
    rustix::io::retry_on_intr(|| getrandom(&mut id, GetRandomFlags::empty()))
        .map_err(|error| OpenError::Random { source: error.into() })?;
    Ok(id)
}

/// Reads a part of a file from its start, by position, and no byte more.
struct Positioned<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> Positioned<'a> {
    /// The whole journal of layer `ordinal`, as long as it is now.
    fn all(file: &'a File, ordinal: usize) -> Result<BufReader<Self>, OpenError> {
        let metadata = file.metadata();
        let end =
            metadata.map_err(|source| OpenError::Journal { ordinal, source: JournalError::Read { source } })?.len();
        Ok(Self::part(file, end))
    }

    /// The first `end` bytes.
    fn part(file: &'a File, end: u64) -> BufReader<Self> {
        BufReader::new(Self { file, at: 0, end })
    }
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = (self.end - self.at).min(buffer.len() as u64) as usize;
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
